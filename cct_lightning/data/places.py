"""What kind of data set lies at a place, by names alone: importing this needs neither torch nor numpy."""

import os
from collections.abc import Iterator
from pathlib import Path

from cct_lightning.errors import InputError

TABLES = (".csv", ".tsv", ".txt")
SHARDS = {"parquet": ".parquet", "webdataset": ".tar"}  # data sets in files of many images, and how these end
PACKED = ("huggingface", *SHARDS)
OWN = ("image_folder", "csv", "images", *PACKED)  # the user's own, named by data.root


def is_reader(dataset: str) -> bool:
    """Tells whether ``data.dataset`` names a class by where it is imported from."""
    return "." in dataset


def dataset_of(place: Path, folder: str = "a folder of class folders") -> str:
    """Returns the name of the data set that lies at a place; ``image_folder`` of a folder that is nothing else.

    Args:
        place: A file or a folder.
        folder: What that may be, for the error.

    Raises:
        InputError: It is a file of another kind, or not there.
    """
    if place.is_file():
        suffix = place.suffix.lower()
        known = {**dict.fromkeys(TABLES, "csv"), **{suffix: name for name, suffix in SHARDS.items()}}
        if suffix in known:
            return known[suffix]
        raise InputError(
            f"{place} is neither {folder} nor a .csv with the columns path and label, nor a .parquet, a .tar of WebDataset\n"
            "  or what `datasets` saved to disk."
        )
    if not place.is_dir():
        raise InputError(f"There is no folder or file {place}.")
    if any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "huggingface"
    # Such files lie on top, in data/ or in folders of the splits; images of classes lie deeper.
    files = [name for folder in (place, *_folders(place)) for name in _names(folder)]
    return next((name for name, suffix in SHARDS.items() if any(file.lower().endswith(suffix) for file in files)), "image_folder")


def _folders(place: Path) -> Iterator[Path]:
    names = ("data", "train", "training", "val", "valid", "validation", "test", "testing")
    with os.scandir(place) as entries:
        yield from sorted(Path(entry.path) for entry in entries if entry.name.lower() in names and entry.is_dir())


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".")]
