"""The two scanners of Criteo logs against each other and the twin, on spoiled logs."""

import numpy as np
import pytest

from streamlearn.compute.kernels import criteo as kernels
from streamlearn.compute.kernels.bits import HAS_VBMI2
from streamlearn.config import SourceConfig
from streamlearn.online.criteo import CriteoFormat
from tests.reference import criteo as reference
from tests.reference.minibatches import drain

PARSER = CriteoFormat(SourceConfig()).parser(None)
SCANNERS = [
    "portable",
    pytest.param("vbmi2", marks=pytest.mark.skipif(not HAS_VBMI2, reason="no AVX-512 VBMI2")),
]


@pytest.fixture(params=SCANNERS)
def scanner(request, monkeypatch):
    monkeypatch.setattr(kernels, "parse", getattr(kernels, f"parse_{request.param}"))


def line(rng: np.random.Generator) -> bytes:
    ints = [b"" if rng.random() < 0.2 else b"%d" % rng.integers(-3, 300) for _ in range(13)]
    tokens = [b"" if rng.random() < 0.2 else b"%08x" % rng.integers(1 << 32) for _ in range(26)]
    return b"\t".join([b"%d" % rng.integers(2), *ints, *tokens]) + b"\n"


@pytest.mark.usefixtures("scanner")
@pytest.mark.parametrize("spoiled", [b"\t", b"\n", b"\r", b"-", b"x", b"\xc3", b"\x00", b"\t\n\t"])
def test_logs_with_bytes_spoiled_match_the_twin(spoiled):
    rng = np.random.default_rng(len(spoiled) + spoiled[0])
    for _ in range(4):
        data = bytearray(b"".join(line(rng) for _ in range(80)))
        for at in rng.integers(0, len(data) - 8, 30).tolist():
            data[at : at + len(spoiled)] = spoiled
        assert drain(PARSER, bytes(data)) == reference.parse(bytes(data))


@pytest.mark.usefixtures("scanner")
def test_lines_of_any_length_match_the_twin():
    """Short lines put many newlines, dense tabs many stops, into one 64-byte step."""
    rng = np.random.default_rng(3)
    short = [b"\n", b"\r\n", b"1\n", b"0\t\n", b"\t" * 70 + b"\n", b"0" + b"\t" * 39 + b"\n"]
    long = b"0" + b"\t" * 39 + b"x" * 9000 + b"\n"
    for _ in range(10):
        data = b"".join(long if rng.random() < 0.02 else short[rng.integers(6)] for _ in range(300))
        assert drain(PARSER, data) == reference.parse(data)


@pytest.mark.usefixtures("scanner")
def test_a_record_may_begin_anywhere():
    rng = np.random.default_rng(4)
    data = b"".join(line(rng) for _ in range(70))
    expected = reference.parse(data)
    for before in range(64):
        assert drain(PARSER, data, before=before) == expected


@pytest.mark.usefixtures("scanner")
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_integers_of_every_length_match_the_twin(end):
    lines = []
    for digits in range(1, 20):
        for text in (b"9" * digits, b"1" + b"0" * (digits - 1), b"-" + b"5" * digits):
            for column in (1, 9, 13):
                fields = [b"1"] + [b""] * 39
                fields[column] = text
                lines.append(b"\t".join(fields) + end)
    data = b"".join(lines)
    assert drain(PARSER, data) == reference.parse(data)


@pytest.mark.usefixtures("scanner")
def test_tokens_of_every_length_match_the_twin():
    lines = []
    for length in range(20):
        for column in (14, 25, 39):
            for char in ("a", "é"):
                fields = ["1"] + [""] * 39
                fields[column] = char * length
                lines.append("\t".join(fields).encode() + b"\n")
    data = b"".join(lines)
    assert drain(PARSER, data) == reference.parse(data)
