"""Drawing topics: what is drawn is what the slow twin draws, by the exact distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels import esca as kernels
from streamlearn.compute.kernels import topic_priors
from streamlearn.compute.kernels.topic_lists import FILLER, LANES
from streamlearn.online.topic_blocks import Block, Priors, Sweeper, arranged
from tests.reference.esca import chances_of, random_bits, swept


class Small:
    """Documents of a few words, arranged, with their counts."""

    def __init__(
        self, topics: int, words: int = 40, documents: int = 30, length: int = 25, seed: int = 1
    ) -> None:
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(0, 2 * length, documents).astype(np.int32)
        self.words = rng.zipf(1.3, int(self.lengths.sum())).astype(np.uint32) % words
        self.vocabulary, self.topics = words, topics
        self.block = arranged(self.words, self.lengths, words, seed, topics=topics)
        self.block.divide(1)
        self.priors = Priors(
            rng.uniform(0.01, 0.5, topics), 0.05, np.zeros(topics, np.int64), words
        )
        self.width = -(-topics // 16) * 16
        self.counts = np.zeros(words * self.width, np.int32)
        self.rows = np.arange(words, dtype=np.int64) * self.width
        kernels.add_counts(
            self.block.tokens, self.block.present, self.block.starts, self.counts, self.rows,
            topics, self.priors.totals, 1,
        )  # fmt: skip

    @property
    def table(self) -> Any:
        return self.counts.reshape(self.vocabulary, self.width)[:, : self.topics]

    def counted(self) -> Any:
        """Count the tokens' topics once more."""
        out = np.zeros((self.vocabulary, self.topics), np.int64)
        words = np.repeat(self.block.present, np.diff(self.block.starts))
        np.add.at(out, (words, self.block.tokens & 0xFFFF), 1)
        return out


def sweep(small: Small, key: int, lanes: int = 1, *, counted: bool = True) -> Any:
    sweeper = Sweeper(lanes)
    small.block.divide(lanes)
    told = sweeper.sweep(small.block, small.priors, small.counts, small.rows, key, counted=counted)
    sweeper.close()
    return told


@pytest.mark.parametrize("topics", [1, 2, 7, 16, 17, 100])
def test_the_twin_draws_the_same(topics: int) -> None:
    small = Small(topics)
    for key in range(1, 6):
        tokens, counts, totals, logarithms = swept(
            small.block, small.table, small.priors.totals, small.priors.alpha, small.priors.beta,
            key, small.vocabulary,
        )  # fmt: skip
        told = sweep(small, key)
        np.testing.assert_array_equal(small.block.tokens, tokens)
        np.testing.assert_array_equal(small.table, counts)
        np.testing.assert_array_equal(small.priors.totals, totals)
        assert told.log_likelihood == pytest.approx(logarithms, rel=1e-5)
        assert told.tokens == len(tokens)


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_change_nothing(lanes: int) -> None:
    one, many = Small(20, words=300, documents=200), Small(20, words=300, documents=200)
    for key in range(4):
        first, other = sweep(one, key), sweep(many, key, lanes)
        assert other.log_likelihood == pytest.approx(first.log_likelihood, rel=1e-12)
        assert (other.tokens, other.by_word) == (first.tokens, first.by_word)
    np.testing.assert_array_equal(many.block.tokens, one.block.tokens)
    np.testing.assert_array_equal(many.counts, one.counts)
    np.testing.assert_array_equal(many.priors.totals, one.priors.totals)


def test_counts_add_up_after_every_sweep() -> None:
    small = Small(12)
    for key in range(10):
        sweep(small, key)
        np.testing.assert_array_equal(small.table, small.counted())
        np.testing.assert_array_equal(small.priors.totals, small.table.sum(axis=0))
        assert small.table.min() >= 0


@pytest.mark.parametrize("in_document", [True, False])
def test_a_topic_is_drawn_by_the_exact_distribution(in_document: bool) -> None:
    """A token is drawn 40,000 times from the same state; chi square of all topics, at 0.1 %."""
    topics, draws = 24, 40_000
    small = Small(topics, words=30, documents=12, length=30, seed=3)
    small.priors.alpha[:] = 0.3 if in_document else 40.0  # then most come from the word
    x = int(np.argmax(np.diff(small.block.starts) == 1))
    assert small.block.starts[x + 1] - small.block.starts[x] == 1
    i, word = int(small.block.starts[x]), int(small.block.present[x])
    before, row, totals = small.block.tokens.copy(), small.table[word].copy(), small.priors.totals
    document, old = int(before[i] >> 16), int(before[i] & 0xFFFF)
    mine = before[before >> 16 == document] & 0xFFFF
    parts = chances_of(
        old, np.bincount(mine, minlength=topics), row, totals, small.priors.alpha,
        small.priors.beta, small.vocabulary,
    )  # fmt: skip
    chances = sum(parts) / sum(part.sum() for part in parts)
    sweeper = Sweeper(1)
    lists, heads = sweeper.list(small.block)
    alpha, beta, inverse, over = small.priors.arrays()
    scratch = sweeper._scratch[0]
    seen = np.zeros(topics, np.int64)
    for key in range(draws):
        small.block.tokens[i] = before[i]
        small.table[word] = row
        draw: Any = kernels.sweep
        draw(
            x, x + 1, small.block.present, small.block.starts, small.block.tokens, heads, lists,
            small.counts, small.rows, topics, alpha, beta, inverse, over, 1,
            np.uint64(random_bits(key, 77)), np.zeros(topics, np.int32), scratch, np.zeros(2),
        )  # fmt: skip
        seen[small.block.tokens[i] & 0xFFFF] += 1
    expected = chances * draws
    rare = expected < 5
    chi = ((seen - expected)[~rare] ** 2 / expected[~rare]).sum()
    degrees = int((~rare).sum()) - 1
    # Wilson and Hilferty's approximation of the 99.9 % point of chi square
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * np.sqrt(2 / (9 * degrees))) ** 3
    assert chi < limit
    assert seen[rare].sum() <= expected[rare].sum() + 5 * np.sqrt(expected[rare].sum() + 1)
    assert (parts[0].sum() > parts[1].sum()) == in_document


def test_documents_that_are_only_judged_leave_the_counts_alone() -> None:
    small = Small(9)
    counts, totals = small.counts.copy(), small.priors.totals.copy()
    before = small.block.tokens.copy()
    sweep(small, 5, counted=False)
    np.testing.assert_array_equal(small.counts, counts)
    np.testing.assert_array_equal(small.priors.totals, totals)
    assert (small.block.tokens != before).any()
    np.testing.assert_array_equal(small.block.tokens >> 16, before >> 16)


def test_a_block_is_arranged_by_word_and_keeps_every_token() -> None:
    small = Small(5)
    documents = np.repeat(np.arange(len(small.lengths)), small.lengths)
    got = np.repeat(small.block.present, np.diff(small.block.starts))
    assert (np.diff(small.block.present.astype(np.int64)) > 0).all()
    wanted = sorted(zip(small.words.tolist(), documents.tolist(), strict=True))
    assert list(zip(got.tolist(), (small.block.tokens >> 16).tolist(), strict=True)) == wanted


def test_all_tokens_of_a_word_may_begin_with_one_topic() -> None:
    small = Small(8)
    block = arranged(small.words, small.lengths, small.vocabulary, 3, topics=8, by_word=True)
    for x in range(len(block.present)):
        mine = block.tokens[block.starts[x] : block.starts[x + 1]] & 0xFFFF
        assert len(set(mine.tolist())) == 1
    assert len(set((block.tokens & 0xFFFF).tolist())) > 3


def test_lists_are_whole_vectors() -> None:
    small = Small(30)
    for lanes in (1, 3):
        sweeper = Sweeper(lanes)
        small.block.divide(lanes)
        lists, heads = sweeper.list(small.block)
        for document, head in enumerate(heads[: len(small.lengths)].tolist()):
            first, size = head & 0xFFFFFFFF, head >> 32
            assert size % LANES == 0
            assert first % LANES == 0
            entries = lists[first : first + size]
            held = {int(e >> 16): int(e & 0xFFFF) for e in entries if e != FILLER}
            mine = small.block.tokens[small.block.tokens >> 16 == document] & 0xFFFF
            topics, counts = np.unique(mine, return_counts=True)
            assert held == dict(zip(topics.tolist(), counts.tolist(), strict=True))
        sweeper.close()


def test_words_alone_decide_where_a_document_is_not_known() -> None:
    small = Small(6, words=12, documents=400, length=60)
    before = small.table.copy()
    sweeper = Sweeper(1)
    sweeper.begin(small.block, small.priors, small.counts, small.rows, 9)
    np.testing.assert_array_equal(small.table, before)
    norm = small.priors.totals + small.vocabulary * small.priors.beta
    for x, word in enumerate(small.block.present):
        mine = small.block.tokens[small.block.starts[x] : small.block.starts[x + 1]] & 0xFFFF
        if len(mine) < 200:
            continue
        chances = small.priors.alpha * (before[word] + small.priors.beta) / norm
        chances /= chances.sum()
        seen = np.bincount(mine, minlength=6) / len(mine)
        assert np.abs(seen - chances).max() < 5 * np.sqrt(0.25 / len(mine))


def test_alpha_and_beta_are_found_again() -> None:
    """Counts drawn from a known prior: the fit comes near it."""
    rng = np.random.default_rng(4)
    topics, documents, words = 6, 4000, 400
    alpha = np.array([0.05, 0.1, 0.3, 0.5, 1.0, 2.0])
    tallies = topic_priors.Tallies.of(topics)
    for _ in range(documents):
        length = int(rng.integers(5, 300))
        drawn = rng.multinomial(length, rng.dirichlet(alpha))
        entries = [(k << 16) | c for k, c in enumerate(drawn.tolist()) if c]
        heads = np.array([len(entries) << 32], np.uint64)
        topic_priors.tally_documents(
            np.array(entries, np.uint32), heads, np.array([length], np.int32), tallies.counts,
            tallies.lengths,
        )  # fmt: skip
    found = np.full(topics, 0.3)
    topic_priors.fit_alpha(found, tallies.counts, tallies.lengths)
    np.testing.assert_allclose(found, alpha, rtol=0.12)
    beta = 0.07
    counts = np.stack(
        [rng.multinomial(20000, rng.dirichlet(np.full(words, beta))) for _ in range(40)]
    )
    tallied = np.zeros(topic_priors.BINS, np.int64)
    memory = np.ascontiguousarray(counts.T.astype(np.int32)).reshape(-1)
    topic_priors.tally_words(memory, np.arange(words) * 40, 40, tallied)
    fitted = topic_priors.fit_beta(0.01, tallied, counts.sum(axis=1), words)
    assert fitted == pytest.approx(beta, rel=0.05)


def test_a_topic_that_nobody_has_keeps_a_prior() -> None:
    tallies = topic_priors.Tallies.of(2)
    tallies.counts[0, 5] = tallies.lengths[5] = 10
    alpha = np.array([0.5, 0.5])
    topic_priors.fit_alpha(alpha, tallies.counts, tallies.lengths)
    assert alpha[1] == topic_priors.ALPHA_MIN
    assert np.isfinite(alpha).all()


def test_an_empty_block_is_swept() -> None:
    block = Block(
        np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(1, np.int32),
        np.zeros(4, np.int32),
    )  # fmt: skip
    block.divide(2)
    priors = Priors(np.full(3, 0.1), 0.01, np.zeros(3, np.int64), 5)
    sweeper = Sweeper(2)
    told = sweeper.sweep(block, priors, np.zeros(80, np.int32), np.zeros(5, np.int64), 1)
    assert (told.tokens, told.log_likelihood) == (0, 0.0)
    sweeper.close()
