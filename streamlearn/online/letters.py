"""What is a letter, a mark or a digit, and what its lower case is: Unicode, as a table for kernels.

The table is of one version of Unicode, whatever Python's is: a word's key must not depend on who
learns it. Written by ``tests/online/test_letters.py``, which also compares it with Python's own.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamlearn.messages import I32

__all__ = ["DIGIT", "LETTER", "MARK", "UNICODE", "letter_table"]

UNICODE: Final = "14.0.0"

# Kinds of characters: categories L*, M* and Nd.
LETTER, MARK, DIGIT = 1, 2, 3

# Runs of one kind in order: how many characters lie before it since the last, its kind, its length
# where that is not 1. Numbers are in base 36.
RUNS: Final = """
1cNa 7Lq 6Lq 1bL aL 4L 5Ln 1Lv 1Lcq 4Lc eL5 7L 1L hM34 0L5 1L2 2L4 1L 6L 1L3 1L 1Lk 1L2b 1L3v 1M7
0L4m 1L12 2L 6L15 8M19 1M 1M2 1M2 1M 8Lr 4L4 tMb 5L17 0Ml 0Na 4L2 0M 0L2r 1L 0M7 2M6 0L2 0M2 1M4
0L2 0Na 0L3 2L gL 0M 0Lu 0Mr 2L2h 0Mb 0L eNa 0Lx 0M9 0L2 4L 2M 2Lm 0M4 0L 0M9 0L 0M3 0L 0M5 iLp
0M3 4Lb 5Lo 1L6 9M8 0L16 0Mo 1Mx 0L1i 0M3 0L 0Mi 0L 0M7 0La 0M2 2Na 1Lg 0M3 1L8 2L2 2Lm 1L7 1L 3L4
2M 0L 0M7 2M2 2M3 0L 8M 4L2 1L3 0M2 2Na 0L2 aL 1M 2M3 1L6 4L2 2Lm 1L7 1L2 1L2 1L2 2M 1M5 4M2 2M3
3M 7L4 1L 7Na 0M2 0L3 0M bM3 1L9 1L3 1Lm 1L7 1L2 1L5 2M 0L 0M8 1M3 1M3 2L fL2 0M2 2Na 9L 0M6 1M3
1L8 2L2 2Lm 1L7 1L2 1L5 2M 0L 0M7 2M2 2M3 7M3 4L2 1L3 0M2 2Na 1L gM 0L 1L6 3L3 1L4 3L2 1L 1L2 3L2
3L3 3Lc 4M5 3M3 1M4 2L 6M eNa gM5 0L8 1L3 1Ln 1Lg 2M 0L 0M7 1M3 1M4 7M2 1L3 2L 2L2 0M2 2Na gL 0M3
1L8 1L3 1Ln 1La 1L5 2M 0L 0M7 1M3 1M4 7M2 6L2 1L2 0M2 2Na 1L2 dM4 0L9 1L3 1L15 0M2 0L 0M7 1M3 1M4
0L 5L3 0M 7L3 0M2 2Na aL6 1M3 1Li 3Lo 1L9 1L 2L7 3M 4M6 1M 1M8 6Na 2M2 dL1c 0M 0L2 0M7 5L7 0M8 1Na
13L2 1L 1L5 1Lo 1L 1La 0M 0L2 0M9 0L 2L5 1L 1M6 2Na 2L4 wL nM2 6Na bM 1M 1M 4M2 0L8 1L10 4Mk 1M2
0L5 0Mb 1M10 9M 1lL17 0Mk 0L 0Na 6L6 0M4 0L4 0M3 0L 0M3 0L2 0M7 0L3 0M4 0Ld 0Mc 0L 0M 0Na 0M4 2L12
1L 5L 2L17 1L99 1L4 2L7 1L 1L4 2L15 1L4 2Lx 1L4 2L7 1L 1L4 2Lf 1L1l 1L4 2L1v 2M3 wLg gL2e 2L6 3Lh8
2Lh 1Lq 5L23 6L8 7Li 0M4 9Lj 0M3 bLi 0M2 cLd 1L3 1M2 cL1g 0Mw 3L 4L 0M 2Na xM3 1M 0Na 6L2h 7L5 0M2
0Ly 0M 0L 5L1y aLv 1Mc 4Mc aNa 0Lu 2L5 bL18 4Lq 6Na 12Ln 0M5 4L1h 0Ma 1Mt 2M 0Na 6Na dL 8Mv 1dM5
0L1b 0Mh 0L8 3Na hM9 cM3 0Lu 0Md 0L2 0Na 0L18 0Me cL10 0Mk 8Na 3L3 0Na 0L10 2L9 7L17 2L3 gM3 1Ml
0L4 0M 0L6 0M 0L2 0M3 0L 5L5c 0M1s 0L7q 2L6 2L12 2L6 2L8 1L 1L 1L 1Lv 2L1h 1L7 1L 3L3 1L7 3L4 2L6
4Ld 5L3 1L7 38L dL gLd 1fMx hL 4L 2La 1L 3L5 6L 1L 1L 1L4 1Lb 2L4 5L5 4L 1gL2 22jL6d 6L4 0M3 0L2
cL12 1L 5L 2L1k 7L fM 0Ln 9L7 1L7 1L7 1L7 1L7 1L7 1L7 1L7 1Mw 1bL d1L2 zM6 1L5 5L2 4L2e 2M2 2L3
1L2i 1L4 5L17 1L2m hLw 1cLg e8L534 1sLh3h 1vL1a 2L7h 3Lg 0Na 0L2 kL1b 0M4 1Ma 1Lv 0M2 0L1y aM2
11L9 2L2v 2L1s 5L2 1L 1L5 oLg 0M 0L3 0M 0L4 0M 0Ln 0M5 4M jL1g cM2 0L1e 0Mi aNa 6Mi 0L6 3L 1L2 0M
0Na 0Ls 0M8 2Ln 0Md cLt 3M4 0L1b 0Me eL 0Na 6L5 0M 0La 0Na 0L5 1L15 0Me 9L3 0M 0L8 0M2 2Na 6Ln 3L
0M3 0L1e 0M 0L 0M3 0L2 0M2 0L5 0M2 0L 0M 0L oL3 2Lb 0M5 2L3 0M2 aL6 2L6 2L6 9L7 1L7 1L17 1Le 6L37
0M8 1M2 2Na 6L8mc cLn 4L1d 6isLa6 2L2y 12L7 cL5 5L 0M 0La 1Ld 1L5 1L 1L2 1L2 1L30 xLa3 iL1s 2L1i
14Lc 4Mg gMg 1sL5 1L3r jNa 7Lq 6Lq bL2h 3L6 2L6 2L6 2L3 zLc 1Lq 1Lj 1L2 1Lf 2Le yL3f 76M 3mLt 3L1d
fM vLw dLk 1L8 6L12 0M5 5Lu 2L10 4L8 1cL4e 2Na 6L10 4L10 4L14 8L1g cLb 1Lf 1L7 1L2 1Lb 1Lf 1L7 1L2
1vL8n 9Lm aL8 oL6 1L16 1L9 1xL6 2L 1L18 1L2 3L 2Ln aLn 9Lv 1tLj 1L2 aLm aLq 1yL1k 6L2 1sL 0M3 1M2
5M4 0L4 1L3 1Lt 2M3 4M wLt 3Lt zL8 1Ls 0M2 pL1i aLm aLj dLi 32L21 1jL1f dL1f dL10 0M4 8Na 92L16
1M2 3L2 26Lt aL 8Lm 0Mb vLi 0M4 16Ll rLn 9M3 0L1h 0Mf vNa 0M 0L2 0M2 0L 9M4 0L19 0Mb 7M dLp 7Na
6M3 0L10 0Me 1Na 4L 0M2 0L 8Lz 0M 2L 9M3 0L1c 0Me 0L4 4M4 1M2 0Na 0L 1L zLi 1Lp 0Mc 6M 1tL7 1L 1L4
1Lf 1La 7L1b 0Mc 5Na 6M4 1L8 2L2 2Lm 1L7 1L2 1L5 1M2 0L 0M7 2M2 2M3 2L 6M 5L5 0M2 2M7 3M5 3vL1h
0Mi 0L4 5Na 4M 0L3 uL1c 0Mk 0L2 1L 8Na 4mL1b 0M7 2M9 nL4 0M2 yL1c 0Mh 3L bNa 12L17 0Md 0L 7Na 1iLr
2Mf 4Na 6L7 55L18 0Mf 2tL1s 0Na lL8 2L 2L8 1L2 1Lo 0M6 1M2 2M4 0L 0M 0L 0M2 cNa 1yL8 2L13 0M7 2M7
0L 1L 0M rL 0Ma 0L14 0M7 0L 0M4 8M 8L 0Mb 0L1a 0Mg 3L iL21 7bL9 1L11 0M8 1M8 0L fNa oLu 2Mm 1Me
21L7 1L2 1L12 0M6 3M 1M2 1M7 0L 0M 8Na 6L6 1L2 1Lw 0M5 1M2 1M5 0L 7Na 8mLj 0M4 55L 27Lpm 6eL5g
218L2p fLtr 34hLg7 6ntLft 7Lv 1Na 6L27 1Na 6Lu 2M5 bL1c 0M7 9L4 cNa 9Ll 5Lj j4L1s 3kL23 4M 0L 0M1j
7M4 0Ld 1sL2 1L 0M bM2 eL4qg 8Lye 16L9 6w7L4 1L7 1L2 1L83 19L3 hL4 8Lb0 1s4L2z 5Ld 3L9 7La 3M2
3mpM1a 2Mn f2M5 3M6 8M8 2M7 uM4 44M3 cbL2d 1L1z 1L2 2L 2L2 2L4 1Lc 1L 1L7 1L1t 1L4 2L8 1L7 1Ls 1L4
1L5 1L 3L7 1L9g 2Lp 1Lp 1Lv 1Lp 1Lv 1Lp 1Lv 1Lp 1Lv 1Lp 1L8 2N1e e8M1j 4M1e 8M eM mM5 1Mf uoLv
69M7 1Mh 2M7 1M2 1M5 5xL19 3M7 0L7 2Na 4L 8xLu 0M hL18 0M4 0Na yuL7 1L4 1L2 1Lf 1L5h bM7 15L1w 0M7
0L 4Na x2L4 1Lr 1L2 1L 2L 1La 1L4 1L 1L 6L 4L 1L 1L 1L3 1L2 1L 2L 1L 1L 1L 1L 1L2 1L 2L4 1L7 1L4
1L4 1L 1La 1Lh 5L3 1L5 1Lh 2lwNa smLwyo wL37d 7L66 2L4g2 eL5rl 2e7Lf2 15uL3t7 fcmtM6o
"""

# Runs of letters whose lower case is one other letter: how far from the last run's first, whether
# every one (:) or every second (;), how many, and what is added.
LOWER: Final = """
1t:q+w 3j:n+w o:7+w 14;o+1 1c:1-5j 2;3+1 7;8+1 h;n+1 1a:1-3d 1;3+1 8:1+5u 1;2+1 4:1+5q 1:1+1
2:2+5p 2:1+1 3:1+27 1:1+5m 1:1+5n 1:1+1 2:1+5p 1:1+5r 2:1+5v 1:1+5t 1:1+1 4:1+5v 1:1+5x 2:1+5y
1;3+1 6:1+62 1:1+1 2:1+62 3:1+1 2:1+62 1:1+1 2:2+61 2;2+1 4:1+63 1:1+1 4:1+1 8:1+2 1:1+1 2:1+2
1:1+1 2:1+2 1;9+1 j;9+1 j:1+2 1;2+1 4:1-2p 1:1-1k 1;k+1 14:1-3m 2;9+1 o:1+8bv 1:1+1 2:1-4j 1:1+8bs
3:1+1 2:1-5f 1:1+1x 1:1+1z 1;5+1 8a;2+1 6:1+1 9:1+38 7:1+12 2:3+11 4:1+1s 2:2+1r 3:h+w i:9+w
18:1+8 9;c+1 s:1-1o 3:1+1 2:1-7 1:1+1 3:3-3m 3:g+28 g:w+w 28;h+1 16;r+1 1i:1+f 1;7+1 f;1c+1
2p:12+1c 29b:12+5ls 13:1+5ls 6:1+5ls k3:28+tzk 28:6+8 1pc:17-2bk 19:3-2bk 8z;23+1 4e:1-5vj 2;1c+1
2w:8-8 g:6-8 g:8-8 g:8-8 g:6-8 h;4-8 f:8-8 w:8-8 g:8-8 g:8-8 g:2-8 2:2-22 2:1-9 c:4-2e 4:1-9 c:2-8
2:2-2s e:2-8 2:2-34 2:1-7 c:2-3k 2:2-3i 2:1-9 8a:1-5st 4:1-6gv 1:1-6di 7:1+s 29:1+1 22l:1c+1c
2o:1+1 2:1-8af 1:1-2xy 1:1-89z 3;3+1 6:1-8bg 1:1-8al 1:1-8bj 1:1-8bi 2:1+1 3:1+1 9:2-8cf 2;1e+1
2z;2+1 7:1+1 nym;n+1 1s;e+1 4i;7+1 g;v+1 1z;2+1 4:1-r9g 1;5+1 d:1+1 2:1-wmg 3;2+1 6;a+1 k:1-wn8
1:1-wnj 1:1-wnf 1:1-wn5 1:1-wn8 2:1-wlu 1:1-wmi 1:1-wlx 1:1+ps 1;8+1 g:1-1c 1:1-wn7 1:1-raw 1;2+1
9:1+1 6;2+1 v:1+1 h7w:q+w yn:14+14 4w:10+14 5c;j+13 1;5+13 c;7+13 g;3+13 8:1+13 1d7:1f+1s 2e8:w+w
gww:w+w o8w:y+y
"""

_POINTS: Final = 0x110000
_PAGE: Final = 256


@cache
def letter_table() -> tuple[NDArray[np.uint16], I32]:
    """Return the kinds and lower cases of all characters, in two steps.

    Returns
    -------
    pages : uint16[0x1100]
    cells : int32[256 * k]
        ``cells[256 * pages[c >> 8] + (c & 255)]`` is ``4 * d + kind`` of character ``c``: 0 where
        it is no part of words; its lower case is ``c + d``. (Of U+0130 that is the first of two.)
    """
    flat = np.zeros(_POINTS, np.int32)
    at = 0
    for run in RUNS.split():
        kind = next(i for i, character in enumerate(run) if character in "LMN")
        at += int(run[:kind], 36)
        length = int(run[kind + 1 :] or "1", 36)
        flat[at : at + length] = 1 + "LMN".index(run[kind])
        at += length
    at = 0
    for run in LOWER.split():
        step = 2 if ";" in run else 1
        gap, _, rest = run.replace(";", ":").partition(":")
        sign = 1 if "+" in rest else -1
        count, _, added = rest.replace("-", "+").partition("+")
        at += int(gap, 36)
        flat[at : at + step * int(count, 36) : step] += 4 * sign * int(added, 36)
    # most pages have nothing, or nothing but letters: each kind of page is kept once
    number: dict[bytes, int] = {}
    pages = [number.setdefault(page.tobytes(), len(number)) for page in flat.reshape(-1, _PAGE)]
    return np.array(pages, np.uint16), np.frombuffer(bytearray(b"".join(number)), np.int32)
