"""What ``data.fit=crop`` cuts off images that are longer than the network's."""

from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from cct_lightning.data.files import Array, size_of
from cct_lightning.data.folders import Split
from cct_lightning.data.members import File
from cct_lightning.errors import InputError

LIMIT = 1.4  # photographs of 4:3 are below it, those of 3:2 above
SAMPLE = 64  # images whose headers are read before a training, which takes ten milliseconds


def excess(sizes: Iterable[tuple[int, int]], image_size: tuple[int, int] = (1, 1)) -> float:
    """Returns the median of how many times as long as the network's images are, either way; 1 where there are none.

    Args:
        sizes: (H, W) of images, pixels.
        image_size: Of the network's.
    """
    ratios = [wide * image_size[0] / (high * image_size[1]) for high, wide in sizes if high and wide]
    return median(max(ratio, 1 / ratio) for ratio in ratios) if ratios else 1.0


def advice(times: float) -> str | None:
    """Says what is lost and what to type, where that is much."""
    if times <= LIMIT:
        return None
    return (
        f"half of the images are {times:.2g} times as long as the network's or more: data.fit=crop leaves out {1 - 1 / times:.0%} of such an image;"
        " --data.fit pad or --data.fit squash shows all of it."
    )


def what_is_cut_off(split: Split, chosen: Array, image_size: tuple[int, int], in_chans: int = 3) -> str | None:
    """Says so of training images, by the headers of some of them.

    Args:
        split: As read, or decoded.
        chosen: Which of its images are meant.
        image_size: (H, W) of the network's.
        in_chans: Its channels.
    """
    some = chosen[:: max(len(chosen) // SAMPLE, 1)][:SAMPLE]
    return advice(excess(_sizes([split.images[index] for index in some], in_chans), image_size))


def _sizes(images: Sequence[Array | File], in_chans: int) -> Iterable[tuple[int, int]]:
    for image in images:
        if isinstance(image, np.ndarray):
            yield image.shape[:2]
            continue
        try:
            yield size_of(image, in_chans)
        except InputError:
            continue  # whoever decodes it says what is wrong
