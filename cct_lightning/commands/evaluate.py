"""``cct test`` and ``cct validate``: what is typed, checked without torch, and what the checkpoint says before it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from cct_lightning.commands.fit import SEARCHES
from cct_lightning.commands.keys import check_value, flatten, groups_without_keys
from cct_lightning.commands.ranges import as_number
from cct_lightning.commands.requests import Request, read_request
from cct_lightning.commands.words import Typed, read_words
from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.evaluation.options import Rejects
from cct_lightning.networks.options import RejectBy
from cct_lightning.run_folder import newest
from cct_lightning.tasks.registry import DEFAULT, KINDS
from cct_lightning.weights.schema import check_head
from cct_lightning.weights.sources import find_source

FLAGS = ("calibrate",)
REJECT = ("reject", "reject_by", "outliers")


def prepare(arguments: list[str], command: str) -> Request:
    """Reads and checks the words behind ``test`` or ``validate``.

    Raises:
        InputError: No checkpoint, or none that is there; an unknown recipe or key.
    """
    typed = read_words(arguments, command, (*FLAGS, *SEARCHES))
    for option in typed.options:
        if option.key in SEARCHES:
            raise InputError(f"--{option.key} is for `cct fit` and `cct finetune`.")
    named = [*typed.alone, *(option.value for option in typed.options if option.key == "ckpt_path" and option.value)]
    rejects = _rejects(typed)
    request = read_request(command, typed, ("ckpt_path", *FLAGS, *REJECT, "reject-by"))
    if len(named) != 1:
        hint = next(iter(newest()), "runs/.../checkpoints/best.ckpt")
        what = f"one, not {len(named)}" if named else "a file that ends in .ckpt"
        raise InputError(f"{command} needs a checkpoint, {what}: cct {command} {hint}")
    checkpoint = find_source(named[0])
    if checkpoint.suffix != ".ckpt":
        raise InputError(f"{command} measures a run's checkpoint, and {checkpoint} is none: cct predict classifies with it.")
    calibrates = any(option.key in FLAGS for option in typed.options)
    from cct_lightning.commands.checks import check_given  # help and errors in keys do without

    check_given(command, request.keys, str(checkpoint))
    return replace(request, checkpoint=checkpoint, calibrates=calibrates, rejects=rejects)


def _rejects(typed: Typed) -> Rejects | None:
    """Reads what is typed of a threshold of "none of these".

    Raises:
        InputError: A share that is none, an unknown rule, outliers that are not there, or one of these without --reject.
    """
    given = {option.key.replace("-", "_"): option.value or "" for option in typed.options if option.key.replace("-", "_") in REJECT}
    if given and "reject" not in given:
        raise InputError(f"--{next(iter(given))} says more of --reject SHARE, such as --reject 0.95: give that, too.")
    if not given:
        return None
    by, share = given.get("reject_by", "energy"), as_number(given["reject"])
    if by not in get_args(RejectBy):
        raise InputError(f"--reject_by {by} is unknown.{did_you_mean(by, get_args(RejectBy))}")
    if share is None:
        raise InputError(f"--reject {given['reject']}: it takes a share of the right answers that is kept, such as 0.95.")
    check_range("--reject", share, 0, 1, exclusive="low")
    outliers = Path(given["outliers"]).expanduser() if "outliers" in given else None
    if outliers is not None:
        from cct_lightning.commands.checks import check_outliers

        check_outliers(outliers)
    return Rejects(float(share), cast(RejectBy, by), outliers)


def task_of(about: Mapping[str, Any] | None) -> str:
    """Returns what a checkpoint was trained for; those from before there were tasks classify."""
    recipe = (about or {}).get("recipe") or {}
    return str(recipe.get("task", DEFAULT))


def _check_data(recipe: dict[str, Any], where: str) -> None:
    """Checks what a checkpoint says of its data as what a recipe says is checked."""
    for group in groups_without_keys(recipe):
        raise InputError(f"{where}: {group} is a group of keys, and no value.")
    for key, value in flatten(recipe).items():
        check_value(key, value, where)


def recipe_of(about: Mapping[str, Any] | None, request: Request) -> dict[str, Any]:
    """Returns what a checkpoint says, as a recipe before what is typed.

    Args:
        about: What the checkpoint says of itself.
        request: What was asked for.

    Raises:
        InputError: The file is no checkpoint of ours, or was not written by a recipe and none is given.
    """
    if not isinstance(about, Mapping) or not about.get("model"):
        raise InputError(f"{request.checkpoint} is no checkpoint of `cct fit`, or holds a network that only Python can build.")
    if (members := about.get("members")) is not None:
        raise InputError(
            f"{request.checkpoint} is an ensemble of {members} networks, and each of its images was seen by some of them: what their folds found is\n"
            "  in report.html beside it, the accuracy on a test folder included. cct predict classifies with it."
        )
    assert request.checkpoint is not None
    check_head(request.checkpoint, about["model"])
    known: dict[str, Any] = {"task": task_of(about), "model": {**about["model"], "pretrained": None}}
    if about["model"]["num_classes"] < (1 if KINDS.get(known["task"]) in ("labels", "numbers") else 2):
        raise InputError(
            f"{request.checkpoint} says num_classes={about['model']['num_classes']}: a network to be measured tells two classes or more."
        )
    if recipe := about["recipe"]:
        _check_data({"data": recipe["data"]}, str(request.checkpoint))
        trainer = recipe.get("trainer") or {}
        known |= {"seed_everything": recipe.get("seed_everything", 0), "data": recipe["data"]}
        known["trainer"] = {"precision": trainer.get("precision"), "accelerator": trainer.get("accelerator", "auto"), "devices": 1}
    elif not request.recipes:
        checkpoint = request.checkpoint
        raise InputError(f"{checkpoint} does not hold the recipe it was trained with: name one, cct {request.command} -c RECIPE {checkpoint}")
    return known
