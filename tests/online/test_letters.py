"""The table of letters: what Python's own data say. Run as a program, it prints it anew."""

from __future__ import annotations

import textwrap
import unicodedata

import pytest

from streamlearn.online.letters import DIGIT, LETTER, MARK, UNICODE, letter_table

_BASE = "0123456789abcdefghijklmnopqrstuvwxyz"


def kind_of(point: int) -> int:
    category = unicodedata.category(chr(point))
    if category == "Nd":
        return DIGIT
    return {"L": LETTER, "M": MARK}.get(category[0], 0)


def added_to(point: int) -> int:
    return ord(chr(point).lower()[0]) - point if kind_of(point) == LETTER else 0


def cell_of(point: int) -> tuple[int, int]:
    pages, cells = letter_table()
    cell = int(cells[256 * int(pages[point >> 8]) + (point & 255)])
    return cell & 3, cell >> 2


@pytest.mark.skipif(unicodedata.unidata_version != UNICODE, reason="Python has another Unicode")
def test_all_characters_are_what_unicode_says() -> None:
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    wrong = [p for p in points if cell_of(p) != (kind_of(p), added_to(p))]
    assert not wrong


@pytest.mark.parametrize(
    ("character", "kind", "lower"),
    [
        ("a", LETTER, "a"),
        ("Z", LETTER, "z"),
        ("É", LETTER, "é"),
        ("Ж", LETTER, "ж"),
        ("Σ", LETTER, "\u03c3"),
        ("İ", LETTER, "i"),  # and a combining dot, which the kernel adds
        ("ß", LETTER, "ß"),
        ("Ⱥ", LETTER, "ⱥ"),  # longer in UTF-8 than the capital
        ("𐐀", LETTER, "𐐨"),
        ("日", LETTER, "日"),
        ("\u0301", MARK, "\u0301"),
        ("7", DIGIT, "7"),
        ("٣", DIGIT, "٣"),
        ("_", 0, "_"),
        ("Ⅷ", 0, "Ⅷ"),
        ("\ufffd", 0, "\ufffd"),
    ],
)
def test_some_characters_by_hand(character: str, kind: int, lower: str) -> None:
    assert cell_of(ord(character)) == (kind, ord(lower) - ord(character))


def _number(value: int) -> str:
    high, low = divmod(value, 36)
    return (_number(high) if high else "") + _BASE[low]


def _runs() -> str:
    out, end, point = [], 0, 0
    while point < 0x110000:
        kind, start = kind_of(point), point
        while point < 0x110000 and kind_of(point) == kind:
            point += 1
        if kind:
            length = _number(point - start) if point - start > 1 else ""
            out.append(_number(start - end) + ".LMN"[kind] + length)
            end = point
    return " ".join(out)


def _lower() -> str:
    changed = {point: added_to(point) for point in range(0x110000) if added_to(point)}
    out, before = [], 0
    while changed:
        start = min(changed)
        length = {
            step: next(n for n in range(1 << 16) if changed.get(start + n * step) != changed[start])
            for step in (1, 2)
        }
        step = 2 if length[2] > length[1] else 1
        added = changed[start]
        out.append(
            f"{_number(start - before)}{':;'[step - 1]}{_number(length[step])}"
            f"{'-' if added < 0 else '+'}{_number(abs(added))}"
        )
        before = start
        for n in range(length[step]):
            del changed[start + n * step]
    return " ".join(out)


if __name__ == "__main__":
    for text in (_runs(), _lower()):
        print("\n".join(textwrap.wrap(text, 98)), end="\n\n")  # noqa: T201
