"""The tasks by name. Importing this needs no torch.

A new one is a file in this folder with a child of ``Task``, a line below, and its recipes, which say ``task: NAME``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from cct_lightning.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from cct_lightning.tasks.task import Task

TASKS = {"classification": "cct_lightning.tasks.classification:LitClassifier"}  # where the class is, module:Class


def task_class(name: str) -> "type[Task]":
    """Imports the class of a task, with torch and Lightning.

    Raises:
        InputError: There is no task of this name.
    """
    if name not in TASKS:
        raise InputError(f"task={name!r} is unknown.{did_you_mean(name, TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    found: type[Task] = getattr(import_module(module), attribute)
    return found
