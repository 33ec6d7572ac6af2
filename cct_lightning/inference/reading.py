"""Images as a ``Predictor`` reads them: a stream of anything that is one, a batch at a time, the next one while a batch is computed."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import PIL.Image

from cct_lightning.data.files import Array, Found, find_images
from cct_lightning.data.members import Own, Packed
from cct_lightning.data.options import Preprocessing
from cct_lightning.data.preparation import prepare
from cct_lightning.data.tars import images_in, is_shard
from cct_lightning.inference.items import Item, check_item, to_pixels

One = Found | Packed | Own | PIL.Image.Image | Array
Seen = tuple[str | None, Array | str]  # the path, and pixels of the network's size, uint8 (H, W, C), or why there are none


def read_batches(items: Iterable[Item], batch_size: Callable[[], int], read: Callable[[One], Seen]) -> Iterator[list[Seen]]:
    """Reads a stream a batch at a time, and the next one while a batch is computed.

    Args:
        items: The stream.
        batch_size: Tells how many images now; it may shrink on the way.
        read: Reads one.
    """
    waiting: deque[Future[Seen]] = deque()
    source = expand(items)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())

    def read_ahead() -> None:
        while len(waiting) < batch_size() and (item := next(source, None)) is not None:
            waiting.append(pool.submit(read, item))

    try:
        read_ahead()
        while waiting:
            batch = [waiting.popleft() for _ in range(min(batch_size(), len(waiting)))]
            read_ahead()  # decoded while this batch is computed
            yield [future.result() for future in batch]
    finally:
        pool.shutdown(cancel_futures=True)


def expand(items: Iterable[Item]) -> Iterator[One]:
    """Yields the images that items stand for: folders, globs and shards each for many."""
    for item in items:
        check_item(item)
        if isinstance(item, str | Path):
            yield from images_in(str(item)) if is_shard(item) else find_images([item])
        else:
            yield item


def path_of(item: One) -> str | None:
    """Returns an image's file, or its place in a shard; None where it comes from none."""
    return item.path if isinstance(item, Found) else str(item) if isinstance(item, Packed | Own) else None


def read_image(item: One, preprocessing: Preprocessing, max_megapixels: float) -> Seen:
    """Returns the path, and pixels of the network's size, uint8 (H, W, C), or why there are none."""
    path, error = path_of(item), item.error if isinstance(item, Found) else None
    if error is not None:
        return path, error
    try:
        return path, prepare(to_pixels(item, preprocessing.in_chans, max_megapixels, preprocessing.value_range), preprocessing)
    except Exception as damage:  # what a damaged file raises inside a decoder is not known beforehand
        # decode names the file, which the prediction does, too, and speaks to someone who trains.
        said = str(damage).removeprefix(f"{path} ").removesuffix(": mend it or move it out of the data set.")
        return path, " ".join(said.split()).rstrip(".") or type(damage).__name__
