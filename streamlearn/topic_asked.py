"""What the command line asks of topics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlearn.errors import ConfigError

if TYPE_CHECKING:
    from streamlearn.command import Call
    from streamlearn.config import JobConfig

__all__ = ["AskedTopics", "asked_topics", "judging_of"]

_TOP = 10
_HINT = "streamlearn train DOCUMENTS --model lda --out DIR"


@dataclass(frozen=True, slots=True)
class AskedTopics:
    """What is wanted of a topic model.

    Attributes
    ----------
    top : int
        Words of each topic, or topics of each word.
    words : tuple of str
        Whose topics are wanted; empty: all topics.
    page : Path or None
        Where a page of the topics goes.
    """

    top: int
    words: tuple[str, ...]
    page: Path | None


def asked_topics(call: Call, job: JobConfig) -> AskedTopics | None:
    """Return what ``inspect`` is asked of topics; None: nothing.

    Raises
    ------
    ConfigError
        The model has none, or what is asked for does not go together.
    """
    words, page = tuple(call["words"] or ()), call["html"]
    documents = bool(call["sources"])
    if not (call["topics"] or words or page or documents):
        return None
    if job.model.kind != "lda":
        raise ConfigError(
            f"inspect --topics needs topics, but the model is {job.model.kind}", hint=_HINT
        )
    if words and (call["topics"] or page or documents):
        raise ConfigError("--words is about words, not about topics, of which nothing else is said")
    top = _TOP if call["top"] is None else call["top"]
    if not top:
        raise ConfigError("--top: expected at least 1, got 0")
    return AskedTopics(top, words, page)


def judging_of(job: JobConfig, method: str | None, particles: int | None) -> dict[str, Any]:
    """Return how documents are to be judged (``judging``); nothing where nobody said.

    Raises
    ------
    ConfigError
        The model has no topics, there is no such method, or it has no particles.
    """
    if method is None and particles is None:
        return {}
    flag = "--particles" if method is None else "--method"
    if job.model.kind != "lda":
        raise ConfigError(f"{flag} is for topics (lda), but the model is {job.model.kind}")
    from streamlearn.topic_inference import METHODS, PARTICLES, Judging

    if method is not None and method not in METHODS:
        raise ConfigError(f"--method: expected one of {', '.join(METHODS)}, got {method!r}")
    if particles is not None and method != METHODS[1]:
        raise ConfigError(f"--particles is for --method {METHODS[1]} alone")
    return {"judging": Judging(method or METHODS[0], particles or PARTICLES)}
