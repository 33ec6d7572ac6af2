"""Data sets in files of many images: their files by split, their labels as classes, and where an image lies in them."""

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from cct_lightning.data.files import Array
from cct_lightning.data.folders import SPLITS, Split, Table
from cct_lightning.data.members import Packed
from cct_lightning.data.places import SHARDS
from cct_lightning.errors import InputError

INSTALL = 'pip install "cct-lightning[arrow]"'
Labelled = tuple[list[Path | Packed], list[str | int]]  # images, and the label of each
OF_SPLIT = {name: split for split, names in SPLITS.items() for name in names}


def shards(root: Path, dataset: str) -> dict[str, list[Path]]:
    """Returns the files of a data set by split, sorted: ``train-0001.tar``, ``data/validation-00000-of-00002.parquet``, ``test/a.tar``.

    A file whose name, and whose folders below the root, begin with no split's name is one of training images, as a single file is.

    Raises:
        InputError: There are none.
    """
    suffix = SHARDS[dataset]
    if root.is_file():
        return {"train": [root]}
    found: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")) if root.is_dir() else ():
        below = file.relative_to(root)
        if file.suffix.lower() == suffix and file.is_file() and not any(part.startswith(".") for part in below.parts):
            starts = (re.split(r"[^a-z]", part.lower())[0] for part in below.parts)
            found.setdefault(next((OF_SPLIT[start] for start in starts if start in OF_SPLIT), "train"), []).append(file)
    if not found:
        raise InputError(f"data.root={root} holds no {suffix} file: data.dataset={dataset} takes a folder of such files, or one of them.")
    if "train" not in found:
        raise InputError(f"{root} has {suffix} files of {' and '.join(found)}, and none of train: name them train-*{suffix}, or none by a split.")
    return found


def check_packed(root: Path, dataset: str) -> None:
    """Refuses a data set in files of many images that is not there, or can't be read here, before anything of it is read.

    Raises:
        InputError: There is none, or pyarrow is missing.
    """
    if not root.exists():
        raise InputError(f"There is no folder or file {root}.")
    if dataset in SHARDS:
        shards(root, dataset)
    if dataset != "webdataset" and find_spec("pyarrow") is None:
        raise InputError(f"data.dataset={dataset} needs pyarrow, which is not installed: {INSTALL}")


def as_table(found: Mapping[str, Labelled], root: Path, names: Sequence[str] | None = None) -> Table:
    """Numbers the classes. A split for measuring whose labels are hidden, -1 each as on the hub, is left out.

    Args:
        found: Of each split, images and labels: text or whole numbers.
        root: For errors.
        names: Of the classes, where labels are numbers of these; else the labels of the training images are the names, sorted, numbers by size.

    Raises:
        InputError: Fewer than two classes, no training image, a number that is no class, a label that no training image has.
    """
    unknown = {split: {str(label).strip() == "-1" for label in part[1]} for split, part in found.items()}
    for split in [split for split, told in unknown.items() if told == {True} and True not in unknown.get("train", {True})]:
        warnings.warn(f"{root}: the images of {split} have no labels (-1) and are left out", stacklevel=2)
        found = {name: part for name, part in found.items() if name != split}
    labels = found.get("train", ([], []))[1]
    if names is None:
        numbers = all(re.fullmatch(r"-?\d{1,18}", str(label)) for label in labels)
        names = [str(name) for name in sorted(set(map(int, labels)) if numbers else set(map(str, labels)))]
        number_of = {name: number for number, name in enumerate(names)}
        of_split = {split: [number_of.get(str(int(label) if numbers and _is_whole(label) else label), -1) for label in part[1]]
                    for split, part in found.items()}  # fmt: skip
    else:
        of_split = {split: [int(label) if _is_whole(label) and int(label) < len(names) else -1 for label in part[1]] for split, part in found.items()}
    if len(names) < 2:
        raise InputError(f"{root}: the training images have {len(names)} class(es): {', '.join(names) or '-'}; at least two are needed.")
    for split, targets in of_split.items():
        if -1 in targets:
            image, label = (part[targets.index(-1)] for part in found[split])
            raise InputError(f"{image} of {split} has the label {str(label)[:60]!r}, which no training image has: every image needs one of theirs.")
    return Table(list(names), {split: Split(part[0], np.array(of_split[split], np.int64)) for split, part in found.items()})


def _is_whole(label: str | int) -> bool:
    return re.fullmatch(r"\s*\d{1,18}\s*", str(label)) is not None


def _kept(file: Path, ending: str) -> Path:
    """Names what is kept of a file of images: in ``CCT_HOME``, else ~/.cache/cct-lightning, in indices/."""
    name = hashlib.blake2b(os.fsencode(os.path.abspath(file)), digest_size=8).hexdigest()
    return Path(os.environ.get("CCT_HOME", "~/.cache/cct-lightning")).expanduser() / "indices" / f"{file.name[:80]}-{name}{ending}"


def _state(file: Path) -> Array:
    about = os.stat(file)
    return np.array([1, about.st_size, about.st_mtime_ns])  # 1 is the form of what is kept


def read_kept(file: Path) -> dict[str, Array] | None:
    """Returns what ``keep`` wrote of a file; None where nothing did, or the file's size or time is another now."""
    try:
        with np.load(_kept(file, ".npz"), allow_pickle=False) as archive:
            kept = dict(archive)
        return kept if np.array_equal(kept.pop("state"), _state(file)) else None
    except Exception:  # what a damaged archive raises is not known beforehand; it is written anew
        return None


def keep(file: Path, **arrays: Array) -> None:
    """Keeps arrays that were found in a file, so that it need not be gone through again; where there is no room, it will be."""
    try:
        with replacing(_kept(file, ".npz")) as out:
            np.savez(out, allow_pickle=False, state=_state(file), **arrays)
    except OSError:
        pass


def copy_path(file: Path) -> Path:
    """Names the copy of the images of a file that compresses them, see ``arrow``."""
    return _kept(file, ".images")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to be written whole or not at all; others may write the same one at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(number, "wb") as file:
            yield file
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def as_names(texts: Sequence[Any]) -> Array:
    """Returns texts as an array of their bytes, since NumPy's own texts are as long as the longest."""
    return np.frombuffer("\n".join(str(text).replace("\n", " ") for text in texts).encode(errors="surrogateescape"), np.uint8)


def from_names(array: Array) -> list[str]:
    """Returns what ``as_names`` took; of none a list of one empty text."""
    return array.tobytes().decode(errors="surrogateescape").split("\n")
