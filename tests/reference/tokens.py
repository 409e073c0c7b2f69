"""The words of a text, character by character."""

from __future__ import annotations

import re
import unicodedata

from streamlearn.online.stop_words import ELEMENTS

_MARKUP = re.compile(
    r"<!--.*?-->|<[/!]?(?P<name>[A-Za-z0-9]{1,10})(?=[\0- />])[^<>]*>|&#?[A-Za-z0-9]{1,10};",
    re.DOTALL,
)


def without_markup(text: str) -> str:
    """Put a blank in the place of each tag, comment and entity."""

    def blank(found: re.Match[str]) -> str:
        name = found["name"]
        return " " if name is None or name.lower() in ELEMENTS else found[0]

    out, at = "", 0
    for start in range(len(text)):
        if start < at or text[start] not in "<&":
            continue
        found = _MARKUP.match(text, start)
        if found is not None and blank(found) == " ":
            out += text[at:start] + " "
            at = found.end()
    return out + text[at:]


def lowered(word: str) -> str:
    """Return the lower case of a word: of each letter, but for a sigma at its end."""
    last = max(i for i, c in enumerate(word) if not unicodedata.category(c).startswith("M"))
    letters = [c.lower() for c in word]
    if word[last] == "Σ" and last > 0:
        letters[last] = "ς"
    return "".join(letters)


def words_of(
    text: str,
    *,
    digits: bool = False,
    markup: bool = True,
    shortest: int = 2,
    longest: int = 64,
    stops: frozenset[str] = frozenset(),
) -> list[str]:
    """Return the words of a text as the kernels find them."""
    if markup:
        text = without_markup(text)
    found, word = [], ""
    for c in [*text, " "]:
        category = unicodedata.category(c)
        if category[0] == "L" or (digits and category == "Nd") or (category[0] == "M" and word):
            word += c
            continue
        if word:
            found.append(lowered(word))
        word = ""
    return [word for word in found if shortest <= len(word) <= longest and word not in stops]
