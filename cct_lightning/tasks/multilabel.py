"""Several labels an image, or none: a probability and a threshold for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.evaluation.labels import FEWEST, LabelOutcomes, choose_thresholds, label_rows, measure_labels
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.outputs import Output
from cct_lightning.options import keywords_of
from cct_lightning.tasks.labelled import Kept, Labelled, counted
from cct_lightning.tasks.options import MultilabelOptions
from cct_lightning.tasks.task import Stage
from cct_lightning.training.losses import asymmetric_loss, binary_cross_entropy, positive_weights, soften
from cct_lightning.training.options import TrainingOptions
from cct_lightning.wording import some


@dataclass(frozen=True, kw_only=True)
class OwnMultilabelOptions(MultilabelOptions):
    """The same from Python.

    Args:
        model: A network of your own instead of arch and all that describes it (Python only).
    """

    model: ImageClassifier | None = None


class Multilabel(Labelled):
    """Trains a network that tells which of several labels an image has.

    Batches are sequences that begin with images, uint8 or float normalised (B, C, H, W), and targets, for each label whether it is there, float
    0..1 (B, K). Each validation of a training chooses anew from which probability on a label is told, so that its F1 is highest; checkpoints keep
    that, and tests and predictions go by it.

    Attributes:
        thresholds: Of each label; a half where no validation has chosen one.
    """

    kind: ClassVar[str | None] = "labels"
    options: ClassVar[type[TrainingOptions]] = MultilabelOptions
    measure: ClassVar[str | None] = "mAP"
    measures: ClassVar[tuple[str, ...]] = ("val/mAP", "val/loss", "val/f1", "val/f1_micro", "val/exact")

    @keywords_of(OwnMultilabelOptions)
    def __init__(self, options: OwnMultilabelOptions) -> None:
        """Builds the network, or takes your own, and all that its training needs.

        Raises:
            InputError: An argument that the network can't honour.
        """
        super().__init__(options, options.model)
        self.label_smoothing, self.loss = options.label_smoothing, options.loss
        self.thresholds = [0.5] * self.model.num_classes
        self._few: list[int] = []  # labels of too few validation images to choose a threshold
        self._weights: Tensor | None = None
        self.val_kept, self.test_kept = Kept(), Kept()

    @property
    def output(self) -> Output:
        return Output("labels", thresholds=tuple(self.thresholds))

    def take_up(self, about: Mapping[str, Any]) -> None:
        """Takes up the thresholds."""
        if (found := about.get("output")) is not None:
            self.thresholds = list(Output.from_json(found).thresholds)

    def step_inputs(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        images, targets = super().step_inputs(batch)
        if targets.ndim != 2 or targets.shape[1] != self.model.num_classes:
            raise InputError(f"targets {tuple(targets.shape)} given: several labels an image are float 0..1 (B, {self.model.num_classes}).")
        return images, targets

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the mean loss over images and labels, smoothed and weighed as asked."""
        logits, targets, loss = self(images), soften(targets, self.label_smoothing), self.loss
        if loss.name == "asymmetric":
            return asymmetric_loss(logits, targets, loss.gamma_neg, loss.gamma_pos, loss.clip, self._weights)
        return binary_cross_entropy(logits, targets, self._weights)

    def on_fit_start(self) -> None:
        """Counts the labels where the loss is balanced, then as every task.

        Raises:
            InputError: Training images have no labels, or are drawn by them already where the loss is balanced.
        """
        if self.loss.class_weights == "balanced":
            data = counted(self.trainer)
            self._weights = positive_weights(data.class_counts, len(data.splits["train"][1])).to(self.device)
        super().on_fit_start()

    def on_fit_end(self) -> None:
        """Says which thresholds could not be chosen."""
        super().on_fit_end()
        if not self.trainer.enable_validation:
            rank_zero_info("thresholds: 0.5 of every label, since there are no validation images to choose them by")
        elif self._few:
            names = [self.class_names[label] if self.class_names else str(label) for label in self._few]
            rank_zero_info(f"thresholds: 0.5 of {len(names)} label(s) that fewer than {FEWEST} validation images have: {some(names)}")

    def measure_batch(self, stage: Stage, logits: Tensor, targets: Tensor) -> None:
        kept, loss = (self.val_kept, self.val_loss) if stage == "val" else (self.test_kept, self.test_loss)
        kept.update(logits, targets)
        loss.update(F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1))

    def take_measures(self, stage: Stage) -> Mapping[str, Tensor]:
        """Chooses the thresholds, too, of a validation while training: from all images of all ranks, so that all choose the same."""
        kept, loss = (self.val_kept, self.val_loss) if stage == "val" else (self.test_kept, self.test_loss)
        logits, targets = kept.compute()
        marks, probabilities = targets > 0.5, logits.sigmoid()
        if stage == "val" and self._was_trained:
            self.thresholds = choose_thresholds(probabilities, marks)
            self._few = [label for label, count in enumerate(marks.sum(dim=0).tolist()) if count < FEWEST]
        found = LabelOutcomes(torch.arange(len(marks)), marks.cpu(), probabilities.cpu(), torch.tensor(self.thresholds, dtype=torch.float64))
        measures = measure_labels(found, label_rows(found, [""] * marks.shape[1]))
        told = {f"{stage}/{name}": torch.tensor(value, device=self.device) for name, value in measures.items()} | {f"{stage}/loss": loss.compute()}
        kept.reset()
        loss.reset()
        return told

    def outcomes_of(self, indices: Tensor, targets: Tensor, logits: Tensor) -> LabelOutcomes:
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64)
        return LabelOutcomes(indices, targets > 0.5, logits.sigmoid(), thresholds)
