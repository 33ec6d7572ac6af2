"""The images that a trained network finds most like another one: by the angle between their features."""

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cct_lightning.data.files import Array
from cct_lightning.errors import InputError, check_range
from cct_lightning.inference.items import Embedding, Item, to_pixels
from cct_lightning.inference.predictor import Predictor
from cct_lightning.inference.reading import expand, path_of
from cct_lightning.wording import percent, printable, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Similar(NamedTuple):
    """An image that is like another one.

    Attributes:
        path: Its file; None where it comes from none.
        cosine: Of the angle between the two features, -1..1; 1 is alike.
        class_name: The most probable class of it; None where the network tells numbers.
        probability: Of this class; likewise.
    """

    path: str | None
    cosine: float
    class_name: str | None
    probability: float | None


class Found(NamedTuple):
    """What a search found: the nearest images, the nearest first; how many were looked at, and why others could not be."""

    nearest: list[Similar]
    looked_at: int
    errors: list[Embedding]


def find_similar(predictor: Predictor, image: Item, among: Iterable[Item], n: int = 9) -> Found:
    """Finds the images nearest to one by the cosine of their features, which ``Predictor.embed`` gives.

    Args:
        predictor: A network that tells features; no graph, and no ensemble.
        image: The one. Among the others its own file is passed over, copies of it are not.
        among: The others, taken one by one: files, folders, globs, PIL images or arrays. No more than ``n`` are kept in memory.
        n: How many are returned, at most.

    Raises:
        InputError: The image can't be read, or the network tells no features.
    """
    check_range("n", n, 1)
    (wanted,) = _directions(predictor.embed(image)[:1])
    count, errors = 0, list[Embedding]()

    def scored() -> Iterator[tuple[float, int, Embedding]]:
        nonlocal count
        for number, other in enumerate(predictor.embeddings(among)):
            if other.feature is None:
                errors.append(other)
            elif not _is_same(image, other.path):
                count += 1
                (direction,) = _directions(other.feature[None])
                yield float(wanted @ direction), -number, other._replace(feature=None)

    best = heapq.nlargest(n, scored(), key=lambda pair: pair[:2])
    names = predictor.class_names
    if predictor.output.kind == "numbers":
        return Found([Similar(e.path, cosine, None, None) for cosine, _, e in best], count, errors)
    return Found([Similar(e.path, cosine, names[e.label or 0], e.probability or 0.0) for cosine, _, e in best], count, errors)


def _directions(features: Array) -> Array:
    """Scales features (n, D) to the length 1; those of length 0 stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(lengths > 0, lengths, 1))


def _is_same(image: Item, path: str | None) -> bool:
    if path is None or not isinstance(image, str | Path):
        return False
    try:
        return os.path.samefile(image, path)
    except OSError:
        return False


def draw_similar(image: Array, nearest: Sequence[Similar], images: Sequence[Array], name: str) -> "Figure":
    """Draws an image and those that are like it, the nearest first, with cosine and class below each.

    Args:
        image: The one, uint8 (H, W, 1 or 3) of any size.
        nearest: The others.
        images: Their pixels.
        name: Of the one.
    """
    from cct_lightning.evaluation.drawings import draw_sheet

    def short(text: str) -> str:
        return shortened(printable(text), 20).replace("$", r"\$")

    captions = [[short(name), "", "looked for"]]
    captions += [
        [
            short(Path(one.path or "").name),
            f"cosine {one.cosine:.3f}",
            f"{short(one.class_name)}, {percent(one.probability, 0)}" if one.class_name is not None else "",
        ]
        for one in nearest
    ]
    return draw_sheet(f"The {len(nearest)} most similar", [image, *images], captions)


def write_picture(path: Path, predictor: Predictor, image: str, among: Iterable[Item], nearest: Sequence[Similar]) -> None:
    """Draws an image and those that are like it into a file; of other channels than 1 and 3 their mean.

    Args:
        path: The file.
        predictor: With which they were found.
        image: The one.
        among: Where they were looked for.
        nearest: They.

    Raises:
        InputError: The file can't be written.
    """
    wanted = {image, *(one.path for one in nearest)}
    found = {name: item for item in expand([image, *among]) if (name := path_of(item)) in wanted}
    how = predictor.preprocessing

    def pixels_of(name: str | None) -> Array:
        pixels = to_pixels(found[name], how.in_chans, predictor.max_megapixels, how.value_range)
        return pixels if pixels.shape[2] in (1, 3) else pixels.mean(axis=2, keepdims=True).astype(np.uint8)

    pixels = [pixels_of(one) for one in (image, *(one.path for one in nearest))]
    try:
        draw_similar(pixels[0], nearest, pixels[1:], Path(image).name).savefig(path, dpi=120, bbox_inches="tight", facecolor="white")
    except (OSError, ValueError) as error:
        raise InputError(f"--picture {path} can't be written: {getattr(error, 'strerror', None) or error}.") from error
