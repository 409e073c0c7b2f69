from __future__ import annotations

from pathlib import Path

import pytest

from streamlearn.errors import ConfigError
from streamlearn.net.security import (
    MAY_ASK,
    ROLES,
    Secrets,
    TlsFiles,
    certificate_roles,
    cluster_id,
    proof,
)
from streamlearn.protocol import Follow, Pull, Push, TakeSnapshot
from tests.net.certificates import Authority

TOKEN = "0123456789abcdef0123456789abcdef"


def token_file(path: Path, text: str, mode: int = 0o600) -> str:
    file = path / "token"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_one_token_is_that_of_all_roles(tmp_path: Path) -> None:
    secrets = Secrets.load(token_file=token_file(tmp_path, f"# ours\n\n  {TOKEN}  \n"))
    assert {secrets.token(role) for role in ROLES} == {TOKEN.encode()}
    assert not secrets.empty


def test_roles_have_tokens_of_their_own(tmp_path: Path) -> None:
    text = f"worker: {TOKEN}\nadmin: {TOKEN[::-1]}\n"
    secrets = Secrets.load(token_file=token_file(tmp_path, text, 0o640))
    assert secrets.token("worker") == TOKEN.encode()
    assert secrets.token("admin") == TOKEN[::-1].encode()
    assert secrets.token("reader") is None


def test_without_secrets_everybody_has_the_empty_token() -> None:
    assert Secrets.load().empty
    assert Secrets().token("worker") == b""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no token"),
        ("# only a word on it\n", "holds no token"),
        ("short", "line 1 .* 5 characters, expected 20"),
        (f"{TOKEN}\n{TOKEN}", "line 2 .* second token of role 'all'"),
        (f"worker: {TOKEN}\nworker: {TOKEN}", "second token of role 'worker'"),
        (f"boss: {TOKEN}", "role 'boss', expected one of shard, worker"),
        ("ä" * 30, "not ASCII"),
        ("x" * 2000, "2000 characters"),
        ("#" * 70_000, "longer than"),
    ],
)
def test_a_token_file_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Secrets.load(token_file=token_file(tmp_path, text))


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o777])
def test_a_token_file_open_to_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"mode {mode:04o}") as caught:
        Secrets.load(token_file=token_file(tmp_path, TOKEN, mode))
    assert "chmod o-rwx" in str(caught.value.hint)
    assert TOKEN not in str(caught.value)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token file .*nothing' cannot be read"):
        Secrets.load(token_file=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="is not a file"):
        Secrets.load(token_file=str(tmp_path))
    with pytest.raises(ConfigError, match="three files"):
        Secrets.load(tls_key="key")


def test_tls_files_are_tried_when_they_are_loaded(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    shard, worker = authority.issue("shard-0", "shard"), authority.issue("w0", "worker")
    secrets = Secrets.load(
        tls_authority=shard.authority, tls_certificate=shard.certificate, tls_key=shard.key
    )
    assert secrets.tls == shard
    assert secrets.token("worker") == b""
    with pytest.raises(ConfigError, match="cannot be used"):
        Secrets.load(
            tls_authority=shard.authority, tls_certificate=shard.certificate, tls_key=worker.key
        )
    with pytest.raises(ConfigError, match=r"authority .* cannot be read"):
        Secrets.load(tls_authority=shard.key, tls_certificate=shard.certificate, tls_key=shard.key)
    Path(shard.key).chmod(0o644)
    with pytest.raises(ConfigError, match=r"TLS key .* open to every user"):
        Secrets.load(
            tls_authority=shard.authority, tls_certificate=shard.certificate, tls_key=shard.key
        )


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    files = Authority(tmp_path, "ours").issue("w0", "worker", password=b"secret")
    with pytest.raises(ConfigError) as caught:
        Secrets.load(
            tls_authority=files.authority, tls_certificate=files.certificate, tls_key=files.key
        )
    assert "password" in str(caught.value.cause)


def test_a_certificates_units_are_its_roles() -> None:
    subject = (
        (("commonName", "w0"),),
        (("organizationalUnitName", "worker"),),
        (("organizationalUnitName", "reader"), ("organizationalUnitName", "sales")),
    )
    assert certificate_roles({"subject": subject}) == {"worker", "reader"}
    assert certificate_roles({}) == certificate_roles(None) == frozenset()


def test_a_proof_depends_on_where_its_parts_end() -> None:
    assert proof(b"k", b"l", b"ab", b"c") != proof(b"k", b"l", b"a", b"bc")
    assert len(proof(b"", b"l")) == 32


def test_clusters_have_numbers() -> None:
    assert cluster_id("demo") == int.from_bytes(bytes.fromhex("2a97516c354b6884"), "little")


def test_a_worker_may_not_administer_nor_a_follower_push() -> None:
    assert MAY_ASK.keys() == set(ROLES)
    assert [role for role in ROLES if TakeSnapshot in MAY_ASK[role]] == ["admin"]
    assert [role for role in ROLES if Push in MAY_ASK[role]] == ["worker"]
    assert [role for role in ROLES if Follow in MAY_ASK[role]] == ["follower"]
    assert [role for role in ROLES if Pull in MAY_ASK[role]] == ["worker", "reader"]


def test_tls_files_are_compared_by_what_they_are() -> None:
    assert TlsFiles("a", "b", "c") == TlsFiles("a", "b", "c", check_host=True)
