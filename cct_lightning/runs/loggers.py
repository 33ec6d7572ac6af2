"""Loggers beside the run's own: one that needs a folder and is given none writes into the run's."""

import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch import loggers

from cct_lightning.data.imports import may_import
from cct_lightning.errors import InputError
from cct_lightning.plain_yaml import read_yaml

RUN = "{run}"  # stands for the run's folder wherever a logger's save_dir is read: the folder is made after that, and anew when a run is repeated
MODE = "yaml_with_loggers"  # what the parser's loader is called


def _needs_folder(name: object) -> bool:
    """Tells whether a logger, by its short name or its dotted one, can't be made without save_dir. Those with a default of their own keep it."""
    module, _, short = str(name).rpartition(".")
    if module and not may_import(str(name)):
        return False  # the parser says so
    try:
        kind = getattr(import_module(module) if module else loggers, short)
        return inspect.signature(kind).parameters["save_dir"].default is inspect.Parameter.empty
    except (ImportError, AttributeError, KeyError, TypeError, ValueError):
        return False  # the parser says what is wrong with it


def with_folder(value: Any) -> Any:
    """Adds ``save_dir: {run}`` to what ``trainer.logger`` is set to, a name, a class_path with its init_args or a list of them, where it lacks."""
    if isinstance(value, list):
        return [with_folder(one) for one in value]
    given = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not _needs_folder(given.get("class_path")):
        return value
    return given | {"init_args": {"save_dir": RUN} | (given.get("init_args") or {})}


def in_words(words: list[str]) -> list[str]:
    """Does so on a command line: ``--trainer.logger TensorBoardLogger``, ``--trainer.logger+=CSVLogger``."""
    out: list[str] = []
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals and name in ("--trainer.logger", "--trainer.logger+"):
            out.append(f"{name}={_in_text(value)}")
        elif place and words[place - 1] in ("--trainer.logger", "--trainer.logger+"):
            out.append(_in_text(word))
        else:
            out.append(word)
    return out


def _in_text(text: str) -> str:
    try:
        value = read_yaml(text, "trainer.logger")
    except InputError:
        return text
    return text if (whole := with_folder(value)) == value else json.dumps(whole)


def _load(text: str) -> Any:
    value = jsonargparse.get_loader("yaml")(text)
    trainer = value.get("trainer") if isinstance(value, dict) else None
    if isinstance(trainer, dict) and "logger" in trainer:
        trainer["logger"] = with_folder(trainer["logger"])
    return value


jsonargparse.set_loader(MODE, _load, exceptions=(yaml.YAMLError,))


def put(value: Any, folder: Path) -> Any:
    """Returns what the parser made of a part of the trainer, such as ``trainer.logger``, with the run's folder wherever a text begins with ``{run}``.

    Args:
        value: Parsed, not instantiated; stays as it is, for config.yaml: a run that is repeated has a folder of its own.
        folder: The run's.
    """
    if isinstance(value, list):
        return [put(one, folder) for one in value]
    if isinstance(value, jsonargparse.Namespace):
        changed = {name: new for name, one in vars(value).items() if (new := put(one, folder)) is not one}
        return jsonargparse.Namespace(**{**vars(value), **changed}) if changed else value  # type: ignore[no-untyped-call]
    if isinstance(value, dict):
        return {name: put(one, folder) for name, one in value.items()}
    return f"{folder}{value.removeprefix(RUN)}" if isinstance(value, str) and value.startswith(RUN) else value
