from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

import topic_corpora
import topic_truth

TEXTS = [
    "The cat, the Cat and a dog!",
    "the dog's 2 bones; the end " + 41 * "x",
    "the cat's end",
    "rare",
    "a",
    "the cat dog end bones " + 41 * "x",
]


def _documents(lens: np.ndarray, w: np.ndarray, words: np.ndarray) -> list[list[str]]:
    return [words[part].tolist() for part in np.split(w, np.cumsum(lens)[:-1])]


def test_words_are_chosen_by_documents_that_are_learned(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    topic_corpora.prepare(TEXTS, path=path, documents_min=2, share_max=0.6, held_out=0)
    found = topic_corpora.read(path)
    # of six documents "the" has four, which is too many; "and", "rare" one; single letters are none
    assert found.words.tolist() == ["bones", "cat", "dog", "end"]
    learned = _documents(found.lens, found.w, found.words)
    expected = [
        ["cat", "cat", "dog"],
        ["dog", "bones", "end"],
        ["cat", "end"],
        ["cat", "dog", "end", "bones"],
    ]
    assert sorted(learned) == sorted(expected)
    assert [line.split() for line in found.text.read_text().splitlines()] == learned
    assert len(found.held_lens) == len(found.held_w) == 0


def test_documents_that_are_set_apart_teach_no_word(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    texts = [f"apple pear{chr(97 + i)} pear{chr(97 + i)} fig" for i in range(20)]
    topic_corpora.prepare(texts, path=path, share_max=2.0, held_out=5)
    found = topic_corpora.read(path)
    assert len(found.lens) == 15
    assert len(found.words) == 17
    assert _documents(found.held_lens, found.held_w, found.words) == [["apple", "fig"]] * 5
    again = tmp_path / "again.npz"
    topic_corpora.prepare(texts, path=again, share_max=2.0, held_out=5)
    assert again.with_suffix(".txt").read_bytes() == found.text.read_bytes()


def test_others_are_held_out_where_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    others = ["fig nut", "fig fig fig", "nut fig", "fig"]
    topic_corpora.prepare(["fig one", "fig two"], others, path=path, share_max=2.0, held_out=4)
    found = topic_corpora.read(path)
    assert found.words.tolist() == ["fig", "one", "two"]
    # one token is not enough to observe and to judge
    assert _documents(found.held_lens, found.held_w, found.words) == [["fig"] * 3]


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    with pytest.raises(ValueError, match="no document has a word that is left in"):
        topic_corpora.prepare(["a b", "c"], path=path)
    assert not path.exists()


def test_imdb_is_the_text_column_without_breaks(tmp_path: Path) -> None:
    for number, name in enumerate(topic_corpora.IMDB):
        with gzip.open(tmp_path / name, "wt") as out:
            out.write(f"pos\t{number}\t9\tGood.<br /><br />Very\tgood\n")
    assert list(topic_corpora.imdb(tmp_path)) == ["Good.  Very\tgood\n"] * 2


def test_news_are_the_files_of_a_part(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / topic_corpora.NEWS, "w:gz") as archive:
        for part, text in (("train", b"From: caf\xe9"), ("test", b"other")):
            member = tarfile.TarInfo(f"20news-bydate-{part}/sci.space/1")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    assert list(topic_corpora.news(tmp_path, "train")) == ["From: café"]
    assert list(topic_corpora.news(tmp_path, "test")) == ["other"]


def test_a_corpus_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in topic_corpora.IMDB:
        with gzip.open(tmp_path / name, "wt") as out:
            for i in range(600):
                word = f"word{chr(97 + i % 8)}"
                out.write(f"pos\t{i}\t9\t{word} {word}\n")
    found = topic_corpora.corpus("imdb", tmp_path, tmp_path)
    assert found.name == "imdb"
    assert len(found.lens) == 200
    assert len(found.held_lens) == topic_corpora.HELD_OUT
    monkeypatch.setattr(topic_corpora, "prepare", None)
    again = topic_corpora.corpus("imdb", tmp_path, tmp_path)
    assert np.array_equal(again.w, found.w)
    assert again.size == (
        f"200 documents, 400 tokens, {len(found.words)} words; held out: 1,000 documents, "
        "2,000 tokens"
    )


def test_drawn_documents_are_of_their_topics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_corpora, "HELD_OUT", 50)
    found = topic_truth.generated(300, 400, 5, tmp_path, length=40)
    assert found.phi is not None
    assert found.alpha is not None
    assert found.phi.shape == (5, len(found.words))
    assert found.phi.sum(1) == pytest.approx(1)
    assert found.alpha.tolist() == [0.1] * 5
    assert len(found.lens) == 300
    assert len(found.held_lens) <= 50
    assert set(np.unique(found.w)) == set(range(len(found.words)))
    assert all(word.isalpha() and word.islower() for word in found.words)
    assert len(set(found.words.tolist())) == len(found.words)
    assert len(found.text.read_text().split()) == len(found.w)
    # frequencies are those of the truth, whose topics are about as frequent
    share = np.bincount(found.w) / len(found.w)
    assert np.abs(share - found.phi.mean(0)).max() < 0.05
    assert np.array_equal(topic_truth.generated(300, 400, 5, tmp_path, length=40).w, found.w)


def test_a_seed_draws_the_same() -> None:
    draws = [topic_truth.draw(20, 50, 3, 0.1, 30.0, seed) for seed in (1, 1, 2)]
    first, same, other = (np.concatenate(documents) for _, documents in draws)
    assert np.array_equal(first, same)
    assert not np.array_equal(first[:50], other[:50])
    assert [len(one) for one in draws[0][1]] == [len(one) for one in draws[1][1]]
    assert min(len(one) for one in draws[0][1]) >= 2
