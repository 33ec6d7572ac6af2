"""A data set at its place on this machine: its classes, the splits it brings, and its images as they are read."""

import shlex
from pathlib import Path

from cct_lightning.data.folders import Split, folder_class_names, read_table, split_folder
from cct_lightning.data.options import DataOptions
from cct_lightning.data.sets import DATASETS, named_folder, read_split
from cct_lightning.errors import InputError, did_you_mean

Read = dict[str, Split | None]  # by split: train, val, test


class Source:
    """Tells of a data set what its place says, and reads it.

    Attributes:
        dataset: Its name, of ``DATASETS``.
        root: Where it lies.
        about: What is known of it before it is read.
        folder: Its class folders, or the splits that hold them; None where it comes otherwise.
        class_names: In the order of the labels.

    Raises:
        InputError: An unknown data set, a folder or a table that is not there or holds no classes.
    """

    def __init__(self, options: DataOptions) -> None:
        """Looks at the folder or the table; no image is read."""
        self.dataset, self.root = options.dataset, Path(options.root).expanduser()
        if self.dataset not in DATASETS:
            raise InputError(f"data.dataset={self.dataset!r} is unknown.{did_you_mean(self.dataset, DATASETS)}")
        self.about = DATASETS[self.dataset]
        self.folder = self.root if self.dataset == "image_folder" else named_folder(self.dataset, self.root)
        self._table = read_table(self.root) if self.dataset == "csv" else None
        known = self._table.class_names if self._table else self.about.class_names
        names = folder_class_names(self.folder) if self.folder else known or [str(i) for i in range(self.about.num_classes or 0)]
        self.class_names = list(names)

    def has_own(self, split: str) -> bool:
        """Whether the set brings a split."""
        if self.folder is not None:
            return split_folder(self.folder, split) is not None
        if self._table is not None:
            return split in self._table.splits
        return split in self.about.own_splits

    def download(self) -> None:
        """Downloads the set where it is missing; what is the user's own is there or not."""
        if self.folder is None and self._table is None:
            for split in ("train", "test"):
                read_split(self.dataset, self.root, split, download=True)

    def read(self) -> Read:
        """Reads train, val and test; None where the set has no such split.

        Raises:
            InputError: The set is not there, or not as it should be.
        """
        return {split: read_split(self.dataset, self.root, split) for split in ("train", "val", "test")}

    @property
    def base(self) -> Path:
        """The folder that names of files are told below of."""
        return self.folder or (self.root if self._table is None else self.root.parent)

    @property
    def place(self) -> str:
        """What ``cct check`` takes for these images."""
        own = self._table is not None or self.dataset == "image_folder"
        return shlex.quote(str(self.root)) if own else shlex.join([self.dataset, "--data.root", str(self.root)])
