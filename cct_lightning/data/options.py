"""What describes images, in plain values: importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what the network takes.

    Attributes:
        image_size: (H, W) of the network's images, pixels.
        in_chans: Channels: 1 is grey, 3 is RGB.
        mean: Of each channel, 0..1.
        std: Likewise.
        crop_pct: Share of the image that is seen, along each side; the rest is cut off.
    """

    image_size: tuple[int, int]
    in_chans: int
    mean: list[float]
    std: list[float]
    crop_pct: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Reads what ``to_json`` returned."""
        height, width = values["image_size"]
        return cls((height, width), values["in_chans"], list(values["mean"]), list(values["std"]), values["crop_pct"])
