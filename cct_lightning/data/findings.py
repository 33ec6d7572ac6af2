"""What is wrong, or worth a look, in a data set as a whole: its splits, its classes, and images that are there twice."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from cct_lightning.data.check import Seen, near_duplicates
from cct_lightning.data.files import SUFFIXES, Array
from cct_lightning.data.folders import (
    SPLITS,
    Split,
    class_folders,
    class_images,
    folder_class_names,
    list_heap,
    read_heap,
    split_folder,
)  # fmt: skip
from cct_lightning.data.members import File
from cct_lightning.data.places import is_reader
from cct_lightning.data.sets import DATASETS, find_set, named_folder, read_split
from cct_lightning.data.source import others
from cct_lightning.errors import InputError
from cct_lightning.wording import printable

BLOCKING = ("unreadable", "empty class", "other classes", "no data set")
NO_LABEL = "-"  # stands for the class of an image without one
TINY = 10  # training images of a class, below which it is named
LONG, SHORT = 5, 8  # an image is odd whose sides are 1 to more than 5, or whose shorter one is under an eighth of the median of all


class Finding(NamedTuple):
    """A thing found, a row of the report: about an image, or a class or folder; ``other`` is the image that it is like."""

    problem: str
    split: str = ""
    label: str = ""
    path: str = ""
    other_split: str = ""
    other_label: str = ""
    other: str = ""
    detail: str = ""

    @property
    def blocks(self) -> bool:
        """Whether a training would not begin, or be stopped by it."""
        return self.problem in BLOCKING


@dataclass
class Listing:
    """The images of a data set before they are read, and what their places tell.

    Attributes:
        base: Folder that names are told below of.
        images: Files or arrays.
        splits: Of each image.
        labels: Likewise, the name of its class.
        findings: What is wrong already.
        counts: By split, images of each class or label.
    """

    base: Path
    images: list[File | Array] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, split: str, label: str, images: Sequence[File | Array]) -> None:
        if images:
            self.counts[split][label] += len(images)
        self.images += images
        self.splits += [split] * len(images)
        self.labels += [label] * len(images)

    def name(self, index: int) -> str:
        """Names an image for people: its file below the base, or its number in the array of its split."""
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return f"{self.splits[index]} image {index - self.splits.index(self.splits[index])}"
        return printable(str(image).removeprefix(f"{self.base}{os.sep}"))


def list_images(dataset: str, root: Path, unlabelled: Path | None = None, targets: Sequence[str] | None = None) -> Listing:
    """Lists all images of a data set, and all that is wrong with where they lie, where a training stops at the first thing.

    Args:
        dataset: A name of ``DATASETS``.
        root: As ``data.root``.
        unlabelled: Folder of further images, without labels; their split is then called that.
        targets: As ``data.targets``.

    Raises:
        InputError: There is no such folder, file or set.
    """
    listing = _list_set(dataset, root, targets)
    if unlabelled is not None:
        known = [image for image in listing.images if isinstance(image, Path)]
        listing.add("unlabelled", NO_LABEL, others(list_heap(unlabelled), known))
    return listing


def _list_set(dataset: str, root: Path, targets: Sequence[str] | None) -> Listing:
    if dataset == "images":
        return _list_heap(root)
    folder = root if dataset == "image_folder" else named_folder(dataset, root)
    if folder is not None:
        if not folder.is_dir():
            folder_class_names(folder)
        listing = _list_folder(folder)
        if dataset != "image_folder" and (found := len(class_folders(folder / "train"))) != (wanted := DATASETS[dataset].num_classes):
            listing.findings.append(Finding("no data set", "train", path=str(folder), detail=f"{found} classes, and {dataset} has {wanted}"))
        return listing
    read_all = find_set(dataset).read_all
    listing = Listing(root.parent if read_all and root.is_file() else root)
    if read_all:
        try:
            table = read_all(root, targets)
        except InputError as error:
            if not root.exists() or is_reader(dataset):
                raise
            listing.findings.append(Finding("no data set", detail=str(error)))
            return listing
        for name, split in table.splits.items():
            _add_split(listing, name, split, table.class_names)
        return listing
    names = DATASETS[dataset].class_names or [str(number) for number in range(DATASETS[dataset].num_classes or 0)]
    for name in SPLITS:
        if (read := read_split(dataset, root, name)) is not None:
            _add_split(listing, name, read, names)
    return listing


def _list_heap(root: Path) -> Listing:
    """Lists images without labels; what beside a train folder is no split is passed over, and so are test images."""
    listing = Listing(root)
    for name in SPLITS:
        if (read := read_heap(root, name)) is not None:
            listing.add(name, NO_LABEL, list(read.images))
    folders = {split: folder for split in SPLITS if (folder := split_folder(root, split)) is not None}
    for other in class_folders(root) if "train" in folders else ():
        if other not in (folders["train"], folders.get("val")):
            listing.findings.append(Finding("passed over", path=printable(other.name), detail="a folder beside train that is not pre-trained on"))
    return listing


def _add_split(listing: Listing, name: str, split: Split, class_names: Sequence[str]) -> None:
    listing.images += list(split.images)
    listing.splits += [name] * len(split)
    listing.labels += [split.told(index, class_names) or NO_LABEL for index in range(len(split))]
    if split.kind != "numbers":
        listing.counts[name].update(label for index in range(len(split)) for label in split.names_of(index, class_names) or [NO_LABEL])


def _list_folder(root: Path) -> Listing:
    listing = Listing(root)
    say = listing.findings.append
    folders = {split: folder for split in SPLITS if (folder := split_folder(root, split)) is not None}
    if folders and "train" not in folders:
        say(Finding("no data set", path=str(root), detail=f"{', '.join(folders)} without train: a training takes class folders alone, or train, too"))
    if not folders:
        folders = {"train": root}
    else:
        used = set(folders.values())
        for other in (folder for folder in class_folders(root) if folder not in used):
            say(Finding("passed over", path=printable(other.name), detail="a folder beside train that is no split, or the same one again"))
    train = [folder.name for folder in class_folders(folders.get("train", root))]
    if "train" in folders and len(train) < 2:
        say(Finding("no data set", "train", path=str(folders["train"]), detail=f"{len(train)} class folder(s); at least two are needed"))
    spelled = defaultdict(list)
    for name in train:
        spelled[_plain(name)].append(name)
    for names in spelled.values():
        if len(names) > 1:
            say(Finding("classes alike", "train", printable(names[0]), other_label=printable(names[1]), detail="case or unicode form alone differ"))
    for split, folder in folders.items():
        found = [place.name for place in class_folders(folder)]
        for name in sorted(set(found) ^ set(train)) if "train" in folders else ():
            detail = "train has no such class" if name in found else "train has this class"
            say(Finding("other classes", split, printable(name), detail=detail))
        for place in class_folders(folder):
            images = class_images(place)
            if not images:
                say(Finding("empty class", split, printable(place.name), str(place), detail="no image"))
            listing.add(split, place.name, list(images))
        _say_passed_over(listing, split, folder)
    return listing


def _say_passed_over(listing: Listing, split: str, folder: Path) -> None:
    """Counts the files that are no images by their names, and images that lie in no class."""
    inside = {place.name for place in class_folders(folder)}
    suffixes: Counter[str] = Counter()
    taken = {os.path.splitext(str(image))[1].lower() for image in listing.images[-1:]}  # .npy, where there is nothing else
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if (name in inside if Path(parent) == folder else not name.startswith("."))]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix not in SUFFIXES and suffix not in taken:
                suffixes[suffix or "without a suffix"] += 1
            elif Path(parent) == folder:
                suffixes["in no class folder"] += 1
    for kind, count in suffixes.most_common():
        listing.findings.append(Finding("passed over", split, detail=f"{count:,} file(s) {kind}"))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def find(listing: Listing, seen: Sequence[Seen]) -> list[Finding]:
    """Says what is wrong with a data set that has been read: what blocks a training first."""
    found = list(listing.findings)
    found += [_of(listing, "unreadable", index, detail=about.error) for index, about in enumerate(seen) if about.error is not None]
    found += _odd(listing, seen)
    tiny = sorted((name, count) for name, count in listing.counts["train"].items() if count < TINY and name != NO_LABEL)
    found += [Finding("tiny class", "train", printable(name), detail=f"{count} image(s)") for name, count in tiny]
    found += _twice(listing, seen)
    return sorted(found, key=lambda finding: not finding.blocks)


def _of(listing: Listing, problem: str, index: int, other: int | None = None, detail: str = "") -> Finding:
    first = Finding(problem, listing.splits[index], printable(listing.labels[index]), listing.name(index), detail=detail)
    if other is None:
        return first
    return first._replace(other_split=listing.splits[other], other_label=printable(listing.labels[other]), other=listing.name(other))


def _odd(listing: Listing, seen: Sequence[Seen]) -> Iterator[Finding]:
    sides = [min(about.size) for about in seen if about.error is None]
    usual = median(sides) if sides else 0
    for index, about in enumerate(seen):
        if about.error is not None:
            continue
        if about.mode not in ("L", "RGB") and not about.mode[0].isdigit():
            yield _of(listing, "odd mode", index, detail=about.mode)
        short, long = sorted(about.size)
        if long > LONG * short or short * SHORT < usual:
            yield _of(listing, "odd size", index, detail=f"{about.size[1]} x {about.size[0]}")


def _twice(listing: Listing, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Yields the images of the same bytes, each with the first of them, and of those that are left the near duplicates."""
    first: dict[tuple[int, str], int] = {}
    looks: list[bytes | None] = []
    for index, about in enumerate(seen):
        if about.error is not None:
            looks.append(None)
            continue
        other = first.setdefault((about.num_bytes, about.content), index)
        looks.append(about.look if other == index else None)
        if other != index:
            yield _of(listing, "duplicate", index, other, _relation(listing, index, other))
    for index, other, bits in near_duplicates(looks):
        yield _of(listing, "near duplicate", index, other, f"{bits} of 128 bits differ")


def _relation(listing: Listing, one: int, two: int) -> str:
    """Says whether two images of the same bytes are one file by a link, or one name in two spellings."""
    first, second = listing.images[one], listing.images[two]
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return "the same pixels"
    if not isinstance(first, Path) or not isinstance(second, Path):
        return "the same bytes"
    try:
        if os.path.samefile(first, second):
            return "the same file, by a link"
    except OSError:
        pass
    if _plain(first.name) == _plain(second.name):
        return "the same bytes and name" if first.name == second.name else "the same bytes; case or unicode form of the name alone differ"
    return "the same bytes"
