"""What a run was trained on, so that it goes on with the same images or not at all."""

import csv
import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cct_lightning.data.files import Array
from cct_lightning.data.folders import UNLABELLED, Split
from cct_lightning.data.members import Own, Packed
from cct_lightning.errors import InputError
from cct_lightning.wording import printable

CONTENT_BYTES, CONTENT_FILES = 256 * 2**20, 20_000  # up to here all files are read to their end: a second or two; of larger sets
SAMPLE = 1000  # about so many, spread over all, and no more bytes
WENT_ON = "from step "  # begins what is said of a run that goes on with other images
HEADER = ("split", "name", "label", "size", "content")


class Row(NamedTuple):
    """What is known of a file, an array of images or the name of a class.

    Attributes:
        split: train, val, test or class.
        name: The file's below the folder of the data set, or what stands for it in messages.
        label: The name of its class, its labels or numbers; empty where it has none.
        size: Bytes of a file, -1 where it can't be told; images of an array.
        content: Digest of a file's bytes, or of images and labels of an array; empty where the file was not read.
    """

    split: str
    name: str
    label: str = ""
    size: int = 0
    content: str = ""


class _Part(NamedTuple):
    split: str
    files: Sequence[Any] | None  # None where the images come as an array
    sizes: Array  # bytes of each file, or images in the array
    labels: Split
    contents: Mapping[int, str]


@dataclass(frozen=True)
class Fingerprint:
    """Names, sizes and labels of the images of all splits, in their order, and contents where reading them is cheap.

    Arrays are read whole; files where they are up to ``CONTENT_FILES`` and ``CONTENT_BYTES`` together, else some ``SAMPLE`` of them. Times of
    change are not looked at: copying a folder sets them anew, and what is replaced may keep its own. Neither is the place of the data set.
    """

    parts: tuple[_Part, ...]
    class_names: Sequence[str]
    base: Path
    heap: Path | None = None

    @classmethod
    def take(cls, splits: Mapping[str, Split | None], class_names: Sequence[str], base: Path, heap: Path | None = None) -> "Fingerprint":
        """Looks at images as they are read, before anything is decoded or set aside.

        Args:
            splits: By name; None is passed over.
            class_names: In the order of the labels.
            base: Folder that names of files are told below of.
            heap: The same of images without labels that lie elsewhere, whose names then begin with ``unlabelled/``.
        """
        parts: list[_Part] = []
        for name, split in splits.items():
            if split is None:
                continue
            if isinstance(split.images, np.ndarray):
                values = () if split.values is None else (split.values,)
                parts.append(_Part(name, None, np.array([len(split)]), split, {0: _digest(split.images, split.targets, *values)}))
            else:
                parts.append(_Part(name, split.images, np.fromiter(map(_size, split.images), np.int64, len(split)), split, {}))
        sizes = np.concatenate([part.sizes for part in parts if part.files is not None] or [np.zeros(0, np.int64)])
        total = int(sizes.clip(0).sum())
        whole = total <= CONTENT_BYTES and len(sizes) <= CONTENT_FILES
        step = 1 if whole else max(-(-total // CONTENT_BYTES), len(sizes) // SAMPLE, 1)
        for number, part in enumerate(parts):
            if part.files is not None:
                read = {index: _digest_file(part.files[index]) for index in range(0, len(part.files), step) if part.sizes[index] >= 0}
                parts[number] = part._replace(contents=read)
        return cls(tuple(parts), class_names, base, heap)

    def rows(self) -> Iterator[Row]:
        """Yields what is known, the names of the classes first."""
        yield from (Row("class", f"class {index}", name) for index, name in enumerate(self.class_names))  # labels are their numbers
        places = [(self.heap, "unlabelled/"), (self.base, "")] if self.heap else [(self.base, "")]
        prefixes = [(f"{place}{os.sep}", name) for folder, name in places for place in (folder, os.path.abspath(folder))]
        for split, files, sizes, labels, contents in self.parts:
            if files is None:
                yield Row(split, f"the set of {split} images", "", int(sizes[0]), contents[0])
                continue
            for index, (file, size) in enumerate(zip(files, sizes.tolist(), strict=True)):
                name = next((stands + str(file).removeprefix(prefix) for prefix, stands in prefixes if str(file).startswith(prefix)), str(file))
                yield Row(split, name.replace(os.sep, "/"), labels.told(index, self.class_names), size, contents.get(index, ""))

    @cached_property
    def digest(self) -> str:
        """All of it in a few letters."""
        return digest_of(self.rows())

    def write(self, file: IO[bytes]) -> None:
        """Writes the rows as a compressed CSV, names as they are."""
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
            text = io.TextIOWrapper(packed, encoding="utf-8", errors="surrogateescape", newline="")
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(HEADER)
            rows.writerows(self.rows())
            text.flush()


def read_rows(path: Path) -> list[Row]:
    """Reads what ``Fingerprint.write`` wrote; nothing where there is no such file or a damaged one."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
            return [Row(row["split"], row["name"], row["label"], int(row["size"]), row["content"]) for row in csv.DictReader(file)]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, csv.Error):
        return []


def digest_of(rows: Iterable[Row]) -> str:
    """Returns the digest of rows in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(("\0".join(map(str, row)) + "\n").encode(errors="surrogateescape"))
    return digest.hexdigest()


def differences(before: Iterable[Row], now: Iterable[Row]) -> Iterator[str]:
    """Says of each file what became of it, those that are new last; nothing where only the order is another."""
    there, known = {row.name: row for row in now}, set()
    for row in before:
        known.add(row.name)
        found, name = there.get(row.name), printable(row.name)
        if found is None:
            yield f"{name} is gone"
        elif found.split != row.split:
            yield f"{name} is in {found.split}, and was in {row.split}"
        elif found.label != row.label:
            yield f"{name} is labelled {printable(found.label)}, and was {printable(row.label)}"
        elif found.size != row.size:
            yield f"{name} has size {found.size:,}, and had {row.size:,}"
        elif found.content and row.content and found.content != row.content:
            yield f"{name} has the same size and other content"
    yield from (f"{printable(name)} is new" for name in there if name not in known)


def _first(found: Sequence[str]) -> str:
    """Tells the first of some differences, and how many more there are."""
    more = len(found) - 1
    return (found[0] if found else "they come in another order") + (f", and {more:,} more differ{'' if more > 1 else 's'}" if more > 0 else "")


@dataclass(frozen=True)
class Past:
    """What a run that goes on was trained on so far.

    Attributes:
        digest: Of its fingerprint; None in a run of before there were fingerprints.
        listing: File with its rows.
        run: The run, as it stands in commands.
        step: Where it stands.
        accepts: Whether it goes on with other images.
        accepted: What was accepted before.
        left_out: By split, the images that it leaves out because they could not be read.
    """

    digest: str | None
    listing: Path
    run: Path
    step: int = 0
    accepts: bool = False
    accepted: Sequence[str] = ()
    left_out: Mapping[str, Sequence[int]] | None = None

    @classmethod
    def read(cls, said: Any, listing: Path, run: Path, checkpoint: Path, step: int, accepts: bool) -> "Past":
        """Reads what ``ImageDataModule.about_images`` said, which the checkpoint has kept; None of a run of before there were fingerprints.

        Raises:
            InputError: It is not of that kind.
        """
        if said is None:
            return cls(None, listing, run, step, accepts)
        accepted, left_out = (said.get("accepted", []), said.get("left_out", {})) if isinstance(said, Mapping) else ([], {})
        right = isinstance(said, Mapping) and isinstance(said.get("digest"), str) and isinstance(accepted, list) and isinstance(left_out, Mapping)
        if not right or not all(isinstance(index, int) and index >= 0 for part in left_out.values() for index in part):
            raise InputError(f"{checkpoint} is damaged: what it says of its images is of another kind.")
        return cls(said["digest"], listing, run, step, accepts, tuple(map(str, accepted)), left_out)

    def compare(self, now: Fingerprint) -> str | None:
        """Compares the images with those of before.

        Returns:
            What is different, in words, where that is accepted; None where nothing is.

        Raises:
            InputError: Something is different; names the first file.
        """
        if self.digest is None or self.digest == now.digest:
            return None
        before = read_rows(self.listing)
        if digest_of(before) != self.digest:
            told = f"which image it is can't be told, since {self.listing} is missing or of another state"
        else:
            told = _first(list(differences(before, now.rows())))
        if self.accepts:
            return f"{WENT_ON}{self.step} on with other images: {told}"
        raise InputError(
            f"The images in {now.base} are not those that {self.run} was trained on: {told}.\n"
            f"  Put them back, or say where they lie now (--data.root). To go on with what is there, which summary and config.yaml will say:\n"
            f"    cct resume {self.run} --accept-changed-data"
        )


class Unseen(NamedTuple):
    """What a checkpoint's run was trained on, where images for a test are set aside of the same ones.

    Attributes:
        run: The run.
        listing: File with the rows of its fingerprint.
        splits: Which images shall be none of those it was trained on: test, val.
        trained: The group ``data`` of its configuration.
        asked: The same, as it shall be measured.
        digest: Of the fingerprint, as the checkpoint says it; None where it says none.
    """

    run: Path
    listing: Path
    splits: Collection[str]
    trained: Mapping[str, Any] = {}
    asked: Mapping[str, Any] = {}
    digest: str | None = None

    def check(self, now: Fingerprint, draws_test: bool = True) -> bool:
        """Refuses images that are in part the run's, a tenth of them or more. Of the run's own, the same are set aside; others are unseen.

        Args:
            now: Of the images that shall be measured.
            draws_test: Whether a test is drawn from the training images.

        Returns:
            Whether they are others.

        Raises:
            InputError: Names the first file that is different, or the key that would divide them otherwise.
        """
        before, rows = read_rows(self.listing), list(now.rows())
        digest = digest_of(before) if before else self.digest
        if digest == digest_of(rows):
            self._check_shares(now, draws_test)
        if digest is None or digest == digest_of(rows):
            return False
        roots = {os.path.abspath(os.path.expanduser(str(told.get("root")))) for told in (self.asked, self.trained)}
        if not before and len(roots) > 1:
            return False  # whether they are others can't be told
        earlier, there = ([row for row in some if row.split != "class"] for some in (before, rows))
        if before and 10 * _known(earlier, there) < len(there):
            return True  # a data set of its own
        which = _first(list(differences(before, rows))) if before else f"which, its run could tell ({self.listing} is missing)"
        raise InputError(
            f"The images in {now.base} are not those that {self.run if before else 'the checkpoint'} was trained on: {which}.\n"
            f"  {' and '.join(self.splits)} images are drawn from all of them, so that those drawn now would be among those it was trained on.\n"
            "  Put them back, or give the new ones a folder of their own (--data.root DIR)."
        )

    def choose(self, splits: Mapping[str, tuple[Split, Array]], take: Callable[[], Fingerprint]) -> dict[str, tuple[Split, Array]]:
        """Returns what is measured: of images that are others all, where a test alone is asked for, and no share for it.

        Args:
            splits: As they were divided.
            take: Takes the fingerprint, which is looked at where the test or the validation is a part of the training images.

        Raises:
            InputError: As ``check`` does.
        """
        chosen = dict(splits)
        drawn = {name for name, part in chosen.items() if part[0] is chosen["train"][0]}
        if drawn & set(self.splits) and self.check(take(), "test" in drawn):
            typed = any(self.trained.get(name) != self.asked.get(name) for name in ("fold", "test_fraction"))
            if set(self.splits) == {"test"} and not typed:
                split = chosen["train"][0]
                chosen["test"] = split, np.flatnonzero(split.targets != UNLABELLED)
        return chosen

    def _check_shares(self, now: Fingerprint, draws_test: bool) -> None:
        names = ["fold", "split_seed", *(["val_fraction"] if "val" in self.splits else [])]
        names += ["test_fraction"] if draws_test and self.trained.get("fold") is None else []
        for name in names if self.trained else ():
            then, asked = self.trained.get(name), self.asked.get(name)
            if then != asked:
                raise InputError(
                    f"data.{name}={asked} divides the images in {now.base} otherwise than the training did ({'none' if then is None else then}):\n"
                    f"  {' and '.join(self.splits)} images drawn so would be among those it was trained on. Leave it out, or give images of a\n"
                    "  folder of their own (--data.root DIR); where none were set aside, train with a share that is."
                )


def _known(before: Sequence[Row], rows: Sequence[Row]) -> int:
    """Counts the images that were there before: by their content, and by name and size where one of both was not read."""

    contents, unread, places = {row.content for row in before}, {_place(row) for row in before if not row.content}, set(map(_place, before))
    return sum(row.content in contents or _place(row) in unread if row.content else _place(row) in places for row in rows)


def _place(row: Row) -> tuple[str, int]:
    return row.name.rpartition("/")[2], row.size


def _size(file: Any) -> int:
    if isinstance(file, Packed | Own):
        return file.size if isinstance(file, Packed) else -1
    try:
        about = os.stat(file)
    except OSError:
        return -1
    return about.st_size if stat.S_ISREG(about.st_mode) else -1


def _digest(*arrays: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.hexdigest()


def _digest_file(file: Any) -> str:
    try:
        if isinstance(file, Packed):
            return hashlib.blake2b(file.read(), digest_size=8).hexdigest()
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError:
        return ""
