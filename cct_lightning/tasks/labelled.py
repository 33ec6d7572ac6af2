"""What is the same of all tasks that learn labels: encoder, pooling and head, weights to start from, a frozen backbone, what came of each image."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cct_lightning.data.options import NEEDS_LABELS
from cct_lightning.errors import InputError
from cct_lightning.evaluation.options import Tta
from cct_lightning.evaluation.reports import AnyOutcomes
from cct_lightning.evaluation.views import mean_logits
from cct_lightning.networks.classifier import ImageClassifier, check_network
from cct_lightning.networks.encoder import ViTEncoder
from cct_lightning.networks.outputs import Output
from cct_lightning.tasks.divergence import MeanLoss
from cct_lightning.tasks.options import HeadOptions, to_config
from cct_lightning.tasks.task import Stage, Task
from cct_lightning.training.options import TrainingOptions
from cct_lightning.weights.files import KEY
from cct_lightning.weights.loading import ModelOptions, create_model


def tta_of(module: object) -> Tta:
    """Returns what the tests of a module see of each image; of a task that learns no labels that is the image."""
    return module.tta if isinstance(module, Labelled) else "none"


def _create(options: HeadOptions) -> ImageClassifier:
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


class Kept(Metric):
    """Keeps logits and targets (n, K) of all images of all ranks, for measures that need them together."""

    full_state_update = False
    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.logits.append(logits)
        self.targets.append(targets)

    def compute(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.logits), dim_zero_cat(self.targets)


def counted(trainer: Trainer) -> Any:
    """Returns the data module of a run whose loss is balanced: it counts its classes.

    Raises:
        InputError: It counts none, or shows all of them equally often.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if getattr(data, "class_counts", None) is None:
        raise InputError("model.loss.class_weights=balanced needs a data module with class_counts, as ImageDataModule has: leave it out.")
    if getattr(data, "sampler", "") == "balanced":
        raise InputError("data.sampler=balanced shows all classes equally often, and model.loss.class_weights=balanced would weigh them once more:\n"
                         "  leave one of them out.")  # fmt: skip
    return data


class Labelled(Task):
    """Trains an image classifier's network on images with labels, whatever these are.

    A child says what a step minimises, and in ``measure`` what an evaluation is measured by. Its logits are (B, K).

    Attributes:
        collect: Whether an evaluation keeps what came of each image, for a report; batches then hold indices behind the targets.
        outcomes: Of the last such evaluation.
    """

    model: ImageClassifier

    def __init__(self, options: HeadOptions, model: ImageClassifier | None) -> None:
        super().__init__(**{option.name: getattr(options, option.name) for option in fields(TrainingOptions)})
        self.own_model = model is not None
        self.model = check_network(model) if model is not None else _create(options)
        encoder = self.model.encoder
        own = {"image_size": list(encoder.image_size), "num_classes": self.model.num_classes}
        self.model_config: dict[str, Any] = to_config(options, self.options) | own
        if isinstance(encoder, ViTEncoder):
            self.model_config["position"] = encoder.position
        self.freeze_part, self.tta = options.freeze, options.tta
        self._was_trained = False  # whether this process trains it: validations then see each image as it is
        if options.whiten != "none" and options.pretrained is not None:
            raise InputError(
                f"model.whiten={options.whiten} would replace the first convolution of model.pretrained={options.pretrained}: leave one of them out\n"
                f"  (--model.whiten none, --model.pretrained null)."
            )
        if options.freeze == "backbone":
            _freeze(self.model)
        self.collect = False
        self.outcomes: AnyOutcomes | None = None
        self._collected: list[AnyOutcomes] = []  # of its batches
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()

    @abstractmethod
    def measure_batch(self, stage: Stage, logits: Tensor, targets: Tensor) -> None:
        """Updates the measures of a stage, its loss included, by logits (B, K), float32, and targets as the batch has them."""

    @abstractmethod
    def take_measures(self, stage: Stage) -> Mapping[str, Tensor]:
        """Returns the measures of a stage over all images of all ranks, by name, its loss included, and forgets them."""

    @abstractmethod
    def outcomes_of(self, indices: Tensor, targets: Tensor, logits: Tensor) -> AnyOutcomes:
        """Keeps of a batch what a report needs."""

    @property
    def output(self) -> Output:
        """What the logits mean."""
        return Output()

    def forward(self, images: Tensor, *others: Any) -> Any:
        """Computes logits (B, K) of images (B, C, H, W), uint8 or float normalised, or of what ``encode`` made of them."""
        if images.ndim < 4:
            return self._classify(images)
        return super().forward(images, *others)

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

    def train(self, mode: bool = True) -> "Labelled":
        super().train(mode)
        if self.freeze_part == "backbone":
            self.model.encoder.eval()  # no dropout or drop path in a frozen encoder
        return self

    def on_fit_start(self) -> None:
        """As every task.

        Raises:
            InputError: Training images have no labels.
        """
        if getattr(self.trainer.datamodule, "has_unlabelled", False):  # type: ignore[attr-defined]
            raise InputError(NEEDS_LABELS)
        self._was_trained = True
        super().on_fit_start()

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.freeze_part == "backbone":
            self.model.encoder.eval()  # Lightning 2.6 puts each part back into the mode it had, and calls train() on none

    def evaluate(self, batch: Sequence[Any], stage: Stage) -> None:
        """Updates the measures of a stage, and keeps what came of each image where asked."""
        logits = self._logits_of_views(batch[0], "none" if stage == "val" and self._was_trained else self.tta)
        self.measure_batch(stage, logits, batch[1])
        if self.collect:
            self._collected.append(self.outcomes_of(batch[2], batch[1], logits))

    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Returns probabilities, or values, (B, K)."""
        return self.output.read(self._logits_of_views(batch[0], self.tta))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every task; says what the logits mean where they are not of classes."""
        super().on_save_checkpoint(checkpoint)
        if self.kind != "class":
            checkpoint[KEY]["output"] = self.output.to_json()

    def on_validation_epoch_end(self) -> None:
        self._log_measures("val")

    def on_test_epoch_end(self) -> None:
        self._log_measures("test")

    def _log_measures(self, stage: Stage) -> None:
        """Logs the measures over all images of all ranks. Lightning's own mean over ranks takes no account of how many each has."""
        for name, value in self.take_measures(stage).items():
            self.log(name, value, prog_bar=name == f"{stage}/{self.measure}")
        if self.collect:
            join = type(self._collected[0]).join
            self.outcomes, self._collected = join(self._collected), []  # type: ignore[arg-type]  # all of one kind
            if (world := self.trainer.world_size) > 1:
                parts: list[Any] = [None] * world  # the devices have different numbers of images
                torch.distributed.all_gather_object(parts, self.outcomes)
                self.outcomes = join(parts)

    def _logits_of_views(self, images: Tensor, tta: Tta) -> Tensor:
        if tta != "none" and images.ndim < 4:
            raise InputError(f"model.tta={tta} needs images, and features of them are given: leave it out.")
        return mean_logits(lambda seen: self(seen).float(), images, tta, self.kind)
