"""The job: where values come from, which wins, and what is said about wrong ones."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.config import (
    JobConfig,
    LrConfig,
    OutputConfig,
    SourceConfig,
    TablesConfig,
    check_job,
    job_differences,
    job_signature,
    load_job,
    settings,
    start_seconds,
)
from streamlearn.errors import ConfigError
from streamlearn.jobtext import job_json, job_toml, schema, settings_markdown
from streamlearn.sections import WINDOW_DEFAULT_MAX
from streamlearn.settings import joined, parse_size

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"


def write_job(directory: Path, text: str) -> Path:
    path = directory / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(*sets: str, **more: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_job(None, sets, **more)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return caught.value


# --- where values come from


def test_nothing_given_is_the_default_job() -> None:
    resolved = load_job(None)
    assert resolved.job == JobConfig()
    assert set(resolved.origins.values()) == {"default"}
    assert set(resolved.origins) == {setting.path for setting in settings("lr")}


def test_flag_wins_over_environment_over_job_file_over_default(tmp_path: Path) -> None:
    path = write_job(tmp_path, "[model]\nalpha = 0.2\nbeta = 0.2\nl1 = 0.2\n")
    resolved = load_job(
        path,
        [],
        {"model.alpha": 0.4},
        {"STREAMLEARN_MODEL_ALPHA": "0.3", "STREAMLEARN_MODEL_BETA": "0.3"},
    )
    model = resolved.job.model
    assert (model.alpha, model.beta, model.l1, model.l2) == (0.4, 0.3, 0.2, 0.0)
    assert [resolved.origins[f"model.{n}"] for n in ("alpha", "beta", "l1", "l2")] == [
        "flag",
        "environment STREAMLEARN_MODEL_BETA",
        "job file",
        "default",
    ]


def test_a_set_counts_as_a_flag_and_a_flag_wins_over_it() -> None:
    resolved = load_job(None, ["model.alpha=0.5", "model.beta=2"], {"model.alpha": "0.7"})
    assert resolved.job.model.alpha == 0.7
    assert resolved.job.model.beta == 2.0
    assert resolved.origins["model.beta"] == "flag"


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load_job(None, [], {"model.alpha": None}).origins["model.alpha"] == "default"


def test_what_a_model_was_trained_with_stands_before_the_defaults() -> None:
    base = JobConfig(
        source=SourceConfig(
            uri=("old.csv",), follow=True, format="delimited", columns={"late": "label"}
        ),
        model=LrConfig(alpha=0.7),
        output=OutputConfig(dir="old"),
    )
    resolved = load_job(None, ["source.columns.when=time"], {"source.uri": ["new.csv"]}, base=base)
    assert resolved.job.source.uri == ("new.csv",)
    assert resolved.job.source.format == "delimited"
    assert not resolved.job.source.follow
    assert resolved.job.model.alpha == 0.7
    assert resolved.job.source.columns == {"late": "label", "when": "time"}
    assert resolved.job.output.dir == ""
    assert resolved.origins["source.format"] == "model"
    assert resolved.origins["source.columns.late"] == "model"
    assert resolved.origins["source.columns.when"] == "flag"


def test_a_whole_job_file_reads(tmp_path: Path) -> None:
    path = write_job(
        tmp_path,
        """
        [source]
        uri = ["s3://logs/2026/11/*.gz"]
        format = "delimited"
        header = true
        columns = { late = "label", when = "time", "odd name.x" = "categorical" }
        cross = ["origin*destination"]
        read_ahead_bytes = "1GiB"
        [model]
        kind = "lr"
        alpha = 1
        [output]
        dir = "out"
        snapshot_seconds = 300
        [http]
        listen = "127.0.0.1:9100"
        """,
    )
    job = load_job(path).job
    assert job.source.uri == ("s3://logs/2026/11/*.gz",)
    assert job.source.columns["odd name.x"] == "categorical"
    assert job.source.read_ahead_bytes == 1 << 30
    assert job.model.kind == "lr"
    assert isinstance(job.model.alpha, float)
    assert job.output.snapshot_seconds == 300.0
    assert job.http.listen == "127.0.0.1:9100"


def test_a_uri_may_be_one_text_or_a_list(tmp_path: Path) -> None:
    one = write_job(tmp_path, '[source]\nuri = "s3://logs/a.csv"\n')
    assert load_job(one).job.source.uri == ("s3://logs/a.csv",)
    assert load_job(None, ["source.uri=a,b.csv"]).job.source.uri == ("a,b.csv",)
    assert load_job(None, ['source.uri=["a", "b"]']).job.source.uri == ("a", "b")


def test_relative_paths_of_a_job_file_start_where_it_is(tmp_path: Path) -> None:
    path = write_job(tmp_path, '[source]\nuri = ["a.csv", "/b.csv", "-", "s3://c", "~/d"]\n')
    uris = load_job(path).job.source.uri
    assert uris == (str(tmp_path / "a.csv"), "/b.csv", "-", "s3://c", "~/d")
    assert load_job(path, ["source.uri=a.csv"]).job.source.uri == ("a.csv",)


@pytest.mark.parametrize("name", ["none", "english"])
def test_files_of_words_are_taken_from_where_the_job_file_is(tmp_path: Path, name: str) -> None:
    text = '[source]\nvocabulary = "words.txt"\nstop_words = "{}"\n'
    path = write_job(tmp_path, text.format("stops.txt"))
    source = load_job(path).job.source
    assert source.vocabulary == str(tmp_path / "words.txt")
    assert source.stop_words == str(tmp_path / "stops.txt")
    assert load_job(write_job(tmp_path, text.format(name))).job.source.stop_words == name


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("source.header=yes", "header", True),
        ("source.header=0", "header", False),
        ("source.delimiter=tab", "delimiter", "\t"),
        ("source.delimiter=\\t", "delimiter", "\t"),
        ("source.delimiter=;", "delimiter", ";"),
        ("source.quote=", "quote", ""),
        ("source.cross=a*b, c*d", "cross", ("a*b", "c*d")),
        ("source.columns=a=label,b=time", "columns", {"a": "label", "b": "time"}),
        ('source.columns={a = "label"}', "columns", {"a": "label"}),
        ("source.columns.a.b=label", "columns", {"a.b": "label"}),
        ("source.block_bytes=1MB", "block_bytes", 1_000_000),
        ("source.label=delay > 15", "label", "delay > 15"),
        ("source.start=@2026-11-01", "start", "@2026-11-01"),
        ("source.negative_rate=1", "negative_rate", 1.0),
    ],
)
def test_text_means_a_value_of_the_settings_type(text: str, path: str, value: object) -> None:
    found = getattr(load_job(None, [text]).job.source, path)
    assert found == value
    assert type(found) is type(value)


def test_an_environment_variable_of_no_section_is_not_ours() -> None:
    load_job(None, environ={"STREAMLEARN_CACHE": "x", "PATH": "y", "STREAMLEARN_SOURCE": "z"})


def test_variables_that_kubernetes_sets_for_services_are_not_ours() -> None:
    environ = {
        "STREAMLEARN_HTTP_SERVICE_HOST": "10.0.0.1",
        "STREAMLEARN_HTTP_SERVICE_PORT_METRICS": "9100",
        "STREAMLEARN_HTTP_PORT": "tcp://10.0.0.1:9100",
        "STREAMLEARN_HTTP_PORT_9100_TCP_ADDR": "10.0.0.1",
    }
    assert load_job(None, environ=environ).job == JobConfig()


# --- what is said about wrong ones


def test_an_unknown_key_names_path_and_nearest(tmp_path: Path) -> None:
    path = write_job(tmp_path, "[model]\nalhpa = 1.0\n")
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert caught.value.message == f"`model.alhpa` is no setting (job file {path})"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean model.alpha?; [model] takes kind, rule,")


def test_an_unknown_section_names_the_nearest() -> None:
    error = complaint("modle.alpha=1")
    assert error.message == "`modle` is no section (--set modle.alpha=1)"
    assert error.hint == (
        "did you mean model?; there are source, model, tables, cluster, compute, output, http"
    )


def test_an_unknown_variable_names_the_nearest() -> None:
    error = complaint(environ={"STREAMLEARN_SOURCE_FORMTA": "criteo"})
    assert "STREAMLEARN_SOURCE_FORMTA" in error.message
    assert error.hint == "did you mean STREAMLEARN_SOURCE_FORMAT?"


def test_an_unknown_choice_names_all_and_the_nearest() -> None:
    error = complaint("source.format=cirteo")
    assert error.message.startswith("`source.format` must be one of auto, criteo, delimited")
    assert error.message.endswith("but is 'cirteo' (--set source.format=cirteo)")
    assert error.hint == "did you mean criteo?"


def test_a_wrong_flag_is_named_as_it_was_typed() -> None:
    error = complaint(flags={"model.alpha": "fast"})
    assert error.message == "`model.alpha` must be a number > 0, but is 'fast' (flag --alpha)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.alpha=0", "a number > 0"),
        ("model.alpha=nan", "a number > 0"),
        ("model.alpha=inf", "a number > 0"),
        ("model.l1=-1", "a number >= 0"),
        ("model.epochs=1.5", "a whole number >= 1"),
        ("model.kind=forest", "one of lr"),
        ("source.negative_rate=0", "a number > 0 and <= 1"),
        ("source.negative_rate=1.1", "a number > 0 and <= 1"),
        ("source.header=maybe", "true or false"),
        ("source.delimiter=ab", "one character"),
        ("source.delimiter=", "one character"),
        ("source.quote=ab", "one character or nothing"),
        ("source.block_bytes=12XB", "a number of bytes >= 0 and <= 1073741824 (256MB, 1GiB)"),
        ("source.read_ahead_bytes=1", "a number of bytes >= 1048576 (256MB, 1GiB)"),
        ("source.columns=late", "a table of name = text"),
        ("source.columns={", "a table of name = text"),
        ("source.start=yesterday", "stored, earliest, latest or @TIME"),
        ("source.start=@noon", "stored, earliest, latest or @TIME"),
        ("source.endpoint_url=127.0.0.1", "a URL (http://127.0.0.1:9000)"),
        ('source.uri=["a", ""]', "a URI or a list of URIs, none of them empty"),
        ("tables.bits=7", "a whole number >= 8 and <= 32"),
        ("tables.bits=33", "a whole number >= 8 and <= 32"),
        ("tables.index=btree", "one of exact, hashed"),
        ("tables.shards=h", "HOST:PORT or a list of them, no two the same (10.0.0.1:7700)"),
        ("tables.shards=:7700", "HOST:PORT or a list of them, no two the same"),
        ("tables.shards=h:0", "HOST:PORT or a list of them, no two the same"),
        ("tables.shards=h:7700,h:7700", "HOST:PORT or a list of them, no two the same"),
        ("tables.tau=-2", "a whole number >= -1"),
        ("tables.durability=none", "one of log, snapshot"),
        ("tables.push_values=float64", "one of float32, float16, byte"),
        ("tables.snapshots=/mnt", "an S3 URI (s3://bucket/prefix)"),
        ("cluster.name=", "a name of 1 to 255 characters"),
        ("cluster.lease_seconds=0", "a number > 0"),
        ("compute.lanes=-1", "a whole number >= 0 and <= 256"),
        ("model.kind=gbm", "one of lr, fm"),
        ("http.listen=localhost", "HOST:PORT (127.0.0.1:9100)"),
        ("http.listen=localhost:70000", "HOST:PORT (127.0.0.1:9100)"),
    ],
)
def test_a_wrong_value_names_path_expected_and_actual(text: str, expected: str) -> None:
    path, _, value = text.partition("=")
    message = complaint(text).message
    assert message.startswith(f"`{path}` must be {expected}")
    assert f"but is {value!r} (--set {text})" in message


TIERS = "a table of at most 8 count = dim, both ascending, dim from 1 to 512 (10=8,1000=32)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.dim=0", "a whole number >= 1 and <= 512"),
        ("model.dim=513", "a whole number >= 1 and <= 512"),
        ("model.order=1", "2 or 3"),
        ("model.order=4", "2 or 3"),
        ("model.threshold=-1", "a whole number >= 0 and <= 4294967295"),
        ("model.dim_by_count=1000=8,10=32", TIERS),
        ("model.dim_by_count=10=32,1000=8", TIERS),
        ("model.dim_by_count=10=8,1000=8", TIERS),
        ("model.dim_by_count=10=0", TIERS),
        ("model.dim_by_count=10=513", TIERS),
        ("model.dim_by_count=-1=8", TIERS),
        ("model.dim_by_count=4294967296=8", TIERS),
        ("model.dim_by_count=few=8", TIERS),
        ("model.dim_by_count=10=many", TIERS),
        ("model.dim_by_count=" + ",".join(f"{n}={n}" for n in range(1, 10)), TIERS),
        ("model.v_lr=0", "a number > 0"),
        ("model.v_lr_beta=0", "a number > 0"),
        ("model.v_l2=-1", "a number >= 0"),
        ("model.v_dropout=1", "a number >= 0 and < 1"),
        ("model.l1_shrk=perhaps", "true or false"),
    ],
)
def test_a_wrong_embedding_names_path_and_what_is_allowed(text: str, expected: str) -> None:
    path = text.partition("=")[0]
    message = complaint("model.kind=fm", text).message
    assert message.startswith(f"`{path}` must be {expected}, but is ")
    assert message.endswith(f" (--set {text})")


def test_tiers_are_laid_over_one_another_and_checked_then(tmp_path: Path) -> None:
    path = write_job(tmp_path, '[model]\nkind = "fm"\ndim_by_count = { 10 = 8 }\n')
    tiers = load_job(path, ["model.dim_by_count.1000=32"]).job.model.tiers
    assert tiers is not None
    assert (tiers.counts, tiers.dims) == ((10, 1000), (8, 32))
    with pytest.raises(ConfigError) as caught:
        load_job(path, ["model.dim_by_count.5=4"])
    assert caught.value.message.startswith(f"`model.dim_by_count` must be {TIERS}, but together")


def test_a_setting_of_another_model_is_said_to_be_one() -> None:
    message = complaint("model.dim=8").message
    assert (
        message
        == "`model.dim` is a setting of model fm, mf, deep, not of this one (--set model.dim=8)"
    )
    assert "a setting of model lr" in complaint("model.kind=fm", "model.rule=ftrl").message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nalpha = '0.1'\n", "`model.alpha` must be a number > 0, but is '0.1'"),
        ("[model]\nepochs = true\n", "`model.epochs` must be a whole number >= 1, but is True"),
        ("[source]\nheader = 1\n", "`source.header` must be true or false, but is 1"),
        ("[source]\nuri = 3\n", "`source.uri` must be a URI or a list of URIs, none of them"),
        ("[source]\ncross = [1]\n", "`source.cross` must be text or a list of texts"),
        ("[source]\ncolumns = { a = 1 }\n", "`source.columns.a` must be text, but is 1"),
        ("source = 1\n", "`source` must be a table, but is 1"),
        ("alpha = 1\n", "`alpha` is no section"),
    ],
)
def test_a_job_file_is_typed(tmp_path: Path, text: str, message: str) -> None:
    path = write_job(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert caught.value.message.startswith(message)
    assert f"job file {path}" in caught.value.message


def test_a_job_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        load_job(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is not TOML") as caught:
        load_job(write_job(tmp_path, "[model\n"))
    assert "line 1" in (caught.value.cause or "")


@pytest.mark.parametrize("text", ["alpha", "alpha=1", "model.alpha", "=1"])
def test_a_set_without_section_key_and_value_is_refused(text: str) -> None:
    assert "--set takes section.key=value" in complaint(text).message


def test_a_key_below_a_value_that_is_no_table_is_refused() -> None:
    assert complaint("model.alpha.x=1").message.startswith("`model.alpha.x` is no setting")


def test_a_job_made_in_python_is_checked_alike() -> None:
    check_job(JobConfig())
    with pytest.raises(ConfigError, match=r"`tables\.bits` must be a whole number >= 8 and <= 32"):
        check_job(JobConfig(tables=TablesConfig(bits=2)))
    with pytest.raises(ConfigError, match=r"`output\.snapshot_seconds` must be a number > 0"):
        check_job(JobConfig(output=OutputConfig(snapshot_seconds=0.0)))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("tables.shards=h:1", "tables.index=hashed"), "`tables.shards` are for tables with"),
        (
            ("model.kind=fm", "model.dim_by_count=10=8", "tables.index=hashed"),
            "`model.dim_by_count` goes by counts, and a table with `tables.index",
        ),
        (
            ("model.kind=fm", "tables.shards=h:1", "tables.index=hashed"),
            "`tables.shards` are for tables with",
        ),
        (("model.kind=fm", "tables.kkt=0.1"), "`tables.kkt` is 0.1, but the sums of `model.rule`"),
        (("tables.kkt=0.1",), "`tables.kkt` is 0.1, but the sums of `model.rule` ftrl need every"),
        (
            ("model.kind=mf", "source.negative_rate=0.5"),
            "`source.negative_rate` is 0.5, but of such labels",
        ),
        (("tables.features_min=9", "tables.features_max=5"), "`tables.features_min` is 9, which"),
        (("cluster.certificate=a",), "`cluster.certificate` is given, but `cluster.key` is not"),
        (
            ("cluster.certificate=a", "cluster.key=b"),
            "`cluster.certificate` is given, but `cluster.authority` is not",
        ),
        (("compute.lanes=4", "tables.index=hashed"), "`compute.lanes` = 4 divides a table with"),
        (
            ("compute.shard_lanes=1", "tables.index=hashed"),
            "`compute.shard_lanes` divides a table with",
        ),
        (("compute.lanes=4", "compute.learn_lanes=2"), "`compute.lanes` = 4 and `compute.learn_"),
        (
            ("compute.lanes=4", "compute.shard_lanes=4"),
            "`compute.shard_lanes` is 4 of `compute.lanes` = 4: no lane is left to work",
        ),
        *(
            (("model.kind=mf", f"{path}={value}"), f"`{path}` is {shown}, which is not for `model.")
            for path, value, shown in (
                ("tables.index", "hashed", "'hashed'"),
                ("tables.kkt", "0.1", "0.1"),
                ("compute.learn_lanes", "2", "2"),
                ("compute.shard_lanes", "1", "1"),
            )
        ),
        *(
            (
                ("model.kind=mf", "tables.shards=h:1", f"model.{name}={value}"),
                f"`model.{name}` is {value}, but over shards no ratings are held out",
            )
            for name, value in (("held_out", "0.1"), ("patience", "2"))
        ),
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    sets: tuple[str, ...], message: str
) -> None:
    assert complaint(*sets).message.startswith(message)


def test_settings_that_go_together_are_taken() -> None:
    load_job(None, ["tables.kkt=0.1", "model.rule=adagrad", "tables.features_min=9"])
    load_job(None, ["tables.shards=h:1,h:2,[::1]:3", "tables.tau=-1"])
    load_job(None, ["cluster.certificate=a", "cluster.key=b", "cluster.authority=c"])
    load_job(None, ["compute.lanes=2", "compute.shard_lanes=1"])
    load_job(None, ["compute.shard_lanes=3"])
    load_job(None, ["model.kind=mf", "model.loss=logistic", "source.negative_rate=0.5"])
    load_job(None, ["compute.lanes=2", "compute.learn_lanes=4", "tables.index=hashed"])
    load_job(None, ["model.kind=mf", "compute.lanes=16", "model.held_out=0.1", "model.patience=2"])
    load_job(None, ["model.kind=mf", "tables.shards=h:1", "model.epochs=5"])


# --- what follows from settings


@pytest.mark.parametrize(("tau", "useful"), [(0, 1), (1, 2), (100, 101), (-1, 1 << 30)])
def test_a_worker_has_as_many_minibatches_under_way_as_staleness_lets_it_use(
    tau: int, useful: int
) -> None:
    in_flight = TablesConfig(tau=tau).minibatches_in_flight
    assert in_flight == min(useful, WINDOW_DEFAULT_MAX)
    assert TablesConfig(tau=tau, window=7).minibatches_in_flight == 7


@pytest.mark.parametrize(
    "text",
    [
        *("model.alpha=0.2", "model.rule=sgd", "model.epochs=2", "source.format=criteo"),
        *("source.columns.a=label", "source.cross=a*b", "source.negative_rate=0.5"),
        *("source.header=yes", "tables.index=hashed", "compute.minibatch=1"),
        *("source.range_bytes=1MB", "source.block_bytes=1MB", "source.compression=none"),
    ],
)
def test_a_job_that_means_or_cuts_something_else_has_another_signature(text: str) -> None:
    assert job_signature(load_job(None, [text]).job) != job_signature(JobConfig())


@pytest.mark.parametrize(
    "text",
    [
        *("source.uri=a.csv", "source.retries=1", "tables.tau=0", "tables.features_max=9"),
        *("compute.lanes=1", "output.dir=x", "http.listen=h:1", "cluster.name=x"),
        *("tables.shards=h:1", "output.window=7"),
    ],
)
def test_where_a_job_runs_is_no_part_of_its_signature(text: str) -> None:
    assert job_signature(load_job(None, [text]).job) == job_signature(JobConfig())


def test_jobs_say_where_they_differ() -> None:
    one = load_job(None, ["model.alpha=0.3", "compute.minibatch=16", "tables.tau=0"]).job
    assert job_differences(one, JobConfig()) == [
        "model.alpha is 0.3, was 0.1",
        "compute.minibatch is 16, was 4096",
    ]
    assert job_differences(one, one) == []


def test_the_signature_does_not_depend_on_the_order_of_columns() -> None:
    one = load_job(None, ["source.columns.a=label", "source.columns.b=time"]).job
    two = load_job(None, ["source.columns.b=time", "source.columns.a=label"]).job
    assert job_signature(one) == job_signature(two)
    assert len(job_signature(one)) == 16


# --- settings


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("1_000", 1000),
        ("256MB", 256_000_000),
        ("256 MiB", 256 << 20),
        ("1gib", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("2k", 2000),
        ("2Ki", 2048),
        ("7B", 7),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_read_in_thousands_and_in_powers_of_two(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1.5", "0.3KiB", "1 PB", "1e6", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_size(text)


def test_start_times_are_utc_unless_they_say_otherwise() -> None:
    assert start_seconds("@1793491200") == 1793491200.0
    assert start_seconds("@1970-01-02") == 86400.0
    assert start_seconds("@1970-01-01T01:00:00+01:00") == 0.0
    with pytest.raises(ValueError, match="not a time"):
        start_seconds("@inf")


def test_a_flag_given_several_times_adds_up() -> None:
    known = {setting.path: setting for setting in settings()}
    assert joined(known["source.cross"], ["a*b,c*d", "e*f"]) == ["a*b", "c*d", "e*f"]
    assert joined(known["source.columns"], ["a=label", "b=time"]) == {"a": "label", "b": "time"}
    with pytest.raises(ConfigError, match="flag --column"):
        joined(known["source.columns"], ["late"])


def test_every_setting_says_what_it_is_and_has_a_flag_of_its_own() -> None:
    flags = [setting.flag for setting in settings()]
    flags += [setting.short for setting in settings() if setting.short]
    assert len(flags) == len(set(flags))
    for setting in settings():
        assert setting.description.endswith("."), setting.path


def test_the_tag_of_a_model_is_its_kind() -> None:
    encoded = msgspec.json.encode(JobConfig())
    assert json.loads(encoded)["model"]["kind"] == "lr"
    assert msgspec.json.decode(encoded, type=JobConfig) == JobConfig()


# --- as text


def test_a_shown_job_is_a_job_file_that_means_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ["source.columns={a = 'label', 'b c' = 'time'}", "source.delimiter=tab", "model.alpha=1"]
    resolved = load_job(None, sets, {"source.uri": ['odd "name"\x7f\n.csv']})
    shown = job_toml(resolved)
    assert load_job(write_job(Path(), shown)).job == resolved.job
    assert "alpha = 1.0                                   # flag\n" in shown
    assert "beta = 1.0                                    # default\n" in shown


def test_a_shown_table_says_where_each_entry_came_from(tmp_path: Path) -> None:
    path = write_job(tmp_path, '[source]\ncolumns = { a = "label" }\n')
    resolved = load_job(path, ["source.columns.b=time"])
    assert "# a: job file, b: flag\n" in job_toml(resolved)
    told = job_json(resolved)["source"]["columns"]
    assert told == {"value": {"a": "label", "b": "time"}, "origin": "a: job file, b: flag"}


@given(st.text(), st.dictionaries(st.text(), st.text(max_size=5), max_size=3))
def test_any_text_survives_being_shown(label: str, columns: dict[str, str]) -> None:
    resolved = load_job(None, [], {"source.label": label, "source.columns": columns})
    shown = tomllib.loads(job_toml(resolved))
    assert shown["source"]["label"] == label
    assert shown["source"]["columns"] == columns


def test_the_schema_has_every_setting_with_its_limits() -> None:
    made = schema()
    json.dumps(made)
    model = made["$defs"]["LrConfig"]
    assert model["properties"]["alpha"]["exclusiveMinimum"] == 0
    assert model["properties"]["rule"]["enum"] == ["ftrl", "adagrad", "sgd"]
    assert model["required"] == []
    size = made["$defs"]["SourceConfig"]["properties"]["read_ahead_bytes"]
    assert [one["type"] for one in size["anyOf"]] == ["integer", "string"]
    assert made["$defs"]["SourceConfig"]["additionalProperties"] is False
    assert made["$defs"]["FmConfig"]["properties"]["dim"]["maximum"] == 512


def test_the_documentation_of_settings_is_current() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text.partition("<!-- settings -->\n")[2].strip() == settings_markdown().strip(), (
        "run: streamlearn config schema --markdown"
    )


def test_without_a_source_of_its_own_a_job_does_not_take_the_models() -> None:
    base = JobConfig(source=SourceConfig(uri=("old.csv",)))
    assert load_job(None, base=base).job.source.uri == ()
