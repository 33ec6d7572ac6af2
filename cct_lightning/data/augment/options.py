"""Augmentation: of one sample (``sample``, on numpy images), of every sample of a batch (``batched``, on tensors, with the pixel arithmetic in
``operations``), and of a batch as a whole (``batch``, on the device)."""

from dataclasses import dataclass
from typing import Literal

from cct_lightning.errors import InputError, check_range


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the training images, in the order in which it is applied.

    Args:
        crop_scale: Area of the random crop, as (least, most) share of the image's; it is resized to image_size. null: no crop.
        shift: Random shift by up to this many pixels in each direction; what comes in is black.
        flip: Probability of a horizontal flip.
        flip_alternate: Each image is flipped in every other epoch instead, half of them in the first, which shows both sides equally often:
            "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498).
        policy: randaugment, trivialaugment or none.
        ops: Operations that RandAugment applies to an image, each with probability 0.5.
        magnitude: Strength of RandAugment's operations, 0 to 10.
        magnitude_std: Standard deviation of the strength, drawn for each operation.
        cutout: Side of a square of mean colour put at a random place, pixels; cut off at the border; 0: none.
        erase: Probability of replacing a random rectangle (2 to 33 % of the area) by noise.
        mixup: Both parameters of the beta distribution of MixUp's weight; 0: no MixUp.
        cutmix: The same for CutMix; 0: no CutMix. Where both are on, each batch draws one of them with equal chances.
        mix_off_epoch: Epoch from which MixUp and CutMix are off; 0: never.
    """

    crop_scale: tuple[float, float] | None = None
    shift: int = 0
    flip: float = 0.0
    flip_alternate: bool = False
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    cutout: int = 0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_off_epoch: int = 0

    @property
    def is_random(self) -> bool:
        """Whether an image may look different from one epoch to the next."""
        return bool(self.changes_images or self.mixup or self.cutmix)

    @property
    def changes_images(self) -> bool:
        """Whether something is drawn for each image, before any are mixed."""
        return bool(self.crop_scale or self.shift or self.flip or self.flip_alternate or self.policy != "none" or self.cutout or self.erase)

    def check_channels(self, in_chans: int) -> None:
        """Refuses a policy for other images than grey ones and those in colour.

        Raises:
            InputError: Names the keys to type.
        """
        if self.policy != "none" and in_chans not in (1, 3):
            raise InputError(
                f"augment.policy={self.policy} changes colours, which images of {in_chans} channels have not: --data.augment.policy none\n"
                "  leaves it out; crops, shifts, flips, cutout, erasing, mixup and cutmix hold for any number of channels."
            )

    def __post_init__(self) -> None:
        if self.crop_scale is not None:
            check_range("augment.crop_scale[0]", self.crop_scale[0], 0, self.crop_scale[1], exclusive="low")
            check_range("augment.crop_scale[1]", self.crop_scale[1], 0, 1)
        for name in ("flip", "erase"):
            check_range(f"augment.{name}", getattr(self, name), 0, 1)
        if self.flip_alternate and self.flip not in (0, 0.5):
            raise InputError(f"augment.flip={self.flip} and augment.flip_alternate, which flips half of the images: leave one of them out.")
        for name in ("shift", "ops", "magnitude_std", "cutout", "mixup", "cutmix", "mix_off_epoch"):
            check_range(f"augment.{name}", getattr(self, name), 0)
        check_range("augment.magnitude", self.magnitude, 0, 10)
