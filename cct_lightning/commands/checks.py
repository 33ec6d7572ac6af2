"""What is wrong with the values given, found without torch: it would take seconds to be imported before the same errors.

Each check takes the keys given with their values, recipes first, then flags, which are text. What it can't tell it passes over: the classes that
take the keys check all of them again.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cct_lightning.commands.keys import keys_of_task, read_names
from cct_lightning.commands.requests import TRAIN
from cct_lightning.data.options import NEEDS_LABELS
from cct_lightning.data.places import OWN, PACKED
from cct_lightning.errors import InputError
from cct_lightning.networks.timm_names import check_timm_name
from cct_lightning.tasks.registry import DEFAULT, KINDS, TASKS, check_kind
from cct_lightning.training.optimizer_names import check_optimizer, optimizer_names
from cct_lightning.weights.sources import HUB, find_source, reaches, unreachable

Given = Mapping[str, Any]


def check_given(command: str, given: Given, checkpoint: str | None = None) -> None:
    """Makes all the checks that concern a command. With --print_config nothing needs to be there: leave them out.

    Args:
        command: fit, finetune, pretrain, test or validate.
        given: Values by key.
        checkpoint: Of test and validate.

    Raises:
        InputError: The first thing that is wrong.
    """
    if command in TRAIN:
        check_task_keys(given)
        check_names(given)
        check_timm_weights(given)
        fetch_from_hub(given)
        check_labels(given)
        check_data({"task": DEFAULT, **given})
    elif command == "test" and checkpoint is not None:
        given = {**recipe_of(checkpoint), **given}
        check_data(given)
        check_test_images(given)


def _text(given: Given, key: str) -> str | None:
    """Returns a value that is text; None where there is none, or one that only its class can judge."""
    value = given.get(key)
    return value if isinstance(value, str) and value not in ("", "null") else None


def _place(given: Given) -> Path | None:
    """Returns the folder or table of the user's images, labelled or not; None where the data are no such."""
    root = _text(given, "data.root")
    return Path(root).expanduser() if root is not None and given.get("data.dataset") in OWN else None


def check_names(given: Given) -> None:
    """Refuses an optimizer or a network that timm has not.

    Raises:
        InputError: Says which names are near.
    """
    if (name := _text(given, "model.optim.name")) and (known := optimizer_names()):
        check_optimizer(name, known)
    for key in ("model.arch", "model.pretrained"):
        if (value := _text(given, key)) and value.startswith("timm/"):
            check_timm_name(key, value)


def check_timm_weights(given: Given) -> None:
    """Refuses timm's weights by name where they can't be had: no network, and nothing in the folders where hub clients keep what they fetch.

    Raises:
        InputError: Says how to give a file.
    """
    source = _text(given, "model.pretrained")
    if source is None or not source.startswith("timm/"):
        return
    from huggingface_hub import constants

    arch = source.removeprefix("timm/").partition(".")[0]
    fetched = [folder.name for folder in Path(constants.HF_HUB_CACHE).glob("models--*")]
    # Folders of timm's own hub carry the network's name; those of others may hold any network, and so may torch's.
    if any(not name.startswith("models--timm--") or name.startswith(f"models--timm--{arch}.") for name in fetched):
        return
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    if any((Path(torch_home).expanduser() / "hub" / "checkpoints").glob("*")):
        return
    if constants.HF_HUB_OFFLINE:
        raise unreachable(source, "HF_HUB_OFFLINE is set, and nothing was downloaded before")
    if not reaches(constants.ENDPOINT):
        raise unreachable(source, f"{constants.ENDPOINT} does not answer, and nothing was downloaded before")


def fetch_from_hub(given: Given) -> None:
    """Fetches weights of the Hugging Face Hub: torch would take seconds to be imported before the same errors.

    Raises:
        InputError: They can't be had.
    """
    for key in ("model.pretrained", "model.teacher"):
        if (source := _text(given, key)) and source.startswith(HUB):
            find_source(source)


def check_task_keys(given: Given) -> None:
    """Refuses keys of the network or its training that are another task's.

    Raises:
        InputError: Names the key, and the tasks that have it.
    """
    task = str(given.get("task", DEFAULT))
    own = keys_of_task(task)
    for key in given:
        theirs = [name for name in TASKS if key in keys_of_task(name)] if key.startswith("model.") and key not in own else []
        if theirs:
            raise InputError(
                f"{key} is a key of another task than this one (`task: NAME` in a recipe): leave it out.\n"
                f"  It is for {' and '.join(theirs)}, and the task here is {task}."
            )


def check_labels(given: Given) -> None:
    """Refuses images without labels where classes are learned.

    Raises:
        InputError: As the task says it.
    """
    if (_text(given, "data.unlabelled") or given.get("data.dataset") == "images") and KINDS.get(str(given.get("task", DEFAULT))):
        raise InputError(NEEDS_LABELS)


def check_data(given: Given) -> None:
    """Refuses a folder or a table of images that is not there, and a folder that is none of class folders.

    Raises:
        InputError: As the data module says it.
    """
    place, unlabelled = _place(given), _text(given, "data.unlabelled")
    if place is None and unlabelled in (None, "rest"):
        return
    from cct_lightning.data.folders import check_heap, folder_class_names, read_table  # numpy and Pillow

    if unlabelled not in (None, "rest"):
        check_heap(Path(str(unlabelled)).expanduser(), "unlabelled")
    if place is None:
        return
    if given["data.dataset"] == "images":
        check_heap(place)
    elif given["data.dataset"] == "csv":
        table = read_table(place, read_names("data.targets", given.get("data.targets")))
        check_kind(KINDS.get(str(given.get("task"))), table.kind, place)  # of a checkpoint the task is known once it is opened
    elif (dataset := given["data.dataset"]) in PACKED:
        from cct_lightning.data.packed import check_packed

        check_packed(place, dataset)
    else:
        folder_class_names(place)
        check_kind(KINDS.get(str(given.get("task"))), "class", place)


def check_test_images(given: Given) -> None:
    """Refuses to test on a folder or table without test images, where none are set aside either.

    Raises:
        InputError: As the data module says it.
    """
    if (place := _place(given)) is None or given["data.dataset"] == "images" or _text(given, "data.fold") is not None:
        return
    from cct_lightning.data.folders import no_test_images, split_folder
    from cct_lightning.data.sets import DATASETS

    if read_all := DATASETS[given["data.dataset"]].read_all:
        own = set(read_all(place, read_names("data.targets", given.get("data.targets"))).splits)
    else:
        own = {split for split in ("val", "test") if split_folder(place, split) is not None}
    try:
        share = float(given.get("data.test_fraction", 1))  # where it is not given, its default sets some aside
    except (TypeError, ValueError):
        return
    if "test" not in own and ("val" in own or share == 0):
        raise no_test_images(place, "val" in own)


def check_one_device(given: Given, what: str) -> None:
    """Refuses several devices where runs come one after another or side by side: each process of such a run would begin all of them anew.

    Args:
        given: Values by key.
        what: One of the runs, for the message.

    Raises:
        InputError: Names the key.
    """
    for key in ("trainer.devices", "trainer.num_nodes"):
        if str(given.get(key, 1)) != "1":
            raise InputError(f"{key}={given[key]}: {what} is one process on one device; --jobs N has several side by side.")


def check_outliers(folder: Path) -> None:
    """Refuses a folder of images of none of the classes that is not there, or holds none.

    Raises:
        InputError: Says so.
    """
    from cct_lightning.data.folders import check_heap

    try:
        check_heap(folder)
    except InputError as error:
        raise InputError(str(error).replace("data.root=", "--outliers ", 1)) from None


def recipe_of(checkpoint: str) -> dict[str, Any]:
    """Returns the keys of data in the config.yaml of the run that wrote a checkpoint; none where it does not lie in its run."""
    from cct_lightning.commands.keys import flatten
    from cct_lightning.plain_yaml import read_yaml_file

    path = Path(checkpoint).expanduser()
    try:
        config = read_yaml_file(path.parent.parent / "config.yaml")
    except InputError:
        return {}
    data = config.get("data") if isinstance(config, dict) else None
    return flatten({"data": data}) if isinstance(data, dict) else {}
