"""Data sets by name: where their images and labels come from. To add one: a function that reads it, and a line of ``DATASETS``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cct_lightning.data.arrow import read_parquet, read_saved
from cct_lightning.data.files import Array
from cct_lightning.data.folders import Split, Table, class_folders, folder_class_names, read_folder, read_heap, read_table
from cct_lightning.data.places import is_reader
from cct_lightning.data.readers import read_own
from cct_lightning.data.tars import read_shards
from cct_lightning.errors import InputError, did_you_mean

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        read_all: In place of ``read``, where what lies at the root tells classes and splits by itself: of (root, ``data.targets``).
    """

    read: Callable[[Path, str, bool], Split | None]
    image_size: tuple[int, int] | None
    num_classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    own_splits: tuple[str, ...] = ("train", "test")
    note: str = "torchvision downloads it where there is a network"
    read_all: Callable[[Path, Sequence[str] | None], Table] | None = None


def _read_digits(root: Path, split: str, download: bool) -> Split | None:
    return None if split != "train" else _digits()


@cache
def _digits() -> Split:
    table = _digits_table()
    images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0..16 there
    return Split(images[..., None], table[:, -1].astype(int))


def _digits_table() -> Array:
    """Reads scikit-learn's table of digits, (n, 65), pixels and class: from its file, since importing scikit-learn takes a second."""
    package = find_spec("sklearn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz" if package is not None and package.origin else None
    if file is not None and file.is_file():
        table: Array = np.loadtxt(file, delimiter=",")
        return table
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


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


def _own(read_all: Callable[[Path, Sequence[str] | None], Table]) -> DataSet:
    def read(root: Path, split: str, _: bool) -> Split | None:
        return read_all(root, None).splits.get(split)

    return DataSet(read, None, None, IMAGENET_MEAN, IMAGENET_STD, note="it is a file or folder of yours", read_all=read_all)


# Means and deviations of the CIFAR sets and of Flowers-102: configs/ of SHI-Labs/Compact-Transformers; of the others: their training images.
DATASETS: dict[str, DataSet] = {
    "digits": DataSet(_read_digits, (8, 8), 10, (0.305,), (0.376,), DIGITS, ("train",), "it comes with scikit-learn"),
    "mnist": DataSet(_torchvision("MNIST"), (28, 28), 10, (0.1307,), (0.3081,), DIGITS),
    "fashion_mnist": DataSet(_torchvision("FashionMNIST"), (28, 28), 10, (0.2860,), (0.3530,), FASHION),
    "cifar10": DataSet(_torchvision("CIFAR10"), (32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), CIFAR10),
    "cifar100": DataSet(_torchvision("CIFAR100"), (32, 32), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), CIFAR100),
    "flowers102": DataSet(_read_flowers, None, 102, (0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698), None, ("train", "val", "test")),
    "image_folder": DataSet(read_folder, None, None, IMAGENET_MEAN, IMAGENET_STD, note="it is a folder of yours"),
    "csv": _own(read_table),
    "parquet": _own(lambda root, _: read_parquet(root)),
    "huggingface": _own(lambda root, _: read_saved(root)),
    "webdataset": _own(lambda root, _: read_shards(root)),
    "images": DataSet(read_heap, None, None, IMAGENET_MEAN, IMAGENET_STD, note="it is a folder of yours"),
}


def find_set(name: str) -> DataSet:
    """Returns what is known of a data set: of ``DATASETS``, or of a reader of someone's own, by where its class is imported from.

    Raises:
        InputError: There is none of this name.
    """
    if name not in DATASETS and is_reader(name):
        return _own(lambda root, _: read_own(name, root))
    if name not in DATASETS:
        raise InputError(f"data.dataset={name!r} is unknown.{did_you_mean(name, DATASETS)}")
    return DATASETS[name]


def named_folder(name: str, root: Path) -> Path | None:
    """Returns the class folders of a named set, root/train or root/<name>/train, or None where there are none."""
    if find_set(name).num_classes is None:
        return None  # it is the user's own
    return next((folder for folder in (root, root / name) if len(class_folders(folder / "train")) > 1), None)


def read_split(name: str, root: Path, split: str, download: bool = False) -> Split | None:
    """Reads train, val or test of a data set: from class folders, or from torchvision's files, whichever lies there.

    Returns:
        The labelled images; None where the set has no such split of its own.

    Raises:
        InputError: The set is not there and can't be downloaded.
    """
    data_set = DATASETS[name]
    if folder := named_folder(name, root):
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
