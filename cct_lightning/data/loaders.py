"""Batches by index: a sampler that says which images make up a batch, and what cuts them out of memory or reads them from files."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cct_lightning.data.arrays import Range
from cct_lightning.data.augment.per_batch import BatchAugment
from cct_lightning.data.augment.per_image import SampleAugment
from cct_lightning.data.bad_images import Readable
from cct_lightning.data.files import Array, decode
from cct_lightning.data.folders import Split
from cct_lightning.data.options import MAX_MEGAPIXELS
from cct_lightning.data.preparation import CROP, Fitting, fit
from cct_lightning.errors import InputError
from cct_lightning.randomness import generator


class BatchKey(NamedTuple):
    """Which images make up a batch on one device: the number counts the global batches of an epoch, indices are the data set's own."""

    epoch: int
    number: int
    indices: list[int]


class Batch(NamedTuple):
    """One batch on one device: images (B, C, H, W), uint8 until they are on it; targets (B,) or (B, K); indices (B,) in the data set."""

    images: Tensor
    targets: Tensor
    indices: Tensor
    epoch: int
    number: int


class KeyedSampler(DistributedSampler[BatchKey]):
    """Yields the batches of one device: its consecutive share of every global batch. The order follows from (seed, epoch) alone.

    Training takes full batches, so fewer than batch_size images are left out of an epoch, others in each. Evaluation takes every image
    once, in order, in batches of nearly equal size, so that all devices make the same number of steps. It is a ``DistributedSampler``
    only so that Lightning, which would put its own in its place, leaves it alone.

    Args:
        indices: The images, by their index in the data set.
        batch_size: Images in a global batch.
        seed: The run's.
        train: Shuffle, and drop the last partial batch.
        rank: Number of this device.
        world_size: Number of devices.
        targets: Of the whole data set, (n,), where the classes shall be balanced: an epoch then takes every class equally often. Images of
            rare classes come again under their index + n, index + 2 n, ..., so that they are augmented anew.
    """

    def __init__(
        self, indices: Array, batch_size: int, seed: int, train: bool, rank: int = 0, world_size: int = 1, targets: Array | None = None
    ) -> None:
        self.indices, self.batch_size, self.train, self.targets = indices, batch_size, train, targets
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.skip = 0  # batches of this epoch that are done, in a run that goes on inside it

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.skip = epoch, 0

    def __len__(self) -> int:
        if self.train:
            return len(self.indices) // self.batch_size
        # Of nearly equal batches, none so small that a device would get nothing of it.
        return min(-(-len(self.indices) // self.batch_size), len(self.indices) // self.world_size)

    def __iter__(self) -> Iterator[BatchKey]:  # type: ignore[override]
        order = self.indices if self.targets is None else self._balance(self.targets)
        if self.train:
            order = order[torch.randperm(len(order), generator=generator(self.seed, "order", self.epoch)).numpy()]
            batches = np.split(order[: len(self) * self.batch_size], len(self))
        else:
            batches = np.array_split(order, len(self))
        done, self.skip = self.skip, 0
        for number, batch in enumerate(batches[done:], done):
            share = np.array_split(batch, self.world_size)[self.rank]
            yield BatchKey(self.epoch, number, share.tolist())

    def _balance(self, targets: Array) -> Array:
        """Returns as many images as there are, the same number of each class but for the rest of the division."""
        chosen = targets[self.indices]
        labels = np.unique(chosen)
        each = -(-len(self.indices) // len(labels))
        taken = []
        for label in labels:
            members = self.indices[chosen == label]
            laps = range(-(-each // len(members)))
            orders = [torch.randperm(len(members), generator=generator(self.seed, "balanced", self.epoch, int(label), lap)).numpy() for lap in laps]
            taken.append(np.concatenate([members[order] + lap * len(targets) for lap, order in zip(laps, orders, strict=True)])[:each])
        return np.concatenate(taken)


CHUNK = 1024  # images that are cut out and augmented together, about: few large operations instead of many small ones


class MemoryLoader:
    """Cuts batches out of images in memory and augments them there, some batches at a time; nothing is copied but what is needed.

    Args:
        images: uint8 (n, H, W, C), in the size of the network, or features (n, ...) of them, on the host or on the device.
        targets: Classes (n,) or values (n, K), likewise.
        sampler: Says which images make up a batch.
        device: Where the batches go; augmentation is computed there.
        augment: For training.
    """

    batch_sampler = None  # Lightning 2.6 asks for it where there is a sampler

    def __init__(self, images: Tensor, targets: Tensor, sampler: KeyedSampler, device: torch.device, augment: BatchAugment | None = None) -> None:
        self.images, self.targets, self.sampler, self.device, self.augment = images, targets, sampler, device, augment

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        keys = iter(self.sampler)
        while first := list(islice(keys, 1)):
            group = [*first, *islice(keys, max(CHUNK // max(len(first[0].indices), 1) - 1, 0))]
            indices = torch.tensor([index for key in group for index in key.indices])
            rows = indices % len(self.images)
            images, targets = self._cut(self.images, rows), self._cut(self.targets, rows)
            if images.ndim == 4:
                images = images.permute(0, 3, 1, 2)
            if self.augment is not None:
                images = self.augment(images, first[0].epoch, indices)
            start, indices = 0, self._move(rows)
            for key in group:
                part = slice(start, start := start + len(key.indices))
                yield Batch(images[part], targets[part], indices[part], key.epoch, key.number)

    def _cut(self, values: Tensor, indices: Tensor) -> Tensor:
        """Takes rows out of a tensor, wherever it lies, onto the device."""
        return self._move(values.index_select(0, indices.to(values.device, non_blocking=True)))

    def _move(self, values: Tensor) -> Tensor:
        if values.device == self.device:
            return values
        return (values.pin_memory() if self.device.type == "cuda" else values).to(self.device, non_blocking=True)


class BatchDataset(Dataset[Batch]):
    """Reads batches of a split, image by image.

    Args:
        split: Arrays or files.
        image_size: (H, W) of the batches, pixels.
        in_chans: C.
        augment: For training; None resizes and takes the centre.
        crop_pct: Share of the image that the centre shows, for evaluation.
        max_megapixels: Larger files are refused.
        place: What ``cct check`` takes for them.
        fitting: How images of other proportions get into ``image_size``, for evaluation.
        value_range: Lowest and highest value of images of more than 8 bits.

    Raises:
        InputError: Images of a batch can't be read; names all of them.
    """

    def __init__(
        self,
        split: Split,
        image_size: tuple[int, int],
        in_chans: int,
        augment: SampleAugment | None = None,
        crop_pct: float = 1.0,
        max_megapixels: float = MAX_MEGAPIXELS,
        place: str = "DIR",
        fitting: Fitting = CROP,
        value_range: Range | None = None,
    ) -> None:
        self.split, self.image_size, self.in_chans, self.augment, self.crop_pct = split, image_size, in_chans, augment, crop_pct
        self.max_megapixels, self.place, self.fitting, self.value_range = max_megapixels, place, fitting, value_range

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, batch: BatchKey) -> Batch:
        images = np.empty((len(batch.indices), *self.image_size, self.in_chans), np.uint8)
        for row, index in enumerate(batch.indices):
            with self._named_together(batch):
                image = decode(self.split.images[index % len(self.split)], self.in_chans, self.max_megapixels, self.value_range)
            images[row] = self.augment(image, batch.epoch, index) if self.augment else fit(image, self.image_size, self.crop_pct, self.fitting)
        # (B, H, W, C) in memory is channels_last for torch, the layout convolutions like best
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        rows = np.array(batch.indices, np.int64) % len(self.split)
        return Batch(pixels, torch.from_numpy(self.split.learned(rows)), torch.from_numpy(rows), batch.epoch, batch.number)

    @contextmanager
    def _named_together(self, batch: BatchKey) -> Iterator[None]:
        """Has an error over one image name all of the batch that can't be read."""
        try:
            yield
        except InputError:
            rows = np.unique(np.array(batch.indices, np.int64) % len(self.split))
            with Readable({"": (self.split, rows)}, self.in_chans, self.max_megapixels, self.place, self.value_range).named_together():
                raise


def default_workers(num_devices: int | None) -> int:
    """Returns how many processes of each device read images: one for each core but one, shared by the devices of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former only on Linux
    # Ranks of one machine share its cores, unless SLURM has bound each to its own.
    if num_devices is not None and str(cores) != os.environ.get("SLURM_CPUS_PER_TASK"):
        cores //= max(num_devices, 1)
    return min(max(cores - 1, 1), 8)


def make_loader(dataset: BatchDataset, sampler: KeyedSampler, num_workers: int, pin_memory: bool) -> DataLoader[Batch]:
    """Builds the DataLoader: the sampler names whole batches, so nothing is collated."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # Python 3.14's forkserver would copy all images that are in memory into every process.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_run,
    )


def _leave_signals_to_the_run(_: int) -> None:
    """Has a worker outlive the signal that a terminal or a cluster sends to all processes: the run ends at its next step, not before.

    A SIGTERM of the run's own, which ends its workers, is obeyed; systems that don't tell who sent it (macOS, Windows) keep the default.
    """
    for name in {"SIGINT", "SIGHUP"} & set(dir(signal)):  # Windows has one of them
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch
