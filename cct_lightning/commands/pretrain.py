"""``cct pretrain``: a fit of a recipe that learns from images without labels, with the images filled in."""

import sys
from pathlib import Path

from cct_lightning.commands.fit import apart
from cct_lightning.commands.fit import prepare as prepare_fit
from cct_lightning.commands.keys import allowed
from cct_lightning.commands.permissions import FLAGS
from cct_lightning.commands.requests import Request
from cct_lightning.commands.words import read_words
from cct_lightning.data.places import OWN, dataset_of
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.run_folder import is_first_rank

PIXELS = 64  # side of images whose data set does not tell it


def prepare(arguments: list[str]) -> Request:
    """Turns the words behind ``pretrain``, which begin with the images, into those of a fit of the recipe ``pretrain``; keys that follow win.

    Raises:
        InputError: There is no such folder, file or data set, the recipes are of another task, or as ``fit`` does.
    """
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "pretrain begins with your images: cct pretrain DIR [--key value]. DIR holds images at any depth, with class folders or without;\n"
            "  a CSV with the columns path and label, or the name of a data set, such as cifar10, will do as well."
        )
    word, *rest = arguments
    images = _images(word)
    size = [] if "--data.root" not in images else ["--data.image_size", str(PIXELS)]
    recipes, keys = apart(rest, "pretrain")
    if (typed := read_words(keys, "pretrain", FLAGS).last("task")) not in (None, "masked"):
        raise _other_task(typed)
    request = prepare_fit(["-c", "pretrain", *size, *recipes, *images, *keys], "pretrain")
    if request.task != "masked":
        raise _other_task(request.task)
    if request.keys.get("model.pretrained") not in (None, "null"):
        raise InputError("pretrain starts from nothing: leave --model.pretrained out. `cct resume RUN` goes on with a run.")
    return request


def _other_task(task: str | None) -> InputError:
    return InputError(f"pretrain learns without labels, and task={task} does not: use `cct fit`, or leave out what says it.")


def _images(word: str) -> list[str]:
    """Returns the keys of the images: class folders with their classes, which are only looked at to tell how far it is; others without any."""
    place, names = Path(word).expanduser(), allowed("data.dataset") or ()
    if not place.exists() and word in names and word not in OWN:
        return ["--data.dataset", word]
    if not place.exists():
        raise InputError(f"There is no folder, file or data set {word}.{did_you_mean(word, names)}")
    from cct_lightning.data.folders import class_folders, holds_classes

    if (dataset := dataset_of(place, "a folder of images")) == "image_folder" and not holds_classes(place):
        dataset = "images"
    if dataset == "images" and len(class_folders(place)) > 1 and is_first_rank():
        print(f"{word} is taken as one heap, without labels and without a test: not all of it is class folders with images.", file=sys.stderr)
    return ["--data.dataset", dataset, "--data.root", word]
