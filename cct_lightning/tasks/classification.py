"""Classification: loss, metrics, what came of each image, and the network that a checkpoint holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from cct_lightning.errors import InputError
from cct_lightning.evaluation.outcomes import Outcomes
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.options import keywords_of
from cct_lightning.tasks.labelled import Labelled, counted
from cct_lightning.tasks.options import ClassificationOptions
from cct_lightning.tasks.task import Stage
from cct_lightning.tasks.teaching import Guide, Teaching, check_same_teacher
from cct_lightning.training.losses import class_weights, cross_entropy
from cct_lightning.training.options import TrainingOptions
from cct_lightning.weights.files import KEY, without_guide


class CalibrationError(MulticlassCalibrationError):
    """The expected calibration error of logits (B, K). torchmetrics 1.9 takes a batch of them for probabilities where all lie in 0..1."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.softmax(dim=1), target)


def metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Makes the measures of an evaluation: accuracy, F1 (mean over classes), calibration error (15 bins), and top-5 beyond five classes."""
    measures: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
        "calibration_error": CalibrationError(num_classes, n_bins=15),
    }
    if num_classes > 5:
        measures["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    # No compute groups: torchmetrics would merge states of metrics that only look alike after the first batch.
    return MetricCollection(measures, prefix=prefix, compute_groups=False)


@dataclass(frozen=True, kw_only=True)
class LitClassifierOptions(ClassificationOptions):
    """The same from Python.

    Args:
        model: A network of your own instead of arch and all that describes it (Python only).
    """

    model: ImageClassifier | None = None


class LitClassifier(Labelled):
    """Trains an image classifier.

    Batches are sequences that begin with images, uint8 or float normalised (B, C, H, W), and targets, class indices (B,) or
    probabilities (B, K).
    """

    kind: ClassVar[str | None] = "class"
    options: ClassVar[type[TrainingOptions]] = ClassificationOptions
    measure: ClassVar[str | None] = "accuracy"
    measures: ClassVar[tuple[str, ...]] = ("val/accuracy", "val/loss", "val/f1", "val/calibration_error", "val/top5")

    @classmethod
    def measured(cls, names: Sequence[str]) -> tuple[str, ...]:
        return cls.measures if len(names) > 5 else cls.measures[:-1]

    @keywords_of(LitClassifierOptions)
    def __init__(self, options: LitClassifierOptions) -> None:
        """Builds the network, or takes your own, and all that its training needs.

        Raises:
            InputError: An argument that the network can't honour.
        """
        super().__init__(options, options.model)
        self.label_smoothing, self.loss = options.label_smoothing, options.loss
        self._class_weights: Tensor | None = None
        if options.freeze == "backbone" and options.teacher is not None:
            raise InputError(f"model.teacher={options.teacher} teaches whole networks: leave it out with freeze=backbone, or give freeze=none.")
        self.teacher, self.distill = options.teacher, options.distill  # opened by ``setup``, where there is a training
        self.guide: Guide | None = None
        self._teaching: Teaching | None = None
        self.val_metrics, self.test_metrics = metrics(self.model.num_classes, "val/"), metrics(self.model.num_classes, "test/")

    def setup(self, stage: str) -> None:
        """As every task; opens the teacher where there is one to learn from."""
        super().setup(stage)
        if stage == "fit" and self.teacher is not None and self._teaching is None:
            self._teaching = Teaching.open(self.teacher, self.distill, self.model, self.class_names, self.mean, self.std)
            self.guide = self._teaching.guide

    def configure_model(self) -> None:
        super().configure_model()
        if self.guide is not None and self._device_mesh is not None:
            from torch.distributed.fsdp import FSDPModule, fully_shard

            if not isinstance(self.guide, FSDPModule):
                fully_shard(self.guide)

    def further_parameters(self) -> list[nn.Parameter]:
        return [] if self.guide is None else list(self.guide.parameters())

    def step_inputs(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Takes images and targets, classes or probabilities, out of a batch.

        Returns:
            Images, and targets; for a recorded step always probabilities (B, K), with a teacher these and behind them what it tells.
        """
        images, targets = super().step_inputs(batch)
        if (self._records or self._teaching is not None) and targets.ndim == 1:
            targets = F.one_hot(targets, self.model.num_classes).float()  # one shape, whether MixUp is on or off
        if self._teaching is not None:
            done = self.trainer.global_step / self.trainer.estimated_stepping_batches
            targets = torch.cat((targets, self._teaching.look(images, batch, done)), dim=1)
        return images, targets

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the cross-entropy of a batch, smoothed and weighed as asked, and what is learned of a teacher."""
        if self._teaching is None:
            return cross_entropy(self(images), targets, self.label_smoothing, self._class_weights)
        labels, theirs = targets.tensor_split([self.model.num_classes], dim=1)
        answer = super().forward(images, layers) if (layers := self._teaching.layers) else self(images)
        return self._teaching.loss(answer, labels, theirs, self.label_smoothing, self._class_weights)

    def on_fit_start(self) -> None:
        """Counts the classes where the loss is balanced, then as every task.

        Raises:
            InputError: Training images have no labels, or are drawn by them already where the loss is balanced.
        """
        if self.loss.class_weights == "balanced":
            self._class_weights = class_weights(counted(self.trainer).class_counts).to(self.device)
        if self._teaching is not None:
            self._teaching.begin(self.trainer, self.device)
        super().on_fit_start()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self._teaching is not None:
            self._teaching.end_epoch()

    def on_fit_end(self) -> None:
        super().on_fit_end()
        if self._teaching is not None:
            self._teaching.end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every task; names the teacher."""
        super().on_save_checkpoint(checkpoint)
        if self._teaching is not None:
            checkpoint[KEY]["teacher"] = self._teaching.about

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every task; a training goes on with the teacher it had, and anything else without.

        Raises:
            InputError: The teacher is another one than it was.
        """
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_same_teacher(checkpoint.get(KEY, {}).get("teacher"), self._teaching)
        if self.guide is None and "state_dict" in checkpoint:  # FSDP2's strategy reads the weights itself
            checkpoint["state_dict"] = without_guide(checkpoint["state_dict"])
            if "ema" in checkpoint:
                checkpoint["ema"] = {**checkpoint["ema"], "raw": without_guide(checkpoint["ema"]["raw"])}

    def measure_batch(self, stage: Stage, logits: Tensor, targets: Tensor) -> None:
        measures, loss = (self.val_metrics, self.val_loss) if stage == "val" else (self.test_metrics, self.test_loss)
        measures.update(logits, targets)
        loss.update(F.cross_entropy(logits, targets, reduction="none"))

    def take_measures(self, stage: Stage) -> Mapping[str, Tensor]:
        measures, loss = (self.val_metrics, self.val_loss) if stage == "val" else (self.test_metrics, self.test_loss)
        found: dict[str, Tensor] = measures.compute() | {f"{stage}/loss": loss.compute()}
        measures.reset()
        loss.reset()
        return found

    def outcomes_of(self, indices: Tensor, targets: Tensor, logits: Tensor) -> Outcomes:
        return Outcomes.of(indices, targets, logits)
