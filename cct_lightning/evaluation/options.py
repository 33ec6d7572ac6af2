"""How often a network sees an image that it shall name, told where no torch is needed."""

from pathlib import Path
from typing import Literal, NamedTuple

from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.networks.options import RejectBy

Tta = Literal["none", "mirror", "shift"]
PASSES: dict[Tta, int] = {"none": 1, "mirror": 2, "shift": 6}  # forward passes an image


class Rejects(NamedTuple):
    """A threshold that is asked for.

    Attributes:
        share: Of the right answers that it keeps.
        by: What it is one of.
        outliers: A folder of images of none of the classes, to measure it on; None: there are none.
    """

    share: float
    by: RejectBy
    outliers: Path | None = None


def cost(tta: Tta) -> str:
    """Says what was seen of each image and what it cost, as it follows a figure; empty where that is the image alone."""
    return "" if tta == "none" else f", tta {tta}: {PASSES[tta]} forward passes an image"


def check_tta(tta: str) -> None:
    """Refuses a name that is none.

    Raises:
        InputError: Says which there are.
    """
    if tta not in PASSES:
        raise InputError(f"tta={tta} is unknown.{did_you_mean(tta, PASSES)}")
