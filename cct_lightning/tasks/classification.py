"""Classification: loss, metrics, what came of each image, and the network that a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from cct_lightning.data.options import NEEDS_LABELS
from cct_lightning.errors import InputError
from cct_lightning.evaluation.options import Tta
from cct_lightning.evaluation.outcomes import Outcomes
from cct_lightning.evaluation.views import mean_logits
from cct_lightning.networks.classifier import ImageClassifier, check_network
from cct_lightning.networks.encoder import ViTEncoder
from cct_lightning.options import keywords_of
from cct_lightning.tasks.options import ClassificationOptions, to_config
from cct_lightning.tasks.task import Stage, Task
from cct_lightning.tasks.teaching import Guide, Teaching, check_same_teacher
from cct_lightning.training.losses import class_weights, cross_entropy
from cct_lightning.training.options import TrainingOptions
from cct_lightning.weights.files import KEY, without_guide
from cct_lightning.weights.loading import ModelOptions, create_model


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


def tta_of(module: object) -> Tta:
    """Returns what the tests of a module see of each image; of a task that classifies nothing that is the image."""
    return module.tta if isinstance(module, LitClassifier) else "none"


def _create(options: ClassificationOptions) -> ImageClassifier:
    return create_model(**{option.name: getattr(options, option.name) for option in fields(ModelOptions)})


def _freeze(model: ImageClassifier) -> None:
    """Keeps the encoder as the weights have it, without dropout or drop path.

    Raises:
        InputError: A part of the encoder is none of the weights'.
    """
    report = model.load_report
    if report is not None and (left := [name for name in report.new if name.startswith("encoder.")]):
        raise InputError(
            f"freeze=backbone would keep {', '.join(left)} at the initial value, since the weights have none: take a pooling that needs no\n"
            f"  class token (seqpool, map, mean, class_attention), or freeze=none."
        )
    model.encoder.requires_grad_(False)
    model.encoder.eval()


class LitClassifier(Task):
    """Trains an image classifier.

    Batches are sequences that begin with images, uint8 or float normalised (B, C, H, W), and targets, class indices (B,) or
    probabilities (B, K).
    """

    kind: ClassVar[str | None] = "class"
    measures: ClassVar[tuple[str, ...]] = ("val/accuracy", "val/loss", "val/f1", "val/calibration_error", "val/top5")

    @keywords_of(LitClassifierOptions)
    def __init__(self, options: LitClassifierOptions) -> None:
        """Builds the network, or takes your own, and all that its training needs.

        Raises:
            InputError: An argument that the network can't honour.
        """
        super().__init__(**{option.name: getattr(options, option.name) for option in fields(TrainingOptions)})
        self.own_model = options.model is not None
        self.model: ImageClassifier = check_network(options.model) if options.model is not None else _create(options)
        encoder = self.model.encoder
        self.model_config: dict[str, Any] = to_config(options) | {"image_size": list(encoder.image_size), "num_classes": self.model.num_classes}
        if isinstance(encoder, ViTEncoder):
            self.model_config["position"] = encoder.position
        self.label_smoothing, self.freeze_part, self.loss = options.label_smoothing, options.freeze, options.loss
        self.tta: Tta = options.tta
        self._was_trained = False  # whether this process trains it: validations then see each image as it is
        self._class_weights: Tensor | None = None
        if options.whiten != "none" and options.pretrained is not None:
            raise InputError(
                f"model.whiten={options.whiten} would replace the first convolution of model.pretrained={options.pretrained}: leave one of them out\n"
                f"  (--model.whiten none, --model.pretrained null)."
            )
        if options.freeze == "backbone":
            _freeze(self.model)
            if options.teacher is not None:
                raise InputError(f"model.teacher={options.teacher} teaches whole networks: leave it out with freeze=backbone, or give freeze=none.")
        self.teacher, self.distill = options.teacher, options.distill  # opened by ``setup``, where there is a training
        self.guide: Guide | None = None
        self._teaching: Teaching | None = None
        self.collect = False  # whether an evaluation keeps what came of each image, for a report; batches then hold indices behind the targets
        self.outcomes: Outcomes | None = None  # of the last such evaluation
        self._collected: list[Outcomes] = []  # of its batches
        # By default a MeanMetric leaves out what is not a number: a network that diverged in part would have a fine loss.
        self.val_metrics, self.val_loss = metrics(self.model.num_classes, "val/"), MeanMetric(nan_strategy="disable")
        self.test_metrics, self.test_loss = metrics(self.model.num_classes, "test/"), MeanMetric(nan_strategy="disable")

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Classifies images (B, C, H, W), uint8 or float normalised, or what ``encode`` made of them: logits (B, K)."""
        if images.ndim < 4:
            return self._classify(images)
        logits: Tensor = super().forward(images)
        return logits

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Computes what the trained parts of a network with a frozen encoder read, of images float normalised (B, C, H, W).

        Returns:
            Features (B, D) where the pooling has nothing to train, else tokens (B, P + N, D); in the precision of the run.
        """
        self.model.encoder.eval()
        with self.trainer.precision_plugin.forward_context():
            tokens = self.model.encoder(images.to(next(self.model.parameters()).dtype))
            return torch.cat(tokens, dim=1) if any(True for _ in self.model.pooling.parameters()) else self.model.pooling(tokens)

    def _classify(self, encoded: Tensor) -> Tensor:
        encoded = encoded.to(next(self.model.parameters()).dtype)
        logits: Tensor = self.model.head(encoded) if encoded.ndim == 2 else self.model.forward_head(encoded)
        return logits

    def train(self, mode: bool = True) -> "LitClassifier":
        super().train(mode)
        if self.freeze_part == "backbone":
            self.model.encoder.eval()  # no dropout or drop path in a frozen encoder
        return self

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
            InputError: Training images have no labels.
        """
        if getattr(self.trainer.datamodule, "has_unlabelled", False):  # type: ignore[attr-defined]
            raise InputError(NEEDS_LABELS)
        self._was_trained = True
        if self.loss.class_weights == "balanced":
            if (counts := getattr(self.trainer.datamodule, "class_counts", None)) is None:  # type: ignore[attr-defined]
                raise InputError("model.loss.class_weights=balanced needs a data module with class_counts, as ImageDataModule has: leave it out.")
            self._class_weights = class_weights(counts).to(self.device)
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

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.freeze_part == "backbone":
            self.model.encoder.eval()  # Lightning 2.6 puts each part back into the mode it had, and calls train() on none

    def evaluate(self, batch: Sequence[Any], stage: Stage) -> None:
        """Updates the measures of a stage, and keeps what came of each image where asked."""
        measures, loss = (self.val_metrics, self.val_loss) if stage == "val" else (self.test_metrics, self.test_loss)
        images, targets = batch[0], batch[1]
        logits = self._logits_of_views(images, "none" if stage == "val" and self._was_trained else self.tta)
        measures.update(logits, targets)
        loss.update(F.cross_entropy(logits, targets, reduction="none"))
        if self.collect:
            self._collected.append(Outcomes.of(batch[2], targets, logits))

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val", self.val_metrics, self.val_loss)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test", self.test_metrics, self.test_loss)

    def _log_metrics(self, stage: Stage, measures: MetricCollection, loss: MeanMetric) -> None:
        """Logs the measures over all images of all ranks. Lightning's own mean over ranks takes no account of how many each has."""
        for name, value in (measures.compute() | {f"{stage}/loss": loss.compute()}).items():
            self.log(name, value, prog_bar=name == f"{stage}/accuracy")
        measures.reset()
        loss.reset()
        if self.collect:
            self.outcomes, self._collected = Outcomes.join(self._collected), []
            if (world := self.trainer.world_size) > 1:
                parts: list[Any] = [None] * world  # the devices have different numbers of images
                torch.distributed.all_gather_object(parts, self.outcomes)
                self.outcomes = Outcomes.join(parts)

    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Returns probabilities (B, K)."""
        return self._logits_of_views(batch[0], self.tta).softmax(dim=1)

    def _logits_of_views(self, images: Tensor, tta: Tta) -> Tensor:
        if tta != "none" and images.ndim < 4:
            raise InputError(f"model.tta={tta} needs images, and features of them are given: leave it out.")
        return mean_logits(lambda seen: self(seen).float(), images, tta)
