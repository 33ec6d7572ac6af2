"""What was asked for: the words of a training or an evaluation, checked as far as that needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cct_lightning.commands.keys import check_keys, check_value, groups, known_keys
from cct_lightning.commands.permissions import FLAGS, Permissions
from cct_lightning.commands.recipes import find_recipe, read_recipe
from cct_lightning.commands.words import CONFIG, Option, Typed
from cct_lightning.errors import InputError
from cct_lightning.evaluation.options import Rejects
from cct_lightning.run_folder import RunFolder
from cct_lightning.runs.options import Watch
from cct_lightning.tasks.options import FROM_DATA

TRAIN = ("fit", "finetune", "pretrain")
SHORT = {"tta": "model.tta"}  # keys that may be typed by their last name


@dataclass(frozen=True)
class Request:
    """A training or an evaluation that was asked for.

    Attributes:
        command: As it was typed.
        words: Recipes, by their paths, and keys in their order: what the parser takes.
        keys: The same by key, the last value of each, as it was written.
        recipes: Paths of the recipes.
        search: ``find-lr`` or ``find-batch-size`` where a value is looked for and nothing trained.
        run: The run that goes on, for resume.
        epochs: How many it shall have in all, where it shall have more than planned.
        checkpoint: What is measured, for test and validate.
        permissions: What is allowed besides, by who calls.
        accepts_images: Whether the run that goes on may do so with other images than it was trained on.
        calibrates: Whether they then fit a temperature to the validation images.
        rejects: The threshold of "none of these" that they then choose on them.
        told: What is said of the task, weights and epochs that nobody named, for finetune.
        watch: Is told each validation of a training, which it may end.
    """

    command: str
    words: tuple[str, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)
    recipes: tuple[Path, ...] = ()
    search: str | None = None
    run: RunFolder | None = None
    epochs: int | None = None
    checkpoint: Path | None = None
    permissions: Permissions = Permissions()

    @property
    def task(self) -> str | None:
        """What is learned, where a recipe or a word says so."""
        return self.keys.get("task")

    accepts_images: bool = False
    calibrates: bool = False
    rejects: Rejects | None = None
    told: str = ""
    watch: Watch | None = None


def read_request(command: str, typed: Typed, flags: tuple[str, ...] = ()) -> Request:
    """Checks recipes and keys: that they exist, that names are known, that nothing is set that follows from the data.

    Args:
        command: As it was typed; those of ``TRAIN`` train.
        typed: What was typed behind it.
        flags: Keys that are not the parser's; they are left out of ``words``.

    Raises:
        InputError: Something is not as it should be; says where.
    """
    trains = command in TRAIN
    words: list[str] = []
    keys: dict[str, Any] = {}
    where: dict[str, str] = {}
    recipes: list[Path] = []
    permissions = Permissions.read(typed)
    for word in typed.options:
        option = word._replace(key=SHORT.get(word.key, word.key))
        if option.key == CONFIG:
            path = find_recipe(option.value or "")
            found = read_recipe(path, trains)
            permissions.check_places(found, str(path))
            recipes.append(path)
            words += ["--config", str(path)]
            keys, where = keys | found, where | dict.fromkeys(found, str(path))
        elif option.key not in (*flags, *FLAGS):
            _check_option(option, command)
            words += option.words
            if option.key != "print_config":
                keys[option.key], where[option.key] = option.value, "command line"
    check_keys(where)
    return Request(command, tuple(words), keys, tuple(recipes), permissions=permissions)


def _check_option(option: Option, command: str) -> None:
    """Refuses what can be told of a key by itself."""
    if option.key.startswith("model.") and option.key.removeprefix("model.") in FROM_DATA:
        raise InputError(f"{option.key} flows from the data to the model: set it there, as in --data.image_size, or leave it out.")
    if option.key == "ckpt_path":
        raise InputError(
            f"{command} does not take --ckpt_path: --model.pretrained FILE starts a new run from the weights of a file,\n"
            "  `cct resume RUN` goes on with a run."
        )
    if option.key in groups():
        raise InputError(f"{option.name} is a group of keys: give one of them, as in {next(k for k in known_keys() if k.startswith(option.key))}.")
    if option.key in known_keys() and not option.adds:
        check_value(option.key, option.value, "command line")
