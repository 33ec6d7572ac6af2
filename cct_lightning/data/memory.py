"""What is kept in memory: images decoded once, as one array where they have one size, as tensors on the device, or as a frozen encoder's features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from cct_lightning.data.arrays import Range
from cct_lightning.data.files import Array, decode, size_of
from cct_lightning.data.folders import Split
from cct_lightning.data.members import File
from cct_lightning.data.options import MAX_MEGAPIXELS
from cct_lightning.data.preparation import CROP, Fitting, fit
from cct_lightning.errors import InputError

HOST_CACHE_BYTES = 4 * 2**30  # cache: auto keeps decoded images in memory up to here, and none those of arrays,
DEVICE_CACHE_BYTES = 2 * 2**30  # and on a GPU up to here
Cache = Literal["auto", "device", "host", "none"]
Splits = Mapping[str, tuple[Split, Array]]  # images, and which of them are meant


class Resized(Sequence[Array]):
    """Images that are brought to a size (H, W) when they are asked for, since all at once would take too much memory."""

    def __init__(self, images: Array, image_size: tuple[int, int], fitting: Fitting = CROP) -> None:
        self.images, self.image_size, self.fitting = images, image_size, fitting

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> Resized: ...

    def __getitem__(self, index: int | slice) -> Array | Resized:
        if isinstance(index, slice):
            return Resized(self.images[index], self.image_size, self.fitting)
        return fit(self.images[index], self.image_size, fitting=self.fitting)


def as_channels(images: Array, channels: int) -> Array:
    """Turns uint8 images (n, H, W, 1 or 3) into grey, as Pillow weighs the colours, or into colour."""
    if images.shape[-1] == channels:
        return images
    if channels not in (1, 3) or images.shape[-1] not in (1, 3):
        raise InputError(f"data.in_chans={channels}: the images of this data set have {images.shape[-1]} channel(s), and become 1 or 3 alone.")
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    return (images @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)[..., None]  # type: ignore[no-any-return]


def decode_splits(
    splits: Splits,
    image_size: tuple[int, int],
    channels: int,
    cache: Cache,
    max_megapixels: float = MAX_MEGAPIXELS,
    fitting: Fitting = CROP,
    value_range: Range | None = None,
) -> dict[str, tuple[Split, Array]]:
    """Decodes what fits into memory, once however many splits are cut from it; arrays are brought to the network's size.

    Args:
        splits: As read; several may choose from the same images.
        image_size: Height and width that the network takes.
        channels: 1 for grey, 3 for colour, or as many as the files have.
        cache: "none" leaves files as they are, "auto" those of the splits that take more than ``HOST_CACHE_BYTES`` with those before, the training
            images first; with both, arrays are resized one by one where all that are chosen would take more.
        max_megapixels: Larger images are refused.
        fitting: How arrays of other proportions get into ``image_size``.
        value_range: Lowest and highest value of images of more than 8 bits.

    Returns:
        The same choices of uint8 arrays (n, H, W, C) where all that are chosen have the network's size, else of decoded images or of files.

    Raises:
        InputError: A file that can't be read as an image.
    """
    kept: dict[int, Split] = {}
    each = {id(splits[name][0]): splits[name][0] for name in sorted(splits, key=lambda name: name != "train")}
    chosen_of = {number: np.unique(np.concatenate([chosen for other, chosen in splits.values() if other is each[number]])) for number in each}
    arrays = {number: _array(split.images) for number, split in each.items() if isinstance(split.images, (np.ndarray, Resized))}
    count = sum(len(chosen_of[number]) for number, images in arrays.items() if images.shape[1:3] != image_size)
    at_once = cache in ("host", "device") or _fit_resized(count, image_size, channels)
    left = HOST_CACHE_BYTES
    for number, split in each.items():
        images: Any = split.images
        files = None if number in arrays else images
        if number in arrays:
            images = as_channels(arrays[number], channels)
            if images.shape[1:3] != image_size:
                images = Resized(images, image_size, fitting)
                images = _resized(images, chosen_of[number]) if at_once else images
        elif cache != "none":
            needed = _bytes_needed(images, left, channels, max_megapixels, value_range) if cache == "auto" else 0
            if needed is not None:
                how = channels, max_megapixels, value_range
                left, used = left - needed, set(chosen_of[number].tolist())
                images = [decode(image, *how) if index in used else np.empty(0, np.uint8) for index, image in enumerate(images)]
                images = _stacked(images, (*image_size, channels))
        kept[number] = replace(split, images=images, files=files)
    return {name: (kept[id(split)], chosen) for name, (split, chosen) in splits.items()}


def _resized(images: Resized, chosen: Array) -> Array:
    """Resizes the chosen images of an array; the others stay black, and take no memory."""
    resized = np.zeros((len(images), *images.image_size, images.images.shape[3]), np.uint8)
    for index in chosen:
        resized[index] = images[index]
    return resized


def _array(images: Array | Resized) -> Array:
    return images.images if isinstance(images, Resized) else images


def _fit_resized(count: int, image_size: tuple[int, int], channels: int) -> bool:
    if (size := count * math.prod(image_size) * channels) > HOST_CACHE_BYTES:
        pixels, all_once = "x".join(map(str, image_size)), "cache: host resizes them all at once"
        rank_zero_info(f"{count:,} images of {pixels} pixels take {size / 2**30:.1f} GiB: they are resized one by one ({all_once}).")
        return False
    return True


def _stacked(images: list[Array], shape: tuple[int, int, int]) -> list[Array] | Array:
    """Stacks decoded images that all have the network's size, so that batches are cut by index; leaves others as they are."""
    if any(len(image) and image.shape != shape for image in images):
        return images
    stacked = np.zeros((len(images), *shape), np.uint8)
    for index, image in enumerate(images):
        if len(image):
            stacked[index], images[index] = image, image[:0]  # let go one by one, or memory would hold all of them twice
    return stacked


def _bytes_needed(files: Sequence[File], most: int, channels: int, *how: Any) -> int | None:
    """Returns what the decoded images take, about, by the headers of some files where that leaves no doubt, else of all; None: more than ``most``."""
    some = files[:: max(len(files) // 256, 1)]
    if (about := len(files) * max(_decoded_bytes(file, channels, *how) for file in some)) <= most // 4:
        return about
    total = 0
    for file in files:
        total += _decoded_bytes(file, channels, *how)
        if total > most:
            return None
    return total


def _decoded_bytes(file: File, channels: int, *how: Any) -> int:
    try:
        return math.prod(size_of(file, channels, *how)) * channels
    except InputError:
        return 0  # it may be left out; else whoever decodes it says what is wrong


def to_tensors(images: Array, targets: Array, cache: Cache, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns images (n, H, W, C) and targets, (n,) or (n, K), as tensors, on the device where ``cache`` says so or "auto" has them fit on a GPU."""
    whole, labels = torch.from_numpy(images), torch.from_numpy(targets if targets.dtype == np.float32 else targets.astype(np.int64))
    if cache == "device" or (cache == "auto" and device.type == "cuda" and whole.nbytes <= DEVICE_CACHE_BYTES):
        return whole.to(device), labels.to(device)
    return whole, labels


def write_features(rows: Tensor | None, num_rows: int, indices: Tensor, features: Tensor) -> Tensor | None:
    """Writes the features of some images (B, ...) into their rows of one tensor for all, on the host.

    Args:
        rows: The tensor (num_rows, ...); None: it is made.
        num_rows: Of all images.
        indices: Which rows are meant (B,).
        features: What is written there.

    Returns:
        ``rows``; None where they would take more than ``HOST_CACHE_BYTES``.
    """
    if rows is None:
        if (size := features[0].nbytes * num_rows) > HOST_CACHE_BYTES:
            rank_zero_info(f"the features of {num_rows:,} images take {size / 2**30:.1f} GiB: they are computed anew each epoch.")
            return None
        rows = torch.empty((num_rows, *features.shape[1:]))  # rows that are never written take no memory
    rows[indices.cpu()] = features
    return rows
