"""Classification: loss, metrics, what came of each image, and the network that a checkpoint holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.outcomes import Outcomes
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import ViTEncoder
from cct_lightning.networks.options import Position
from cct_lightning.tasks.task import Stage, Task
from cct_lightning.training.losses import class_weights, cross_entropy
from cct_lightning.training.options import LossConfig, OptimConfig, ScheduleConfig
from cct_lightning.weights.files import KEY, read_checkpoint
from cct_lightning.weights.loading import create_model


def metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Makes the measures of an evaluation: accuracy, F1 (mean over classes), calibration error (15 bins), and top-5 beyond five classes."""
    measures: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
        "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15),
    }
    if num_classes > 5:
        measures["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    # No compute groups: torchmetrics would merge states of metrics that only look alike after the first batch.
    return MetricCollection(measures, prefix=prefix, compute_groups=False)


class LitClassifier(Task):
    """Trains an image classifier.

    Batches are sequences that begin with images, uint8 or float normalised (B, C, H, W), and targets, class indices (B,) or
    probabilities (B, K).

    Args:
        arch: Network: a preset such as cct_7_3x1_32, or timm/NAME for a network of timm that returns tokens.
        pooling: How tokens become one feature: class_token, masked_class_token, class_attention, map, seqpool or mean; null: the arch's.
        num_classes: Number of classes; comes from the data.
        image_size: Height and width of the images, pixels; comes from the data.
        in_chans: Channels of the images; comes from the data.
        class_names: Names of the classes, in the order of the logits; come from the data.
        mean: Mean of each channel, 0..1, for uint8 images; comes from the data.
        std: Standard deviation of each channel, 0..1; comes from the data.
        position: Position embedding: learned, sine or none; null: the arch's.
        class_token_position: Whether the class token has a position; null: yes.
        residual_norm: The published block (true) or standard pre-norm (false); null: the published one.
        drop_path: Drop path of the last layer; rises linearly from 0 at the first.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout behind positions, projections and in the MLP.
        head_hidden_dim: Width of a hidden tanh layer of the head; null: the head is one linear layer.
        embed_dim: Width of a token; null: the arch's, as in the five keys below.
        depth: Number of transformer layers.
        num_heads: Heads of the attention; they divide embed_dim.
        mlp_ratio: Width of the MLP's hidden layer over embed_dim.
        kernel_size: Side of the tokenizer's kernels or patches, pixels.
        num_conv_layers: Convolutions of a CCT's tokenizer.
        label_smoothing: Share of each target that is spread over all classes.
        pretrained: Weights to start from: a checkpoint of a run, an exported folder, a file of SHI-Labs/Compact-Transformers, vit-pytorch or
            timm; by name, where there is a network: one of SHI-Labs' published weights, such as cct_7_3x1_32_cifar10_300epochs, or timm/NAME.
        new_head: Start the head at zero even where the weights have one that fits; it always is where classes differ.
        freeze: backbone trains the pooling and the head alone.
        loss: The loss.
        optim: The optimizer.
        schedule: The learning rate over the run.
        engine: How a step runs: eager; compile (torch.compile); graph, compiled and replayed as one CUDA graph of forward, backward and
            optimizer; auto: compile on a GPU in runs of 5,000 steps and more, else eager.
        model: A network of your own instead of arch and all that describes it (Python only).

    Raises:
        InputError: An argument that the network can't honour.
    """

    def __init__(
        self,
        arch: str = "cct_7_3x1_32",
        pooling: str | None = None,
        num_classes: int = 10,
        image_size: tuple[int, int] | None = None,
        in_chans: int = 3,
        class_names: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        position: Position | None = None,
        class_token_position: bool | None = None,
        residual_norm: bool | None = None,
        drop_path: float = 0.1,
        attn_drop: float = 0.1,
        proj_drop: float = 0.0,
        head_hidden_dim: int | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: float | None = None,
        kernel_size: int | None = None,
        num_conv_layers: int | None = None,
        label_smoothing: float = 0.1,
        pretrained: str | None = None,
        new_head: bool = False,
        freeze: Literal["none", "backbone"] = "none",
        loss: LossConfig = LossConfig(),
        optim: OptimConfig = OptimConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        engine: Literal["auto", "eager", "compile", "graph"] = "auto",
        model: ImageClassifier | None = None,
    ) -> None:
        super().__init__(optim, schedule, engine, class_names, mean, std)
        check_range("label_smoothing", label_smoothing, 0, 1)
        network: dict[str, Any] = {
            "pooling": pooling, "num_classes": num_classes, "image_size": tuple(image_size) if image_size else None, "in_chans": in_chans,
            "position": position, "class_token_position": class_token_position, "residual_norm": residual_norm, "drop_path": drop_path,
            "attn_drop": attn_drop, "proj_drop": proj_drop, "head_hidden_dim": head_hidden_dim, "embed_dim": embed_dim, "depth": depth,
            "num_heads": num_heads, "mlp_ratio": mlp_ratio, "kernel_size": kernel_size, "num_conv_layers": num_conv_layers,
        }  # fmt: skip
        self.own_model = model is not None
        self.model: ImageClassifier = model or create_model(arch, pretrained=pretrained, new_head=new_head, class_names=class_names, **network)
        self.model_config: dict[str, Any] = {
            "arch": arch, **network, "image_size": list(self.model.encoder.image_size), "num_classes": self.model.num_classes,
            "position": self.model.encoder.position if isinstance(self.model.encoder, ViTEncoder) else position,
            "class_names": list(class_names) if class_names else None, "mean": list(mean) if mean else None, "std": list(std) if std else None,
            "label_smoothing": label_smoothing, "freeze": freeze, "loss": asdict(loss), "optim": asdict(optim), "schedule": asdict(schedule),
            "engine": engine,
        }  # fmt: skip
        self.label_smoothing, self.freeze_part, self.loss = label_smoothing, freeze, loss
        self._class_weights: Tensor | None = None
        if freeze == "backbone":
            report = self.model.load_report
            if report is not None and (left := [name for name in report.new if name.startswith("encoder.")]):
                raise InputError(
                    f"freeze=backbone would keep {', '.join(left)} at the initial value, since the weights have none: take a pooling that needs no\n"
                    f"  class token (seqpool, map, mean, class_attention), or freeze=none."
                )
            self.model.encoder.requires_grad_(False)
            self.model.encoder.eval()
        self.collect = False  # whether an evaluation keeps what came of each image, for a report; batches then hold indices behind the targets
        self.outcomes: Outcomes | None = None  # of the last such evaluation
        self._collected: list[Outcomes] = []  # of its batches
        self.val_metrics, self.val_loss = metrics(self.model.num_classes, "val/"), MeanMetric()
        self.test_metrics, self.test_loss = metrics(self.model.num_classes, "test/"), MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
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

    def step_inputs(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Takes images and targets, classes or probabilities, out of a batch; for a recorded step always probabilities (B, K)."""
        images, targets = super().step_inputs(batch)
        if self._records and targets.ndim == 1:
            targets = F.one_hot(targets, self.model.num_classes).float()  # one shape, whether MixUp is on or off
        return images, targets

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the cross-entropy of a batch, smoothed and weighed as asked."""
        return cross_entropy(self(images), targets, self.label_smoothing, self._class_weights)

    def on_fit_start(self) -> None:
        """Counts the classes where the loss is balanced, then as every task."""
        if self.loss.class_weights == "balanced":
            if (counts := getattr(self.trainer.datamodule, "class_counts", None)) is None:  # type: ignore[attr-defined]
                raise InputError("model.loss.class_weights=balanced needs a data module with class_counts, as ImageDataModule has: leave it out.")
            self._class_weights = class_weights(counts).to(self.device)
        super().on_fit_start()

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.freeze_part == "backbone":
            self.model.encoder.eval()  # Lightning 2.6 puts each part back into the mode it had, and calls train() on none

    def evaluate(self, batch: Sequence[Any], stage: Stage) -> None:
        """Updates the measures of a stage, and keeps what came of each image where asked."""
        measures, loss = (self.val_metrics, self.val_loss) if stage == "val" else (self.test_metrics, self.test_loss)
        images, targets = batch[0], batch[1]
        logits = self(images).float()
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
        probabilities: Tensor = self(batch[0]).float().softmax(dim=1)
        return probabilities

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: str | torch.device = "cpu", **changes: Any
    ) -> "LitClassifier":
        """Builds the network that a checkpoint holds, with its weights, in eval mode.

        Args:
            checkpoint_path: A file that a run wrote.
            map_location: Device of the result.
            changes: Arguments of the constructor that shall differ from the run's; ``model`` where the run had a network of its own.

        Raises:
            InputError: The file can't be read, is no checkpoint of ours, or holds a network that only Python can build.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        about = checkpoint.get(KEY)
        if not isinstance(about, Mapping):
            raise InputError(f"{checkpoint_path} is no checkpoint of cct-lightning; weights alone are read with pretrained={checkpoint_path}.")
        if about["model"] is None and "model" not in changes:
            raise InputError(f"{checkpoint_path} was trained with a network of its own: build it and pass it as model=.")
        config = {**(about["model"] or {}), **changes}
        for name, kind in (("loss", LossConfig), ("optim", OptimConfig), ("schedule", ScheduleConfig)):
            if isinstance(config.get(name), Mapping):
                config[name] = kind(**config[name])
        module = cls(**config)
        module.load_state_dict(checkpoint["state_dict"])
        module.recipe, module.seed = about["recipe"], about["seed"]
        return module.to(map_location).eval()
