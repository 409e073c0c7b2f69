"""What an ``s3://`` URI asks for: a bucket, and a key, a prefix or a glob over keys.

Keys are taken as they are written: nothing is percent-decoded, and ``#``, ``+`` and spaces are
ordinary characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from streamlearn.errors import ConfigError

__all__ = ["S3Uri"]

_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class S3Uri:
    """A parsed ``s3://bucket/pattern``.

    In a glob ``*`` and ``?`` stop at ``/``, ``**/`` stands for any number of folders (also none),
    ``**`` elsewhere for anything, ``[a-z]`` and ``[!a-z]`` for one character; ``[*]`` is a literal
    star. A pattern that is empty or ends in ``/`` takes everything below it; one without wildcards
    is a key, or the folder of that name.

    Attributes
    ----------
    bucket : str
    pattern : str
        All that stands after ``s3://bucket/``.
    """

    bucket: str
    pattern: str

    @classmethod
    def parse(cls, uri: str) -> S3Uri:
        """Take an ``s3://`` URI apart.

        Raises
        ------
        ConfigError
            Not an ``s3://`` URI, or one without a bucket.
        """
        scheme, separator, rest = uri.partition("://")
        bucket, _, pattern = rest.partition("/")
        if scheme.lower() != "s3" or not separator or not bucket:
            raise ConfigError(
                f"{uri!r} does not name an S3 bucket",
                hint="write s3://BUCKET/PREFIX or s3://BUCKET/KEY",
            )
        return cls(bucket, pattern)

    @cached_property
    def is_glob(self) -> bool:
        """Whether the pattern holds a wildcard."""
        return not _GLOB_CHARACTERS.isdisjoint(self.pattern)

    @cached_property
    def is_key(self) -> bool:
        """Whether the pattern can name one object."""
        return not self.is_glob and self.pattern != "" and not self.pattern.endswith("/")

    @cached_property
    def prefix(self) -> str:
        """The longest literal prefix of the pattern: what a listing starts from."""
        for index, character in enumerate(self.pattern):
            if character in _GLOB_CHARACTERS:
                return self.pattern[:index]
        return self.pattern

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(_glob_to_regex(self.pattern), re.DOTALL)

    def matches(self, key: str) -> bool:
        """Say whether a key is asked for; a key equal to the pattern always is."""
        if key == self.pattern:
            return True
        if self.is_glob:
            return self._regex.fullmatch(key) is not None
        return key.startswith(f"{self.pattern}/" if self.is_key else self.pattern)

    def uri_of(self, key: str) -> str:
        """Write a key of this bucket as a URI."""
        return f"s3://{self.bucket}/{key}"

    def __str__(self) -> str:
        """Write the URI as a user would."""
        return f"s3://{self.bucket}/{self.pattern}"


def _glob_to_regex(pattern: str) -> str:
    parts: list[str] = []
    index = 0
    while index < len(pattern):
        if pattern.startswith("**/", index) and (index == 0 or pattern[index - 1] == "/"):
            parts.append("(?:.*/)?")
            index += 3
        elif pattern.startswith("**", index):
            parts.append(".*")
            index += 2
        elif pattern[index] == "*":
            parts.append("[^/]*")
            index += 1
        elif pattern[index] == "?":
            parts.append("[^/]")
            index += 1
        elif pattern[index] == "[" and (end := _class_end(pattern, index)) > 0:
            inside = pattern[index + 1 : end]
            negated = inside[0] in "!^"
            members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
            parts.append(f"(?!/)[^{members}]" if negated else f"(?!/)[{members}]")
            index = end + 1
        else:
            parts.append(re.escape(pattern[index]))
            index += 1
    if pattern.endswith("/"):
        parts.append(".*")
    return "".join(parts)


def _class_end(pattern: str, start: int) -> int:
    """Find the bracket that closes a class; -1 makes the opening one an ordinary character."""
    first = start + 1
    if pattern[first : first + 1] in ("!", "^"):
        first += 1
    return pattern.find("]", first + 1)  # a class has a member, which may be ']' itself
