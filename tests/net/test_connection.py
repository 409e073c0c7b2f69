from __future__ import annotations

import pytest

from streamlearn.errors import AccessError
from streamlearn.net.connection import (
    AWAIT_CHALLENGE,
    AWAIT_HELLO,
    CLIENT_OPEN,
    SERVER_OPEN,
    ClientHandshake,
    Peer,
    ServerHandshake,
    Welcome,
    decode_error,
    encode_error,
    frame_sizes,
    printable,
)
from streamlearn.net.frame import (
    CHALLENGE,
    HELLO,
    PROOF,
    REASONS,
    UNSETTLED_BYTES_MAX,
    WELCOME,
    FrameError,
)
from streamlearn.net.security import ROLES, Secrets
from tests.net.wire_parts import CLIENT_NONCE, SECRETS, SERVER_NONCE, TOKEN, WELCOME_IS, WORKER

ID = 12345


def client(peer: Peer = WORKER, secrets: Secrets = SECRETS, **more: object) -> ClientHandshake:
    return ClientHandshake(ID, peer, secrets, CLIENT_NONCE, **more)  # type: ignore[arg-type]


def server(secrets: Secrets = SECRETS, **more: object) -> ServerHandshake:
    return ServerHandshake(ID, secrets, SERVER_NONCE, **more)  # type: ignore[arg-type]


def settle(one: ClientHandshake, other: ServerHandshake) -> None:
    challenge = other.received(HELLO, one.hello)
    assert challenge is not None
    answer = one.received(CHALLENGE, challenge)
    assert answer is not None
    assert other.received(PROOF, answer) is None
    assert one.received(WELCOME, WELCOME_IS.encode()) is None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("secrets", [SECRETS, Secrets()], ids=["token", "none"])
def test_both_sides_know_who_is_who_in_the_end(role: str, secrets: Secrets) -> None:
    one, other = client(Peer(role, "é" * 32), secrets), server(secrets)
    settle(one, other)
    assert (one.state, other.state) == (CLIENT_OPEN, SERVER_OPEN)
    assert other.peer == Peer(role, "é" * 32)
    assert one.welcome == WELCOME_IS


def test_nobody_is_known_before_the_proof() -> None:
    one, other = client(), server()
    other.received(HELLO, one.hello)
    assert other.peer is None


def test_longest_hello_and_proof_fit_what_an_unknown_peer_may_send() -> None:
    hello = client(Peer("worker", "n" * 64)).hello
    assert 40 + len(hello) + 40 + 32 <= UNSETTLED_BYTES_MAX
    assert len(hello) == frame_sizes(AWAIT_HELLO, 0)[HELLO]


def test_server_refuses_a_wrong_token() -> None:
    one, other = client(secrets=Secrets({"": b"x" * 32})), server()
    challenge = other.received(HELLO, one.hello)
    assert challenge is not None
    with pytest.raises(AccessError, match="server does not have the token"):
        one.received(CHALLENGE, challenge)
    with pytest.raises(AccessError, match="worker does not have the token"):
        other.received(PROOF, bytes(32))
    assert other.peer is None


@pytest.mark.parametrize("size", [0, 31, 33])
def test_server_refuses_a_proof_of_another_size(size: int) -> None:
    one, other = client(), server()
    other.received(HELLO, one.hello)
    with pytest.raises(AccessError):
        other.received(PROOF, bytes(size))


def test_the_servers_proof_is_none_of_the_clients() -> None:
    one, other = client(), server()
    challenge = other.received(HELLO, one.hello)
    assert challenge is not None
    with pytest.raises(AccessError):
        other.received(PROOF, challenge[-32:])


def test_a_proof_cannot_be_played_back() -> None:
    one, other = client(), server()
    challenge = other.received(HELLO, one.hello)
    assert challenge is not None
    answer = one.received(CHALLENGE, challenge)
    assert answer is not None
    again = ServerHandshake(ID, SECRETS, bytes(32))
    again.received(HELLO, one.hello)
    with pytest.raises(AccessError):
        again.received(PROOF, answer)


@pytest.mark.parametrize("at", range(len(client().hello)))
def test_nothing_of_a_hello_can_be_changed_under_way(at: int) -> None:
    one, other = client(), server()
    hello = bytearray(one.hello)
    hello[at] ^= 1
    try:
        challenge = other.received(HELLO, bytes(hello))
    except FrameError:
        return
    assert challenge is not None
    with pytest.raises(AccessError):
        one.received(CHALLENGE, challenge)


@pytest.mark.parametrize("at", range(65))
def test_nothing_of_a_challenge_can_be_changed_under_way(at: int) -> None:
    one, other = client(), server()
    challenge = other.received(HELLO, one.hello)
    assert challenge is not None
    changed = bytearray(challenge)
    changed[at] ^= 1
    with pytest.raises((AccessError, FrameError)):
        one.received(CHALLENGE, bytes(changed))
    assert one.state == AWAIT_CHALLENGE


def test_a_role_has_its_own_token() -> None:
    both = Secrets({"worker": TOKEN, "admin": b"a" * 32})
    settle(client(secrets=Secrets({"": TOKEN})), server(both))
    with pytest.raises(AccessError):
        settle(client(Peer("admin", "a"), Secrets({"": TOKEN})), server(both))
    with pytest.raises(AccessError, match="'reader' has no token here"):
        settle(client(Peer("reader", "r"), Secrets({"": TOKEN})), server(both))
    with pytest.raises(AccessError, match="no token for role 'reader'"):
        client(Peer("reader", "r"), both)


def test_one_side_with_a_token_and_one_without_part() -> None:
    with pytest.raises(AccessError):
        settle(client(secrets=Secrets()), server())
    with pytest.raises(AccessError):
        settle(client(), server(Secrets()))


def test_a_certificate_says_which_role_may_be_taken() -> None:
    settle(client(), server(client_roles=frozenset({"worker", "reader"})))
    with pytest.raises(AccessError, match="certificate of this worker is for reader"):
        settle(client(), server(client_roles=frozenset({"reader"})))
    with pytest.raises(AccessError, match="no role"):
        settle(client(), server(client_roles=frozenset()))
    with pytest.raises(AccessError, match="for worker, expected shard"):
        client(server_roles=frozenset({"worker"}))


@pytest.mark.parametrize(
    "hello",
    [
        b"",
        bytes(34),
        bytes([9, 2]) + bytes(32) + b"ab",
        bytes([1, 3]) + bytes(32) + b"ab",
        bytes([1, 1]) + bytes(32) + b"ab",
        bytes([1, 2]) + bytes(32) + b"\xff\xfe",
        bytes([1, 2]) + bytes(32) + b"a\n",
    ],
)
def test_server_refuses_a_hello_that_is_none(hello: bytes) -> None:
    with pytest.raises(FrameError):
        server().received(HELLO, hello)


def test_client_refuses_a_challenge_of_another_size_or_role() -> None:
    with pytest.raises(FrameError, match="64 bytes"):
        client().received(CHALLENGE, bytes(64))
    with pytest.raises(FrameError, match="role 1"):
        client().received(CHALLENGE, bytes([1]) + bytes(64))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        WELCOME_IS.encode()[:19],
        Welcome(2, 2, 0, 128, 7, "").encode(),
        Welcome(0, 1, 5, 5, 7, "").encode(),
        Welcome(0, 1, 0, 257, 7, "").encode(),
        WELCOME_IS.encode() + b"\xff",
        WELCOME_IS.encode() + b"\n",
    ],
)
def test_a_welcome_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        Welcome.decode(body)


@pytest.mark.parametrize("reason", REASONS[1:])
def test_an_error_says_its_reason_and_a_text_fit_to_print(reason: str) -> None:
    body = encode_error(reason, "wrong \x1b[2J" + "ä" * 200)
    assert len(body) <= frame_sizes(AWAIT_HELLO, 0)[8]
    error = decode_error(body)
    assert error.reason == reason
    assert error.cause is not None
    assert error.cause.startswith("wrong ?[2Jää")
    assert error.cause.isprintable()


@pytest.mark.parametrize("body", [b"", b"\0no", b"\xffno"])
def test_an_error_without_a_known_reason_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode_error(body)


def test_text_that_moves_a_cursor_is_not_printed() -> None:
    assert printable("a\r\n\x00b\u202e") == "a???b?"
