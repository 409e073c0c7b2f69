"""The command line as a user meets it: verbs, flags, streams, exit codes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from streamlearn import __version__
from streamlearn.cli import app
from streamlearn.config import JobConfig, LrConfig, SourceConfig, load_job
from streamlearn.errors import ConfigError, DataError, SourceMissingError, StreamlearnError
from streamlearn.logs import configure_logs
from streamlearn.messages import Progress

REPORT = {"model": "lr", "examples": 3, "logloss": 0.5, "auc": float("nan")}
TRAINED = JobConfig(
    source=SourceConfig(uri=("old.csv",), format="delimited", follow=True),
    model=LrConfig(alpha=0.7),
)


def progress(examples: int, state: str = "learning", detail: str = "") -> Progress:
    return Progress(
        state=state,
        detail=detail,
        seconds=1.0,
        examples=examples,
        bad_records=0,
        bytes=100,
        stored_bytes=100,
        bytes_done=100,
        bytes_total=200,
        examples_per_second=1e6,
        bytes_per_second=1e8,
        weight=float(examples),
        measure="logloss",
        loss=0.5,
        loss_window=0.5,
        baseline_loss=0.6,
        figures={"auc": 0.75, "auc_window": 0.75, "calibration": 1.0, "normalized_entropy": 0.9},
        last_label=1.0,
        last_prediction=0.5,
        last_features=39,
        features=10,
        event_seconds=float("nan"),
    )


class Node(ModuleType):
    """The wiring, faked: remembers the calls, answers with what a test puts there."""

    def __init__(self) -> None:
        super().__init__("streamlearn.node")
        self.calls: list[tuple[str, Any]] = []
        self.job = JobConfig()
        self.report: dict[str, Any] = dict(REPORT)
        self.raises: BaseException | None = None
        self.predictions: list[Sequence[float]] = [[0.5, 0.25], [1e-9]]

    def _called(self, name: str, *arguments: Any) -> dict[str, Any]:
        self.calls.append((name, arguments))
        self.job = next((a for a in arguments if isinstance(a, JobConfig)), self.job)
        if self.raises is not None:
            raise self.raises
        return self.report

    def train(self, job: JobConfig, tell: Callable[[Progress], None]) -> dict[str, Any]:
        tell(progress(0, "compiling", "compiling kernels 1/2"))
        tell(progress(3))
        logging.getLogger("streamlearn.node").info("snapshot written", extra={"bytes": 7})
        return self._called("train", job)

    def evaluate(self, directory: Path, job: JobConfig, tell: Any) -> dict[str, Any]:
        return self._called("evaluate", directory, job)

    def replay(self, directory: Path, job: JobConfig, tell: Any) -> dict[str, Any]:
        return self._called("replay", directory, job)

    def predict(
        self, directory: Path, job: JobConfig, out: Any, *, probabilities: bool
    ) -> dict[str, Any]:
        for values in self.predictions:
            out(values)
        return self._called("predict", directory, job)

    def stored_job(self, directory: Path) -> JobConfig:
        return TRAINED

    def inspect(self, directory: Path, top: int) -> dict[str, Any]:
        return self._called("inspect", directory, top)

    def export(self, directory: Path, target: Path) -> dict[str, Any]:
        return self._called("export", directory, target)

    def snapshots(self, directory: Path) -> list[dict[str, Any]]:
        self._called("snapshots", directory)
        return [{"name": "1", "examples": 10}, {"name": "2", "examples": 20}]

    async def source_list(self, job: JobConfig) -> AsyncIterator[dict[str, Any]]:
        self._called("source_list", job)
        yield {"uri": "s3://b/a.gz", "size": 12, "modified_seconds": 86400.0}
        yield {"uri": "http://h/b", "size": -1, "modified_seconds": 0.0}

    async def source_head(self, job: JobConfig, n: int) -> list[bytes]:
        self._called("source_head", job, n)
        return [b"a,b", b"\xff\x00,d\n"]

    async def source_check(self, job: JobConfig) -> dict[str, Any]:
        return self._called("source_check", job)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    fake = Node()
    monkeypatch.setitem(sys.modules, "streamlearn.node", fake)
    for name in [name for name in os.environ if name.startswith("STREAMLEARN_")]:
        monkeypatch.delenv(name)
    return fake


@pytest.fixture(autouse=True)
def restored_logs() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("streamlearn")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before[0], before[1], before[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="streamlearn")


# --- train


def test_train_learns_what_the_flags_say(node: Node) -> None:
    result = run(
        *("train", "a.csv", "b.csv", "--format", "delimited", "--header", "--delimiter", "\\t"),
        *("--column", "late=label", "--column", "when=time", "-q", "a*b", "--cross", "c*d,e*f"),
        *("-l", "0.3", "--l1", "2", "--epochs", "2", "--no-intercept", "--http", "127.0.0.1:9100"),
        *("--read-ahead-bytes", "1MiB", "--set", "output.window=10", "--out", "model"),
    )
    assert result.exit_code == 0, result.output
    assert (
        node.job
        == load_job(
            None,
            [
                'source.uri=["a.csv", "b.csv"]',
                "source.format=delimited",
                "source.header=true",
                "source.delimiter=tab",
                "source.columns=late=label,when=time",
                "source.cross=a*b,c*d,e*f",
                "source.read_ahead_bytes=1048576",
                "model.alpha=0.3",
                "model.l1=2",
                "model.epochs=2",
                "model.intercept=false",
                "output.window=10",
                "output.dir=model",
                "http.listen=127.0.0.1:9100",
            ],
        ).job
    )


def test_progress_goes_to_stderr_and_the_report_to_stdout(node: Node) -> None:
    result = run("train", "a", "--out", "o")
    assert result.stdout == "model     lr\nexamples  3\nlogloss   0.500000\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "compiling kernels 1/2"
    assert lines[1].startswith("average  since")
    assert lines[3].startswith("0.500000 0.500000               3")
    assert json.loads(lines[4])["message"] == "snapshot written"


def test_json_has_null_for_nan_and_nothing_else_on_stdout(node: Node) -> None:
    result = run("train", "a", "--out", "o", "--json", "--quiet")
    assert json.loads(result.stdout) == {**REPORT, "auc": None}
    assert result.stderr == ""


def test_json_logs_make_stderr_json_lines(node: Node) -> None:
    result = run("train", "a", "--out", "o", "--json-logs")
    told = [json.loads(line) for line in result.stderr.splitlines()]
    assert [one.get("event", "log") for one in told] == ["state", "progress", "log"]
    assert told[2]["level"] == "info"
    assert told[2]["logger"] == "streamlearn.node"
    assert told[2]["bytes"] == 7


def test_train_takes_a_job_file_and_flags_beside_it(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[source]\nuri = "s3://b/x"\n[model]\nalpha = 0.2\n[output]\ndir = "o"\n')
    assert run("train", str(path), "--alpha", "0.4").exit_code == 0
    assert node.job.source.uri == ("s3://b/x",)
    assert node.job.model.alpha == 0.4
    assert run("train", str(path), "other.csv").exit_code == 0
    assert node.job.source.uri == ("other.csv",)


def test_the_environment_is_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMLEARN_OUTPUT_DIR", "from-environment")
    assert run("train", "a").exit_code == 0
    assert node.job.output.dir == "from-environment"


def test_a_number_of_bits_asks_for_the_table_that_has_them(node: Node) -> None:
    run("train", "a", "--out", "o", "-b", "22")
    assert (node.job.tables.index, node.job.tables.bits) == ("hashed", 22)
    run("train", "a", "--out", "o", "-b", "22", "--index", "exact")
    assert node.job.tables.index == "exact"
    run("train", "a", "--out", "o", "-b", "22", "--set", "tables.index=exact")
    assert node.job.tables.index == "exact"
    run("train", "a", "--out", "o")
    assert node.job.tables.index == "exact"


def test_test_only_evaluates_the_model_in_out(node: Node) -> None:
    assert run("train", "-t", "new.csv", "--out", "o").exit_code == 0
    assert node.calls == [("evaluate", (Path("o"), node.job))]
    assert node.job.source.format == "delimited"
    assert node.job.source.uri == ("new.csv",)


@pytest.mark.parametrize(
    ("spacing", "code"), [("100", 0), ("2.5", 0), ("0", 2), ("1.0", 2), ("x", 2), ("-5", 2)]
)
def test_progress_spacing_is_a_number_or_a_factor(node: Node, spacing: str, code: int) -> None:
    assert run("train", "a", "--out", "o", f"--progress={spacing}").exit_code == code


# --- exit codes and errors


@pytest.mark.parametrize(("stopped", "code"), [("SIGINT", 130), ("SIGTERM", 0), (None, 0)])
def test_a_stopped_run_prints_its_report(node: Node, stopped: str | None, code: int) -> None:
    node.report["stopped"] = stopped
    result = run("train", "a", "--out", "o")
    assert result.exit_code == code
    assert "examples    3" in result.stdout or stopped is None


def test_a_report_with_failed_objects_is_a_failed_run(node: Node) -> None:
    node.report["failed"] = {"a.gz": "a.gz is damaged at byte 17"}
    result = run("train", "a", "--out", "o", "--quiet")
    assert result.exit_code == 1
    assert result.stderr == "error: a.gz is damaged at byte 17\n"
    assert result.stdout == "model     lr\nexamples  3\nlogloss   0.500000\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("a.gz is damaged", cause="bad CRC", hint="fetch it again"), 1),
        (SourceMissingError("nothing matched", cause="404", hint="look"), 2),
        (ConfigError("no model in o", cause="none", hint="train"), 2),
    ],
)
def test_an_error_is_a_sentence_a_cause_and_a_hint(
    node: Node, error: StreamlearnError, code: int
) -> None:
    node.raises = error
    result = run("train", "a", "--out", "o", "--quiet")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"error: {error.message}",
        f"cause: {error.cause}",
        f"hint: {error.hint}",
    ]


def test_an_error_in_a_group_of_tasks_is_still_a_sentence(node: Node) -> None:
    inner = BaseExceptionGroup("tasks", [ValueError("x"), DataError("a.gz is damaged")])
    node.raises = BaseExceptionGroup("tasks", [inner])
    result = run("train", "a", "--out", "o", "--quiet")
    assert (result.exit_code, result.stderr) == (1, "error: a.gz is damaged\n")


def test_debug_shows_where_an_error_comes_from(node: Node) -> None:
    node.raises = DataError("a.gz is damaged")
    result = run("train", "a", "--out", "o", "--debug")
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: a.gz is damaged\n")


def test_what_nobody_expected_is_called_a_bug(node: Node) -> None:
    node.raises = ZeroDivisionError("division by zero")
    result = run("train", "a", "--out", "o", "--quiet")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "error: ZeroDivisionError: division by zero\nhint: this is a bug" in result.stderr


def test_ctrl_c_before_the_run_is_quiet(node: Node) -> None:
    node.raises = KeyboardInterrupt()
    result = run("train", "a", "--out", "o", "--quiet")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--out", "o"), "error: there is no source\nhint: name files"),
        (("train", "a"), "error: there is no output directory\nhint: --out DIR\n"),
        (("train", "a.toml", "b.toml"), "error: there are two job files, a.toml and b.toml\n"),
        (("train", "none.toml"), "error: job file none.toml cannot be read\ncause: No such file"),
        (("train", "a", "--alpha", "x"), "error: `model.alpha` must be a number > 0, but is 'x'"),
        (("train", "a", "--format", "cirteo"), "hint: did you mean criteo?"),
        (("train", "a", "--column", "late"), "`source.columns` must be a table of name = text"),
        (("train", "a", "--set", "model.alhpa=1"), "hint: did you mean model.alpha?"),
        (("evaluate", "o"), "error: there is no source\n"),
        (("evaluate", "o", "-", "-p", "x"), "error: evaluate -p reads the sources twice"),
        (("predict", "o", "a", "-p", "none/there"), "error: none/there cannot be written"),
        (("export", "o", "weights.csv"), "export writes .npz, .parquet or .txt"),
        (("train", "a", "--alhpa", "1"), "--alpha"),
        (("trian", "a"), "train"),
    ],
)
def test_wrong_usage_is_told_in_words(
    node: Node, arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert node.calls == []


# --- the other verbs


def test_evaluate_reads_new_sources_as_the_model_learned_the_old(node: Node) -> None:
    result = run("evaluate", "model", "new.csv", "--json")
    assert json.loads(result.stdout)["logloss"] == 0.5
    assert node.calls == [("evaluate", (Path("model"), node.job))]
    assert node.job.source.uri == ("new.csv",)
    assert node.job.source.format == "delimited"
    assert node.job.model.alpha == 0.7
    assert node.job.output.dir == "model"
    assert not node.job.source.follow


def test_evaluate_writes_predictions_where_asked(node: Node, tmp_path: Path) -> None:
    target = tmp_path / "p.txt"
    result = run("evaluate", "model", "a", "-p", str(target))
    assert [name for name, _ in node.calls] == ["evaluate", "predict"]
    assert target.read_text() == "0.5\n0.25\n1e-09\n"
    assert "logloss" in result.stdout


def test_predict_writes_one_probability_a_line(node: Node) -> None:
    result = run("predict", "model", "a")
    assert result.stdout == "0.5\n0.25\n1e-09\n"
    assert "examples  3" in result.stderr
    assert run("predict", "model", "a", "--quiet").stderr == ""


def test_predict_to_a_file_leaves_stdout_to_the_report(node: Node, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    node.predictions = [np.array([0.125], np.float32), np.zeros(0)]
    target = tmp_path / "p.txt"
    result = run("predict", "model", "a", "-p", str(target), "--json")
    assert target.read_text() == "0.125\n"
    assert json.loads(result.stdout)["examples"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_in_words(node: Node) -> None:
    node.predictions = [[0.5] * 10_000]
    result = run("predict", "model", "a", "-p", "/dev/full", "--quiet")
    assert result.exit_code == 1
    assert result.stderr == ("error: /dev/full cannot be written\ncause: No space left on device\n")


def test_replay_takes_a_mended_schema(node: Node) -> None:
    assert run("replay", "model", "--column", "delay=ignore").exit_code == 0
    assert node.calls == [("replay", (Path("model"), node.job))]
    assert node.job.source.columns == {"delay": "ignore"}


def test_inspect_shows_weights_by_name(node: Node) -> None:
    node.report = {"features": 2, "weights": [{"name": "origin=JFK", "weight": 1.5}]}
    result = run("inspect", "model", "--top", "5")
    assert node.calls == [("inspect", (Path("model"), 5))]
    assert result.stdout.splitlines()[-1] == "  origin=JFK     1.5"


def test_export_chooses_by_suffix(node: Node) -> None:
    node.report = {"rows": 2}
    assert run("export", "model", "w.npz").stdout == "rows  2\n"
    assert node.calls == [("export", (Path("model"), Path("w.npz")))]


def test_snapshot_ls_lists(node: Node) -> None:
    assert run("snapshot", "ls", "model").stdout.splitlines()[1:] == [
        "  1           10",
        "  2           20",
    ]
    assert [
        one["examples"] for one in json.loads(run("snapshot", "ls", "model", "--json").stdout)
    ] == [10, 20]


def test_source_ls_lists_objects(node: Node) -> None:
    result = run(
        "source", "ls", "s3://b/", "--anonymous", "--endpoint-url", "http://127.0.0.1:9000"
    )
    assert result.stdout.splitlines() == [
        "             12  1970-01-02 00:00:00  s3://b/a.gz",
        "              -                    -  http://h/b",
    ]
    assert node.job.source.anonymous
    first, second = run("source", "ls", "s3://b/", "--json").stdout.splitlines()
    assert json.loads(first)["size"] == 12
    assert json.loads(second)["uri"] == "http://h/b"


def test_source_head_prints_bytes_as_they_are(node: Node) -> None:
    result = run("source", "head", "a", "-n", "2")
    assert result.stdout_bytes == b"a,b\n\xff\x00,d\n"
    assert node.calls == [("source_head", (node.job, 2))]


def test_source_check_fails_where_the_source_does(node: Node) -> None:
    node.report = {"ok": True, "objects": 3}
    assert run("source", "check", "a").stdout == "ok       yes\nobjects  3\n"
    node.report = {"ok": False}
    assert run("source", "check", "a").exit_code == 1


def test_config_show_says_where_values_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMLEARN_MODEL_BETA", "2")
    result = run("config", "show", "a.csv", "--alpha", "0.3")
    assert "alpha = 0.3                                   # flag\n" in result.stdout
    assert "# environment STREAMLEARN_MODEL_BETA\n" in result.stdout
    told = json.loads(run("config", "show", "--json").stdout)
    assert told["model"]["beta"] == {"value": 2.0, "origin": "environment STREAMLEARN_MODEL_BETA"}


def test_config_schema_is_json_or_the_tables_of_the_docs() -> None:
    assert json.loads(run("config", "schema").stdout)["title"] == "streamlearn job"
    assert run("config", "schema", "--markdown").stdout.startswith("## [source]\n")


def test_version() -> None:
    assert run("version").stdout == f"streamlearn {__version__}\n"
    assert json.loads(run("version", "--json").stdout)["streamlearn"] == __version__


def test_doctor_examines_this_machine(node: Node) -> None:
    node.report = {"ok": True}
    result = run("doctor", "s3://b/x", "--json")
    levels = {one["name"]: one["level"] for one in json.loads(result.stdout)}
    assert levels["source"] == "ok"
    assert result.exit_code == (1 if "fail" in levels.values() else 0)


def test_doctor_fails_where_a_source_cannot_be_reached(node: Node) -> None:
    node.raises = SourceMissingError("no bucket b", hint="create it")
    result = run("doctor", "s3://b/x")
    assert result.exit_code == 1
    assert "no bucket b" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        *("train", "evaluate", "predict", "replay", "inspect", "export", "doctor", "version"),
        *("source check", "source head", "source ls", "snapshot ls", "config show"),
        "config schema",
    ],
)
def test_every_verb_has_help_with_examples(words: str) -> None:
    result = run(*words.split(), "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"streamlearn {words}" in result.stdout


# --- logs


def test_logs_are_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(as_json=False, level=logging.INFO)
    logging.getLogger("streamlearn.x").info("a snapshot")
    logging.getLogger("elsewhere").info("not told")
    logging.getLogger("elsewhere").warning("told")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "INFO streamlearn.x: a snapshot",
        "WARNING elsewhere: told",
    ]


def test_logs_as_json_keep_the_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(as_json=True, level=logging.DEBUG)
    configure_logs(as_json=True, level=logging.DEBUG)
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("streamlearn.x").exception("failed at %s", "a", extra={"path": Path("p")})
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told["message"] == "failed at a"
    assert told["path"] == "p"
    assert "ValueError: x" in told["exception"]


# --- as a process


def process(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamlearn", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def test_the_module_runs_and_help_is_on_stdout() -> None:
    done = process("--help")
    assert done.returncode == 0
    assert "train" in done.stdout
    assert done.stderr == ""


def test_wrong_usage_exits_with_two() -> None:
    done = process("train", "a", "--set", "model.alhpa=1", "--out", "o")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: `model.alhpa` is no setting")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["config", "show"], ["version"]]
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from streamlearn.__main__ import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as error:\n"
        "    assert not error.code, error.code\n"
        "heavy = {'numpy', 'numba', 'aiobotocore', 'aiohttp', 'pyarrow', 'torch', 'asyncio'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_ends_the_program_quietly() -> None:
    code = (
        "import sys, types\n"
        "node = types.ModuleType('streamlearn.node')\n"
        "def predict(directory, job, out, *, probabilities):\n"
        "    for _ in range(10_000):\n"
        "        out([0.5] * 1000)\n"
        "    return {}\n"
        "node.predict = predict\n"
        "node.stored_job = lambda directory: None\n"
        "sys.modules['streamlearn.node'] = node\n"
        "from streamlearn.__main__ import main\n"
        "sys.argv[1:] = ['predict', 'model', 'a']\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"0.5\n"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == 0


def test_completion_offers_verbs_and_choices() -> None:
    def completed(line: str) -> str:
        environ = {
            **os.environ,
            "_STREAMLEARN_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        return process(env=environ).stdout

    assert completed("streamlearn ev").split() == ["evaluate"]
    assert set(completed("streamlearn train --format ").split()) >= {"criteo", "svmlight"}
    assert completed("streamlearn train --format cri").split() == ["criteo"]
