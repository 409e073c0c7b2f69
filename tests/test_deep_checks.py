"""Settings of nets: what they are read as, and what is refused together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlearn.config import classes_of, load_job
from streamlearn.errors import ConfigError


def job(*sets: str, path: Path | None = None) -> Any:
    return load_job(path, ["model.kind=deep", *sets]).job


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("hidden=[256,128]", {"hidden": [256, 128]}),
        ("hidden=[256, 128],dropout=0.1", {"hidden": [256, 128], "dropout": 0.1}),
        ("{hidden = [8], name = 'x'}", {"hidden": [8], "name": "x"}),
        ("name=some text,deep=true,n=3", {"name": "some text", "deep": True, "n": 3}),
    ],
)
def test_settings_of_a_net_are_what_toml_reads(text: str, settings: dict[str, Any]) -> None:
    assert job(f"model.settings={text}").model.settings == settings


def test_settings_of_a_net_stand_in_a_job_file_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[model]\nkind = 'deep'\n[model.settings]\nhidden = [4, 2]\ndropout = 0.5\n")
    found = job("model.settings.dropout=0.1", path=path).model.settings
    assert found == {"hidden": [4, 2], "dropout": 0.1}


def test_classes_are_counted_or_named() -> None:
    assert classes_of(job()) == 0
    assert classes_of(job("model.loss=classes", "model.classes=10")) == 10
    named = job("model.loss=classes", "source.classes=cat,dog,cow")
    assert classes_of(named) == 3
    assert classes_of(load_job(None).job) == 0


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("model.loss=classes",), "nothing says how many there are"),
        (("model.loss=classes", "model.classes=1"), "at least 2"),
        (
            ("model.loss=classes", "model.classes=3", "source.classes=a,b"),
            "`model.classes` is 3, but `source.classes` names 2",
        ),
        (("model.classes=3",), '`model.classes` is given, but `model.loss` is "logistic"'),
        (
            ("model.loss=squared", "source.classes=a,b"),
            '`source.classes` is given, but `model.loss` is "squared"',
        ),
        (("tables.index=hashed",), "by exact keys"),
        (("tables.kkt=0.1",), "tables.kkt"),
        (("compute.learn_lanes=2",), "one learning lane a device"),
        (("source.negative_rate=0.5", "model.loss=squared"), "none is a negative"),
        (("model.delay=2",), "`model.delay` must be 0 or 1"),
        (("model.settings=hidden",), "`model.settings` must be a table"),
    ],
)
def test_what_does_not_go_together_is_refused(sets: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(*sets)
    assert said in caught.value.message
