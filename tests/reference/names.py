"""Slow, obvious twin of the name store: a dictionary."""

from __future__ import annotations


class Names:
    """Texts by key, first come, bounded."""

    def __init__(self, names_max: int, bytes_max: int, token_bytes_max: int) -> None:
        self.names_max, self.bytes_max = names_max, bytes_max
        self.token_bytes_max = token_bytes_max
        self.texts: dict[int, tuple[int, str]] = {}
        self.bytes = 0
        self.refused = 0

    def insert(self, key: int, field: int, token: str) -> None:
        """Keep a name if its key is new and there is room."""
        if key in self.texts:
            return
        data = token.encode()
        if len(data) > self.token_bytes_max:
            token = data[: self.token_bytes_max - 3].decode(errors="ignore") + "…"
        size = len(token.encode())
        if len(self.texts) >= self.names_max or self.bytes + size > self.bytes_max:
            self.refused += 1
            return
        self.texts[key] = (field, token)
        self.bytes += size
