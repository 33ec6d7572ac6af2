"""``cct finetune``: a fit of the default recipe on a folder or a table, with what the weights say about the network and its images."""

from pathlib import Path
from typing import Any

from cct_lightning.commands.fit import prepare as prepare_fit
from cct_lightning.commands.requests import Request
from cct_lightning.errors import InputError
from cct_lightning.run_folder import newest

TABLES = (".csv", ".tsv", ".txt")


def prepare(arguments: list[str]) -> Request:
    """Turns the words behind ``finetune``, which begin with the images, into those of a fit of the default recipe; what follows wins.

    Raises:
        InputError: There is no such folder or file, or as ``fit`` does.
    """
    if not arguments or arguments[0].startswith("-"):
        raise InputError("finetune begins with your images: cct finetune DIR [--model.pretrained SOURCE]. DIR holds a folder for each class,\n"
                         "  or train and val (and test) with such folders, or is a CSV with the columns path and label.")  # fmt: skip
    root, *rest = arguments
    place = Path(root).expanduser()
    if not place.exists():
        raise InputError(f"There is no folder or file {root}.")
    if place.is_file() and place.suffix.lower() not in TABLES:
        raise InputError(f"{root} is neither a folder of class folders nor a .csv with the columns path and label.")
    from cct_lightning.data.folders import folder_class_names, read_table

    read_table(place) if place.is_file() else folder_class_names(place)
    data = ["--data.dataset", "csv" if place.is_file() else "image_folder", "--data.root", root]
    return prepare_fit(["-c", "finetune", *data, *rest], "finetune")


def own_keys(request: Request) -> dict[str, str]:
    """Returns the keys of the network that the user set, not the default recipe, with their values as text."""
    from cct_lightning.commands.recipes import read_recipe

    default: dict[str, Any] = read_recipe(request.recipes[0], True)
    set_by_user = {key: value for key, value in request.keys.items() if key not in default or value != default[key]}
    return {key: str(value) for key, value in set_by_user.items() if key.startswith("model.") and value not in (None, "null")}


def from_scratch() -> str:
    """Says what a run without weights could begin with."""
    lines = ["TRAINING FROM SCRATCH: no --model.pretrained is given. With few images a start from weights is better nearly always. It takes",
             *(f"  {path}" for path in newest(count=2)),
             "  a checkpoint or exported folder of yours, a .pth of SHI-Labs/Compact-Transformers or vit-pytorch, or where there is a network",
             "  timm/vit_tiny_patch16_224 or another ViT of timm, or a published network, such as cct_7_3x1_32_cifar10_300epochs."]  # fmt: skip
    return "\n".join(lines)
