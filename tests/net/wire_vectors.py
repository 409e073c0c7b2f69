"""The frames whose bytes stand in ``docs/protocol.md``, made anew; as a program, printed."""

from __future__ import annotations

import re
from pathlib import Path

import lz4.block

from streamlearn.net.connection import ClientHandshake, ServerHandshake, encode_error
from streamlearn.net.frame import ALIVE, ANSWER, CHALLENGE, ERROR, HELLO, PROOF, REQUEST, WELCOME
from streamlearn.net.security import cluster_id
from streamlearn.protocol import Done, Ping, Pull, encode
from tests.net.wire_parts import (
    CLIENT_NONCE,
    CLUSTER,
    SECRETS,
    SERVER_NONCE,
    WELCOME_IS,
    WORKER,
    frame,
)

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def made() -> dict[str, bytes]:
    """Return each frame of the page by its name, from a whole handshake on."""
    client = ClientHandshake(cluster_id(CLUSTER), WORKER, SECRETS, CLIENT_NONCE)
    server = ServerHandshake(cluster_id(CLUSTER), SECRETS, SERVER_NONCE)
    challenge = server.received(HELLO, client.hello)
    assert challenge is not None
    answer = client.received(CHALLENGE, challenge)
    assert answer is not None
    server.received(PROOF, answer)
    pull = bytes(encode(Pull(0, 7, 3, 2, memoryview(b"\0" * 64), 1)))
    return {
        "hello": frame(HELLO, 0, client.hello),
        "challenge": frame(CHALLENGE, 0, challenge),
        "proof": frame(PROOF, 0, answer),
        "welcome": frame(WELCOME, 0, WELCOME_IS.encode()),
        "ping": frame(REQUEST, 1, bytes(encode(Ping()))),
        "done": frame(ANSWER, 1, bytes(encode(Done()))),
        "pull": frame(REQUEST, 2, pull),
        "pull-lz4": frame(
            REQUEST, 2, lz4.block.compress(pull, store_size=False), len(pull), flags=1
        ),
        "alive": frame(ALIVE, 0, b""),
        "error": frame(ERROR, 0, encode_error("size", "too large")),
    }


def written() -> dict[str, bytes]:
    """Return the same as the page has them."""
    block = re.compile(r"^```hex ([a-z0-9-]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = block.findall(PAGE.read_text())
    return {name: bytes.fromhex(text) for name, text in blocks}


if __name__ == "__main__":
    for name, data in made().items():
        lines = [data[at : at + 32].hex(" ", -4) for at in range(0, len(data), 32)]
        print(f"```hex {name}", *lines, "```", "", sep="\n")  # noqa: T201
