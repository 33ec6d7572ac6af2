"""Numbers instead of a class: one or several of each image, in their own units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.evaluation.numbers import NumberOutcomes, measure_numbers, number_rows
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.outputs import Output
from cct_lightning.options import keywords_of
from cct_lightning.tasks.labelled import Kept, Labelled
from cct_lightning.tasks.options import RegressionOptions
from cct_lightning.tasks.task import Stage
from cct_lightning.training.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class OwnRegressionOptions(RegressionOptions):
    """The same from Python.

    Args:
        model: A network of your own instead of arch and all that describes it (Python only).
    """

    model: ImageClassifier | None = None


class Regression(Labelled):
    """Trains a network that tells numbers of an image.

    Batches are sequences that begin with images, uint8 or float normalised (B, C, H, W), and targets, float (B, K), in their own units. The network
    learns them less their mean over the training images and over their deviation; checkpoints keep both, and all that is told is in their units.

    Attributes:
        scale: Mean and deviation of each number, float64 (2, K); None until a training begins.
    """

    kind: ClassVar[str | None] = "numbers"
    options: ClassVar[type[TrainingOptions]] = RegressionOptions
    measure: ClassVar[str | None] = "r2"
    measures: ClassVar[tuple[str, ...]] = ("val/r2", "val/loss", "val/mae", "val/rmse")

    @classmethod
    def measured(cls, names: Sequence[str]) -> tuple[str, ...]:
        return cls.measures if len(names) < 2 else ("val/r2", "val/loss", *(f"val/{error}/{name}" for name in names for error in ("mae", "rmse")))

    @keywords_of(OwnRegressionOptions)
    def __init__(self, options: OwnRegressionOptions) -> None:
        """Builds the network, or takes your own, and all that its training needs.

        Raises:
            InputError: An argument that the network can't honour.
        """
        super().__init__(options, options.model)
        self.loss = options.loss
        self.scale: Tensor | None = None
        self._scale = torch.empty(0)  # the same, float32, on the device
        self.val_kept, self.test_kept = Kept(), Kept()

    @property
    def output(self) -> Output:
        if self.scale is None:
            raise InputError("this network has not been trained: nobody knows the units of its numbers.")
        mean, std = self.scale.tolist()
        return Output("numbers", mean=tuple(mean), std=tuple(std))

    def take_up(self, about: Mapping[str, Any]) -> None:
        """Takes up mean and deviation of the numbers."""
        if (found := about.get("output")) is not None:
            output = Output.from_json(found)
            self.scale = torch.tensor([output.mean, output.std], dtype=torch.float64)

    def _standard(self, targets: Tensor) -> Tensor:
        if self.scale is not None and (self._scale.device != targets.device or not len(self._scale)):
            self._scale = self.scale.to(targets.device, torch.float32)
        return (targets - self._scale[0]) / self._scale[1]

    def step_inputs(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Takes the images out of a batch, and the targets as the network learns them."""
        images, targets = super().step_inputs(batch)
        if targets.ndim != 2 or targets.shape[1] != self.model.num_classes:
            raise InputError(f"targets {tuple(targets.shape)} given: numbers are float (B, {self.model.num_classes}).")
        return images, self._standard(targets)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each image, (B,), the mean over the numbers."""
        if self.loss.name == "smooth_l1":
            return F.smooth_l1_loss(logits, targets, beta=self.loss.beta, reduction="none").mean(dim=1)
        return F.mse_loss(logits, targets, reduction="none").mean(dim=1)

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the mean loss of a batch; ``targets`` are standardised."""
        return self._losses(self(images).float(), targets).mean()

    def setup(self, stage: str) -> None:
        """Makes nothing; as every task.

        Raises:
            InputError: The precision would round the numbers that are learned and measured by.
        """
        super().setup(stage)
        if str(self.trainer.precision) in ("bf16-true", "16-true"):
            raise InputError(
                f"trainer.precision={self.trainer.precision} rounds the true numbers, too (2,001 becomes 2,000): take bf16-mixed or 32-true."
            )

    def on_fit_start(self) -> None:
        """Measures mean and deviation of the numbers over the training images, where no checkpoint said them; then as every task.

        Raises:
            InputError: Training images have no numbers.
        """
        if self.scale is None:
            splits = getattr(self.trainer.datamodule, "splits", None)  # type: ignore[attr-defined]
            if splits is None:
                raise InputError("Regression needs a data module with splits, as ImageDataModule has: it learns the units of its numbers from them.")
            split, chosen = splits["train"]
            values = torch.from_numpy(split.values[chosen]).double()
            deviation = values.std(dim=0, correction=0)
            self.scale = torch.stack((values.mean(dim=0), torch.where(deviation > 0, deviation, 1.0)))
        super().on_fit_start()

    def measure_batch(self, stage: Stage, logits: Tensor, targets: Tensor) -> None:
        kept, loss = (self.val_kept, self.val_loss) if stage == "val" else (self.test_kept, self.test_loss)
        kept.update(self.output.read(logits), targets)
        loss.update(self._losses(logits, self._standard(targets)))

    def take_measures(self, stage: Stage) -> Mapping[str, Tensor]:
        kept, loss = (self.val_kept, self.val_loss) if stage == "val" else (self.test_kept, self.test_loss)
        predicted, targets = kept.compute()
        found = NumberOutcomes(torch.arange(len(targets)), targets.cpu(), predicted.cpu())
        names = self.class_names or [str(number) for number in range(targets.shape[1])]
        measures = measure_numbers(number_rows(found, names))
        told = {f"{stage}/{name}": torch.tensor(value, device=self.device) for name, value in measures.items()} | {f"{stage}/loss": loss.compute()}
        kept.reset()
        loss.reset()
        return told

    def outcomes_of(self, indices: Tensor, targets: Tensor, logits: Tensor) -> NumberOutcomes:
        return NumberOutcomes(indices, targets, self.output.read(logits))
