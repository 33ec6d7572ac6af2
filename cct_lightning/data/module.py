"""The LightningDataModule: which images are for what, and how they reach the device."""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from cct_lightning.data.augment.mixing import draw_mix, mix_batch
from cct_lightning.data.augment.per_batch import BatchAugment
from cct_lightning.data.augment.per_image import SampleAugment
from cct_lightning.data.bad_images import Bad, Readable, numbers_of, used_images
from cct_lightning.data.division import Splits, count_classes, divide, hide_labels, subset
from cct_lightning.data.files import Array
from cct_lightning.data.fingerprint import Fingerprint, Past, Unseen
from cct_lightning.data.folders import UNLABELLED, Split, no_test_images
from cct_lightning.data.loaders import Batch, BatchDataset, KeyedSampler, MemoryLoader, default_workers, make_loader
from cct_lightning.data.memory import Cache, decode_splits, to_tensors, write_features
from cct_lightning.data.options import DataOptions, Preprocessing
from cct_lightning.data.preparation import Fitting, normalize, per_channel
from cct_lightning.data.proportions import what_is_cut_off
from cct_lightning.data.source import Read, Source
from cct_lightning.errors import InputError, check_range
from cct_lightning.options import as_size, keywords_of
from cct_lightning.randomness import generator

BATCHED_PIXELS = 96  # longest side up to which images are augmented a batch at a time; above, albumentations is as fast and needs less memory
Loader = DataLoader[Batch] | MemoryLoader
Road = Literal["batch", "image"]  # how training images are augmented: a batch at a time or one by one, each with draws of its own


class ImageDataModule(L.LightningDataModule):
    """Images for training, validation and test.

    Batches are ``Batch``: images float, normalised, on the device; targets class indices (B,), ``UNLABELLED`` of images without labels, while
    MixUp or CutMix is on probabilities (B, K); with several labels or numbers always float (B, K), numbers in their own units. The validation
    images are never the test's; where a data set brings no validation split, a stratified part of the training images is set aside.

    Raises:
        InputError: An unknown data set, a missing folder, a share out of range, images that can't be read.
    """

    @keywords_of(DataOptions)
    def __init__(self, options: DataOptions) -> None:
        """Looks at the folder and the names of the classes; images are read by ``setup``."""
        super().__init__()
        self.source = source = Source(options)
        self.dataset, self.root, self.about, self.folder = source.dataset, source.root, source.about, source.folder
        dataset, about = source.dataset, source.about
        size = options.image_size or about.image_size
        if size is None:
            raise InputError(f"data.image_size is not given, and the images of {dataset} differ in size: give the side in pixels, such as 224.")
        self.image_size = height, width = as_size("data.image_size", size)
        # (H, W) of the first part of the training, and the share of its steps up to which each holds
        self.first_sizes = [((pixels, round(pixels * width / height)), share) for pixels, share in options.image_size_schedule or ()]
        options.augment.check_channels(options.in_chans or len(about.mean))
        check_range("data.augment.shift", options.augment.shift, 0, min(self.image_size), exclusive="high")
        self.in_chans = options.in_chans or len(about.mean)
        self.mean = per_channel("mean", options.mean or about.mean, self.in_chans)
        self.std = per_channel("std", options.std or about.std, self.in_chans)
        self.class_names, self.kind = source.class_names, source.kind
        self.num_classes = len(self.class_names)
        self.batch_size, self.num_workers, self.cache = options.batch_size, options.num_workers, options.cache
        self.val_fraction, self.test_fraction, self.split_seed = options.val_fraction, options.test_fraction, options.split_seed
        self.fraction, self.per_class, self.sampler = options.fraction, options.per_class, options.sampler
        self.crop_pct, self.augment, self.max_megapixels = options.crop_pct, options.augment, options.max_megapixels
        self.on_bad_image, self.fitting, self.value_range = options.on_bad_image, Fitting.of(options.fit, self.mean), options.value_range
        self.seed = torch.initial_seed() if options.seed is None else options.seed
        self.splits: Splits = {}
        self._encode: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._encoded: dict[int, tuple[torch.Tensor, Array]] = {}  # features of a split and which of them are computed, by its id
        self._position = (0, 0)  # epoch and batch where the next training begins
        self._road: Road | None = None  # that the run has taken
        self.past: Past | None = None  # of a run that goes on
        self.unseen: Unseen | None = None  # of a checkpoint that is measured
        self.fingerprint: Fingerprint | None = None  # of what a training reads
        self.bad: list[Bad] = []  # images that are left out since they can't be read
        self.accepted: list[str] = []  # what became of the images while the run was stopped, where that was accepted
        self._tensors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # images and targets of a split in memory, by its id

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images: the set's own, or set aside."""
        return self.val_fraction > 0 or self.source.has_own("val")

    @property
    def has_test(self) -> bool:
        """Whether there are test images: the set's own, or set aside."""
        return self.source.has_own("test") or (self.test_fraction > 0 and not self.source.has_own("val") and self.num_classes > 0)

    @property
    def has_unlabelled(self) -> bool:
        """Whether training images have no labels: ``data.unlabelled``, or a data set without any."""
        return self.source.has_unlabelled

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become what the network takes, as evaluation sees them."""
        limits = None if self.value_range is None else list(self.value_range)
        return Preprocessing(self.image_size, self.in_chans, self.mean, self.std, self.crop_pct, self.fitting.mode, limits)

    def prepare_data(self) -> None:
        """Downloads the data set where it is missing; on one process of each machine."""
        self.source.download()

    def setup(self, stage: str) -> None:
        """Reads the images and divides them."""
        if self.splits:
            return
        if self.trainer is not None and self.trainer.world_size > 1:  # a script that seeds nothing begins with another seed in each process
            self.seed = self.trainer.strategy.broadcast(self.seed)
        read = self.source.read()
        shares = self.val_fraction, self.test_fraction, self.split_seed, self.fraction, self.per_class
        self.splits = divide(read, *shares, str(self.root), self.source.fold, self.class_names if self.kind == "class" else ())
        if self.source.hides_rest:
            read, self.splits = hide_labels(read, self.splits)
        if stage == "fit":
            self._recognise(read)
            if self.fitting.mode == "crop" and (told := what_is_cut_off(*self.splits["train"], self.image_size, self.in_chans)):
                rank_zero_info(told)
        elif self.unseen is not None:
            self.splits = self.unseen.choose(self.splits, lambda: Fingerprint.take(read, self.class_names, self.source.base, self.source.heap))
        if self.has_unlabelled:
            rank_zero_info(f"training on {len(self.splits['train'][1]):,} images, {self.num_labelled('train'):,} of them with labels")
        for name, (split, chosen) in self.splits.items():
            if absent := [number for number, count in enumerate(count_classes(split, chosen, self.num_classes)) if not count]:
                which = ", ".join(self.class_names[label] for label in absent[:5])
                rank_zero_info(f"{len(absent)} of {self.num_classes} classes have no {name} image: {which}{', ...' if len(absent) > 5 else ''}")
        self._decode(read, stage)

    def _keep(self, cache: Cache, needed: Collection[str] | None = None) -> None:
        splits = {name: part for name, part in self.splits.items() if needed is None or name in needed}
        self.splits |= decode_splits(splits, self.image_size, self.in_chans, cache, self.max_megapixels, self.fitting, self.value_range)

    def _recognise(self, read: Read) -> None:
        """Takes the fingerprint of the images, and compares it with that of the run that goes on."""
        self.fingerprint = Fingerprint.take(read, self.class_names, self.source.base, self.source.heap)
        if self.past is not None:
            told = self.past.compare(self.fingerprint)
            self.accepted = [*self.past.accepted, *([told] if told else [])]

    def _decode(self, read: Read, stage: str) -> None:
        """Leaves out what can't be read where that is asked for, and decodes what fits into memory; of the rest it tries what time allows."""
        shown = self.splits if stage == "fit" or self.unseen is None else self.unseen.splits
        needed = {name: part for name, part in self.splits.items() if name in shown or isinstance(part[0].images, np.ndarray)}
        used = used_images(read, self.splits if self.on_bad_image == "skip" else needed)  # a share of all may be left out
        images = Readable(used, self.in_chans, self.max_megapixels, self.source.place, self.value_range)
        if self.on_bad_image == "skip":
            past, now = self.past, self.fingerprint
            self.splits, self.bad = images.leave_out(self.splits, past.left_out if past and now and past.digest == now.digest else None)
        with images.named_together():
            self._keep(self.cache, needed)
        if stage == "fit" and self.on_bad_image == "stop":
            images.look_ahead(self.splits)

    def about_images(self) -> dict[str, Any]:
        """Returns what a run that is stopped must know of its images to go on, in plain values."""
        assert self.fingerprint is not None
        return {"digest": self.fingerprint.digest, "accepted": self.accepted, "left_out": numbers_of(self.bad)}

    @property
    def class_counts(self) -> list[int]:
        """Returns the number of training images of each class, or of each label; those without are left out."""
        return count_classes(*self.splits["train"], self.num_classes)

    def sample_images(self, pixels: int) -> torch.Tensor:
        """Returns training images that follow from the run's seed, without augmentation, uint8 (n, C, H, W): this many pixels, 64 images or more."""
        return self.take("train", max(64, pixels // math.prod(self.image_size)), self.seed)[0]

    def take(self, stage: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns images of a split that follow from the seed, without augmentation, uint8 (n, C, H, W), and their targets, on the host."""
        split, chosen = self.splits[stage]
        drawn = chosen[torch.randperm(len(chosen), generator=generator(seed, "sample"))[:count].numpy()]
        batches = list(self._images(split, KeyedSampler(np.sort(drawn), 128, self.seed, train=False), self._device))
        return torch.cat([batch.images.cpu() for batch in batches]), torch.cat([batch.targets.cpu() for batch in batches])

    def _labelled(self, stage: str) -> Array:
        split, chosen = self.splits[stage]
        known: Array = chosen[split.targets[chosen] != UNLABELLED]
        return known

    def num_labelled(self, stage: str) -> int:
        """Returns how many images of a stage have labels."""
        return len(self._labelled(stage))

    def labelled_images(self, stage: str, most: int) -> Loader:
        """Returns this device's batches of images of a stage that have labels, uint8, as evaluation sees them, and always the same ones.

        Args:
            stage: train, val or test.
            most: Images over all devices, about: where there are more, of each class as many.
        """
        split, known = self.splits[stage][0], self._labelled(stage)
        if len(known) > most:
            known = subset(split.targets, known, 1.0, max(most // self.num_classes, 1), self.split_seed)
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return self._images(split, KeyedSampler(known, self.batch_size, self.seed, False, rank, world), self._device)

    def use_features(self, encode: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        """Puts what a frozen encoder makes of the images in their place: each is computed once, when its split is first asked for.

        Args:
            encode: Maps images, float normalised (B, C, H, W) on the device, to features (B, ...); None: the images themselves again.
        """
        self._encode = encode

    def _features(self, stage: str, device: torch.device) -> torch.Tensor | None:
        """Computes the features of a stage's images, without augmentation, as rows of one tensor for all stages of a data set.

        Returns:
            Features (n, ...), on the host; None where they take more than ``HOST_CACHE_BYTES``.
        """
        split, chosen = self.splits[stage]
        whole, done = self._encoded.get(id(split), (None, np.zeros(len(split), bool)))
        missing = chosen[~done[chosen]]
        for batch in self._images(split, KeyedSampler(missing, self.batch_size, self.seed, train=False), device) if len(missing) else ():
            assert self._encode is not None
            features = self._encode(normalize(batch.images.to(device), self.mean, self.std)).float().cpu()
            if (whole := write_features(whole, len(split), batch.indices, features)) is None:
                return None
        done[chosen] = True
        assert whole is not None
        self._encoded[id(split)] = whole, done
        return whole

    def _loader(self, stage: str, train: bool = False) -> Loader:
        split, chosen = self.splits[stage]
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        batch_size = self.batch_size
        mixes = train and (self.augment.mixup or self.augment.cutmix)
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise InputError("trainer.overfit_batches would replace the order of the images: use data.per_class and trainer.limit_train_batches.")
        if mixes and self.has_unlabelled:
            raise InputError("data.augment.mixup and cutmix mix labels, and training images have none: leave both out.")
        if train:
            if batch_size % (2 * world if mixes else world):
                rule = "an even number for each device, because neighbours are mixed" if mixes else "a multiple of it"
                raise InputError(f"data.batch_size={batch_size} is over all devices, and there are {world}: it must be {rule}.")
            if len(chosen) < batch_size:
                batch_size = max(len(chosen) // (2 * world) * 2 * world, world)
                rank_zero_info(f"data.batch_size={self.batch_size} is more than the {len(chosen)} training images: using {batch_size}.")
        if len(chosen) < world:
            raise InputError(f"The {stage} split has {len(chosen)} image(s), fewer than the {world} devices.")
        balanced = split.targets if train and self.sampler == "balanced" else None
        sampler = KeyedSampler(chosen, batch_size, self.seed, train, rank, world, balanced)
        if train:
            (sampler.epoch, sampler.skip), self._position = self._position, (0, 0)
        if self._encode is not None and (features := self._features(stage, self._device)) is not None:
            return MemoryLoader(features, torch.from_numpy(split.learned()), sampler, self._device)
        return self._images(split, sampler, self._device, train)

    @property
    def _device(self) -> torch.device:
        """Where batches go, and images that are cached on the device: whoever asks for the first of them decides for all."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _images(self, split: Split, sampler: KeyedSampler, device: torch.device, train: bool = False) -> Loader:
        """Makes the loader of a split's images: cut out of memory where they lie there in the network's size, else read one by one."""
        train = train and self.augment.is_random  # without augmentation training sees what evaluation does, crop_pct and all
        about = (self.augment, self.image_size, tuple(self.mean), tuple(self.std), self.seed)
        batched = isinstance(split.images, np.ndarray) and max(self.image_size) <= BATCHED_PIXELS and (train or self.crop_pct == 1.0)
        if self._goes_by_batches(split, batched) if train and self.augment.changes_images else batched:
            images, targets = self._in_memory(split, device)
            return MemoryLoader(images, targets, sampler, device, BatchAugment(*about) if train else None)
        if self.cache == "device":
            raise InputError(
                f"data.cache=device needs images of the network's size, {self.image_size[0]}x{self.image_size[1]}, up to {BATCHED_PIXELS} pixels, "
                f"and crop_pct=1 (it is {self.crop_pct:g}): leave cache out, or resize the images of {self.root}."
            )
        augment = SampleAugment(*about, self.fitting) if train else None
        place, fitting = self.source.place, self.fitting
        dataset = BatchDataset(split, self.image_size, self.in_chans, augment, self.crop_pct, self.max_megapixels, place, fitting, self.value_range)
        workers = default_workers(self.trainer.num_devices if self.trainer else None) if self.num_workers is None else self.num_workers
        return make_loader(dataset, sampler, workers, pin_memory=device.type == "cuda")

    def _goes_by_batches(self, split: Split, batched: bool) -> bool:
        """Tells how training images are augmented: the way this run began, wherever they are kept now; at its begin by batches where that can be.

        Raises:
            InputError: With this ``cache`` they can't be augmented that way.
        """
        self._road = self._road or ("batch" if batched else "image")
        by_batches = self._road == "batch"
        if not isinstance(split.images, np.ndarray) if by_batches else batched and self.cache == "device":
            ways = ("a batch at a time", "one by one")
            raise InputError(
                f"data.cache={self.cache} has images augmented {ways[by_batches]}, and this run augments them {ways[not by_batches]}, with other "
                f"draws: leave data.cache out, or give auto, host or {'device' if by_batches else 'none'}."
            )
        return by_batches

    def _in_memory(self, split: Split, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns images and targets as tensors, once for all loaders, on the device where ``cache`` says so."""
        if id(split) not in self._tensors:
            assert isinstance(split.images, np.ndarray)
            self._tensors[id(split)] = to_tensors(split.images, split.learned(), self.cache, device)
        return self._tensors[id(split)]

    def state_dict(self) -> dict[str, Any]:
        """Says where the training stands: the epoch, how many of its batches are done, and how its images are augmented."""
        loop = self.trainer.fit_loop  # type: ignore[union-attr]
        epoch: Any = loop.epoch_progress.current
        batch: Any = loop.epoch_loop.batch_progress.current
        return {"epoch": epoch.processed, "batches": batch.processed if epoch.started > epoch.processed else 0, "road": self._road}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the next training begin there. Lightning asks for its batches, and workers fetch them, before it knows the epoch itself."""
        if self.trainer.state.fn == TrainerFn.FITTING:  # type: ignore[union-attr]
            self._position = state_dict["epoch"], state_dict["batches"]
            self._road = state_dict.get("road")
            if self._road == "batch" and self.cache == "auto" and not isinstance(self.splits["train"][0].images, np.ndarray):
                self._keep("host")  # a version that kept more in memory began it

    def train_dataloader(self) -> Loader:
        return self._loader("train", train=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        return self._loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> Loader:
        if "test" not in self.splits:
            raise no_test_images(self.root, self.source.has_own("val"))
        return self._loader("test")

    def _size_at(self, step: int) -> tuple[int, int]:
        """Returns (H, W) of the training images at a step."""
        if not self.first_sizes:
            return self.image_size
        assert self.trainer is not None
        share = step / self.trainer.estimated_stepping_batches
        return next((size for size, until in self.first_sizes if share < until), self.image_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalises on the device; while training, makes images smaller where the schedule says so, and mixes neighbours."""
        if batch.images.dtype != torch.uint8:
            return batch  # features
        images, targets = normalize(batch.images, self.mean, self.std), batch.targets
        if self.trainer is not None and self.trainer.training:
            if (size := self._size_at(self.trainer.global_step)) != self.image_size:
                images = F.interpolate(images, size, mode="bilinear", antialias=True)
            drawn = draw_mix(self.augment, self.seed, batch.epoch, batch.number)
            if drawn is not None:
                images, targets = mix_batch(images, targets, self.num_classes, drawn)
        return batch._replace(images=images, targets=targets)
