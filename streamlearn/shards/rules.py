"""Update rules as a table: what a row's columns mean, its weight, and what a push makes of it.

A rule is a row of ``RULES`` and a branch in ``compute.kernels.rules``, where the equations stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from streamlearn.compute.kernels import rules as kernels
from streamlearn.config import ModelConfig
from streamlearn.errors import ConfigError
from streamlearn.messages import F32, I64, U32, U64
from streamlearn.shards.cut import Keeper

__all__ = ["RULES", "Rule", "Updater", "rates"]

# Where 1 - b^t is 1 in float32 a longer table of powers says nothing more; at b = 0.9999 that is
# after some 170,000 steps, and nobody averages over more.
_POWERS_MAX: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Rule:
    """What stands in the rows that a rule updates.

    Attributes
    ----------
    name : str
        What ``model.rule`` says.
    number : int
        Of its branch in the kernels.
    columns : tuple of str
        float32 columns: the two of word 1, then those of word 3.
    owns_arena_word : bool
        Whether word 3 is the rule's own, so that its rows have no place in an arena.
    """

    name: str
    number: int
    columns: tuple[str, ...]
    owns_arena_word: bool = False


RULES: Final[dict[str, Rule]] = {
    rule.name: rule
    for rule in (
        Rule("ftrl", 0, ("z", "n")),
        Rule("adagrad", 1, ("w", "n")),
        Rule("sgd", 2, ("w", "m")),
        Rule("adam", 3, ("w", "m", "t", "s"), owns_arena_word=True),
        Rule("add", 4, ("w",)),
        Rule("difacto", 0, ("z", "n")),  # and AdaGrad for embeddings, see ``shards.arena``
        Rule("mf", 5, ("w",)),  # beside it a number that is not the rule's; factors are added to
    )
}


class Rows(Protocol):
    """A table of exact keys, as an updater sees it."""

    words: U64


def rates(model: ModelConfig, momentum: float = 0.0, memory: float = 0.999) -> F32:
    """Return the numbers of a model's update rule as kernels take them, float32[8].

    Parameters
    ----------
    model : ModelConfig
        ``alpha``, ``beta``, ``l1``, ``l2``, ``intercept``. Of Adam ``beta`` is what Kingma and Ba
        call epsilon.
    momentum : float
        Of SGD; b1 of Adam. 0 <= momentum < 1.
    memory : float
        b2 of Adam, 0 <= memory < 1.
    """
    return kernels.rates_of(
        model.alpha, model.beta, model.l1, model.l2, model.intercept, momentum, memory
    )


class Updater:
    """Reads weights and applies gradients by one rule.

    Parameters
    ----------
    rule : str
        A name of ``RULES``.
    rates : float32[8]
        See :func:`rates`.

    Raises
    ------
    ConfigError
        No such rule; or ``momentum`` or ``memory`` is not in [0, 1).
    """

    def __init__(self, rule: str, rates: F32) -> None:
        if rule not in RULES:
            raise ConfigError(f"rule {rule!r} is none of {', '.join(RULES)}")
        momentum, memory = float(rates[6]), float(rates[7])
        for name, share in (("momentum", momentum), ("memory", memory)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} = {share:g} is not in [0, 1)")
        self.rule = RULES[rule]
        self.rates = np.ascontiguousarray(rates, np.float32)
        self._powers = _corrections(momentum, memory) if rule == "adam" else np.ones((1, 2), "f4")
        self._no_counts: U32 = np.zeros(0, np.uint32)

    @classmethod
    def of(cls, model: ModelConfig) -> Updater:
        """Return the updater of a model's settings."""
        return cls(model.rule, rates(model))

    def values(self, table: Rows, slots: I64, has_intercept: bool, out: F32) -> F32:
        """Write the weight of each row to ``out`` (float32[n]) and return it.

        Parameters
        ----------
        table : ExactTable
        slots : int64[n]
            Rows; -1: none, whose weight is 0.
        has_intercept : bool
            Whether the first entry is the constant feature, which has no penalties.
        """
        _check(len(slots), out=out)
        kernels.values(table.words, slots, int(has_intercept), self.rule.number, self.rates, out)
        return out

    def push(
        self,
        table: Rows,
        slots: I64,
        gradients: F32,
        counts: U32 | None,
        minute: int,
        has_intercept: bool,
        keeper: Keeper,
    ) -> None:
        """Apply gradients to rows, in place.

        Parameters
        ----------
        table : ExactTable
        slots : int64[n]
            Rows, each once; -1: none, which is passed over.
        gradients : float32[n]
            Summed over the minibatch; finite (whoever takes them from a peer has looked).
        counts : uint32[n], optional
            Added to the rows' counts.
        minute : int
            What the rows were last seen at from now on, 0 <= minute < 2**32.
        has_intercept : bool
            Whether the first entry is the constant feature.
        keeper : Cut or Nothing
            Keeps old lines while a cut is open.
        """
        _check(len(slots), gradients=gradients, **({} if counts is None else {"counts": counts}))
        kernels.push(
            table.words, slots, gradients, self._no_counts if counts is None else counts,
            np.uint64(minute), int(has_intercept), self.rule.number, self.rates, self._powers,
            *keeper.arguments(len(slots)),
        )  # fmt: skip


def _check(count: int, **columns: F32 | U32) -> None:
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(f"{name} has {len(column)} entries, slots has {count}")


def _corrections(first: float, second: float) -> F32:
    """Return 1 - b^t by t for both, float32[m, 2]; from the last on both are 1."""
    rows = [(1.0, 1.0)]  # no row has taken 0 steps when it is used
    a = b = 1.0
    while len(rows) < _POWERS_MAX:
        a, b = a * first, b * second
        rows.append((1 - a, 1 - b))
        if max(a, b) < 2.0**-26:
            break
    return np.array(rows, np.float32)
