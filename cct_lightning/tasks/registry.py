"""The tasks by name. Importing this needs no torch.

A new one is a file in this folder with a child of ``Task`` and its options, a line in both tables, and its recipes, which say ``task: NAME``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cct_lightning.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from cct_lightning.tasks.task import Task

# Where the class of each is, and where its options are, module:Class.
TASKS = {
    "classification": "cct_lightning.tasks.classification:LitClassifier",
    "masked": "cct_lightning.tasks.masked:MaskedPatches",
    "multilabel": "cct_lightning.tasks.multilabel:Multilabel",
    "regression": "cct_lightning.tasks.regression:Regression",
}
OPTIONS = {
    "classification": "cct_lightning.tasks.options:ClassificationOptions",
    "masked": "cct_lightning.tasks.options:MaskedOptions",
    "multilabel": "cct_lightning.tasks.options:MultilabelOptions",
    "regression": "cct_lightning.tasks.options:RegressionOptions",
}
# What images must be told by to be learned from, see ``data.columns``: a class each, several labels, numbers; None: nothing of it is looked at.
KINDS = {"classification": "class", "masked": None, "multilabel": "labels", "regression": "numbers"}
KINDS_IN_WORDS = {"class": "one class each", "labels": "several labels", "numbers": "numbers"}
DEFAULT = "classification"


def task_class(name: str) -> "type[Task]":
    """Imports the class of a task, with torch and Lightning.

    Raises:
        InputError: There is no task of this name.
    """
    found: type[Task] = _find(name, TASKS)
    return found


def task_options(name: str) -> type:
    """Imports the options of a task, the keys ``model`` of its recipes; that needs no torch.

    Raises:
        InputError: There is no task of this name.
    """
    found: type = _find(name, OPTIONS)
    return found


def check_kind(wanted: str | None, kind: str, where: object) -> None:
    """Refuses images that are told by something else than a task learns.

    Args:
        wanted: A value of ``KINDS``.
        kind: Of the images.
        where: They are, for the message.

    Raises:
        InputError: Names the task that learns it.
    """
    if wanted is not None and kind != wanted:
        ours, theirs = (next((name for name, one in KINDS.items() if one == what), "") for what in (wanted, kind))
        way = f"give --task {theirs}, or other images" if theirs else "give other images"
        raise InputError(f"task={ours} learns from images with {KINDS_IN_WORDS[wanted]}, and those of {where} have {KINDS_IN_WORDS[kind]}: {way}.")


def _find(name: str, places: dict[str, str]) -> Any:
    if name not in places:
        raise InputError(f"task={name!r} is unknown.{did_you_mean(name, places)}")
    module, _, attribute = places[name].partition(":")
    return getattr(import_module(module), attribute)
