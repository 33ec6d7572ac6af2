"""Images by code of one's own: what a class has to offer, and how one is imported by its name in a recipe."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image

from cct_lightning.data.files import Array
from cct_lightning.data.folders import Split, Table
from cct_lightning.data.imports import may_import, not_allowed
from cct_lightning.data.members import Own
from cct_lightning.errors import InputError
from cct_lightning.wording import reason

SPLITS = ("train", "val", "test")


class Reader(Protocol):
    """Labelled images of one split: ``mycode.Scans`` where a recipe says ``data.dataset: mycode.Scans``, called as ``Scans(root, split)``.

    It is made of ``data.root``, a Path, and train, val or test; where there is no such split, it has no labels, and train is divided. Images are
    asked for by several threads at once, and by processes it is copied into: what ``__getitem__`` opens it opens and closes in one call. Its images
    come into the run's fingerprint by number and label alone.

    Attributes:
        class_names: Of the classes, two or more; of train they count.
        labels: Of each image a whole number, which of these; as many as there are images.
    """

    class_names: Sequence[str]
    labels: Sequence[int]

    def __getitem__(self, index: int) -> PIL.Image.Image | Array:
        """Returns an image: of Pillow, or an array (H, W) or (H, W, C) as ``arrays`` takes them, with the channels of ``data.in_chans``."""


def read_own(dataset: str, root: Path) -> Table:
    """Reads labels by a class of someone's own; images when they are asked for.

    Raises:
        InputError: It may not be imported or can't be, fails, or offers something else than ``Reader``.
    """
    kind = _imported(dataset)
    readers = {split: _made(kind, dataset, root, split) for split in SPLITS}
    try:
        names = [str(name) for name in readers["train"].class_names]
        targets = {split: np.array([int(label) for label in reader.labels], np.int64) for split, reader in readers.items()}
    except Exception as error:  # of code that nobody here has seen
        raise InputError(f"data.dataset={dataset} failed to tell class_names or labels ({type(error).__name__}: {reason(error, 120)}).") from error
    if len(names) < 2 or not len(targets["train"]):
        told = f"its train has {len(names)} class_names and {len(targets['train'])} labels"
        raise InputError(f"data.dataset={dataset}: {told}; two and one are the least.")
    for split, labels in targets.items():
        if odd := [label for label in labels.tolist() if not 0 <= label < len(names)]:
            raise InputError(f"data.dataset={dataset}: {split} has the label {odd[0]}, and class_names are 0 to {len(names) - 1}.")
    return Table(names, {split: Split([Own(readers[split], index, f"{dataset}, {split}") for index in range(len(labels))], labels)
                         for split, labels in targets.items() if len(labels)})  # fmt: skip


def _imported(dataset: str) -> Any:
    module, _, name = dataset.rpartition(".")
    if not all(part.isidentifier() for part in dataset.split(".")):
        raise InputError(f"data.dataset={dataset} is no name of a class, such as mycode.Scans.")
    if not may_import(dataset):
        raise not_allowed(dataset)
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        way = "PYTHONPATH=. finds modules that lie in the folder you stand in"
        raise InputError(f"data.dataset={dataset} can't be imported ({reason(error, 120)}): {way}.") from None


def _made(kind: Any, dataset: str, root: Path, split: str) -> Any:
    try:
        reader = kind(root, split)
    except Exception as error:
        raise InputError(f"{dataset}({str(root)!r}, {split!r}) failed ({type(error).__name__}: {reason(error, 120)}).") from error
    if absent := [name for name in ("class_names", "labels", "__getitem__") if not hasattr(reader, name)]:
        raise InputError(f"data.dataset={dataset} lacks {', '.join(absent)}: cct_lightning.data.readers.Reader says what a reader has.")
    return reader
