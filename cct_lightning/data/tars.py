"""WebDataset's shards: tars of KEY.jpg beside KEY.cls or KEY.json, read at any place, in any order, without unpacking them.

https://github.com/webdataset/webdataset describes the format: members of one sample have the same name up to the first dot and lie side by side.
"""

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cct_lightning.data.arrays import ARRAYS
from cct_lightning.data.files import SUFFIXES, Found
from cct_lightning.data.folders import Table
from cct_lightning.data.members import Packed
from cct_lightning.data.packed import Labelled, as_names, as_table, from_names, keep, read_kept, shards
from cct_lightning.errors import InputError
from cct_lightning.wording import reason

LABELS = ("cls", "label", "class", "class_name")  # of a .json, the first that is there


class _Member(NamedTuple):
    key: str  # folder and name up to the first dot
    suffix: str  # the rest, in lower case
    start: int
    size: int


def read_shards(root: Path) -> Table:
    """Reads the index of a folder of shards, or of one; they may be named by split, see ``packed.shards``.

    An index is made when a shard is first seen, kept in ``CCT_HOME`` and made anew when the shard's size or time has changed. Images come in the
    order of the shards' names, and in a shard as they lie.

    Raises:
        InputError: No shard, one that is truncated or compressed, an image without a label.
    """
    return as_table({split: _joined(files) for split, files in shards(root, "webdataset").items()}, root)


def _joined(files: list[Path]) -> Labelled:
    images: list[Path | Packed] = []
    labels: list[str | int] = []
    for file in files:
        kept = read_kept(file)
        if kept is None:
            found, told = _index(file)
            keep(file, places=np.array([part[1:3] for part in found]), names=as_names([part.name for part in found]), labels=as_names(told))
        else:
            places, told = kept["places"].tolist(), from_names(kept["labels"])
            found = [Packed(file, start, size, name) for (start, size), name in zip(places, from_names(kept["names"]), strict=True)]
        images += found
        labels += told
    return images, labels


def _index(file: Path) -> tuple[list[Packed], list[str]]:
    """Goes through a shard once: where its images lie, and their labels."""
    images, labels = [], []
    with open(file, "rb") as content:
        for _, group in groupby(_members(file), key=lambda member: member.key):
            members = {member.suffix: member for member in group}
            image = next((member for kinds in (SUFFIXES, ARRAYS) for suffix, member in members.items() if f".{suffix}" in kinds), None)
            said = members.get("cls") or members.get("json")
            if image is None:
                continue  # what describes the shard itself, say
            if said is None:
                raise InputError(f"{file}/{image.key}.{image.suffix} has no label: a sample takes KEY.cls or KEY.json beside it, under one name.")
            content.seek(said.start)
            images.append(Packed(file, image.start, image.size, f"{image.key}.{image.suffix}"))
            labels.append(_label(content.read(said.size), said, file))
    if not images:
        raise InputError(f"{file} holds no image ({', '.join(sorted(SUFFIXES))}) with a label (KEY.cls, KEY.json).")
    return images, labels


def images_in(path: str) -> Iterator[Packed | Found]:
    """Lists the images of a shard, as they lie, whatever is said of them; one that can't be read is told."""
    file = Path(path)
    try:
        members = [member for member in _members(file) if f".{member.suffix}" in SUFFIXES | ARRAYS]
    except InputError as error:
        yield Found(path, str(error).removeprefix(f"{path} ").splitlines()[0].rstrip("."))
        return
    yield from (Packed(file, member.start, member.size, f"{member.key}.{member.suffix}") for member in members)


def is_shard(path: str | Path) -> bool:
    """Tells by its name whether a file is one of many images."""
    return str(path).lower().endswith(".tar") and Path(path).is_file()


def _members(file: Path) -> Iterator[_Member]:
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                folder, slash, name = member.name.rpartition("/")
                if member.isfile() and not name.startswith("."):
                    stem, _, suffix = name.partition(".")
                    yield _Member(f"{folder}{slash}{stem}", suffix.lower(), member.offset_data, member.size)
            with open(file, "rb") as content:  # tarfile passes over a header that is cut in the middle, and needs no end
                content.seek(archive.offset)
                ends = content.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
                more = any(any(part) for part in iter(lambda: content.read(2**20), b""))
            if not ends:
                raise tarfile.ReadError("it ends without the mark of its end")
            if more:
                raise tarfile.ReadError("something follows behind its end, as where tars were joined by cat")
    except (tarfile.TarError, OSError, EOFError) as error:
        why = f"{reason(error, 80)}: truncated, compressed or no tar"
        raise InputError(f"{file} can't be read as a shard ({why}). Copy it anew; a compressed one must be unpacked to a plain .tar.") from None


def _label(content: bytes, member: _Member, file: Path) -> str:
    try:
        text = content.decode().strip()
        if member.suffix == "json":
            said = json.loads(text)
            told = next(said[name] for name in LABELS if name in said)
            if isinstance(told, bool) or not isinstance(told, str | int):
                raise TypeError
            text = str(told).strip()
        text.encode()
        if len(text.splitlines()) > 1:
            raise ValueError
    except (ValueError, TypeError, StopIteration, RecursionError):
        rule = f"a dictionary with {', '.join(LABELS[:-1])} or {LABELS[-1]}" if member.suffix == "json" else "the class as text"
        raise InputError(f"{file}/{member.key}.{member.suffix} tells no label: it should hold {rule}.") from None
    if not text:
        raise InputError(f"{file}/{member.key}.{member.suffix} is empty, and should tell the label.")
    return text
