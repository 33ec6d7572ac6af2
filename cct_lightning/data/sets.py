"""Data sets by name: where their images and labels come from. To add one: a function that reads it, and a line of ``DATASETS``."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cct_lightning.errors import InputError
from cct_lightning.images import SUFFIXES, Array

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}  # in any case
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Split:
    """Labelled images: uint8 arrays (H, W, C), or files that ``images.decode`` reads; targets are class indices (n,).

    ``files`` names what the arrays were decoded from, once the data module has read the split; None where they come from no files.
    """

    images: Sequence[Array] | Sequence[Path] | Array
    targets: Array
    files: Sequence[Path] | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is read.

    Attributes:
        read: Maps (root, split, download) to the labelled images of train, val or test; None where the set has no such split.
        image_size: (H, W) of its images; None where they differ.
        num_classes: None where the folders tell.
        mean: Of each channel, 0..1; the length tells the number of channels.
        std: Likewise.
        own_splits: Which of train, val and test it brings; of class folders the folders tell.
        note: How it gets to this machine, for the error where it is missing.
    """

    read: Callable[[Path, str, bool], Split | None]
    image_size: tuple[int, int] | None
    num_classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    own_splits: tuple[str, ...] = ("train", "test")
    note: str = "torchvision downloads it where there is a network"


def class_folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__"))) if folder.is_dir() else []


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
        raise InputError(f"{stray} is there but {root}/train is not: give a train folder, or class folders alone, to be split for you.")
    names = [f.name for f in class_folders(folder)]
    if len(names) < 2:
        raise InputError(
            f"{folder} holds {len(names)} class folder(s){': ' + names[0] if names else ''}; at least two are needed, one for each class."
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
        members = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
        if not members:
            raise InputError(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))}): every class needs at least one.")
        files += members
        targets += [target] * len(members)
    return Split(files, np.array(targets))


class Table(NamedTuple):
    """What a CSV of labelled images says: the class names, sorted, and the images of each split that it names."""

    class_names: list[str]
    splits: dict[str, Split]


def _rows(rows: Iterable[dict[str, str]], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise InputError(f"{path} is no CSV that can be read ({error}): is there a quotation mark without its second?") from None


def read_table(path: Path) -> Table:
    """Reads a CSV with the columns path and label, and where it has one split (train, val or test; without it all images are one heap).

    Paths are relative to the folder of the CSV; commas, semicolons and tabs separate.

    Raises:
        InputError: No such file or columns, an image that is missing or listed twice, a label of val or test that train has not.
    """
    if not path.is_file():
        raise InputError(f"data.root={path} is no file: data.dataset=csv takes a CSV with the columns path and label.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): save it as such.") from None
    header = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=max(",;\t", key=header.count))
    names = [str(name).strip().lower() for name in rows.fieldnames or []]
    columns = dict(zip(names, rows.fieldnames or [], strict=True))
    if not {"path", "label"} <= columns.keys() or len(columns) < len(names):
        raise InputError(f"{path}: its first line names the columns {header[:60]!r}; it must have path and label once each, and may have split.")
    names_of_splits = {name: split for split, names in SPLITS.items() for name in names}
    found: dict[str, tuple[list[Path], list[str]]] = {}
    seen: dict[Path, int] = {}
    for number, row in enumerate(_rows(rows, path), start=2):
        image, label, split = ((row.get(columns.get(column, ""), "") or "").strip() for column in ("path", "label", "split"))
        where = f"{path}, line {number}"
        if not image or not label:
            raise InputError(f"{where}: path={image!r}, label={label!r}; every line needs both.")
        if "split" in columns and split.lower() not in names_of_splits:
            raise InputError(f"{where}: split={split!r} is unknown: train, val or test.")
        file = path.parent / Path(image).expanduser()
        if file in seen:
            raise InputError(f"{where}: {image} is listed in line {seen[file]} already; every image has one label and one split.")
        if len(image) > 4096 or not file.is_file():
            raise InputError(f"{where}: there is no file {str(file)[:200]}. Paths are relative to {path.parent.resolve()}.")
        seen[file] = number
        files, labels = found.setdefault(names_of_splits.get(split.lower(), "train"), ([], []))
        files.append(file)
        labels.append(label)
    class_names = sorted(set(found.get("train", ([], []))[1]))
    if len(class_names) < 2:
        raise InputError(f"{path}: the training images have {len(class_names)} class(es): {', '.join(class_names) or '-'}; at least two are needed.")
    for split, (_, labels) in found.items():
        if odd := sorted(set(labels) - set(class_names)):
            raise InputError(f"{path}: {split} has the label(s) {', '.join(odd[:5])}, which no training image has.")
    number_of = {name: number for number, name in enumerate(class_names)}
    return Table(class_names, {split: Split(files, np.array([number_of[label] for label in labels])) for split, (files, labels) in found.items()})


def _read_digits(root: Path, split: str, download: bool) -> Split | None:
    if split != "train":
        return None
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 there
    return Split(images[..., None], digits.target)


def _torchvision(name: str) -> Callable[[Path, str, bool], Split | None]:
    """Reads a set of one array from torchvision's files."""

    def read(root: Path, split: str, download: bool) -> Split | None:
        if split == "val":
            return None
        import torchvision.datasets

        data: Any = getattr(torchvision.datasets, name)(root, train=split == "train", download=download)
        images = np.asarray(data.data)
        return Split(images[..., None] if images.ndim == 3 else images, np.asarray(data.targets))

    return read


def _read_flowers(root: Path, split: str, download: bool) -> Split | None:
    import torchvision.datasets

    folder = root / "flowers-102"
    data = torchvision.datasets.Flowers102(root, split=split, download=download)
    from scipy.io import loadmat

    numbers = loadmat(folder / "setid.mat")[{"train": "trnid", "val": "valid", "test": "tstid"}[split]].ravel()
    labels = loadmat(folder / "imagelabels.mat")["labels"].ravel()
    assert len(numbers) == len(data)
    return Split([folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers], labels[numbers - 1].astype(np.int64) - 1)


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
    wolf woman worm
    """.split()
)

# Means and deviations of the CIFAR sets and of Flowers-102: configs/ of SHI-Labs/Compact-Transformers; of the others: their training images.
DATASETS: dict[str, DataSet] = {
    "digits": DataSet(_read_digits, (8, 8), 10, (0.305,), (0.376,), DIGITS, ("train",), "it comes with scikit-learn"),
    "mnist": DataSet(_torchvision("MNIST"), (28, 28), 10, (0.1307,), (0.3081,), DIGITS),
    "fashion_mnist": DataSet(_torchvision("FashionMNIST"), (28, 28), 10, (0.2860,), (0.3530,), FASHION),
    "cifar10": DataSet(_torchvision("CIFAR10"), (32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), CIFAR10),
    "cifar100": DataSet(_torchvision("CIFAR100"), (32, 32), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), CIFAR100),
    "flowers102": DataSet(_read_flowers, None, 102, (0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698), None, ("train", "val", "test")),
    "image_folder": DataSet(read_folder, None, None, IMAGENET_MEAN, IMAGENET_STD, note="it is a folder of yours"),
    "csv": DataSet(lambda root, split, _: read_table(root).splits.get(split), None, None, IMAGENET_MEAN, IMAGENET_STD, note="it is a file of yours"),
}


def named_folder(name: str, root: Path) -> Path | None:
    """Returns the class folders of a named set, root/train or root/<name>/train, or None where there are none."""
    return next((folder for folder in (root, root / name) if len(class_folders(folder / "train")) > 1), None)


def read_split(name: str, root: Path, split: str, download: bool = False) -> Split | None:
    """Reads train, val or test of a data set: from class folders, or from torchvision's files, whichever lies there.

    Returns:
        The labelled images; None where the set has no such split of its own.

    Raises:
        InputError: The set is not there and can't be downloaded.
    """
    data_set = DATASETS[name]
    if name != "image_folder" and (folder := named_folder(name, root)):
        found = len(folder_class_names(folder))
        if found != data_set.num_classes:
            raise InputError(
                f"{folder}/train holds {found} classes, {name} has {data_set.num_classes}: is it another data set? Use image_folder for it."
            )
        return read_folder(folder, split)
    try:
        return data_set.read(root, split, False)
    except RuntimeError:
        if not download:
            raise InputError(_missing(name, root)) from None
    try:
        root.mkdir(parents=True, exist_ok=True)
        return data_set.read(root, split, True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{_missing(name, root)}\n  The download failed: {str(error).splitlines()[0][:120]}") from None


def _missing(name: str, root: Path) -> str:
    return (
        f"data.dataset={name} is not in data.root={root}: neither class folders ({name}/train/<class>/) nor torchvision's files.\n"
        f"  Put it there or name another data.root; {DATASETS[name].note}."
    )
