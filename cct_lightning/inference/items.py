"""What a ``Predictor`` takes for an image, how it becomes pixels, and what is told of it."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from torch import Tensor

from cct_lightning.data.arrays import Range
from cct_lightning.data.files import Array, Found, decode, to_uint8
from cct_lightning.data.members import Own, Packed
from cct_lightning.data.options import MAX_MEGAPIXELS
from cct_lightning.errors import InputError

Item = str | Path | Packed | Own | PIL.Image.Image | Array
KINDS = (str, Path, Packed, Own, PIL.Image.Image, np.ndarray)  # the same
NONE = "none"  # the answer below the threshold of a predictor
TAKES = "a Predictor takes paths, PIL images and uint8 arrays (H, W) or (H, W, C)"


class Prediction(NamedTuple):
    """The class of one image and how probable it is, or why there is none; ``top`` lists the most probable classes, best first.

    Where a threshold is set (``Predictor.reject``), the class is ``none``, without a probability, below it.

    Attributes:
        path: Of the image, None where it came from no file.
        class_name: None where a network tells several labels, or numbers.
        probability: Of the class.
        top: Classes, or labels, with their probabilities.
        error: Why there is nothing.
        labels: Those that the image has by the network's thresholds, with their probabilities, best first; None of other networks.
        values: Numbers by their names, in their units; None of other networks.
        score: What is compared with that threshold; None where there is none.
    """

    path: str | None
    class_name: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    labels: tuple[tuple[str, float], ...] | None = None
    values: tuple[tuple[str, float], ...] | None = None
    score: float | None = None


class Embedding(NamedTuple):
    """What the head reads of one image, and what it makes of it; or why there is none.

    Attributes:
        path: Of the image, None where it came from no file.
        feature: Output of the pooling, (D,), float32. A hidden tanh layer (``head_hidden_dim``) belongs to the head, so it lies behind this.
        label: Of the most probable class or label; -1 where a network tells numbers.
        probability: Of it, 0..1; NaN likewise.
        error: Why there is no feature.
    """

    path: str | None
    feature: Array | None = None
    label: int | None = None
    probability: float | None = None
    error: str | None = None


def check_given(what: object) -> None:
    """Refuses what is neither an image nor a stream of images, as far as that can be told without taking from a stream.

    Raises:
        InputError: See ``check_item``.
    """
    if isinstance(what, list | tuple):
        for item in what:
            check_item(item)
    elif isinstance(what, (*KINDS, Tensor, bytes)) or not isinstance(what, Iterable):
        check_item(what)


def check_item(item: object) -> None:
    """Refuses types that are never images, and says which line of Python makes images of tensors and arrays.

    Raises:
        InputError: It is no path, PIL image or uint8 array, or an array of many images. What else may be wrong with an array or a file is told
            when it is read, see ``to_pixels``.
    """
    if isinstance(item, Tensor):
        said = "one, and normalised ones are for `logits`" if item.is_floating_point() else "one"
        kind = f"Tensor {tuple(item.shape)} of {str(item.dtype).removeprefix('torch.')}"
        raise InputError(f"{TAKES}, no {kind}.\n  {_conversion(item)} makes {said}.")
    if isinstance(item, np.ndarray) and (item.dtype != np.uint8 or item.ndim == 4):
        made = f"{_conversion(item)} makes {'many' if item.ndim == 4 else 'one'}"
        raise InputError(f"an array {item.shape} of {item.dtype} is no image: {TAKES}, C being 1, 3 or 4.\n  {made}.")
    if not isinstance(item, KINDS):
        raise InputError(f"{TAKES}, no {type(item).__name__}.")


def _conversion(images: Tensor | Array) -> str:
    """Returns the line of Python that makes uint8 arrays (H, W, C) of a tensor (C, H, W), an array of another dtype, or a batch of them."""
    is_tensor, is_batch = isinstance(images, Tensor), images.ndim == 4
    is_float = images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
    line = "images" if is_batch else "image"
    if is_float:
        line = f"({line} * 255).round()"
    if str(images.dtype).removeprefix("torch.") != "uint8":
        line += ".byte()" if is_tensor else ".astype('uint8')"
    if is_tensor:
        line += {3: ".permute(1, 2, 0)", 4: ".permute(0, 2, 3, 1)"}.get(images.ndim, "") + ".cpu().numpy()"
    line = f"list({line})" if is_batch else line
    return f"where values are 0..1, {line}" if is_float else line


def to_pixels(
    image: Found | Packed | Own | PIL.Image.Image | Array, in_chans: int, max_megapixels: float = MAX_MEGAPIXELS, value_range: Range | None = None
) -> Array:
    """Returns an image as uint8 (H, W, C), as ``data.files`` says for each mode.

    Raises:
        ValueError: It has another shape or dtype, a mode whose range is not known, or is a file that can't be read or of too many pixels.
    """
    if isinstance(image, Found | Packed | Own):
        return decode(Path(image.path) if isinstance(image, Found) else image, in_chans, max_megapixels, value_range)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4, in_chans)):
            raise InputError(f"an array {image.shape} of {image.dtype} is no image: uint8 (H, W) or (H, W, C) with 1, 3 or 4 channels is one")
        if image.ndim == 3 and image.shape[2] == in_chans:
            return image
        image = PIL.Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    return to_uint8(image, in_chans, value_range)
