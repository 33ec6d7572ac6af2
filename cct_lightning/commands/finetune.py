"""``cct finetune``: a fit of the default recipe on a folder or a table, with what the weights say about the network and its images."""

from collections.abc import Mapping, Set
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cct_lightning.commands.fit import FLAGS, apart
from cct_lightning.commands.fit import prepare as prepare_fit
from cct_lightning.commands.keys import read_names
from cct_lightning.commands.ranges import as_number
from cct_lightning.commands.requests import Request
from cct_lightning.commands.words import read_words
from cct_lightning.data.options import DataOptions
from cct_lightning.data.places import OWN, dataset_of
from cct_lightning.errors import InputError
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.run_folder import newest
from cct_lightning.tasks.registry import DEFAULT, KINDS, KINDS_IN_WORDS
from cct_lightning.weights.sources import card

INSIDE = "cct_2_3x2_32_cifar10"  # weights inside the package, which a fine-tuning begins with where they suit
SIDE = 64  # pixels: the size they are given unless another is asked for, and the largest that they are taken for
STEPS = 200  # that few images are trained for at least: 50 photographs were told apart in 60 % after 30, and in 74 % after 240 (benchmarks/README.md)
SHARES = {name: getattr(DataOptions, name) for name in ("fraction", "val_fraction", "test_fraction")}  # where nothing else is said
FEW = 5000  # images: a convention, from where on a larger network at a larger size is taken to be worth its time
# Keys of the network that say nothing against them.
ALIKE = ("pooling", "drop_path", "attn_drop", "proj_drop")


def prepare(arguments: list[str]) -> Request:
    """Turns the words behind ``finetune``, which begin with the images, into those of a fit of the default recipe; what follows wins.

    Raises:
        InputError: There is no such folder or file, or as ``fit`` does.
    """
    if not arguments or arguments[0].startswith("-"):
        raise InputError("finetune begins with your images: cct finetune DIR [--model.pretrained SOURCE]. DIR holds a folder for each class,\n"
                         "  or train and val (and test) with such folders, or is a CSV with the columns path and label, or labels, or\n"
                         "  columns of numbers; Parquet, .tar shards and what `datasets` saved to disk will do as well.")  # fmt: skip
    root, *rest = arguments
    place = Path(root).expanduser()
    recipes, keys = apart(rest, "finetune")
    typed = read_words(keys, "finetune", (*FLAGS, "calibrate"))
    dataset, chosen = dataset_of(place), typed.last("data.dataset")
    if chosen is not None and chosen in OWN and chosen != "images":
        dataset = chosen
    from cct_lightning.data.folders import folder_class_names
    from cct_lightning.data.sets import DATASETS

    read_all = DATASETS[dataset].read_all
    table = read_all(place, read_names("data.targets", typed.last("data.targets"))) if read_all else folder_class_names(place) and None
    task = next((name for name, kind in KINDS.items() if table and kind == table.kind), DEFAULT)
    own = [*recipes, *(["--task", task] if task != DEFAULT else []), "--data.dataset", dataset, "--data.root", root, *keys]
    request = prepare_fit(["-c", "finetune", *own], "finetune")
    learned = "" if task == DEFAULT else f"task: {task}, since the images of {root} have {KINDS_IN_WORDS[KINDS[task] or '']}"
    counted = {**{name: len(split) for name, split in table.splits.items()}, "classes": len(table.class_names)} if table else _count_images(place)
    weights, from_where = _weights(request, counted["train"])
    epochs, how_long = _epochs(request, {option.key for option in typed.options}, counted)
    told = "\n".join(filter(None, (learned, from_where, how_long)))
    return replace(prepare_fit(["-c", "finetune", *weights, *epochs, *own], "finetune") if weights or epochs else request, told=told)


def _weights(request: Request, count: int) -> tuple[list[str], str]:
    """Chooses weights where none are named, by the number of images; and says what a run begins with."""
    size = _size_for_inside(request)
    if size is None or (size == "" and count > FEW):
        return [], "" if "model.pretrained" in own_keys(request) else from_scratch(request)
    chosen = ["--model.pretrained", INSIDE, *(["--data.image_size", str(SIDE)] if size == "" else [])]
    why = f"{count:,} images are few: up to {FEW:,}" if size == "" else f"images of {size} pixels are small: up to {SIDE}"
    return chosen, f"weights: {INSIDE}, inside the package, at {size or SIDE} pixels ({why}); --model.pretrained null starts from nothing"


def _epochs(request: Request, typed: Set[str], counted: Mapping[str, int]) -> tuple[list[str], str]:
    """Chooses more epochs than the recipe's where these would be fewer than ``STEPS``; and says so.

    Args:
        request: What was asked for.
        typed: The keys that were typed.
        counted: Images of each split that there is, before any is set aside, and classes.
    """
    own = typed | _set_by_user(request).keys()
    if own & {"trainer.max_epochs", "trainer.max_steps", "trainer.max_time"}:
        return [], ""
    shares = {name: as_number(request.keys.get(f"data.{name}", default)) for name, default in SHARES.items()}
    images = counted["train"] * (shares["fraction"] or 1)
    images *= 1 - (shares["test_fraction"] or 0) if not counted.keys() & {"val", "test"} else 1
    images *= 1 - (shares["val_fraction"] or 0) if "val" not in counted else 1
    if (most := as_number(request.keys.get("data.per_class"))) is not None:
        images = min(images, most * counted["classes"])
    batch, usual = as_number(request.keys.get("data.batch_size")) or 1, as_number(request.keys.get("trainer.max_epochs")) or 1
    each = max(int(images // batch), 1)
    if each * usual >= STEPS:
        return [], ""
    epochs = -(-STEPS // each)
    keys = {
        "trainer.max_epochs": epochs, "trainer.check_val_every_n_epoch": max(int(epochs // usual), 1),
        "model.schedule.warmup_epochs": round((as_number(request.keys.get("model.schedule.warmup_epochs")) or 0) * epochs / usual),
    }  # fmt: skip
    words = [word for key, value in keys.items() if key not in own for word in (f"--{key}", str(value))]
    return words, f"epochs: {epochs:,}, since {usual:g} of {each} step{'s' * (each > 1)} each would be few; --trainer.max_epochs N says otherwise"


def _size_for_inside(request: Request) -> str | None:
    """Tells whether the weights inside the package suit what was asked for, as far as that follows from the keys.

    Returns:
        The image size that was asked for; the empty string where none was; None where they don't suit: others or none are asked for, another
        network, a teacher, a whitened start, or images of more than ``SIDE`` pixels.
    """
    own = _set_by_user(request)
    network = {f"model.{option.name}" for option in fields(NetworkOptions) if option.name not in ALIKE}
    others = {key for key in own if key in network and not (key == "model.arch" and own[key] == card(INSIDE)[0]["arch"])}
    starts_otherwise = own.get("model.teacher") not in (None, "null") or own.get("model.whiten", "none") != "none"
    if others or "model.pretrained" in own or starts_otherwise or not KINDS.get(str(own.get("task", DEFAULT))):
        return None
    size = str(own.get("data.image_size", ""))
    sides = [side.strip() for side in size.strip("[]() ").split(",")]
    if size and not all(side.isdecimal() and int(side) <= SIDE for side in sides):
        return None
    return size


def _count_images(place: Path) -> dict[str, int]:
    """Counts the training images of a folder, as far as one more than are few, and the classes; of other splits tells that they are there."""
    from cct_lightning.data.folders import class_folders, class_images, split_folder

    folders = list(class_folders(split_folder(place, "train") or place))
    found = (image for folder in folders for image in class_images(folder))
    others = {name: 0 for name in ("val", "test") if split_folder(place, name) is not None}
    return {"train": sum(1 for _ in islice(found, FEW + 1)), "classes": len(folders), **others}


def _set_by_user(request: Request) -> Mapping[str, Any]:
    """Returns the keys that the user set, not the default recipe."""
    from cct_lightning.commands.recipes import read_recipe

    default: dict[str, Any] = read_recipe(request.recipes[0], True)
    return {key: value for key, value in request.keys.items() if key not in default or value != default[key]}


def own_keys(request: Request) -> dict[str, str]:
    """Returns the keys of the network that the user set, not the default recipe, with their values as text."""
    return {key: str(value) for key, value in _set_by_user(request).items() if key.startswith("model.") and value not in (None, "null")}


def from_scratch(request: Request) -> str:
    """Says what a run without weights could begin with."""
    if "model.pretrained" in request.keys:
        return "training from scratch: --model.pretrained null"
    lines = ["TRAINING FROM SCRATCH: no --model.pretrained is given. With few images a start from weights is better nearly always. It takes",
             *(f"  {path}" for path in newest(count=2)),
             f"  {INSIDE}, which is inside the package (taken for up to {FEW:,} images of up to {SIDE} pixels),",
             "  a checkpoint or exported folder of yours, a .pth of SHI-Labs/Compact-Transformers or vit-pytorch, or where there is a network",
             "  timm/vit_tiny_patch16_224 or another ViT of timm, or a published network, such as cct_7_3x1_32_cifar10_300epochs."]  # fmt: skip
    return "\n".join(lines)
