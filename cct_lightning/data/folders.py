"""Labelled images in class folders and in tables, and images without labels below a folder."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cct_lightning.data.columns import Cells, Kind, find_columns, read_answers
from cct_lightning.data.files import CLOSED, SUFFIXES, Array, find_images
from cct_lightning.data.members import File
from cct_lightning.errors import InputError

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}  # in any case
UNLABELLED = -1  # stands for the class of an image whose label is not known, or not to be known


@dataclass(frozen=True)
class Split:
    """Images: uint8 arrays (H, W, C), or files that ``files.decode`` reads; targets are class indices (n,), or ``UNLABELLED``.

    ``files`` names what the arrays were decoded from, once the data module has read the split; None where they come from no files.
    ``groups`` (n,) numbers what belongs together, such as images of one patient, and is not divided; None where nothing is known of it.

    Where an image has not just one class, ``values`` (n, K) are what is learned: whether it has each of several labels, bool, or numbers, float32.
    ``targets`` then only say which images are alike, so that a share of each kind is taken: see ``columns.strata_of_labels``.
    """

    images: Sequence[Array] | Sequence[File] | Array
    targets: Array
    files: Sequence[File] | None = None
    groups: Array | None = None
    values: Array | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def kind(self) -> Kind:
        """What an image is told by."""
        if self.values is None:
            return "class"
        return "labels" if self.values.dtype == bool else "numbers"

    def learned(self, rows: Array | slice = slice(None)) -> Array:
        """Returns what a step is given of some images: classes (n,), int64, or values (n, K), float32."""
        return self.targets[rows].astype(np.int64) if self.values is None else self.values[rows].astype(np.float32)

    def names_of(self, index: int, class_names: Sequence[str]) -> list[str]:
        """Names the class of an image, or its labels; the empty list where it has none, and where it is told by numbers."""
        if self.values is None:
            return [] if self.targets[index] == UNLABELLED else [class_names[self.targets[index]]]
        return [class_names[number] for number in np.flatnonzero(self.values[index]).tolist()] if self.kind == "labels" else []

    def told(self, index: int, class_names: Sequence[str]) -> str:
        """Tells what is learned of an image in a few words: "cat", "cat; dog", "3.5; 0.2"; empty where that is nothing."""
        if self.values is not None and self.kind == "numbers":
            return "; ".join(f"{value:.9g}" for value in self.values[index].tolist())
        return "; ".join(self.names_of(index, class_names))


def class_folders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, sorted, but hidden ones and what archives and Python leave behind."""
    left_behind = ("__MACOSX", "__pycache__")
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(place for place in found if place.is_dir() and not place.name.startswith(".") and place.name not in left_behind)


def class_images(folder: Path) -> list[Path]:
    """Returns the image files of a class, at any depth, sorted, or its .npy where there are none; hidden files and folders and files of other kinds
    are passed over, links are followed.

    Raises:
        InputError: A folder can't be opened.
    """
    found = list(find_images([folder]))
    for place, error in found:
        if error is not None and error.startswith(CLOSED):
            raise InputError(f"{place} {error}: its images would be missing.")
    return sorted(Path(place) for place, _ in found if place != str(folder))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def split_folder(root: Path, split: str) -> Path | None:
    """Returns the folder of a split, under any of its names, or None."""
    return next((folder for folder in class_folders(root) if folder.name.lower() in SPLITS[split]), None)


def folder_class_names(root: Path) -> list[str]:
    """Returns the names of the classes of a folder of class folders, or of its train folder, sorted.

    Raises:
        InputError: There is no such folder, or fewer than two classes in it.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is no folder on this machine. It should hold class folders: {root}/cat/1.jpg, or {root}/train/cat/1.jpg.")
    folder = split_folder(root, "train") or root
    if folder is root and (stray := next((s for name in ("val", "test") if (s := split_folder(root, name))), None)):
        raise InputError(
            f"{stray} is there but {root}/train is not: give a train folder, or class folders alone, to be split for you.\n"
            f"  Where {stray.name} is a class, its folder needs another name."
        )
    names = [f.name for f in class_folders(folder)]
    if len(names) < 2:
        raise InputError(
            f"{folder} holds {len(names)} class folder(s){': ' + names[0] if names else ''}; at least two are needed, one for each class."
            + (f"\n  Where {folder.name} is a class itself, its folder needs another name." if folder is not root else "")
        )
    return names


def read_folder(root: Path, split: str, download: bool = False) -> Split | None:
    """Lists the image files of a split of a folder of class folders; hidden files and files of other kinds are passed over.

    Raises:
        InputError: A class has no image, or a split has other classes than train.
    """
    names = folder_class_names(root)
    folder = split_folder(root, split)
    if folder is None:
        if split != "train" or split_folder(root, "train"):
            return None
        folder = root
    found = [f.name for f in class_folders(folder)]
    if found != names:
        odd = sorted(set(found) ^ set(names))
        raise InputError(f"{folder} and the train folder hold different classes: {', '.join(odd[:5])}. Every split needs a folder for each class.")
    files: list[Path] = []
    targets: list[int] = []
    for target, name in enumerate(names):
        members = class_images(folder / name)
        if not members:
            raise InputError(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))}): every class needs at least one.")
        files += members
        targets += [target] * len(members)
    return Split(files, np.array(targets))


def holds_classes(root: Path) -> bool:
    """Tells whether a folder is one of class folders, or of splits with such: two or more, an image in each and none outside of them."""
    folder = split_folder(root, "train") or root
    if folder is root and (split_folder(root, "val") or split_folder(root, "test")):
        return False
    classes = class_folders(folder)
    stray = any(_is_image(file) for place in {root, folder} for file in place.iterdir())
    return len(classes) > 1 and not stray and all(class_images(place) for place in classes)


def check_heap(root: Path, key: str = "root") -> None:
    """Refuses a folder of images without labels that is not there, or holds none.

    Raises:
        InputError: Names the key of ``data`` that said it.
    """
    if not root.is_dir():
        raise InputError(f"data.{key}={root} is no folder on this machine: give one that holds images, at any depth.")
    if next(find_images([root])).path == str(root):
        raise InputError(f"data.{key}={root} holds no image ({', '.join(sorted(SUFFIXES))}), at any depth.")


def list_heap(root: Path) -> list[Path]:
    """Lists all images below a folder, sorted; what only looks like one is listed, too, and found out when it is read.

    Raises:
        InputError: There is no such folder, or no image in it.
    """
    check_heap(root)
    return [Path(found.path) for found in find_images([root])]


def read_heap(root: Path, split: str, download: bool = False) -> Split | None:
    """Lists images without labels: all below the folder; where it has a train folder those below that, and below val for validation.

    Images below a test folder are left out beside a train folder: a network that has seen them would be tested on them later.
    """
    folder = split_folder(root, split)
    if folder is None and split == "train":
        folder = root
    if folder is None or split == "test" or (split == "val" and split_folder(root, "train") is None):
        return None
    files = list_heap(folder)
    return Split(files, np.full(len(files), UNLABELLED))


class Table(NamedTuple):
    """What a CSV, or files of many images, say: names of classes, labels or columns, the images of each split, and what an image is told by."""

    class_names: list[str]
    splits: dict[str, Split]
    kind: Kind = "class"


def _rows(rows: Iterable[dict[str, str]], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise _no_table(path, error) from None


def _fields(rows: "csv.DictReader[str]", path: Path) -> Sequence[str]:
    try:
        return rows.fieldnames or []
    except csv.Error as error:
        raise _no_table(path, error) from None


def _no_table(path: Path, error: csv.Error) -> InputError:
    return InputError(f"{path} is no CSV that can be read ({error}): is there a quotation mark without its second?")


def check_table(path: Path) -> None:
    """Refuses a table that is not there.

    Raises:
        InputError: There is no such file.
    """
    if not path.is_file():
        raise InputError(f"data.root={path} is no file: data.dataset=csv takes a CSV with the columns path and label.")


def no_test_images(root: Path, has_own_val: bool) -> InputError:
    """Makes the error of a test without images; of images that come in splits no share is set aside."""
    way = "" if has_own_val else "train with a share set aside (data.test_fraction), "
    return InputError(f"data.root={root} has no test images: add a test folder, {way}or use `cct validate`.")


def read_table(path: Path, targets: Sequence[str] | None = None) -> Table:
    """Reads a CSV with the column path and what is learned of each image: label, its class; labels, names separated by semicolons, none allowed; or
    columns of numbers, which are labels, too, where all are 0 or 1. Where it has split (train, val or test) that is followed; without it all images
    are one heap.

    Paths are relative to the folder of the CSV; commas, semicolons and tabs separate. A column group says what belongs together, and is set aside
    or in a fold as a whole.

    Args:
        path: The file.
        targets: Columns of numbers that are learned; None: label, labels, or all but path, split and group.

    Raises:
        InputError: No such file or columns, an image that is missing or listed twice, a label of val or test that train has not, a number that
            is none.
    """
    check_table(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): save it as such.") from None
    header = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=max(",;\t", key=header.count))
    fields = _fields(rows, path)
    names = [str(name).strip().lower() for name in fields]
    columns = dict(zip(names, fields, strict=True))
    learned = find_columns(path, {name: written.strip() for name, written in columns.items()}, targets) if "path" in names else ()
    if not learned or len(columns) < len(names):
        raise InputError(
            f"{path}: its first line names the columns {header[:60]!r}; it must have path and label once each, or path and labels or columns of\n"
            "  numbers, and may have split."
        )
    found = _read_rows(path, _rows(rows, path), columns, learned, by_class=learned == ("label",) and not targets)
    written = [columns[name].strip() for name in learned]
    answers = read_answers(path, written, {split: told for split, (_, told, _) in found.items()}, by_name=not targets)
    splits = {
        split: Split(files, answers.targets[split], groups=np.array(groups) if "group" in columns else None, values=answers.values.get(split))
        for split, (files, _, groups) in found.items()
    }
    return Table(answers.names, splits, answers.kind)


def _at_home(path: Path) -> Path:
    """Puts the user's folder for ~; ~$x.jpg, where there is no user of that name, is a file's."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _read_rows(
    path: Path, rows: Iterable[dict[str, str]], columns: Mapping[str, str], learned: Sequence[str], by_class: bool
) -> dict[str, tuple[list[Path], list[Cells], list[int]]]:
    """Returns by split the files of a table, the cells of what is learned of each, and the number of its group."""
    names_of_splits = {name: split for split, names in SPLITS.items() for name in names}
    found: dict[str, tuple[list[Path], list[Cells], list[int]]] = {}
    group_of: dict[object, int] = {}
    seen: dict[Path, int] = {}
    for number, row in enumerate(rows, start=2):
        image, split, group, *cells = ((row.get(columns.get(column, ""), "") or "").strip() for column in ("path", "split", "group", *learned))
        where = f"{path}, line {number}"
        if any(cell.strip() for cell in row.get(None) or ()):  # type: ignore[call-overload]  # which csv keeps there
            raise InputError(
                f"{where}: it has more cells than the first line has columns. Where a cell holds the delimiter (labels with ; between them, 3,5),\n"
                "  put it into quotation marks."
            )
        if not image or (by_class and not cells[0]):
            more, rule = (f", label={cells[0]!r}", "needs both") if by_class else ("", "needs one")
            raise InputError(f"{where}: path={image!r}{more}; every line {rule}.")
        if "split" in columns and split.lower() not in names_of_splits:
            raise InputError(f"{where}: split={split!r} is unknown: train, val or test.")
        file = path.parent / _at_home(Path(image))
        if file in seen:
            raise InputError(f"{where}: {image} is listed in line {seen[file]} already; every image has one line and one split.")
        if len(image) > 4096 or not file.is_file():
            raise InputError(f"{where}: there is no file {str(file)[:200]}. Paths are relative to {path.parent.resolve()}.")
        seen[file] = number
        files, told, groups = found.setdefault(names_of_splits.get(split.lower(), "train"), ([], [], []))
        files.append(file)
        told.append(Cells(number, tuple(cells)))
        groups.append(group_of.setdefault(group or number, len(group_of)))  # without one an image is a group by itself
    return found
