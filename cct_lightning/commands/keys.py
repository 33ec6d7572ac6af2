"""The keys of a recipe, read off the options classes that hold them: fields for type and default, docstrings for the help.

Nothing heavy is imported, so help and the check for typing errors take a tenth of a second instead of the ten that torch and Lightning take.
"""

import ast
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cct_lightning.commands.ranges import check_number
from cct_lightning.data.options import DataOptions
from cct_lightning.data.places import is_reader
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.networks.presets import VARIANTS
from cct_lightning.options import default_of, helps
from cct_lightning.plain_yaml import read_yaml
from cct_lightning.runs.options import CheckpointConfig, WandbConfig
from cct_lightning.tasks.options import FROM_DATA
from cct_lightning.tasks.registry import DEFAULT, TASKS, task_options

PACKAGE = Path(__file__).parents[1]
GROUPS: dict[str, type] = {"data": DataOptions, "wandb": WandbConfig, "checkpoint": CheckpointConfig}


@dataclass(frozen=True)
class Key:
    """One key: its type and default as one writes them in Python, and what its docstring says."""

    name: str
    type: str
    default: str
    help: str


def _type_as_text(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(_type_as_text, get_args(kind)))
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(kind)))}]"
    if kind is NoneType:
        return "None"
    return kind.__name__ if get_origin(kind) is None else str(kind)


def _expand(prefix: str, options: Any) -> list[Key]:
    types, said, keys = get_type_hints(options), helps(options), []
    for option in fields(options):
        name, kind = f"{prefix}.{option.name}", types[option.name]
        if is_dataclass(kind):
            keys += _expand(name, kind)
        else:
            keys.append(Key(name, _type_as_text(kind), repr(default_of(option)), said.get(option.name, "")))
    return keys


def _trainers_keys() -> list[Key]:
    """Reads the arguments of Lightning's Trainer off its source: importing it takes seconds."""
    lightning = find_spec("lightning")
    if lightning is None or not lightning.origin:
        return []
    tree = ast.parse((Path(lightning.origin).parent / "pytorch" / "trainer" / "trainer.py").read_text(encoding="utf-8"))
    trainer = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    init = next(node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments, defaults = [*init.args.args[1:], *init.args.kwonlyargs], [*init.args.defaults, *init.args.kw_defaults]
    return [
        Key(f"trainer.{argument.arg}", ast.unparse(argument.annotation) if argument.annotation else "", ast.unparse(default) if default else "", "")
        for argument, default in zip(arguments, defaults, strict=True)  # each has one
    ]


@cache
def known_keys() -> dict[str, Key]:
    """Returns every key of a recipe by its dotted name; of Lightning's Trainer the first level."""
    keys = [key for task in TASKS for key in _expand("model", task_options(task))]
    keys += [key for prefix, options in GROUPS.items() for key in _expand(prefix, options)]
    keys += [
        *_trainers_keys(),
        Key("task", f"Literal[{', '.join(map(repr, TASKS))}]", repr(DEFAULT), "What is learned."),
        Key("seed_everything", "int", "0", "Seed of everything that is drawn."),
    ]
    known: dict[str, Key] = {}
    for key in keys:  # of a key that several tasks have, the first one tells default and help; of names it may have those of all
        first = known.setdefault(key.name, key)
        if first.type != key.type and key.type.startswith("Literal[") and first.type.startswith("Literal["):
            names = dict.fromkeys([*(literal_names(first.type) or ()), *(literal_names(key.type) or ())])
            known[key.name] = replace(first, type=f"Literal[{', '.join(map(repr, names))}]")
    return known


def keys_of_task(task: str) -> set[str]:
    """Returns the keys ``model`` of a task.

    Raises:
        InputError: There is no task of this name.
    """
    return {key.name for key in _expand("model", task_options(task))}


def groups() -> set[str]:
    """Returns the names that only group keys: model, model.optim, ..."""
    return {name.rsplit(".", depth)[0] for name in known_keys() for depth in range(1, name.count(".") + 1)}


def groups_without_keys(recipe: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns the groups of a recipe that hold a value instead of keys."""
    wrong = []
    for name, value in recipe.items():
        if f"{prefix}{name}" in groups():
            wrong += groups_without_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return wrong


def unknown_keys(given: list[str]) -> list[str]:
    """Returns the keys that no class takes. What lies below a known key is left to the full parser."""
    known, parents = known_keys(), groups()

    def is_known(name: str) -> bool:
        return name in parents or any(name == key or name.startswith(f"{key}.") for key in known)

    return [name for name in given if not is_known(name)]


def flatten(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a nested recipe by their dotted names, as deep as our own keys go."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and not dotted.startswith("trainer.") and dotted not in known_keys():
            found |= flatten(value, f"{dotted}.") or {dotted: None}
        else:
            found[dotted] = value
    return found


@cache
def _names(path: Path, table: str) -> tuple[str, ...]:
    """Reads the names off a dictionary in the source, whose values need torch or numpy."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table and isinstance(node.value, ast.Dict):
            return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
    raise LookupError(f"{path} has no table {table}")


def allowed(key: str) -> tuple[str, ...] | None:
    """Returns the names that a key may have; None where that can't be told without importing."""
    if key == "model.pooling":
        return _names(PACKAGE / "networks" / "poolings.py", "POOLINGS")
    if key == "model.arch":
        return tuple(VARIANTS)
    if key == "data.dataset":
        return _names(PACKAGE / "data" / "sets.py", "DATASETS")
    return literal_names(known_keys()[key].type) if key in known_keys() else None


def literal_names(kind: str) -> tuple[str, ...] | None:
    """Returns the names that a type allows, written as in Python; None where it allows others."""
    literal = re.match(r"Literal\[(.*?)\]", kind)
    return tuple(str(name) for name in ast.literal_eval(f"({literal[1]},)")) if literal else None


def check_value(key: str, value: object, where: str) -> None:
    """Refuses a name that does not exist and a number out of range, before anything heavy is imported.

    Raises:
        InputError: The key takes one of a few names, and this is none of them; or the number is out of its range.
    """
    check_number(key, value, where)
    names = allowed(key)
    if names is None or str(value) in names or value in (None, "null") or (key == "model.arch" and str(value).startswith("timm/")):
        return
    if key == "data.dataset" and is_reader(str(value)):
        return  # a reader of someone's own
    raise InputError(f"{where}: {key}={value} is unknown.{did_you_mean(value, names)}")


def read_names(key: str, value: object) -> list[str] | None:
    """Returns the names that a key holds, in a recipe or as they are typed; None where it is null.

    Raises:
        InputError: It is no list of names.
    """
    found = read_yaml(value, key) if isinstance(value, str) else value
    if found is not None and (not isinstance(found, list) or not all(isinstance(name, str) for name in found)):
        raise InputError(f"{key}={value}: it takes a list of names, such as [{value if isinstance(value, str) else 'width, height'}].")
    return found


def read_typed(key: str, value: str | None) -> Any:
    """Returns what was typed for a key: text as it is where the key takes nothing else, as 010 for a name; otherwise as a recipe's.

    Raises:
        InputError: It is no YAML.
    """
    if value in (None, "", "null") or key not in known_keys() or not set(known_keys()[key].type.split(" | ")) <= {"str", "None"}:
        return read_yaml(value or "null", f"--{key}")
    return value


def check_keys(given: dict[str, str]) -> None:
    """Refuses keys that don't exist; ``given`` maps each to where it stands."""
    for key in unknown_keys(list(given)):
        name = key.rsplit(".", 1)[-1]
        names = [known for known in known_keys() if known.removeprefix("model.") not in FROM_DATA]
        alike = [known for known in names if known.rsplit(".", 1)[-1] in (name, f"max_{name}")]  # --lr, --epochs
        hint = f" Did you mean {' or '.join(alike[:3])}?" if alike else did_you_mean(key, names, listed=0)
        raise InputError(f"{given[key]}: there is no key {key!r}.{hint} `cct fit --help` lists all keys.")
