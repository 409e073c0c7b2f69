"""Topics between workers and shards: every token has one topic, whatever comes twice or anew."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn import columns
from streamlearn.cluster.resharding import reshard
from streamlearn.cluster.stored_shards import shard_directory
from streamlearn.compute.kernels.topic_fits import step_alpha
from streamlearn.online.topic_blocks import Priors, Sweeper, arranged
from streamlearn.online.topic_steps import Documents, LdaStep
from streamlearn.protocol import Choose, Fault, Pull, PullTopics, Pushed, PushTopics
from streamlearn.shards import topics as topics_module
from streamlearn.shards.cut import Cut
from streamlearn.shards.disk import RealDisk
from streamlearn.shards.image import Imaging, snapshot_meta, write_part, write_topics
from streamlearn.shards.recovery import SNAPSHOTS, recover
from streamlearn.shards.shard import Shard
from streamlearn.shards.snapshot import SnapshotWriter
from streamlearn.topic_columns import NO_TOPIC, WordRows, encode_rows
from tests.cluster.test_feeding import Feeding
from tests.shard_parts import Desk, MemoryLog, changed, job, pull, push, replayed, spec
from tests.topic_parts import TopicRun, counts_of, documents, seen_of, topic_job

EMPTY = memoryview(b"")


def some(seed: int = 1, count: int = 4, **more: Any) -> list[list[list[int]]]:
    return [documents(seed * 100 + number, 20, **more) for number in range(count)]


def run(of: int = 2, batches: Any = None, **model: Any) -> TopicRun:
    return TopicRun(topic_job(**model), of, batches or some())


def merged(made: TopicRun) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for shard in made.shards:
        out |= counts_of(shard)
    return out


def check(made: TopicRun) -> None:
    """Check that counts are those of the tokens, each once."""
    tokens = Counter(key for batch in made.batches for key in batch.keys[: batch.nnz].tolist())
    for shard in made.shards:
        topics = shard.topics
        assert topics is not None
        counts = counts_of(shard)
        assert {key: sum(row) for key, row in counts.items()} == {
            key: tokens[key] for key in counts
        }
        assert topics.totals.tolist() == np.array([*counts.values()]).sum(axis=0).tolist()
        assert topics.words == len(counts)
        kept = [one.topics for many in topics.kept.values() for one in many if one is not None]
        held = np.bincount(np.concatenate(kept), minlength=topics.topics)
        assert held.tolist() == topics.totals.tolist()


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("of", [1, 2, 5])
def test_first_pass_counts_words_and_those_of_enough_documents_get_topics(of):
    batches = some()
    made = run(of, batches)
    made.passes(1)
    flat = [one for batch in batches for one in batch]
    tokens = Counter(key for one in flat for key in one)
    met = Counter(key for one in flat for key in set(one))
    seen: dict[int, tuple[int, int]] = {}
    for shard in made.shards:
        seen |= seen_of(shard)
        assert shard.topics.words == 0
    assert seen == {key: (tokens[key], met[key]) for key in tokens}
    assert made.mark.examples == len(flat)
    made.learn()
    wanted = {key for key in met if 2 <= met[key] <= 0.9 * len(flat)}
    assert merged(made).keys() == wanted
    assert 0 < len(wanted) < len(met)
    assert [type(one) for desk in made.desks for one in desk.log.messages].count(Choose) == of


@pytest.mark.parametrize("of", [1, 2, 5])
def test_each_token_has_one_topic_after_each_pass(of):
    made = run(of)
    made.passes(2)
    for _ in range(3):
        check(made)
        made.passes(1)
    check(made)
    assert made.mark.weight == made.tokens_of(np.array([*merged(made)], np.uint64))


def test_number_of_shards_makes_no_difference():
    runs = [run(of) for of in (1, 2, 7)]
    for one in runs:
        one.passes(4)
    assert merged(runs[0]) == merged(runs[1]) == merged(runs[2])
    assert runs[0].mark == runs[1].mark == runs[2].mark


def test_documents_are_better_known_from_pass_to_pass():
    made = run(2, some(3, 12))
    made.passes(2)
    found = []
    for _ in range(3):
        made.passes(1)
        found.append(made.mark.loss / made.mark.weight)
    assert found[2] < found[0]


def test_sweep_over_a_minibatch_is_that_of_one_process():
    """Of the same topics and counts, to the bit: in several pieces of its words."""
    rng = np.random.default_rng(4)
    topics, vocabulary, count = 40, 500, 30
    lengths = rng.integers(0, 60, count).astype(np.int32)
    words = rng.integers(0, vocabulary, lengths.sum()).astype(np.uint32)
    present, words = np.unique(words, return_inverse=True)
    words = words.astype(np.uint32)
    block = arranged(words, lengths, len(present), 7, topics=topics)
    block.divide(1)
    old = (block.tokens & 0xFFFF).astype(np.uint16)
    counts = np.zeros((len(present), topics), np.int32)
    np.add.at(counts, (np.repeat(np.arange(len(present)), np.diff(block.starts)), old), 1)
    counts += rng.integers(0, 3, counts.shape).astype(np.int32)  # and other documents'
    totals = counts.sum(axis=0, dtype=np.int64)
    model = topic_job(topics=topics).model

    def priors() -> Priors:
        return Priors(np.full(topics, 0.1), 0.01, totals.copy(), len(present))

    alone, mine = priors(), counts.copy()
    rows = np.arange(len(present)) * topics
    swept = Sweeper(1).sweep(block, alone, mine.reshape(-1), rows, 99)
    column = encode_rows(counts.reshape(-1), rows, topics)
    step, ours = LdaStep(model), priors()
    step._chunk = 7
    drawn = step.draw(
        Documents(words, lengths, len(present)), WordRows([column], [len(present)], topics), ours,
        old, 98,
    )  # fmt: skip
    assert np.array_equal(drawn.topics, (block.tokens & 0xFFFF).astype(np.uint16))
    assert np.array_equal(ours.totals, alone.totals)
    assert (drawn.swept.tokens, drawn.swept.by_word) == (swept.tokens, swept.by_word)
    assert drawn.swept.log_likelihood == pytest.approx(swept.log_likelihood)


def test_tokens_without_topics_are_added_and_others_moved():
    made = run(1)
    made.passes(3)
    step = made.stepper._step
    words = np.array([0, 1, 1, 2, 0], np.uint32)
    lengths = np.array([3, 2], np.int32)
    counts = np.zeros((3, 6), np.int32)
    counts[0, 2] = counts[1, 3] = 1
    rows = WordRows([encode_rows(counts.reshape(-1), np.arange(3) * 6, 6)], [3], 6)
    old = np.array([2, NO_TOPIC, 3, NO_TOPIC, NO_TOPIC], np.uint16)
    priors = Priors(np.full(6, 0.1), 0.01, counts.sum(axis=0, dtype=np.int64), 3)
    drawn = step.draw(Documents(words, lengths, 3), rows, priors, old, 5)
    assert len(drawn.topics) == 5
    assert priors.totals.tolist() == np.bincount(drawn.topics, minlength=6).tolist()


@pytest.mark.parametrize("of", [1, 3])
def test_alpha_is_fitted_by_the_first_shard_and_beta_by_workers(of, monkeypatch):
    monkeypatch.setattr(topics_module, "FIT_FROM", 3)
    made = run(of, optimize="both", epochs=9)
    made.passes(4)
    prior = made.shards[0].topics.prior
    assert all(shard.topics.prior is None for shard in made.shards[1:])
    assert prior.alpha == [5 / 6] * 6
    sums = prior.sums
    made.learn()
    assert prior.alpha == [5 / 6 * part / sums[-1] for part in sums[:-1]]
    made.passes(3)
    assert len(set(prior.alpha)) == 6
    assert made.stepper._beta[0] >= 3
    assert made.stepper._beta[1] != 0.01
    check(made)
    for desk, one in zip(made.desks, made.specs, strict=True):
        assert replayed(one, desk.log).digest() == desk.shard.digest()


def test_step_of_alpha_is_that_of_the_fixed_point():
    documents = [[0, 0, 1], [2], [], [0, 1, 1, 1, 3, 3]]
    alpha = np.array([0.3, 0.1, 0.7, 0.2, 0.05])
    words = np.arange(sum(map(len, documents)), dtype=np.uint32)
    lengths = np.array([len(one) for one in documents], np.int32)
    block = arranged(words, lengths, len(words), 0)
    block.divide(1)
    block.tokens[:] |= np.concatenate(documents).astype(np.uint32)
    lists, heads = Sweeper(1).list(block)
    out = np.zeros(6)
    step_alpha(lists, heads, block.lengths, alpha, out)
    counts = [Counter(one) for one in documents]
    for k in range(5):
        told = sum(sum(1 / (alpha[k] + i) for i in range(one[k])) for one in counts)
        assert out[k] == pytest.approx(told)
    total = alpha.sum()
    told = sum(sum(1 / (total + i) for i in range(len(one))) for one in documents)
    assert out[5] == pytest.approx(told)


# ---------------------------------------------------------------- what comes twice, or anew


def test_push_that_was_applied_is_dropped_by_those_that_have_it():
    made = run(2)
    made.passes(3)
    before = [desk.shard.digest() for desk in made.desks]
    for desk, told in zip(made.desks, made.pushes[-1], strict=True):
        answer = desk.asked(1, told)
        assert isinstance(answer, Pushed)
        assert answer.duplicate
    assert [desk.shard.digest() for desk in made.desks] == before


def test_minibatch_that_one_shard_has_is_drawn_anew_for_the_other():
    made = run(2)
    made.passes(3)
    mark = made.mark
    first, _ = made.made()
    made.desks[0].asked(1, first)  # and the worker dies
    made.mark = mark
    made.clock += 5
    again, second = made.made()
    assert again.topics != first.topics or again.counts == first.counts
    answer = made.desks[0].asked(1, again)
    assert isinstance(answer, Pushed)
    assert answer.duplicate
    made.desks[1].asked(1, second)
    check(made)
    made.learn(len(made.batches) - 1)
    made.passes(1)
    check(made)


@pytest.mark.parametrize("first", [True, False], ids=["first topics", "further"])
def test_shard_that_comes_back_from_an_older_state_is_made_up_for(first):
    made = run(2)
    made.passes(1 if first else 2)
    desk, mark = made.desks[1], made.mark
    old, records = replayed(made.specs[1], desk.log), len(desk.log.records)
    made.learn(2)
    desk.service.replace(old)
    del desk.log.records[records:]
    ahead, made.mark = made.mark, mark
    made.learn(2)
    assert made.mark.sequence == ahead.sequence
    made.learn(len(made.batches) - 2)
    check(made)


def test_log_gives_the_same_state():
    made = run(2)
    made.passes(4)
    for desk, of in zip(made.desks, made.specs, strict=True):
        assert replayed(of, desk.log).digest() == desk.shard.digest()


def test_image_is_of_its_moment_while_topics_change():
    made, still = run(1), run(1)
    made.passes(3)
    still.passes(3)
    shard, parts, pieces = made.shards[0], [], []

    class Sheet:
        ready, gone = True, False

        def begin(self, meta: Any) -> None:
            self.meta = meta

        def part(self, part: Any) -> None:
            parts.append(part)

        def topics(self, piece: Any) -> None:
            pieces.append(piece)

        def end(self) -> None:
            self.whole = True

    sheet = Sheet()
    imaging = Imaging(shard)
    imaging.want(sheet)
    assert imaging.step()
    assert isinstance(shard.keeper, Cut)
    made.passes(2)
    while imaging.step():
        pass
    back = Shard(made.specs[0])
    for part in parts:
        back.table.insert_rows(part.rows, part.vectors)
    for piece in pieces:
        back.topics.put(piece)
    sheet.meta.restore(back)
    assert sheet.whole
    assert back.digest() == still.shards[0].digest()
    assert back.digest() != shard.digest()


def test_follower_has_the_same():
    made = run(1)
    made.passes(3)
    feeding = Feeding(made.specs[0], log=MemoryLog(), shard=made.shards[0])
    copy = feeding.copy(2)
    copy.follow()
    feeding.settle()
    assert copy.shard.digest() == made.shards[0].digest()


class Sheet:
    """A sink that writes a snapshot, as the process of a shard does."""

    ready, gone = True, False

    def __init__(self, root: Path, of: Any) -> None:
        self.writer, self._of, self._pieces = SnapshotWriter(root, 1), of, 0

    def begin(self, meta: Any) -> None:
        self._meta = meta

    def part(self, part: Any) -> None:
        write_part(self.writer, part, f"{part.number:03d}")

    def topics(self, piece: Any) -> None:
        write_topics(self.writer, piece, self._pieces)
        self._pieces += 1

    def end(self) -> None:
        self.writer.commit(snapshot_meta(self._meta, self._of.job, 5.0))


def saved(made: TopicRun, out: Path) -> None:
    """Write snapshots of all shards."""
    for one, shard in zip(made.specs, made.shards, strict=True):
        root = shard_directory(out, one.index, one.of) / SNAPSHOTS
        imaging = Imaging(shard)
        imaging.want(Sheet(root, one))
        while imaging.step():
            pass


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize(("of", "into"), [(1, 2), (2, 1), (2, 5), (5, 3)])
def test_other_shards_go_on_with_the_topics(tmp_path, of, into, passes):
    made = run(of)
    made.passes(passes)
    made.learn(2)
    saved(made, tmp_path)
    reshard(tmp_path, of, into, now=3.0)
    other = run(into)
    for desk, one in zip(other.desks, other.specs, strict=True):
        found = recover(RealDisk(), str(shard_directory(tmp_path, one.index, into)), one)
        assert found.log is not None
        found.log.close()
        desk.service.replace(found.shard)
        desk.log.records.clear()
        desk.log.first = found.shard.lsn + 1
        desk.join(1, "a", 1, made.clock)
    assert merged(other) == merged(made)
    other.mark, other.clock = made.mark, made.clock
    for one in (made, other):
        one.learn(2)
        one.passes(1)
    assert merged(other) == merged(made)
    check(other)


def test_snapshot_of_a_shard_is_its_state(tmp_path):
    made = run(2)
    made.passes(3)
    saved(made, tmp_path)
    for one, shard in zip(made.specs, made.shards, strict=True):
        found = recover(RealDisk(), str(shard_directory(tmp_path, one.index, one.of)), one)
        assert found.log is not None
        found.log.close()
        assert found.shard.digest() == shard.digest()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"topics": EMPTY}, "are not the topics of"),
        ({"topics": memoryview(b"\xff" * 300)}, "are not the topics of"),
        ({"counts": memoryview(bytes(8))}, "are not the topics of"),
        ({"lengths": EMPTY, "topics": EMPTY}, "has topics of"),
        ({"lengths": memoryview(bytes(8))}, "a length column"),
        ({"values": memoryview(bytes(4))}, "has no gradients"),
        ({"vectors": memoryview(bytes(4))}, "has no gradients"),
    ],
    ids=["none", "more", "counts", "others", "lengths", "values", "vectors"],
)
def test_push_that_is_none_is_refused_and_changes_nothing(wrong, says):
    made = run(1)
    made.passes(3)
    (told,) = made.made()
    before = made.shards[0].digest()
    fault = made.desks[0].fault(1, changed(told, **wrong))
    assert (fault.code, fault.again) == ("invalid", False)
    assert says in fault.message
    assert made.shards[0].digest() == before
    assert isinstance(made.desks[0].asked(1, told), Pushed)


def test_topics_that_are_none_are_refused():
    made = run(1)
    made.passes(3)
    (told,) = made.made()
    bits = bytes(told.topics)
    wrong = bytes([bits[0] | 7, *bits[1:]])  # the first of three bits: topic 7 of 6
    fault = made.desks[0].fault(1, changed(told, topics=memoryview(wrong)))
    assert "a topic is not below 6" in fault.message


def test_pulls_and_pushes_are_those_of_the_model():
    made = run(1)
    of = made.specs[0]
    keys = np.array([1, 3, 5], np.uint64)
    assert made.desks[0].fault(1, pull(of, keys)) == Fault(
        "invalid", "a Pull for a model lda", again=False
    )
    fault = made.desks[0].fault(1, push(of, keys))
    assert fault.message == "a Push for a model lda"
    (told,) = made.made()
    other = Desk(spec(job(tau=-1)), log=MemoryLog())
    other.join(1, "a", 1, 0)
    assert other.fault(1, told).message == "a PushTopics for a model lr"
    assert isinstance(told, PushTopics)
    assert isinstance(pull(of, keys), Pull)


def test_vocabulary_without_room_is_refused_before_anything_is_chosen():
    made = run(1)
    made.passes(1)
    made.shards[0].table.arena.room[0] = 3
    before = made.shards[0].digest()
    keys = columns.encode_keys(np.array([1], np.uint64), 0)
    fault = made.desks[0].fault(1, PullTopics(0, 1, 9, 1, keys.data, 0, "p", 1, 1))
    assert fault.code == "full"
    assert "model.min_df" in fault.message
    assert made.shards[0].digest() == before


# ---------------------------------------------------------------- a single pass


def test_single_pass_judges_then_learns_and_words_earn_topics():
    made = run(2, some(5, 20), epochs=1, draws=3)
    losses = []
    for _ in range(20):
        before = made.mark
        made.learn()
        weight = made.mark.weight - before.weight
        losses.append((made.mark.loss - before.loss) / weight if weight else np.nan)
    found = merged(made)
    tokens = Counter(key for batch in made.batches for key in batch.keys[: batch.nnz].tolist())
    assert found
    for key, row in found.items():
        assert sum(row) <= tokens[key]
    for shard in made.shards:
        counts = np.array([*counts_of(shard).values()])
        assert shard.topics.totals.tolist() == counts.sum(axis=0).tolist()
        assert shard.topics.kept == {}
    assert np.nanmean(losses[-5:]) < np.nanmean(losses[1:6])
    for desk, of in zip(made.desks, made.specs, strict=True):
        assert replayed(of, desk.log).digest() == desk.shard.digest()
