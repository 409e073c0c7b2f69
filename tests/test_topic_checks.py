"""What topics over shards are not learned with is refused, in a sentence that says what to do."""

from __future__ import annotations

import msgspec
import pytest

from streamlearn.config import (
    ComputeConfig,
    JobConfig,
    LdaConfig,
    SourceConfig,
    TablesConfig,
    check_for_shards,
)
from streamlearn.errors import ConfigError
from streamlearn.topic_checks import MINIBATCH_MAX

JOB = JobConfig(model=LdaConfig(optimize="none"), tables=TablesConfig(shards=("a:1",)))


def test_plain_job_is_taken():
    check_for_shards(JOB)
    check_for_shards(JobConfig(model=LdaConfig(optimize="none", epochs=1), tables=JOB.tables))


@pytest.mark.parametrize(
    ("section", "wrong", "says"),
    [
        ("model", {"held_out": 0.1}, "`model.held_out` is 0.1, but over shards"),
        ("model", {"patience": 3}, "`model.patience` is 3"),
        ("model", {"vocabulary_max": 100}, "each shard knows its own words alone"),
        ("model", {"half_life": 10.0}, "nothing is forgotten"),
        ("tables", {"when_full": "evict"}, "`tables.when_full` is"),
        ("tables", {"ttl_seconds": 60.0}, "`tables.ttl_seconds` is 60"),
        ("tables", {"index": "hashed"}, "`tables.index"),
        ("source", {"follow": True}, "`model.epochs` is 100, but over shards a source that goes"),
        ("compute", {"minibatch": MINIBATCH_MAX + 1}, "`compute.minibatch` is 32769"),
    ],
)
def test_what_cannot_be_had_is_refused(section, wrong, says):
    kinds = {"tables": TablesConfig, "source": SourceConfig, "compute": ComputeConfig}
    assert section == "model" or section in kinds
    changed = msgspec.structs.replace(getattr(JOB, section), **wrong)
    with pytest.raises(ConfigError) as found:
        check_for_shards(msgspec.structs.replace(JOB, **{section: changed}))
    assert says in found.value.message
