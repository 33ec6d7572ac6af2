"""Images that can't be read: named together before the first epoch, or left out."""

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch.distributed

from cct_lightning.data.arrays import Range
from cct_lightning.data.check import ADVICE, MOST_BAD, cores, counted, why_bad
from cct_lightning.data.files import Array, decode, size_of
from cct_lightning.data.folders import Split
from cct_lightning.data.members import File
from cct_lightning.errors import InputError
from cct_lightning.wording import as_cells, printable, some

LOOK_SECONDS = 3.0  # a training that reads its files in every epoch looks at them for so long before the first one
AT_ONCE = 256  # files that are handed to the threads together
Splits = dict[str, tuple[Split, Array]]  # by what they are for, images and which of them are meant
Used = Mapping[str, tuple[Split, Array]]  # by split as it was read, likewise


class Bad(NamedTuple):
    """An image, and why it can't be read.

    Attributes:
        split: As it was read: train, val or test.
        number: In it.
        path: The file.
        why: In words that follow its name; empty where that is not known.
    """

    split: str
    number: int
    path: File
    why: str = ""


def used_images(read: Mapping[str, Split | None], splits: Splits) -> Used:
    """Returns the images that are used, by the split that they were read as."""
    used = {}
    for name, split in read.items():
        if split is not None and (chosen := [indices for other, indices in splits.values() if other is split]):
            used[name] = split, np.unique(np.concatenate(chosen))
    return used


def numbers_of(bad: Sequence[Bad]) -> dict[str, list[int]]:
    """Returns the numbers of images by their split, as a checkpoint keeps them."""
    return {name: [image.number for image in bad if image.split == name] for name in dict.fromkeys(image.split for image in bad)}


def table_of(bad: Sequence[Bad]) -> str:
    """Writes images and why they can't be read as a CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(Bad._fields)
    rows.writerows(as_cells(Bad._fields, [row.split, row.number, str(row.path), row.why]) for row in bad)
    return text.getvalue()


@dataclass(frozen=True)
class Readable:
    """The images that a training uses, as it reads them; only files can be bad.

    Attributes:
        used: By split as it was read.
        in_chans: Channels of the images.
        max_megapixels: Larger files are refused.
        place: What ``cct check`` takes for them.
        value_range: Lowest and highest value of images of more than 8 bits.
    """

    used: Used
    in_chans: int
    max_megapixels: float
    place: str
    value_range: Range | None = None

    def leave_out(self, splits: Splits, known: Mapping[str, Sequence[int]] | None) -> tuple[Splits, list[Bad]]:
        """Takes the images that can't be read out of the splits; all others keep their split and their number, from which their draws follow.

        Args:
            splits: What was made of those that are used.
            known: Numbers by split, of a run that goes on: it leaves out the same, and nothing is read; None reads all files.

        Returns:
            The splits without them, and what they are.

        Raises:
            InputError: They are more than ``MOST_BAD`` of all, or all of a class in a split as it was read.
        """
        if known is None:
            bad = self._shared(self._read)
            self._check_share(bad)
        else:
            taken = {name: set(numbers) for name, numbers in known.items()}
            bad = [file for file in self._files() if file.number in taken.get(file.split, ())]
        numbers = {id(self.used[name][0]): of_split for name, of_split in numbers_of(bad).items()}
        return {name: (split, np.setdiff1d(chosen, numbers.get(id(split), ()))) for name, (split, chosen) in splits.items()}, bad

    @contextmanager
    def named_together(self) -> Iterator[None]:
        """Has an error over one bad image, wherever it comes from, name all of them.

        Raises:
            InputError: As the block does; of bad images with their names.
        """
        try:
            yield
        except InputError:
            if bad := [file for file in self._try(self._files(), self._decode) if file.why]:
                raise self._refusal(bad) from None
            raise

    def look_ahead(self, splits: Splits, seconds: float = LOOK_SECONDS) -> None:
        """Tries the files that are not decoded yet, spread over all: the headers, and then pixels, as far as there is time.

        Args:
            splits: As they were decoded.
            seconds: Of each device, which takes a share of the files.

        Raises:
            InputError: Some can't be read.
        """
        later = {id(split.images) for split, _ in splits.values() if split.images is split.files}

        def look(files: Sequence[Bad]) -> list[Bad]:
            until = time.monotonic() + seconds
            spread = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
            bad = [file for file in self._try(spread, self._open, until) if file.why]
            known = {file[:2] for file in bad}
            return bad + [file for file in self._try((file for file in spread if file[:2] not in known), self._decode, until) if file.why]

        if bad := self._shared(look, later):
            raise self._refusal(bad)

    def _files(self, among: set[int] | None = None) -> list[Bad]:
        """Lists the files of the splits whose images are ``among`` those, by id; None is all."""
        meant = {name: part for name, part in self.used.items() if not isinstance(part[0].images, np.ndarray)}
        return [Bad(name, number, split.images[number]) for name, (split, chosen) in meant.items()  # type: ignore[arg-type]
                if among is None or id(split.images) in among for number in chosen.tolist()]  # fmt: skip

    def _shared(self, find: Callable[[Sequence[Bad]], list[Bad]], among: set[int] | None = None) -> list[Bad]:
        """Has each device look at a share of the files; all learn what was found, in the files' order."""
        files = self._files(among)
        if not torch.distributed.is_initialized():
            return sorted((file for file in find(files) if file.why), key=self._order)
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        found = [file for file in find(files[torch.distributed.get_rank() :: len(gathered)]) if file.why]
        torch.distributed.all_gather_object(gathered, found)
        return sorted((file for part in gathered for file in part), key=self._order)

    def _read(self, files: Sequence[Bad]) -> list[Bad]:
        tried = self._try(files, self._decode)
        speaks = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        return list(counted(tried, len(files), lambda file: bool(file.why)) if speaks else tried)

    def _order(self, file: Bad) -> tuple[int, int]:
        return list(self.used).index(file.split), file.number

    def _try(self, files: Sequence[Bad] | Iterator[Bad], read: Callable[[File], None], until: float = float("inf")) -> Iterator[Bad]:
        """Yields files with what is wrong with them, as far as there is time.

        Threads, unlike processes, need no guarded ``__main__`` in a script that calls ``fit``; decoders let them run side by side.
        """

        def judged(file: Bad) -> Bad:
            try:
                if time.monotonic() < until:
                    read(file.path)
            except InputError as error:
                return file._replace(why=why_bad(error, file.path))
            return file

        rest = iter(files)
        with ThreadPoolExecutor(cores()) as pool:
            while time.monotonic() < until and (next_ones := list(islice(rest, AT_ONCE))):
                yield from pool.map(judged, next_ones)

    def _open(self, file: File) -> None:
        size_of(file, self.in_chans, self.max_megapixels, self.value_range)

    def _decode(self, file: File) -> None:
        decode(file, self.in_chans, self.max_megapixels, self.value_range)

    def _refusal(self, bad: Sequence[Bad]) -> InputError:
        first = bad[0]
        told = f"{_count(bad)} can't be used: {_names(bad)}. Mend them or move them out of the data set."
        if len(bad) == 1:
            told = f"{printable(f'{first.path} {first.why}')}{'' if first.why.endswith('.') else ADVICE}"
        return InputError(
            f"{told}\n"
            f"  `cct check {self.place}` reads all images and lists what is wrong with them.\n"
            f"  --data.on_bad_image skip leaves out up to {MOST_BAD:.0%} of all, before the first epoch."
        )

    def _check_share(self, bad: Sequence[Bad]) -> None:
        total = sum(len(chosen) for _, chosen in self.used.values())
        if len(bad) > MOST_BAD * total:
            raise InputError(
                f"{_count(bad)} of {total:,} can't be used, and data.on_bad_image=skip leaves out {MOST_BAD:.0%} at most: {_names(bad)}.\n"
                f"  `cct check {self.place}` lists all of them: mend them, or move them out of the data set."
            )
        for name, (split, chosen) in self.used.items():
            own = [image for image in bad if image.split == name]
            left = np.setdiff1d(chosen, [image.number for image in own])
            if split.values is not None and len(left):  # numbers or several labels: nothing is lost that others don't have
                continue
            if lost := set(split.targets[chosen].tolist()) - set(split.targets[left].tolist()):
                raise InputError(f"No image of {len(lost)} class(es) of {name} can be used: {_names(own)}.\n"
                                 f"  `cct check {self.place}` lists what is wrong.")  # fmt: skip


def _names(bad: Sequence[Bad]) -> str:
    return some([printable(f"{image.path} {image.why}") for image in bad])


def _count(bad: Sequence[Bad]) -> str:
    return f"{len(bad):,} image{'s' if len(bad) != 1 else ''}"
