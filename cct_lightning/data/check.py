"""Images read before they are trained on: which can't be, and what each of the others is."""

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageFile

from cct_lightning.data.arrays import Range, holds_array, with_number
from cct_lightning.data.files import Array, decode, open_image, read_array, read_pixels
from cct_lightning.data.members import File, Own, Packed
from cct_lightning.data.moments import Moments, measure
from cct_lightning.data.options import MAX_MEGAPIXELS
from cct_lightning.errors import InputError
from cct_lightning.wording import clock, reason

MOST_BAD = 0.01  # share of the images that data.on_bad_image=skip leaves out, at most
ADVICE = ": mend it or move it out of the data set."  # ends what ``files`` says of a bad image
CHUNK = 32  # images that a process is given at a time
FEW = 200  # are read in this process: others take as long to start
SMALLEST = 32  # pixels of the shorter side: in smaller images too little is seen to call two of them near duplicates


class Seen(NamedTuple):
    """What there is to say of an image.

    Attributes:
        error: Why it can't be read; None where it can.
        num_bytes: Of the file, or of the array.
        content: Digest of these bytes.
        format: As Pillow names it; empty of arrays.
        mode: Likewise, of what is stored.
        size: (H, W), pixels.
        moments: Mean and spread of its channels, where they are asked for.
        look: 128 bits that near duplicates share nearly all of, see ``look_of``; None of images too small or too plain.
    """

    error: str | None = None
    num_bytes: int = 0
    content: str = ""
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    look: bytes | None = None
    moments: Moments | None = None


class Look(NamedTuple):
    """How images are read.

    Attributes:
        max_megapixels: Larger files are refused.
        in_chans: Channels; of files of up to 3, by which kind of file they are read.
        value_range: Lowest and highest value of images of more than 8 bits.
        measures: Whether their channels are measured, too.
    """

    max_megapixels: float = MAX_MEGAPIXELS
    in_chans: int = 3
    value_range: Range | None = None
    measures: bool = False


def look_of(pixels: Array) -> bytes | None:
    """Describes how an image looks in 128 bits: for each cell of a 9 x 9 thumbnail in grey whether its neighbour is brighter, to the right and below.

    Copies that were saved anew, scaled, made a little brighter or given a small mark keep nearly all of the bits; crops, mirrored and turned
    images don't. The difference hash of Neal Krawetz ("Kind of Like That", 2013), in both directions.

    Returns:
        16 bytes; None of an image with a side shorter than ``SMALLEST``, or without contrast.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST:
        return None
    every = max(height // 96, 1)  # whole rows are cut out fast
    rows = pixels[::every]
    rows = rows if rows.shape[2] == 3 else rows.mean(axis=2).astype(np.uint8)
    image = PIL.Image.fromarray(rows).convert("L").resize((9, 9), PIL.Image.Resampling.BOX)
    cells = np.asarray(image)
    if int(cells.max()) - int(cells.min()) < 16:
        return None
    right, below = cells[:8, 1:] > cells[:8, :8], cells[1:, :8] > cells[:8, :8]
    return np.packbits(np.concatenate([right.ravel(), below.ravel()])).tobytes()


def examine(image: File | Array, how: Look = Look()) -> Seen:
    """Reads an image as a training does, and says what it is."""
    if isinstance(image, np.ndarray):
        seen = Seen(None, image.nbytes, _digest(image.tobytes()), "", "L" if image.shape[-1] == 1 else "RGB", image.shape[:2], look_of(image))
        return seen._replace(moments=measure(np.atleast_3d(image)) if how.measures else None)
    try:
        if isinstance(image, Own):
            return _examine_own(image, how)
        if holds_array(image.name, how.in_chans, how.value_range):
            return _examine_array(image, how)
        with open_image(image, how.max_megapixels) as opened:
            format, mode, size = opened.format or "", opened.mode, (opened.height, opened.width)
            file = opened.fp if isinstance(opened, PIL.ImageFile.ImageFile) else None  # which Pillow lets go of once it has the pixels
            pixels = read_pixels(opened, 3 if how.in_chans == 1 else how.in_chans, how.value_range)
            if file is not None:
                file.seek(0)
            content = file.read() if file is not None else _bytes_of(image)
        moments = measure(pixels if how.in_chans != 1 else with_number(pixels, 1)) if how.measures else None
        return Seen(None, len(content), _digest(content), format, mode, size, look_of(pixels), moments)
    except InputError as error:
        return Seen(why_bad(error, image))
    except (OSError, ValueError) as error:
        return Seen(f"can't be read ({reason(error, 80)})")


def _examine_own(image: Own, how: Look) -> Seen:
    given = image.read()
    stored = given if isinstance(given, np.ndarray) else None
    pixels = decode(image, how.in_chans, how.max_megapixels, how.value_range) if stored is None or not how.measures else stored
    content, mode = pixels.tobytes(), given.mode if isinstance(given, PIL.Image.Image) else f"{given.shape[2]} x {given.dtype}"
    look = look_of(pixels) if pixels.dtype == np.uint8 else None
    return Seen(None, len(content), _digest(content), "", mode, (pixels.shape[0], pixels.shape[1]), look, measure(pixels) if how.measures else None)


def _examine_array(image: Path | Packed, how: Look) -> Seen:
    """Does so with what Pillow has no mode for; that its range is not known is no fault where it is to be measured."""
    stored = read_array(image, how.max_megapixels, how.in_chans)
    mode, size, content = f"{stored.shape[2]} x {stored.dtype}", stored.shape[:2], _bytes_of(image)
    known = how.value_range is not None or not how.measures
    pixels = decode(image, how.in_chans, how.max_megapixels, how.value_range) if known or stored.dtype == np.uint8 else stored
    moments = measure(pixels) if how.measures else None
    look = look_of(pixels) if pixels.dtype == np.uint8 else None
    return Seen(None, len(content), _digest(content), os.path.splitext(image.name)[1][1:].upper(), mode, size, look, moments)


def _bytes_of(image: Path | Packed) -> bytes:
    return image.read() if isinstance(image, Packed) else image.read_bytes()


def why_bad(error: InputError, image: File) -> str:
    """Cuts the file's name and the advice out of what is said of an image that can't be read."""
    return str(error).removeprefix(f"{image} ").removesuffix(ADVICE)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _examine_some(images: Sequence[File | Array], how: Look) -> list[Seen]:
    return [examine(image, how) for image in images]


def examine_all(images: Sequence[File | Array], workers: int, how: Look = Look()) -> Iterator[Seen]:
    """Reads images in processes of their own, and yields what they are in their order.

    Args:
        images: Files or arrays.
        workers: Processes; 0 and few images are read by the caller.
        how: How they are read.

    Raises:
        InputError: A process was killed.
    """
    if workers < 1 or len(images) < FEW:
        yield from (examine(image, how) for image in images)
        return
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")  # this process may have threads
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, _obey_the_caller)
    try:
        for found in pool.map(_examine_some, chunks, repeat(how)):
            yield from found
    except BrokenProcessPool:
        raise InputError(
            "A process that reads images was killed, by the system or by a decoder that failed. With --data.num_workers 0 they are read one by one."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _obey_the_caller() -> None:
    """Leaves interrupts to the caller, and ends with it: killed, it can't end its readers, which wait for each other's word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_caller, daemon=True).start()


def _end_with_the_caller() -> None:
    caller = parent_process()
    assert caller is not None
    wait([caller.sentinel])
    os._exit(1)


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former only on Linux


Found = TypeVar("Found")


def counted(found: Iterable[Found], total: int, is_bad: Callable[[Found], bool], now: Callable[[], float] = time.monotonic) -> Iterator[Found]:
    """Hands on what is found, and says how far it is: on a terminal in one line that is drawn anew, in a log file every half minute."""
    drawn, began = sys.stderr.isatty(), now()
    every, told, bad = 0.2 if drawn else 30.0, now(), 0
    for number, seen in enumerate(found, start=1):
        bad += is_bad(seen)
        yield seen
        if now() - told >= every:
            told = now()
            speed = number / (told - began)
            line = f"reading images  {number:,} of {total:,}  {speed:,.0f} images/s  {clock((total - number) / speed)} left  {bad:,} bad"
            print(f"\r\x1b[K{line}" if drawn else line, end="" if drawn else "\n", file=sys.stderr, flush=True)
    if drawn:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


BLOCKS = 8  # of 16 bits: two looks that differ in fewer bits than there are blocks agree in one of them
NEAR = 6  # bits of 128 that near duplicates differ in, at most
WINDOW = 64  # images of one block that are compared with those that follow in order, so that a million of them take no hour
_ONES = np.array([bin(number).count("1") for number in range(2**16)], np.uint8)


def near_duplicates(looks: Sequence[bytes | None]) -> list[tuple[int, int, int]]:
    """Finds images that look alike: their looks differ in up to ``NEAR`` bits.

    Returns:
        (image, the nearest of those before it, differing bits), for each image that has one.
    """
    known = np.array([index for index, look in enumerate(looks) if look is not None])
    if len(known) < 2:
        return []
    blocks = np.frombuffer(b"".join(look for look in looks if look is not None), np.uint16).reshape(-1, BLOCKS)
    nearest, other = np.full(len(known), NEAR + 1), np.full(len(known), len(known))
    for block in range(BLOCKS):
        order = np.lexsort([blocks[:, (block + place) % BLOCKS] for place in reversed(range(BLOCKS))])
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            one, two = order[:-step], order[step:]
            same = blocks[one, block] == blocks[two, block]
            if not same.any():
                break
            one, two = one[same], two[same]
            bits = _ONES[blocks[one] ^ blocks[two]].sum(axis=1, dtype=np.int64)
            early, late = np.minimum(one, two), np.maximum(one, two)
            better = (bits < nearest[late]) | ((bits == nearest[late]) & (early < other[late]))
            nearest[late[better]], other[late[better]] = bits[better], early[better]
    return [(int(known[late]), int(known[other[late]]), int(nearest[late])) for late in np.flatnonzero(nearest <= NEAR)]
