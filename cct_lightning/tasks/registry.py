"""The tasks by name. Importing this needs no torch.

A new one is a file in this folder with a child of ``Task`` and its options, a line in both tables, and its recipes, which say ``task: NAME``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cct_lightning.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from cct_lightning.tasks.task import Task

# Where the class of each is, and where its options are, module:Class.
TASKS = {"classification": "cct_lightning.tasks.classification:LitClassifier", "masked": "cct_lightning.tasks.masked:MaskedPatches"}
OPTIONS = {"classification": "cct_lightning.tasks.options:ClassificationOptions", "masked": "cct_lightning.tasks.options:MaskedOptions"}
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


def _find(name: str, places: dict[str, str]) -> Any:
    if name not in places:
        raise InputError(f"task={name!r} is unknown.{did_you_mean(name, places)}")
    module, _, attribute = places[name].partition(":")
    return getattr(import_module(module), attribute)
