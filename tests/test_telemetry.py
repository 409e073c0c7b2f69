"""What a run says of itself over HTTP while it goes on."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from streamlearn import node
from streamlearn.config import LrConfig, MfConfig, load_job
from streamlearn.messages import Progress
from streamlearn.telemetry import Telemetry
from tests.click_log import BAD, clicks, text, written
from tests.runs import PATIENCE_SECONDS, Running, run, settings


def ask(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(address: str, path: str, wanted: str) -> str:
    """Ask until the answer has what is wanted in it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        _, answer = ask(address, path)
        if wanted in answer:
            return answer
        time.sleep(0.02)
    raise AssertionError(f"{path} never said {wanted}: {answer}")


def test_a_run_is_ready_once_it_learns_and_says_where_it_is(tmp_path: Path) -> None:
    read, write = os.pipe()
    records = clicks(300, 1)
    command = [
        *("train", "-", "--out", tmp_path, "--http", "127.0.0.1:0", "--format", "auto"),
        *settings("source.block_bytes=65536", "source.bad_records_max=1", "compute.minibatch=16"),
    ]
    with Running(*command, stdin=read) as running:
        os.close(read)
        said = running.wait_for_text("listening on http://")
        assert said is not None
        address = said["message"].removeprefix("listening on ")
        # its format can be told only once the first line is there
        assert ask(address, "/healthz")[0] == 200
        assert ask(address, "/readyz")[0] == 503
        assert json.loads(ask(address, "/status")[1])["state"] == "compiling"
        os.write(write, text([*records, *(bad for _, bad in BAD)]))
        until(address, "/status", '"learning"')
        assert ask(address, "/readyz")[0] == 200
        # the rest of a block comes with the next records
        os.write(write, text(clicks(300, 2)))
        until(address, "/metrics", 'streamlearn_source_rejected_total{reason="label"} 2.0')
        status = json.loads(until(address, "/status", '"records"'))
        assert status["positions"]["-"]["records"] > 0
        assert status["failed"] == {}
        answer = until(address, "/metrics", "streamlearn_examples_total")
        families = {family.name: family for family in text_string_to_metric_families(answer)}
        for name in ("source_records", "examples", "table_features"):
            assert families[f"streamlearn_{name}"].samples[0].value > 0, name
        os.close(write)
        assert running.end().code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["examples"], report["bad_records"]) == (600, len(BAD))


def test_a_factorization_machine_tells_of_its_embeddings(tmp_path: Path) -> None:
    read, write = os.pipe()
    command = [
        *("train", "-", "--out", tmp_path, "--http", "127.0.0.1:0", "--format", "criteo"),
        *settings("model.kind=fm", "source.block_bytes=65536", "compute.minibatch=16"),
        *settings("tables.embeddings_bytes_max=2560"),
    ]
    with Running(*command, stdin=read) as running:
        os.close(read)
        said = running.wait_for_text("listening on http://")
        assert said is not None
        address = said["message"].removeprefix("listening on ")
        os.write(write, text(clicks(600, 1)))
        running.wait_for_text("embeddings have reached their limit, 2,560 bytes")
        answer = until(address, "/metrics", "streamlearn_embeddings_refused_total")
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(answer)
            for sample in family.samples
        }
        assert 0 < found["streamlearn_table_embeddings_bytes"] <= 2_560
        assert found["streamlearn_table_embeddings_bytes_max"] == 2_560
        assert found["streamlearn_embeddings_refused_total"] > 0
        assert found["streamlearn_examples_dropped_total"] == 0
        os.close(write)
        assert running.end().code == 0


def test_an_address_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    log = written(tmp_path / "log.tsv", text(clicks(10, 1)))
    command = ["train", log, "--format", "criteo", "--out", tmp_path / "out", "--http"]
    ended = run(*command, "192.0.2.1:1")
    assert ended.code in (1, 2)
    assert "192.0.2.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert run(*command, "127.0.0.1:0").code == 0


def test_a_view_that_breaks_does_not_end_the_run() -> None:
    shown: list[Progress] = []

    def sink(progress: Progress) -> None:
        if shown:
            raise BrokenPipeError
        shown.append(progress)

    telemetry = Telemetry(lambda: 1.0, sink, LrConfig())
    for state in ("compiling", "learning", "done"):
        telemetry.tell(state)
    assert [one.state for one in shown] == ["compiling"]
    assert telemetry.state == "done"
    assert telemetry.ready == (False, "done")


def test_progress_has_the_figures_of_the_models_loss() -> None:
    for model, measure, figures in (
        (LrConfig(), "logloss", ["auc", "auc_window", "calibration", "normalized_entropy"]),
        (MfConfig(), "rmse", ["mae", "mae_window"]),
        (MfConfig(loss="logistic"), "logloss", None),
    ):
        telemetry = Telemetry(lambda: 1.0, lambda _: None, model)
        telemetry.summary = {"loss": 0.5, "loss_window": 0.25, "baseline_loss": 1.0, "weight": 3.0}
        telemetry.show()
        last = telemetry.last
        assert (last.measure, last.loss, last.loss_window) == (measure, 0.5, 0.25)
        assert (last.baseline_loss, last.weight) == (1.0, 3.0)
        assert figures is None or list(last.figures) == figures
        told = telemetry.status()["progress"]
        assert told[measure] == 0.5
        assert ("auc" in told) == (measure == "logloss")


def test_progress_counts_all_bytes_of_what_is_read(tmp_path: Path) -> None:
    logs = [written(tmp_path / name, text(clicks(500, 3))) for name in ("a.tsv", "b.tsv.gz")]
    told: list[Progress] = []

    pairs = [f'source.uri=["{logs[0]}", "{logs[1]}"]', "source.format=criteo"]
    pairs += ["source.block_bytes=65536", f"output.dir={tmp_path / 'out'}"]
    node.train(load_job(None, pairs).job, told.append)
    last = told[-1]
    assert last.state == "done"
    assert last.bytes_done == last.bytes_total == sum(log.stat().st_size for log in logs)
    assert (last.examples, last.bytes) == (1_000, 2 * logs[0].stat().st_size)
    assert last.features > 0
    assert last.loss < last.baseline_loss
    states = [one.state for one in told]
    order = ["compiling", "learning", "draining", "done"]
    assert list(dict.fromkeys(states)) == order
