"""What the logits of a network mean. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Output:
    """What logits (B, K) become.

    Attributes:
        kind: class: probabilities that sum to 1; labels: a probability each; numbers: values in their own units.
        thresholds: From which probability on an image has a label, of each label.
        mean: Of each number, which logits count from.
        std: Of each number, which logits count in.
    """

    kind: Literal["class", "labels", "numbers"] = "class"
    thresholds: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def read(self, logits: Tensor) -> Tensor:
        """Returns probabilities, or values, (B, K)."""
        if self.kind == "class":
            return logits.softmax(dim=1)
        if self.kind == "labels":
            return logits.sigmoid()
        return logits * logits.new_tensor(self.std) + logits.new_tensor(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Output:
        """Reads what ``to_json`` returned; None is of a file from before there was anything but classes."""
        if values is None:
            return cls()
        return cls(values["kind"], *(tuple(map(float, values[name])) for name in ("thresholds", "mean", "std")))
