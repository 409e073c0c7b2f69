"""What of a job's settings goes together where a deep net is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.errors import ConfigError
from streamlearn.kinds.deep import DeepConfig
from streamlearn.settings import refuse

if TYPE_CHECKING:
    from streamlearn.config import JobConfig

__all__ = ["check_deep"]


def check_deep(job: JobConfig, model: DeepConfig) -> None:
    """Refuse settings that a deep net has no use for, or that contradict one another.

    Raises
    ------
    ConfigError
        Names the setting, and why.
    """
    named = len(job.source.classes)
    if model.loss == "classes":
        if not model.classes and not named:
            raise ConfigError(
                '`model.loss` is "classes", but nothing says how many there are',
                hint="--classes 10 where labels are 0 to 9, or source.classes with their texts",
            )
        if model.classes and named and model.classes != named:
            raise ConfigError(
                f"`model.classes` is {model.classes}, but `source.classes` names {named}",
                hint="leave out model.classes",
            )
        if (model.classes or named) < 2:
            raise ConfigError("`model.classes` must be at least 2")
    elif model.classes or named:
        path = "model.classes" if model.classes else "source.classes"
        raise ConfigError(
            f'`{path}` is given, but `model.loss` is "{model.loss}", which has no classes',
            hint="--loss classes",
        )
    tables, compute = job.tables, job.compute
    refused = {
        "tables.index": (tables.index == "hashed", "its embeddings are by exact keys"),
        "tables.kkt": (tables.kkt > 0, "the net needs every weight"),
        "compute.learn_lanes": (compute.learn_lanes > 1, "a net has one learning lane a device"),
    }
    refuse(job, refused, {})
