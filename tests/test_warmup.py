"""Every kernel of a run is called before its first record, on records of its own source."""

from __future__ import annotations

import pytest

from streamlearn.config import MODELS, JobConfig, MfConfig, SourceConfig, TablesConfig
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.online.formats import open_format
from streamlearn.warmup import warm_up, whole_records
from tests.click_log import BAD, clicks, text

SAMPLES = {
    "criteo": (SourceConfig(format="criteo"), None, text(clicks(20, 1))),
    "delimited": (
        SourceConfig(format="delimited", header=True, columns={"y": "label", "x": "number:raw"}),
        b"y,x",
        b"1,2.5\n0,1\n",
    ),
    "svmlight": (SourceConfig(format="svmlight"), None, b"1 a:1 b:2\n-1 a:1\n"),
    "libffm": (SourceConfig(format="libffm"), None, b"1 0:1:1 1:2:1\n0 0:1:1\n"),
    "jsonl": (SourceConfig(format="jsonl"), None, b'{"label": 1, "x": "a"}\n'),
}


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("kind", ["lr", "fm"])
@pytest.mark.parametrize("name", SAMPLES)
def test_each_step_is_told_and_leaves_nothing_behind(name: str, kind: str, index: str) -> None:
    source, header, records = SAMPLES[name]
    tables = TablesConfig(index=index, bits=12)
    job = JobConfig(source=source, model=MODELS[kind](), tables=tables)
    told: list[str] = []
    warm_up(job, open_format(source), header, records, told.append)
    assert told == [
        f"compiling kernels: {what}, {number} of 5"
        for number, what in enumerate(("parse", "learn", "snapshot", "score", "names"), 1)
    ]


@pytest.mark.parametrize("records", [text(bad for _, bad in BAD), b"\n", b"no record at all\n"])
def test_records_that_are_all_bad_compile_as_well(records: bytes) -> None:
    source = SourceConfig(format="criteo")
    warm_up(JobConfig(source=source), open_format(source), None, records, lambda _: None)


def test_a_sample_is_cut_to_whole_records() -> None:
    assert whole_records(b"") == b""
    assert whole_records(b"half") == b""
    assert whole_records(b"one\ntwo\nhal") == b"one\ntwo\n"
    assert whole_records(b"one\ntwo\nthree\n", 2) == b"one\ntwo\n"
    assert len(whole_records(b"\n" * 10 * BLOCK_TAILROOM_BYTES)) == 64


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_of_ratings_further_passes_are_compiled_too(loss: str) -> None:
    records = b"".join(b"u%d::i%d::%d::9\n" % (n % 7, n % 5, n % 2) for n in range(40))
    source = SourceConfig(format="ratings")
    job = JobConfig(source=source, model=MfConfig(dim=8, epochs=2, held_out=0.2, loss=loss))
    told: list[str] = []
    warm_up(job, open_format(source), None, records, told.append)
    assert told[-1] == "compiling kernels: passes, 6 of 6"
    warm_up(job, open_format(source), None, b"u1::\n", told.append)  # nothing to sweep
