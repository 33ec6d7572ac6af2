"""A data set at its place on this machine: its classes, the splits it brings, and its images as they are read."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cct_lightning.data.columns import Kind
from cct_lightning.data.folders import UNLABELLED, Split, check_heap, folder_class_names, list_heap, split_folder
from cct_lightning.data.members import File
from cct_lightning.data.options import DataOptions, read_fold
from cct_lightning.data.places import OWN
from cct_lightning.data.sets import find_set, named_folder, read_split
from cct_lightning.errors import InputError

Read = dict[str, Split | None]  # by split: train, val, test
REST = "rest"  # of data.unlabelled: the training images that are not chosen for their labels


class Source:
    """Tells of a data set what its place says, and reads it.

    Attributes:
        dataset: Its name, of ``DATASETS``.
        root: Where it lies.
        about: What is known of it before it is read.
        folder: Its class folders, or the splits that hold them; None where it comes otherwise.
        heap: Folder of further images, without labels; None where there is none.
        fold: Which of how many is the test, counted from 1; None where there are no folds.
        hides_rest: Whether the labels of all training images but those that are chosen for them are to be forgotten.
        class_names: In the order of the labels; of numbers the names of their columns.
        kind: What an image is told by: its class, several labels, or numbers.

    Raises:
        InputError: An unknown data set, a folder or a table that is not there or holds no classes; images without labels where there can be none.
    """

    def __init__(self, options: DataOptions) -> None:
        """Looks at the folder or the table; no image is read."""
        self.dataset, self.root = options.dataset, Path(options.root).expanduser()
        self.about = find_set(self.dataset)
        self.folder = self.root if self.dataset == "image_folder" else named_folder(self.dataset, self.root)
        if options.targets and self.dataset != "csv":
            raise InputError(f"data.targets={options.targets} names columns of a table, and data.dataset={self.dataset} is none: leave it out.")
        self._table = self.about.read_all(self.root, options.targets) if self.about.read_all else None
        self.kind: Kind = self._table.kind if self._table else "class"
        known = self._table.class_names if self._table else self.about.class_names
        names = folder_class_names(self.folder) if self.folder else known or [str(i) for i in range(self.about.num_classes or 0)]
        self.class_names = list(names)
        self.fold = read_fold(options.fold)
        self.hides_rest = options.unlabelled == REST
        # With its whole path, so that names below it can be told from those below the root
        self.heap = Path(os.path.abspath(Path(options.unlabelled).expanduser())) if options.unlabelled and not self.hides_rest else None
        if self.heap is not None:
            check_heap(self.heap, "unlabelled")
        if self.kind == "numbers" and (options.per_class is not None or options.sampler == "balanced"):
            key = "sampler=balanced" if options.per_class is None else f"per_class={options.per_class}"
            raise InputError(
                f"data.{key} is for classes, and the images of {self.root} are told by numbers: leave it out; data.fraction takes a share."
            )
        if not self.class_names and (self.hides_rest or options.per_class is not None):
            key = "unlabelled=rest" if self.hides_rest else f"per_class={options.per_class}"
            raise InputError(f"data.{key} chooses images by their labels, and those of data.dataset={self.dataset} have none: leave it out.")

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are training images without labels."""
        return self.hides_rest or self.heap is not None or not self.class_names

    def has_own(self, split: str) -> bool:
        """Whether the set brings a split; of folds one is the test, and all else is divided anew."""
        if self.fold is not None:
            return split == "test"
        if self.folder is not None:
            return split_folder(self.folder, split) is not None
        if self._table is not None:
            return split in self._table.splits
        if not self.class_names:
            return split == "val" and split_folder(self.root, "train") is not None and split_folder(self.root, "val") is not None
        return split in self.about.own_splits

    def download(self) -> None:
        """Downloads the set where it is missing; what is the user's own is there or not."""
        if self.folder is None and self._table is None:
            for split in ("train", "test"):
                read_split(self.dataset, self.root, split, download=True)

    def read(self) -> Read:
        """Reads train, val and test; None where the set has no such split. Further images without labels come last in train.

        For folds val is joined with train; own test images are read, and in no fold.

        Raises:
            InputError: The set is not there, or not as it should be.
        """
        splits = ("train", "val", "test")
        read: Read = {split: self._table.splits.get(split) if self._table else read_split(self.dataset, self.root, split) for split in splits}
        if self.fold is not None and read["train"] is not None:
            from cct_lightning.data.folds import heap_of  # torch, which `cct check` does without

            read = {**read, "train": heap_of(read["train"], read["val"]), "val": None}
        if self.heap is not None:
            train = read["train"]
            assert train is not None
            files: dict[str, list[Any]] = {split: list(part.images) for split, part in read.items() if part is not None}
            if isinstance(train.images, np.ndarray):
                raise InputError(
                    f"data.unlabelled={self.heap} holds files, and {self.dataset} lies in {self.root} as one array: only class folders of it can be\n"
                    f"  joined with them. data.unlabelled={REST} takes its own images without their labels."
                )
            further = others(list_heap(self.heap), [file for images in files.values() for file in images])
            targets = np.concatenate([train.targets, np.full(len(further), UNLABELLED)])
            alone = None if train.groups is None else np.concatenate([train.groups, np.full(len(further), -1)])
            values = None if train.values is None else np.pad(train.values, ((0, len(further)), (0, 0)))
            read["train"] = replace(train, images=[*files["train"], *further], targets=targets, groups=alone, values=values)
        return read

    @property
    def base(self) -> Path:
        """The folder that names of files are told below of."""
        return self.folder or (self.root.parent if self.root.is_file() else self.root)

    @property
    def place(self) -> str:
        """What ``cct check`` takes for these images."""
        further = [] if self.heap is None else ["--data.unlabelled", str(self.heap)]
        if not self.class_names:
            return shlex.join([str(self.root), "--data.dataset", self.dataset, *further])
        own = self.dataset in OWN
        return shlex.join([str(self.root), *further] if own else [self.dataset, "--data.root", str(self.root), *further])


def others(heap: Iterable[Path], known: Iterable[File]) -> list[Path]:
    """Returns the files that are none of those that are known, by whatever name or link: test images may lie in the heap, too."""
    seen = {_identity(file) for file in known}
    return [file for file in heap if _identity(file) not in seen]


def _identity(file: File) -> object:
    if not isinstance(file, Path):
        return str(file)
    try:
        about = os.stat(file)
    except OSError:
        return file
    return about.st_dev, about.st_ino
