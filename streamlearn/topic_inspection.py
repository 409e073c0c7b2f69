"""Looking into a topic model: what its topics are, how coherent, and where words belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamlearn.coherence import WORDS, Coherence
from streamlearn.config import JobConfig
from streamlearn.errors import RunError
from streamlearn.messages import F32, U64
from streamlearn.model import load, stored_job
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.tokens import word_keys
from streamlearn.topic_asked import AskedTopics
from streamlearn.topic_model import (
    check_words,
    need_topics,
    topics_listed,
    topics_told,
    word_listed,
)
from streamlearn.topic_pages import topic_page

__all__ = ["TopicInspection"]


class TopicInspection:
    """Says what is in the topic model of an output directory.

    Parameters
    ----------
    directory : Path
    job : JobConfig
        Whose documents, if it has some, coherence is counted in (:meth:`count`).
    asked : AskedTopics

    Raises
    ------
    ConfigError
        There is no model, or it has no topics.
    """

    def __init__(self, directory: Path, job: JobConfig, asked: AskedTopics) -> None:
        self._directory, self._asked = directory, asked
        compute = msgspec.structs.replace(job.compute, learn_lanes=1, lanes=job.compute.lanes or 1)
        self.job = msgspec.structs.replace(job, compute=compute)
        check_words(stored_job(directory), self.job, directory)
        self.model = load(directory, self.job, mended=True)
        need_topics(self.model, "inspect --topics")
        self._topics: list[dict[str, Any]] = []
        self._coherence: Coherence | None = None
        if asked.words:
            return
        listed, found, topics = topics_listed(self.model, max(asked.top, WORDS))
        self._topics = [one | {"words": one["words"][: asked.top]} for one in listed]
        self._found = found
        if job.source.uri:
            self._coherence = Coherence(topics.keys, found.places[:, :WORDS])

    def count(self, _scores: F32, batch: Minibatch) -> None:
        """Count the words of documents."""
        assert self._coherence is not None
        self._coherence.add(batch.keys[: batch.nnz], batch.indptr[: batch.rows + 1])

    def report(self) -> dict[str, Any]:
        """Return what was asked for; write the page."""
        if self._asked.words:
            return {"words": [row for word in self._asked.words for row in self._word(word)]}
        told = topics_told(self.model)
        if self._coherence is not None:
            told |= self._add_coherence(self._coherence)
        if self._asked.page is not None:
            self._write_page(told, self._asked.page)
            told["file"] = str(self._asked.page)
        return told | {"topic_words": self._topics}

    def _add_coherence(self, coherence: Coherence) -> dict[str, Any]:
        """Give each topic its coherence; return the means."""
        means = {}
        for name, values in (("npmi", coherence.npmi()), ("umass", coherence.umass())):
            for topic in self._topics:
                value = float(values[topic["topic"]])
                words = topic.pop("words")
                topic[name] = None if np.isnan(value) else value
                topic["words"] = words
            known = values[~np.isnan(values)]
            means[name] = float(known.mean()) if len(known) else None
        return {"coherence_documents": coherence.documents, **means}

    def _word(self, word: str) -> list[dict[str, Any]]:
        """Return a row for each topic of a word; one without topics where it has none."""
        keys: U64 = word_keys([word, word.lower()])
        which = int(self.model.table.find(keys)[0] < 0)
        told = word_listed(self.model, word, int(keys[which]), self._asked.top)
        topics = told.pop("topics")
        return [told | topic for topic in topics] or [told | {"topic": None}]

    def _write_page(self, told: dict[str, Any], path: Path) -> None:
        text = topic_page(self._directory, self.model, told, self._topics, self._found)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {path}", cause=error.strerror) from error
