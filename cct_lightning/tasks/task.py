"""What is the same whatever is learned: optimizer, schedule, engine, sharding, the seeds of a step, and what a checkpoint says about itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

import cct_lightning
from cct_lightning.data.module import ImageDataModule
from cct_lightning.data.preparation import normalize
from cct_lightning.errors import InputError
from cct_lightning.networks.encoder import Encoder
from cct_lightning.networks.initial_values import WHITENED_PIXELS, whiten
from cct_lightning.networks.tokenizers import ConvTokenizer
from cct_lightning.options import keywords_of
from cct_lightning.randomness import reseed
from cct_lightning.tasks.divergence import EVERY, check_numbers
from cct_lightning.tasks.options import from_config
from cct_lightning.tasks.registry import check_kind
from cct_lightning.training.engine import StepGraph, check_graph, choose_engine, make_plain
from cct_lightning.training.optimizers import create_optimizer, shown_rate
from cct_lightning.training.options import Engine, TrainingOptions, Whiten
from cct_lightning.training.schedules import create_scheduler, fit_schedule
from cct_lightning.weights.files import KEY, read_checkpoint, without_guide
from cct_lightning.weights.soundness import tensors_in

Stage = Literal["val", "test"]


class Task(L.LightningModule, ABC):
    """Trains a network on images, whatever it learns of them.

    A child builds the network, ``self.model``, and says what a step minimises (``training_loss``) and what is measured (``evaluate``). Whatever
    it draws in a step, a run that was stopped draws again. All that has weights belongs into the network's ``forward``: the engine compiles it
    and FSDP2 shards it as one. ``tasks.registry`` tells how a task gets a name.

    Batches are sequences that begin with images, uint8 or float normalised (B, C, H, W), and targets.

    Attributes:
        model: The network; its ``encoder`` is an ``Encoder``.
        model_config: Arguments that build the task again, in plain values, for the checkpoint; None where it takes none.
        own_model: Whether only Python code can build the network: the checkpoint then leaves ``model_config`` out.
        recipe: The whole configuration as run, where a command line set one.
        measures: Of the validation, which may choose the best epoch.
        is_tested: Whether a run measures the test images at its end.
        options: What it is told, without what only Python can.
        measure: The one by which networks are compared, a name of ``evaluation.measures.MEASURES``; None where there is none.
        kind: What images must be told by, of ``registry.KINDS``; None: their labels are not looked at.
        seed: Of the run; what a step draws follows from it, the epoch and the number of the batch.
        may_diverge: Whether a training goes on when its numbers are none any more, as the search for a learning rate has to.
    """

    measures: ClassVar[tuple[str, ...]] = ("val/loss",)
    is_tested: ClassVar[bool] = True
    kind: ClassVar[str | None] = None
    options: ClassVar[type[TrainingOptions]] = TrainingOptions
    measure: ClassVar[str | None] = None
    model: nn.Module
    model_config: dict[str, Any] | None

    @keywords_of(TrainingOptions)
    def __init__(self, options: TrainingOptions) -> None:
        super().__init__()
        self.optim, self.schedule = options.optim, options.schedule
        self.engine: Engine = options.engine
        self.whiten: Whiten = options.whiten
        self.class_names, self.mean, self.std = options.class_names, options.mean, options.std
        self.model_config, self.own_model = None, False
        self.recipe: dict[str, Any] | None = None
        self.seed = torch.initial_seed()  # before anything reseeds
        self.may_diverge = False
        self._sound_step = 0  # at which loss and weights were seen to be numbers
        self._epoch_loss = torch.zeros(())
        self._is_started = False  # whether its weights are more than initial values
        self._graph: StepGraph | None = None
        self._records = False  # whether the run's steps are recorded

    @abstractmethod
    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes what a step minimises, (), of a batch as ``step_inputs`` gives it."""

    @abstractmethod
    def evaluate(self, batch: Sequence[Any], stage: Stage) -> None:
        """Measures a batch of validation or test: logs it, or keeps it for the end of the epoch."""

    @classmethod
    def measured(cls, names: Sequence[str]) -> tuple[str, ...]:
        """Returns those of ``measures`` that a validation has of images that are told by these classes, labels or numbers."""
        return cls.measures

    @property
    def encoder(self) -> Encoder:
        """The network's encoder."""
        encoder = self.model.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    def forward(self, images: Tensor, *others: Any) -> Any:
        """Runs the network on images (B, C, H, W), uint8 or float normalised, and on what else it takes.

        Raises:
            InputError: The images are uint8, and mean and std are not known.
        """
        if images.dtype == torch.uint8:
            if self.mean is None or self.std is None:
                name = type(self).__name__
                raise InputError(f"uint8 images given to a {name} without mean and std: pass both, or normalise the images yourself.")
            images = normalize(images, self.mean, self.std)
        images = images.to(next(self.model.parameters()).dtype)  # precision bf16-true and 16-true turn the weights, not the images
        # Evaluation runs as it is: its batches have other sizes, and each size would be compiled anew.
        return self.model(images, *others) if self.training else self.model._call_impl(images, *others)  # type: ignore[no-untyped-call]

    def step_inputs(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Takes images and targets out of a batch; a recorded step needs the same shapes and dtypes every time."""
        return batch[0], batch[1]

    def further_parameters(self) -> list[nn.Parameter]:
        """Returns what is trained beside the network, at its learning rate and without decay; no export or start of weights takes it over."""
        return []

    def setup(self, stage: str) -> None:
        """Refuses images with other labels than are learned; has the first convolution begin with filters that whiten the images, where asked."""
        data = getattr(self._trainer, "datamodule", None)
        if (kind := getattr(data, "kind", None)) is not None:
            check_kind(self.kind, kind, getattr(data, "root", "the data module"))
        if stage != "fit" or self.whiten == "none":
            return
        tokenizer, sample = getattr(self.encoder, "tokenizer", None), getattr(self.trainer.datamodule, "sample_images", None)  # type: ignore[attr-defined]
        if not isinstance(tokenizer, ConvTokenizer):
            raise InputError(f"model.whiten={self.whiten} is for a CCT's convolutions, and this network has none: leave it out.")
        first = tokenizer.convs[0]
        assert isinstance(first, nn.Conv2d)
        if not self._is_started and self.trainer.ckpt_path is None:  # else the weights are there, or about to be read
            if sample is None or self.mean is None or self.std is None:
                raise InputError(f"model.whiten={self.whiten} needs a data module with sample_images, as ImageDataModule has, and mean and std.")
            whiten(first, normalize(sample(WHITENED_PIXELS), self.mean, self.std))
            self._is_started = True
        first.weight.requires_grad_(self.whiten == "start")

    def configure_model(self) -> None:
        """Shards parameters, gradients and optimizer state over all devices where the strategy is FSDP2's (``ModelParallelStrategy``)."""
        if self._device_mesh is None:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(self.model, FSDPModule):
            return
        for block in self.encoder.layers():
            fully_shard(block)
        fully_shard(self.model)

    def on_fit_start(self) -> None:
        """Compiles where the engine says so, and refuses what a recorded step, or the network, can't honour."""
        trainer = self.trainer
        if sizes := [size for size, _ in getattr(trainer.datamodule, "first_sizes", ())]:  # type: ignore[attr-defined]
            try:
                self.encoder.take_sizes(sizes)
            except InputError as error:
                raise InputError(f"data.image_size_schedule: {error}") from None
        if trainer.world_size > 1 and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.model.modules()):
            raise InputError(
                f"{self.encoder.title()} has batch norms, for which each of {trainer.world_size} devices would average over its own images:\n"
                "  train it on one device (leave out the overlay ddp or fsdp), or take a network without them, such as timm/convnext_atto."
            )
        engine = choose_engine(self.engine, self.device, trainer.estimated_stepping_batches)
        self._graph, self._records = None, engine == "graph"
        if self._records:
            trainer_keys = {
                "gradient_clip_val": (trainer.gradient_clip_val, 0),
                "accumulate_grad_batches": (trainer.accumulate_grad_batches, 1),
                "detect_anomaly": (trainer._detect_anomaly, False),
            }
            check_graph(self.device, trainer.world_size, str(trainer.precision), self.optim.name, trainer_keys)
        if engine != "eager" and self.model._compiled_call_impl is None:
            # In place: torch.compile(model) would rename the state dict's keys. For each of some image sizes on its own: one for all is slower.
            self.model.compile(dynamic=False if sizes else None)

    def on_train_batch_start(self, batch: Sequence[Any], batch_idx: int) -> None:
        reseed(self.seed, "step", self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        images, targets = self.step_inputs(batch)
        loss = self._replay(images, targets) if self._records else self.training_loss(images, targets)
        self._epoch_loss += loss.detach()
        # Each self.log costs as much as a small step's launch, so only where Lightning hands the values on to the loggers.
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/lr", shown_rate(self.optimizers(use_pl_optimizer=False)))  # type: ignore[arg-type]
        if (self.global_step + 1) % min(self.trainer.log_every_n_steps, EVERY) == 0:  # type: ignore[attr-defined]
            self._check_numbers(dict(self.named_parameters()))
        return loss

    def _check_numbers(self, tensors: Mapping[str, Tensor]) -> None:
        """Ends a training whose losses of this epoch, or these tensors, hold NaN or inf; see ``check_numbers``."""
        if not self.may_diverge:
            check_numbers(self.trainer, self._epoch_loss, tensors, self.optim, self._sound_step)
            self._sound_step = self.global_step

    def _replay(self, images: Tensor, targets: Tensor) -> Tensor:
        """Takes the whole step, optimizer included; what Lightning then does is empty, see ``backward`` and ``optimizer_step``."""
        if self._graph is None or images.shape[2:] != self._graph.images.shape[2:]:  # data.image_size_schedule has come to another size
            self._graph = None  # its memory first
            optimizer = self.optimizers(use_pl_optimizer=False)
            buffers = list(self.model.buffers())
            self._graph = StepGraph(self.training_loss, optimizer, images, targets, self.optim.clip_norm, buffers=buffers)  # type: ignore[arg-type]
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
        self._sound_step = self.global_step
        self._epoch_loss = self._epoch_loss.to(self.device)  # a checkpoint is read before the GPU is in use

    def on_train_epoch_start(self) -> None:
        self._epoch_loss = torch.zeros((), device=self.device)

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._check_numbers(dict(self.named_parameters()))

    def on_train_epoch_end(self) -> None:
        self._check_numbers(dict(self.named_parameters()))
        self.log("train/loss_epoch", self._epoch_loss / (self.trainer.fit_loop.epoch_loop.batch_idx + 1), sync_dist=True)

    def on_fit_end(self) -> None:
        self._graph = None  # its memory is as large as a step's

    def on_train_end(self) -> None:
        torch.manual_seed(self.seed)  # whatever is built next starts from the run's seed, not from the last step's

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self.evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        steps, epochs = self.trainer.estimated_stepping_batches, self.trainer.max_epochs
        if steps == float("inf"):
            raise InputError("The length of the run is unknown, and the schedule needs it: give trainer.max_epochs or trainer.max_steps.")
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise InputError("GradientAccumulationScheduler changes how many steps there are, and the rates follow from that: "
                             "take trainer.accumulate_grad_batches.")  # fmt: skip
        self.trainer.fit_loop.setup_data()  # a run given in steps has not looked at its data yet
        # The last batch of an epoch steps, too, however few were accumulated.
        steps_per_epoch = -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        length = steps / steps_per_epoch if epochs in (None, -1) or self.trainer.max_steps != -1 else float(epochs)
        schedule, told = fit_schedule(self.schedule, length)
        if told:
            rank_zero_info(told)
        optimizer = create_optimizer(self.model, self.optim)
        if further := self.further_parameters():
            optimizer.add_param_group({"params": further, "weight_decay": 0.0})
        scheduler = create_scheduler(optimizer, schedule, self.optim.lr, length, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": schedule.per}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.clip_gradients(optimizer, self.optim.clip_norm or gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds one plain dictionary: all that is needed to build the network again and to read its output.

        Raises:
            DivergenceError: A tensor of the checkpoint, or the loss of this epoch, is NaN or inf: nothing is written.
        """
        self._check_numbers(tensors_in({name: checkpoint.get(name) for name in ("state_dict", "ema", "optimizer_states")}))
        if self._records:
            make_plain(checkpoint)
        checkpoint[KEY] = {
            "format": 1,
            "model": None if self.own_model else self.model_config,
            "class_names": self.class_names,
            "mean": self.mean,
            "std": self.std,
            "grid_size": list(self.encoder.grid_size),
            "recipe": self.recipe,
            "preprocessing": data.preprocessing.to_json() if isinstance(data := self.trainer.datamodule, ImageDataModule) else None,  # type: ignore[attr-defined]
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
        self._is_started = True
        self.take_up(checkpoint.get(KEY, {}))
        self._epoch_loss = torch.zeros(()) + checkpoint.get(KEY, {}).get("epoch_loss", 0.0)

    def take_up(self, about: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint says of itself beside its weights."""

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: str | torch.device = "cpu", **changes: Any
    ) -> Self:
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
        module = cls(**from_config({**(about["model"] or {}), **changes}, cls.options))
        module.load_state_dict(without_guide(checkpoint["state_dict"]))
        module._is_started = True
        module.recipe, module.seed = about["recipe"], about["seed"]
        module.take_up(about)
        return module.to(map_location).eval()
