"""Who may speak: shared tokens by role, TLS files, and what each role may ask.

Tokens prove themselves by HMAC-SHA256 over both sides' hellos (:func:`proof`); certificates name
their role as organizational unit. Later frames of a connection without TLS are not bound to the
token: tokens alone are for networks that are trusted.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from streamlearn.errors import ConfigError
from streamlearn.protocol import (
    Claim,
    Finished,
    Follow,
    Join,
    Leave,
    Meet,
    Ping,
    Pull,
    PullFactors,
    PullTopics,
    Push,
    PushFactors,
    PushTopics,
    Register,
    Reopen,
    State,
    Stay,
    TakeSnapshot,
)

__all__ = [
    "CLIENT_LABEL",
    "MAY_ASK",
    "NONCE_BYTES",
    "PROOF_BYTES",
    "REQUESTS",
    "ROLES",
    "SERVER_LABEL",
    "SHARD",
    "Secrets",
    "TlsFiles",
    "certificate_roles",
    "cluster_id",
    "proof",
    "same",
]

# By the number that stands in a hello.
ROLES: Final = ("shard", "worker", "follower", "reader", "admin")
SHARD: Final = "shard"
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
SERVER_LABEL: Final = b"streamlearn server proof"
CLIENT_LABEL: Final = b"streamlearn client proof"

MAY_ASK: Final[Mapping[str, frozenset[type]]] = {
    "shard": frozenset({State, Ping}),
    "worker": frozenset(
        {
            *(Join, Leave, Pull, PullFactors, Push, PushFactors, Register, Claim, Finished),
            *(Reopen, State, Ping, PullTopics, PushTopics, Meet, Stay),
        }
    ),
    "follower": frozenset({Follow, State, Ping}),
    "reader": frozenset({Pull, State, Ping}),
    "admin": frozenset({State, TakeSnapshot, Ping}),
}
REQUESTS: Final = frozenset().union(*MAY_ASK.values())

# A peer that says hello is shown a proof, so a token must withstand guessing offline: 128 bits as
# hexadecimal digits are 32 characters, 22 in base64.
_TOKEN_BYTES_MIN: Final = 20
_TOKEN_BYTES_MAX: Final = 1024
_FILE_BYTES_MAX: Final = 1 << 16
_OTHERS_MAY: Final = stat.S_IRWXO


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files.

    Attributes
    ----------
    authority : str
        Certificates of the authority that signs every node of the cluster, and nobody else.
    certificate, key : str
        This node's own; the certificate's organizational units are the roles that it may take.
    check_host : bool
        Whether a client also compares the name it connects to with the server's certificate.
    """

    authority: str
    certificate: str
    key: str
    check_host: bool = True


@dataclass(frozen=True)
class Secrets:
    """What this node proves itself with, and expects of others; empty: nothing.

    Attributes
    ----------
    tokens : mapping of str to bytes
        By role; under ``""`` the one of all roles that have none of their own. A server has the
        tokens of all whom it serves, a client only its own.
    tls : TlsFiles, optional
    """

    tokens: Mapping[str, bytes] = field(default_factory=dict)
    tls: TlsFiles | None = None

    @classmethod
    def load(
        cls,
        *,
        token_file: str = "",
        tls_authority: str = "",
        tls_certificate: str = "",
        tls_key: str = "",
        tls_check_host: bool = True,
    ) -> Secrets:
        """Read what the given paths hold.

        A token file holds one token, or lines ``role: token``; empty lines and those that begin
        with ``#`` are skipped. Neither it nor the key may be open to every user of the machine.

        Raises
        ------
        ConfigError
            A file cannot be read, is open to others or holds something else; a TLS file is missing
            among the three.
        """
        tokens = _read_tokens(Path(token_file)) if token_file else {}
        files = (tls_authority, tls_certificate, tls_key)
        if not any(files):
            return cls(tokens)
        if not all(files):
            raise ConfigError(
                "TLS takes three files: the authority's certificate, this node's own and its key",
                hint="give all three, or none",
            )
        _refuse_open(Path(tls_key), "TLS key")
        secrets = cls(tokens, TlsFiles(*files, check_host=tls_check_host))
        secrets.server_context()  # says now what is wrong with them
        return secrets

    @property
    def empty(self) -> bool:
        """Whether anybody may be anybody."""
        return not self.tokens and self.tls is None

    def token(self, role: str) -> bytes | None:
        """Return the token of a role; ``b""`` where there are no tokens at all, None: no such."""
        if not self.tokens:
            return b""
        return self.tokens.get(role) or self.tokens.get("")

    def server_context(self) -> ssl.SSLContext | None:
        """Return what a server listens with, None without TLS; a client must show a certificate.

        Raises
        ------
        ConfigError
            A file cannot be read, or key and certificate are not of one pair.
        """
        if self.tls is None:
            return None
        context = _context(ssl.PROTOCOL_TLS_SERVER, self.tls)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self) -> ssl.SSLContext | None:
        """Return what a client connects with, None without TLS.

        Raises
        ------
        ConfigError
            As :meth:`server_context`.
        """
        if self.tls is None:
            return None
        context = _context(ssl.PROTOCOL_TLS_CLIENT, self.tls)
        context.check_hostname = self.tls.check_host
        return context


def cluster_id(name: str) -> int:
    """Return the number that stands for a cluster's name: the first 8 bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def proof(token: bytes, label: bytes, *parts: bytes) -> bytes:
    """Return the HMAC-SHA256 of a label and parts under a token; each part led by its length."""
    mac = hmac.new(token, label, hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(4, "little"))
        mac.update(part)
    return mac.digest()


def same(one: bytes, other: bytes) -> bool:
    """Compare two proofs in a time that does not tell how much of them agrees."""
    return hmac.compare_digest(one, other)


def certificate_roles(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the roles that a peer's certificate names: its organizational units.

    Parameters
    ----------
    certificate : mapping, optional
        As ``ssl.SSLSocket.getpeercert`` gives it.
    """
    names = (
        value
        for group in (certificate or {}).get("subject", ())
        for key, value in group
        if key == "organizationalUnitName"
    )
    return frozenset(names) & frozenset(ROLES)


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(files.authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS authority {files.authority!r} cannot be read", cause=str(error)
        ) from error
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ssl.SSLError, ConfigError) as error:
        raise ConfigError(
            f"the TLS certificate {files.certificate!r} and key {files.key!r} cannot be used",
            cause=str(error),
        ) from error
    return context


def _no_password() -> str:
    """Refuse rather than ask at the terminal."""
    raise ConfigError("the key is encrypted with a password")


def _refuse_open(path: Path, what: str) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"the {what} {str(path)!r} cannot be read", cause=str(error)) from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"the {what} {str(path)!r} is not a file")
    if mode & _OTHERS_MAY:
        raise ConfigError(
            f"the {what} {str(path)!r} is open to every user of this machine "
            f"(mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod o-rwx {path}; in Kubernetes give the secret's volume defaultMode 0440",
        )


def _read_tokens(path: Path) -> dict[str, bytes]:
    _refuse_open(path, "token file")
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX + 1).decode("ascii")
    except OSError as error:
        raise ConfigError(
            f"the token file {str(path)!r} cannot be read", cause=str(error)
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the token file {str(path)!r} is not ASCII text", cause=str(error)
        ) from error
    if len(text) > _FILE_BYTES_MAX:
        raise ConfigError(f"the token file {str(path)!r} is longer than {_FILE_BYTES_MAX} bytes")
    tokens: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        role, colon, token = (part.strip() for part in words.rpartition(":"))
        place = f"line {number} of the token file {str(path)!r}"
        if colon and role not in ROLES:
            raise ConfigError(
                f"{place} is for role {role!r}, expected one of {', '.join(ROLES)}",
                hint="a token itself has no colon",
            )
        if role in tokens:
            raise ConfigError(f"{place} is a second token of role {role or 'all'!r}")
        if not _TOKEN_BYTES_MIN <= len(token) <= _TOKEN_BYTES_MAX:
            raise ConfigError(
                f"{place} has a token of {len(token)} characters, expected {_TOKEN_BYTES_MIN} to "
                f"{_TOKEN_BYTES_MAX}",
                hint="openssl rand -hex 32 makes one",
            )
        tokens[role] = token.encode()
    if not tokens:
        raise ConfigError(f"the token file {str(path)!r} holds no token")
    return tokens
