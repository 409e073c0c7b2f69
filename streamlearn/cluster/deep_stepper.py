"""Minibatches of a deep net between pull and push: announced to other workers, stepped, encoded."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamlearn import __version__
from streamlearn.cluster.dense_group import DenseGroup, SharedStandardizer
from streamlearn.cluster.preparing import Prepared, Pushed, Stepper
from streamlearn.config import DeepConfig, JobConfig, classes_of
from streamlearn.deep_net import new_deep_step
from streamlearn.errors import ConfigError, PeerLostError
from streamlearn.net.address import split_address
from streamlearn.online.formats import Format
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.minibatch import Minibatch, room_of
from streamlearn.online.progressive import Validation
from streamlearn.online.standardizing import Standardizer, Sums
from streamlearn.online.steps import Values
from streamlearn.online.totals import AnyTotals
from streamlearn.protocol import Met, Pulled

if TYPE_CHECKING:
    from streamlearn.messages import F32

__all__ = ["DeepStepper", "host_towards"]


class DeepStepper(Stepper):
    """Steps a net on minibatches, together with the workers of its group.

    All that follows belongs to the step lane, and waits for the other workers there.

    Parameters
    ----------
    job : JobConfig
    rows_max : int
        Examples of a minibatch.
    validation : Validation
    format : Format
        Of the records: says how many fields and which dense part examples have.

    Attributes
    ----------
    group : DenseGroup
    net : DeepStep
        Of ``streamlearn.online.deep``.
    shape, names : tuple of int, tuple of str
        Of an example's dense part, and of its numbers.
    idle_steps : int
        Steps of others in which this worker had no example.
    """

    def __init__(
        self, job: JobConfig, rows_max: int, validation: Validation, format: Format
    ) -> None:
        model = job.model
        assert isinstance(model, DeepConfig)
        self.shape, self.names = format.dense, format.dense_names
        self.group = DenseGroup(model, _host_of(job), f"{__version__}, net {model.net}")
        self.net, self._lane = new_deep_step(
            job, model, len(format.fields), format.dense, self.group.between
        )
        if self.net.standardizer is not None:
            self.net.standardizer = SharedStandardizer(format.dense)
        super().__init__(job, rows_max, validation, self.net, classes_of(job))
        self.idle_steps = 0
        self._nothing = Minibatch.of(format, *room_of(1, 1, format.record_rows))
        self._nothing.clear()
        self._no_keys = Localizer(1).localize(self._nothing, Localized(1), intercept=False)

    def step(
        self, prepared: Prepared, pulled: Sequence[Pulled], seed: int, epoch: int
    ) -> tuple[list[Pushed], AnyTotals]:
        """Learn a minibatch, with those that others have now; see :meth:`Stepper.step`.

        Raises
        ------
        DissolvedError
            The group is no more, and nothing was learned: meet again, then step it once more.
        PeerLostError
            Another worker was lost under way: the same.
        """
        batch = prepared.cut.batch
        rows, before = batch.rows, self.net.steps
        try:
            weight = float(batch.weights[:rows].sum(dtype=np.float64))
            some = self._announce(weight, batch)
            if some and not rows:
                self._take_part()
            return super().step(prepared, pulled, seed, epoch)
        except PeerLostError:
            self._lost(before)
            raise

    def idle(self) -> bool:
        """Take part in a step of others, without an example; return whether nobody had one.

        Raises
        ------
        DissolvedError, PeerLostError
            As for :meth:`step`.
        """
        before = self.net.steps
        try:
            some = self._announce(0.0, self._nothing)
            if some:
                self._take_part()
        except PeerLostError:
            self._lost(before)
            raise
        return not some

    def leave(self) -> None:
        """Leave the group, which then is no more; the others go on in another one."""
        before = self.net.steps
        try:
            self.group.announce(0.0, self.net.standardizer, leaves=True)
        except PeerLostError:
            self._lost(before)

    def form(self, met: Met) -> None:
        """Take the place that was said; see :meth:`DenseGroup.form`."""
        self.group.form(met, self.net, self._lane.run)

    def address(self) -> str:
        """Return where other workers would find this one's store."""
        return self.group.address()

    def state(self) -> dict[str, Any]:
        """Return the dense part; see :meth:`DeepStep.state`."""
        return self.net.state()

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        self.net.restore(arrays)

    def close(self) -> None:
        """Let go of the group, and end the lane."""
        self.group.close()
        self.net.close()

    def try_out(self, batch: Minibatch, localized: Localized) -> None:
        """Step a minibatch with weights of zero; see :meth:`Stepper.try_out`."""
        super().try_out(batch, localized)
        if self.net.standardizer is not None:
            self._sums(batch)

    def _announce(self, weight: float, batch: Minibatch) -> bool:
        """Tell others what this worker has; hear whether anybody has something."""
        standardizer = self.net.standardizer
        sums = None
        if standardizer is not None and self.group.size > 1 and batch.rows:
            sums = self._sums(batch)
        return self.group.announce(weight, standardizer, sums)

    def _sums(self, batch: Minibatch) -> Sums:
        own = Standardizer(self.shape)
        own.update(batch.dense[: batch.rows])
        return own.sums()

    def _take_part(self) -> None:
        """Step with nothing of one's own."""
        nothing: F32 = np.zeros(0, np.float32)
        values = Values(nothing, np.zeros(0, np.int64), [nothing])
        self.net.step(self._nothing, self._no_keys, values, self._scores)
        self.idle_steps += 1

    def _lost(self, steps: int) -> None:
        """Let go of a group, and be where the last whole step ended."""
        self.net.steps = steps
        self.group.lost()


def host_towards(address: str) -> str:
    """Return this machine's address on the way to another (``HOST:PORT``), which is not asked."""
    host, port = split_address(address, "tables.shards", "7700")
    try:
        family, *_, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"this machine's address towards {address} is not known",
            cause=error.strerror,
            hint="say it: cluster.exchange_address",
        ) from error


def _host_of(job: JobConfig) -> Callable[[], str]:
    """Return what says at which address other workers reach this one, once that is needed."""
    return lambda: job.cluster.exchange_address or host_towards(job.tables.shards[0])
