"""The keys of a recipe, read off the source of the classes that take them: signature for type and default, docstring for the help.

Nothing is imported, so help and the check for typing errors take a tenth of a second instead of the ten that torch and Lightning take.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError, did_you_mean

PACKAGE = Path(__file__).parents[1]
GROUPS = {
    "model": (PACKAGE / "tasks" / "classification.py", "LitClassifier"),
    "data": (PACKAGE / "data" / "module.py", "ImageDataModule"),
    "wandb": (PACKAGE / "runs" / "options.py", "WandbConfig"),
    "checkpoint": (PACKAGE / "runs" / "options.py", "CheckpointConfig"),
}
NESTED = {
    "LossConfig": PACKAGE / "training" / "options.py",
    "OptimConfig": PACKAGE / "training" / "options.py",
    "ScheduleConfig": PACKAGE / "training" / "options.py",
    "AugmentConfig": PACKAGE / "data" / "augment" / "options.py",
}
PYTHON_ONLY = {"model.model"}
FROM_DATA = ("num_classes", "image_size", "in_chans", "class_names", "mean", "std")  # flow from data to model in `fit`
# Where a run is computed, not what it is: these may differ when it is resumed.
WHERE = (
    "data.root", "data.cache", "data.num_workers", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.enable_progress_bar", "wandb.mode",
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key: its type and default as written in the source, and what its docstring says."""

    name: str
    type: str
    default: str
    help: str


@cache
def _class(path: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _arguments_of_docstring(node: ast.ClassDef) -> dict[str, str]:
    docstring = ast.get_docstring(node) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.S | re.M)
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1], re.S | re.M) if section else []
    return {name: " ".join(text.split()) for name, text in found}


def _parameters(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Returns (name, type, default) of a dataclass's fields or of a constructor's arguments."""
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return [(ast.unparse(f.target), ast.unparse(f.annotation), ast.unparse(f.value) if f.value else "") for f in fields]
    arguments = init.args.args[1:] + init.args.kwonlyargs
    defaults: list[Any] = [*([None] * (len(init.args.args) - 1 - len(init.args.defaults))), *init.args.defaults, *init.args.kw_defaults]
    return [(a.arg, ast.unparse(a.annotation) if a.annotation else "", ast.unparse(d) if d else "") for a, d in zip(arguments, defaults, strict=True)]


def _expand(prefix: str, path: Path, name: str) -> list[Key]:
    node = _class(path, name)
    helps, keys = _arguments_of_docstring(node), []
    for argument, annotation, default in _parameters(node):
        if f"{prefix}.{argument}" in PYTHON_ONLY:
            continue
        if annotation in NESTED:
            keys += _expand(f"{prefix}.{argument}", NESTED[annotation], annotation)
        else:
            keys.append(Key(f"{prefix}.{argument}", annotation, default, helps.get(argument, "")))
    return keys


@cache
def known_keys() -> dict[str, Key]:
    """Returns every key of a recipe by its dotted name; of Lightning's Trainer the first level."""
    keys = [key for prefix, (path, name) in GROUPS.items() for key in _expand(prefix, path, name)]
    lightning = find_spec("lightning")
    if lightning is not None and lightning.origin:
        node = _class(Path(lightning.origin).parent / "pytorch" / "trainer" / "trainer.py", "Trainer")
        keys += [Key(f"trainer.{name}", annotation, default, "") for name, annotation, default in _parameters(node)]
    keys.append(Key("seed_everything", "int", "0", "Seed of everything that is drawn."))
    return {key.name: key for key in keys}


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
    """Reads the names off a table in the source: the keys of a dictionary, or the words of a string."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id == table:
            if isinstance(node.value, ast.Dict):
                return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
            return tuple(next(str(word.value) for word in ast.walk(node.value) if isinstance(word, ast.Constant)).split())
    raise LookupError(f"{path} has no table {table}")


def allowed(key: str) -> tuple[str, ...] | None:
    """Returns the names that a key may have; None where that can't be told without importing."""
    if key == "model.pooling":
        return _names(PACKAGE / "networks" / "poolings.py", "POOLINGS")
    if key == "model.arch":
        return _names(PACKAGE / "networks" / "presets.py", "NAMES")
    if key == "data.dataset":
        return _names(PACKAGE / "data" / "sets.py", "DATASETS")
    kind = known_keys()[key].type if key in known_keys() else ""
    literal = re.match(r"Literal\[(.*?)\]", kind)
    return tuple(str(name) for name in ast.literal_eval(f"({literal[1]},)")) if literal else None


def check_value(key: str, value: object, where: str) -> None:
    """Refuses a name that does not exist, before anything heavy is imported.

    Raises:
        InputError: The key takes one of a few names, and this is none of them.
    """
    names = allowed(key)
    if names is None or str(value) in names or value in (None, "null") or (key == "model.arch" and str(value).startswith("timm/")):
        return
    raise InputError(f"{where}: {key}={value} is unknown.{did_you_mean(value, names)}")


def check_keys(given: dict[str, str]) -> None:
    """Refuses keys that don't exist; ``given`` maps each to where it stands."""
    for key in unknown_keys(list(given)):
        name = key.rsplit(".", 1)[-1]
        names = [known for known in known_keys() if known.removeprefix("model.") not in FROM_DATA]
        alike = [known for known in names if known.rsplit(".", 1)[-1] in (name, f"max_{name}")]  # --lr, --epochs
        hint = f" Did you mean {' or '.join(alike[:3])}?" if alike else did_you_mean(key, names, listed=0)
        raise InputError(f"{given[key]}: there is no key {key!r}.{hint} `cct fit --help` lists all keys.")
