"""``cct test`` and ``cct validate``: a checkpoint's recipe before what is typed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cct_lightning.errors import InputError
from cct_lightning.weights.files import KEY, read_checkpoint


def from_checkpoint(arguments: list[str], folder: Path) -> list[str]:
    """Turns ``test CHECKPOINT [flags]`` into LightningCLI's arguments: what the checkpoint says first, so that recipes and flags win.

    Raises:
        InputError: The file is no checkpoint of ours, or was not written by a recipe and none is given.
    """
    command, *rest = arguments
    position = next(i for i, word in enumerate(rest) if word.removeprefix("--ckpt_path=").endswith(".ckpt"))
    checkpoint = rest.pop(position).removeprefix("--ckpt_path=")
    if position and rest[position - 1] == "--ckpt_path":
        rest.pop(position - 1)
    about = read_checkpoint(checkpoint).get(KEY)
    if not isinstance(about, Mapping) or not about.get("model"):
        raise InputError(f"{checkpoint} is no checkpoint of `cct fit`, or holds a network that only Python can build.")
    known: dict[str, Any] = {"model": {**about["model"], "pretrained": None}}
    if recipe := about["recipe"]:
        known |= {"seed_everything": recipe["seed_everything"], "data": recipe["data"]}
        known["trainer"] = {"precision": recipe["trainer"]["precision"], "accelerator": recipe["trainer"]["accelerator"], "devices": 1}
    elif "--config" not in rest:
        raise InputError(f"{checkpoint} does not hold the recipe it was trained with: name one, cct {command} -c RECIPE {checkpoint}")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(known), encoding="utf-8")
    return [command, "--config", str(path), *rest, "--ckpt_path", checkpoint]
