"""Quoted bytes are safe to print and short."""

import pytest

from streamlearn.online.quoting import quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"x7", "'x7'"),
        (b"", "''"),
        ("größe".encode(), "'größe'"),
        (b"a\xff", r"'a\xff'"),
        (b"\x1b[31m\t", r"'\x1b[31m\t'"),
        (b"x" * 60, f"'{'x' * 60}'"),
        (b"x" * 61, f"'{'x' * 60}…'"),
        (("ä" * 61).encode(), f"'{'ä' * 60}…'"),
        (b"\xff" * 61, "'" + r"\xff" * 60 + "…'"),
    ],
)
def test_quotes_are_safe_and_short(text, shown):
    assert quoted(text) == shown
