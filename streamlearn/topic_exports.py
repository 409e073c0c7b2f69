"""A topic model's way into open formats: ``docs/formats.md`` describes them for who reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn.errors import ConfigError
from streamlearn.model import Model
from streamlearn.topic_model import Topics, words_of

__all__ = ["export_topics"]


def export_topics(model: Model, target: Path, pyarrow: Any) -> dict[str, Any]:
    """Write the words of a topic model with their counts by topic, and the priors.

    Parameters
    ----------
    model : Model
        Of kind ``lda``.
    target : Path
        A file of suffix .npz or .parquet.
    pyarrow : callable
        Returns pyarrow and its Parquet.

    Raises
    ------
    ConfigError
        The suffix is another one.
    OSError
        The file cannot be written.
    """
    topics = Topics.of(model)
    words = words_of(model, topics.keys)
    if target.suffix == ".npz":
        _write_npz(target, topics, words)
    elif target.suffix == ".parquet":
        _write_parquet(target, topics, words, *pyarrow())
    else:
        raise ConfigError(f"export of lda writes .npz or .parquet, but got {target.name}")
    return {
        "file": str(target),
        "topics": len(topics.totals),
        "vocabulary": len(words),
        "tokens": int(topics.totals.sum()),
        "beta": topics.beta,
    }


def _write_npz(target: Path, topics: Topics, words: list[str]) -> None:
    np.savez(
        target,
        words=np.array(words, dtype=np.str_),
        keys=topics.keys,
        documents=topics.documents,
        counts=topics.counts(),
        alpha=topics.alpha,
        beta=np.float64(topics.beta),
        totals=topics.totals,
    )


def _write_parquet(target: Path, topics: Topics, words: list[str], pa: Any, pq: Any) -> None:
    said = {
        "alpha": json.dumps(topics.alpha.tolist()),
        "beta": repr(topics.beta),
        "totals": json.dumps(topics.totals.tolist()),
    }
    width = len(topics.totals)
    schema = pa.schema(
        [
            ("word", pa.string()),
            ("key", pa.uint64()),
            ("documents", pa.uint32()),
            ("counts", pa.list_(pa.int32(), width)),
        ],
        metadata=said,
    )
    with pq.ParquetWriter(target, schema) as writer:
        for first, counts in topics.pieces():
            part = slice(first, first + len(counts))
            lists = pa.FixedSizeListArray.from_arrays(pa.array(counts.reshape(-1)), width)
            columns = [words[part], topics.keys[part], topics.documents[part], lists]
            writer.write_table(pa.table(columns, schema=schema))
