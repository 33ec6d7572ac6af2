"""What describes images, in plain values: importing this needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cct_lightning.data.augment.options import AugmentConfig
from cct_lightning.errors import InputError, check_range
from cct_lightning.options import as_size

Fit = Literal["crop", "pad", "squash"]
NEEDS_LABELS = "Images without labels (data.unlabelled, data.dataset=images) are for `cct pretrain`: to classify takes labelled ones."
MAX_MEGAPIXELS = 100.0  # an image of so many takes up to 1.6 GB while it is decoded


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what the network takes.

    Attributes:
        image_size: (H, W) of the network's images, pixels.
        in_chans: Channels: 1 is grey, 3 is RGB.
        mean: Of each channel, 0..1.
        std: Likewise.
        crop_pct: Share of the image that is seen, along each side; the rest is cut off.
        fit: How an image of other proportions gets into image_size: its middle alone, padded with the mean, or squashed.
        value_range: Lowest and highest value of images of more than 8 bits; None where their type tells.
    """

    image_size: tuple[int, int]
    in_chans: int
    mean: list[float]
    std: list[float]
    crop_pct: float
    fit: Fit = "crop"
    value_range: list[float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; without a range where there is none, as before there could be one."""
        values = {**asdict(self), "image_size": list(self.image_size)}
        return values if self.value_range is not None else {name: value for name, value in values.items() if name != "value_range"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Reads what ``to_json`` returned."""
        height, width = values["image_size"]
        about = values["in_chans"], list(values["mean"]), list(values["std"]), values["crop_pct"]
        return cls((height, width), *about, fit=values.get("fit") or "crop", value_range=values.get("value_range"))


def read_fold(fold: str | None) -> tuple[int, int] | None:
    """Reads ``data.fold``: which of how many, counted from 1; None where there are no folds.

    Raises:
        InputError: It is none.
    """
    if fold is None:
        return None
    number, count = map(int, found.groups()) if (found := re.fullmatch(r"(\d{1,6})/(\d{1,6})", fold)) else (0, 0)
    if not 1 <= number <= count or count < 2:
        raise InputError(f"data.fold={fold}: give which of how many, such as 2/5: two folds or more, counted from 1.")
    return number, count


@dataclass(frozen=True)
class DataOptions:
    """Labelled images for training, validation and test: the keys ``data`` of a recipe.

    Args:
        dataset: digits, mnist, fashion_mnist, cifar10, cifar100, flowers102, image_folder, csv, images, parquet, huggingface or
            webdataset; or a class of your own, such as mycode.Scans, which --allow-import mycode permits: see cct_lightning.data.readers.Reader.
        root: Folder where the data set lies or is downloaded to; for image_folder the folder of class folders, for csv a file with the columns
            path and label, and split (train, val or test) where you split; for parquet and webdataset (.tar) a folder of such files, or one of
            them, for huggingface what its `datasets` saved to disk; for a class of yours what it takes; for images, which have no labels, a folder
            with images at any depth.
            Of a csv, labels in the place of label holds several names, separated by semicolons, or none (task multilabel); columns of 0 and 1 say the
            same, one for each label; columns of other numbers are for task regression.
        unlabelled: Images that a pre-training takes without their labels beside the training images: rest is those that fraction and per_class leave
            out, else a folder with images at any depth. Only task masked takes them.
        batch_size: Images in a training batch, over all devices.
        image_size: Side of the images given to the network, or height and width, pixels; null: the data set's own.
        image_size_schedule: Smaller images for the first part of the training, which costs less: pairs of the side of square images (of others the
            height, the width follows), pixels, and the share of the run's steps up to which it holds, such as [[16, 0.35], [24, 0.75]]; then, and
            in every evaluation, image_size. null: image_size from the first step on.
        cache: device keeps the images on the GPU, host in memory, none reads files each time; auto: images of the network's size on the GPU up
            to 2 GiB, others in memory up to 4 GiB. A named set whose resized images take more is resized one by one with auto and none.
        val_fraction: Share of each class of the training images that is set aside for validation, where the set brings none.
        test_fraction: Share set aside for the test before that, where the data set is one heap (digits, a folder without splits).
        split_seed: Seed of these splits; apart from the run's, so that all runs are tested on the same images. The column group of a table, where
            there is one, keeps images of a group together.
        fold: 2/5 tests on the second of five folds of all labelled images, of a val folder's, too, but not of a test folder's, and trains on the
            others; the column group of a table, where there is one, keeps images of a group in one fold. `cct finetune DIR --folds 5` trains all.
        fraction: Share of each class of the training images that is used. With several labels an image counts for its rarest, here and in other
            shares of classes; with numbers, for a tenth of the images by the first of them.
        per_class: Number of training images of each class that is used; null: all that fraction leaves.
        in_chans: 1 reads the images as grey, 3 in colour, up to 16 channels of TIFF and .npy (H, W, C) as they are, which then need mean and std:
            `cct check DATA --statistics` measures them; null: the data set's own.
        value_range: Lowest and highest value of images of more than 8 bits, which become 0 and 1; what lies beyond is cut off, and 256 steps are
            kept between them. null: 0 and 65535 of 16 bits without a sign, 0 and 1 of float.
        mean: Mean of each channel, 0..1, that is subtracted; null: the data set's own.
        std: Standard deviation of each channel, 0..1, that is divided by; null: the data set's own.
        sampler: shuffle takes every training image once an epoch; balanced takes every class equally often, so that images of rare classes come
            several times, augmented differently, and of frequent ones only some.
        crop_pct: Share of the image that evaluation sees, along each side; the rest is cut off.
        fit: How an image of other proportions than image_size gets into it: crop fills it and cuts off what stands out of the middle, pad shows the
            whole image and fills up with the mean colour, squash stretches it. Random crops (augment.crop_scale) are taken of the image as it is
            with crop, with its borders with pad, and with squash of the stretched one.
        max_megapixels: Images of more millions of pixels are refused, by their header, before they are decoded.
        augment: Augmentation of the training images.
        num_workers: Processes of each device that read or augment images one by one; null: one for each core but one, shared by the devices. Images
            in memory of the network's size, up to 96 pixels, are cut and augmented a batch at a time and need none.
        seed: Of order and augmentation; null: the run's.
        on_bad_image: stop refuses images that can't be read; before the first epoch all are tried that fit into memory, else what can be done in
            3 s: headers of all, then pixels of some. skip reads all of them before the first epoch and leaves out those that can't be read, up
            to 1 %; no other image is split, numbered or augmented differently.
        targets: Columns of a csv with numbers to be learned; null: label, labels, or all columns but path, split and group.

    Raises:
        InputError: A number is out of range.
    """

    dataset: str = "digits"
    root: str = "~/.cache/cct-lightning"
    unlabelled: str | None = None
    batch_size: int = 128
    image_size: int | tuple[int, int] | None = None
    image_size_schedule: list[tuple[int, float]] | None = None
    cache: Literal["auto", "device", "host", "none"] = "auto"
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    fold: str | None = None
    fraction: float = 1.0
    per_class: int | None = None
    in_chans: int | None = None
    value_range: tuple[float, float] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    crop_pct: float = 1.0
    fit: Fit = "crop"
    max_megapixels: float = MAX_MEGAPIXELS
    augment: AugmentConfig = AugmentConfig()
    num_workers: int | None = None
    seed: int | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        check_range("data.val_fraction", self.val_fraction, 0, 1, exclusive="high")
        check_range("data.test_fraction", self.test_fraction, 0, 1, exclusive="high")
        check_range("data.fraction", self.fraction, 0, 1, exclusive="low")
        check_range("data.crop_pct", self.crop_pct, 0, 1, exclusive="low")
        check_range("data.batch_size", self.batch_size, 1)
        check_range("data.in_chans", 1 if self.in_chans is None else self.in_chans, 1, 16)
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise InputError(f"data.value_range={list(self.value_range)}: give the lowest and the highest value, in this order.")
        check_range("data.max_megapixels", self.max_megapixels, 0, exclusive="low")
        read_fold(self.fold)
        check_range("data.per_class", 1 if self.per_class is None else self.per_class, 1)
        check_range("data.num_workers", self.num_workers or 0, 0)
        if self.image_size is not None:
            object.__setattr__(self, "image_size", as_size("data.image_size", self.image_size))
        before = 0.0
        for pixels, share in self.image_size_schedule or ():
            check_range("data.image_size_schedule: side", pixels, 1)
            check_range("data.image_size_schedule: share", share, before, 1, exclusive="low high")
            before = share
