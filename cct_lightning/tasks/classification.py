"""The LightningModule: steps, metrics, optimizer and schedule, and what a checkpoint says about itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

import cct_lightning
from cct_lightning.data.preparation import normalize
from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.outcomes import Outcomes
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import ViTEncoder
from cct_lightning.networks.options import Position
from cct_lightning.randomness import reseed
from cct_lightning.training.engine import StepGraph, check_graph, choose_engine, make_plain
from cct_lightning.training.losses import class_weights, cross_entropy
from cct_lightning.training.optimizers import create_optimizer
from cct_lightning.training.options import Engine, LossConfig, OptimConfig, ScheduleConfig
from cct_lightning.training.schedules import create_scheduler, fit_schedule
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


class LitClassifier(L.LightningModule):
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
        super().__init__()
        check_range("label_smoothing", label_smoothing, 0, 1)
        network: dict[str, Any] = {
            "pooling": pooling, "num_classes": num_classes, "image_size": tuple(image_size) if image_size else None, "in_chans": in_chans,
            "position": position, "class_token_position": class_token_position, "residual_norm": residual_norm, "drop_path": drop_path,
            "attn_drop": attn_drop, "proj_drop": proj_drop, "head_hidden_dim": head_hidden_dim, "embed_dim": embed_dim, "depth": depth,
            "num_heads": num_heads, "mlp_ratio": mlp_ratio, "kernel_size": kernel_size, "num_conv_layers": num_conv_layers,
        }  # fmt: skip
        self.own_model = model is not None
        self._epoch_loss = torch.zeros(())
        self.model = model or create_model(arch, pretrained=pretrained, new_head=new_head, class_names=class_names, **network)
        self.model_config: dict[str, Any] = {
            "arch": arch, **network, "image_size": list(self.model.encoder.image_size), "num_classes": self.model.num_classes,
            "position": self.model.encoder.position if isinstance(self.model.encoder, ViTEncoder) else position,
            "class_names": list(class_names) if class_names else None, "mean": list(mean) if mean else None, "std": list(std) if std else None,
            "label_smoothing": label_smoothing, "freeze": freeze, "loss": asdict(loss), "optim": asdict(optim), "schedule": asdict(schedule),
            "engine": engine,
        }  # fmt: skip
        self.class_names, self.mean, self.std = class_names, mean, std
        self.label_smoothing, self.freeze_part, self.loss, self.optim, self.schedule = label_smoothing, freeze, loss, optim, schedule
        self._class_weights: Tensor | None = None
        self.recipe: dict[str, Any] | None = None  # the whole configuration as run, where a command line set one
        self.seed = torch.initial_seed()  # before anything reseeds
        if freeze == "backbone":
            report = self.model.load_report
            if report is not None and (left := [name for name in report.new if name.startswith("encoder.")]):
                raise InputError(
                    f"freeze=backbone would keep {', '.join(left)} at the initial value, since the weights have none: take a pooling that needs no\n"
                    f"  class token (seqpool, map, mean, class_attention), or freeze=none."
                )
            self.model.encoder.requires_grad_(False)
            self.model.encoder.eval()
        self.engine: Engine = engine
        self._graph: StepGraph | None = None
        self._records = False  # whether the run's steps are recorded
        self.collect = False  # whether an evaluation keeps what came of each image, for a report; batches then hold indices behind the targets
        self.outcomes: Outcomes | None = None  # of the last such evaluation
        self._collected: list[Outcomes] = []  # of its batches
        self.val_metrics, self.val_loss = metrics(self.model.num_classes, "val/"), MeanMetric()
        self.test_metrics, self.test_loss = metrics(self.model.num_classes, "test/"), MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images (B, C, H, W), uint8 or float normalised, or what ``encode`` made of them: logits (B, K)."""
        if images.ndim < 4:
            return self._classify(images)
        if images.dtype == torch.uint8:
            if self.mean is None or self.std is None:
                raise InputError("uint8 images given to a LitClassifier without mean and std: pass both, or normalise the images yourself.")
            images = normalize(images, self.mean, self.std)
        images = images.to(next(self.model.parameters()).dtype)  # precision bf16-true and 16-true turn the weights, not the images
        # Evaluation runs as it is: its batches have other sizes, and each size would be compiled anew.
        logits: Tensor = self.model(images) if self.training else self.model._call_impl(images)  # type: ignore[no-untyped-call]
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

    def configure_model(self) -> None:
        """Shards parameters, gradients and optimizer state over all devices where the strategy is FSDP2's (``ModelParallelStrategy``)."""
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if self._device_mesh is None or isinstance(self.model, FSDPModule):
            return
        for block in self.model.encoder.layers():
            fully_shard(block)
        fully_shard(self.model)

    def on_fit_start(self) -> None:
        """Compiles where the engine says so, and refuses what a recorded step can't honour."""
        trainer = self.trainer
        if self.loss.class_weights == "balanced":
            if (counts := getattr(trainer.datamodule, "class_counts", None)) is None:  # type: ignore[attr-defined]
                raise InputError("model.loss.class_weights=balanced needs a data module with class_counts, as ImageDataModule has: leave it out.")
            self._class_weights = class_weights(counts).to(self.device)
        engine = choose_engine(self.engine, self.device, trainer.estimated_stepping_batches)
        self._graph, self._records = None, engine == "graph"
        if self._records:
            accumulates = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)  # type: ignore[attr-defined]
            trainer_keys = {
                "callbacks": ("GradientAccumulationScheduler" if accumulates else None, None),
                "gradient_clip_val": (trainer.gradient_clip_val, 0),
                "accumulate_grad_batches": (trainer.accumulate_grad_batches, 1),
                "detect_anomaly": (trainer._detect_anomaly, False),
            }
            check_graph(self.device, trainer.world_size, str(trainer.precision), self.optim.name, trainer_keys)
        if engine != "eager" and self.model._compiled_call_impl is None:
            self.model.compile()  # in place: torch.compile(model) would rename the state dict's keys

    def on_train_batch_start(self, batch: Sequence[Any], batch_idx: int) -> None:
        reseed(self.seed, "step", self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        images, targets = batch[0], batch[1]
        if self._records:
            loss = self._replay(images, targets)
        else:
            loss = self._loss(images, targets)
        self._epoch_loss += loss.detach()
        # Each self.log costs as much as a small step's launch, so only where Lightning hands the values on to the loggers.
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self(images), targets, self.label_smoothing, self._class_weights)

    def _replay(self, images: Tensor, targets: Tensor) -> Tensor:
        """Takes the whole step, optimizer included; what Lightning then does is empty, see ``backward`` and ``optimizer_step``."""
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.model.num_classes).float()  # one shape, whether MixUp is on or off
        if self._graph is None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            self._graph = StepGraph(self._loss, optimizer, images, targets, self.optim.clip_norm)  # type: ignore[arg-type]
        return self._graph(images, targets)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._records:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None) -> None:
        if self._records:
            assert optimizer_closure is not None
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if not self._records:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_train_start(self) -> None:
        self._epoch_loss = self._epoch_loss.to(self.device)  # a checkpoint is read before the GPU is in use
        if self.freeze_part == "backbone":
            self.model.encoder.eval()  # Lightning 2.6 puts each part back into the mode it had, and calls train() on none

    def on_train_epoch_start(self) -> None:
        self._epoch_loss = torch.zeros((), device=self.device)

    def on_train_epoch_end(self) -> None:
        self.log("train/loss_epoch", self._epoch_loss / (self.trainer.fit_loop.epoch_loop.batch_idx + 1), sync_dist=True)

    def on_train_end(self) -> None:
        torch.manual_seed(self.seed)  # whatever is built next starts from the run's seed, not from the last step's

    def _evaluate(self, batch: Sequence[Any], measures: MetricCollection, loss: MeanMetric) -> None:
        images, targets = batch[0], batch[1]
        logits = self(images).float()
        measures.update(logits, targets)
        loss.update(F.cross_entropy(logits, targets, reduction="none"))
        if self.collect:
            self._collected.append(Outcomes.of(batch[2], targets, logits))

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self._evaluate(batch, self.val_metrics, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val", self.val_metrics, self.val_loss)

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self._evaluate(batch, self.test_metrics, self.test_loss)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test", self.test_metrics, self.test_loss)

    def _log_metrics(self, stage: str, measures: MetricCollection, loss: MeanMetric) -> None:
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

    def configure_optimizers(self) -> Any:
        steps, epochs = self.trainer.estimated_stepping_batches, self.trainer.max_epochs
        if steps == float("inf"):
            raise InputError("The length of the run is unknown, and the schedule needs it: give trainer.max_epochs or trainer.max_steps.")
        self.trainer.fit_loop.setup_data()  # a run given in steps has not looked at its data yet
        # The last batch of an epoch steps, too, however few were accumulated.
        steps_per_epoch = -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        length = steps / steps_per_epoch if epochs in (None, -1) or self.trainer.max_steps != -1 else float(epochs)
        schedule, told = fit_schedule(self.schedule, length)
        if told:
            rank_zero_info(told)
        optimizer = create_optimizer(self.model, self.optim)
        scheduler = create_scheduler(optimizer, schedule, self.optim.lr, length, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": schedule.per}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.clip_gradients(optimizer, self.optim.clip_norm or gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds one plain dictionary: all that is needed to build the network again and to read its output."""
        if self._records:
            make_plain(checkpoint)
        checkpoint[KEY] = {
            "format": 1,
            "model": None if self.own_model else self.model_config,
            "class_names": self.class_names,
            "mean": self.mean,
            "std": self.std,
            "grid_size": list(self.model.encoder.grid_size),
            "recipe": self.recipe,
            "seed": self.seed,
            "epoch_loss": float(self.trainer.strategy.reduce(self._epoch_loss.clone(), reduce_op="mean")),  # so far, for a stop inside an epoch
            "versions": {
                "cct_lightning": cct_lightning.__version__,
                "torch": str(torch.__version__),
                "lightning": L.__version__,
                "timm": version("timm"),
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the loss of an epoch that was stopped."""
        self._epoch_loss = torch.zeros(()) + checkpoint.get(KEY, {}).get("epoch_loss", 0.0)

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
