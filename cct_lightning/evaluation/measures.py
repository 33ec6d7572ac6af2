"""The one number of a task by which its networks are compared. Importing this needs no torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A share, the higher the better, at most 1: accuracy; mAP, the mean of the labels' average precisions; R², of the variance that is told.

    Attributes:
        name: As it is logged, behind ``val/`` and ``test/``.
        title: In a sentence.
    """

    name: str
    title: str


MEASURES = {name: Measure(name, title) for name, title in {"accuracy": "accuracy", "mAP": "mAP", "r2": "R²"}.items()}


def measure_of(summary: Mapping[str, Any]) -> Measure:
    """Returns what a run is measured by, from its summary.json; of one from before tasks said so the accuracy."""
    return MEASURES.get(str(summary.get("measure")), MEASURES["accuracy"])


def has_measure(summary: Mapping[str, Any]) -> bool:
    """Tells from a run's summary.json whether its task has a measure; before tasks said so, classification alone had one."""
    return summary.get("measure") is not None or summary.get("task", "classification") == "classification"


def measured(summary: Mapping[str, Any], what: str) -> float | None:
    """Returns a run's measure from its summary.json; None where it has none.

    Args:
        summary: What it says.
        what: ``val``, of the kept weights; ``val_last``, of the last; ``val_raw``, of these without EMA; ``test``.
    """
    stage, _, which = what.partition("_")
    suffix = f"_{which}" if which else ""
    found: float | None = summary.get(f"{stage}_measure{suffix}")
    return summary.get(f"{stage}_accuracy{suffix}") if found is None else found
