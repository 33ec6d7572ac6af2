"""An average of the weights that is validated, tested and kept in the place of the raw ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cct_lightning.errors import InputError, check_range


class EMA(Callback):
    """Averages the weights exponentially, with a decay that grows as min(decay, (1 + n) / (10 + n)) over the updates n.

    Validation, test and the checkpoints' ``state_dict`` see the average as soon as there is one, and after the training the network holds it;
    the raw weights are in the checkpoint for a resumed run. The average is kept in float32 where the weights are of 16 bits (``bf16-true``), which
    would round each of its small steps away. The statistics of batch norms are averaged with the weights that they belong to; other buffers are the
    network's own. "Acceleration of Stochastic Approximation by
    Averaging" (Polyak and Juditsky, 1992); the warm-up of the decay is TensorFlow's ``ExponentialMovingAverage``.

    Args:
        decay: Share of the old average that stays at each update.
        every_n_steps: Optimizer steps from one update to the next.
        start_step: Optimizer steps before the first one.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1, start_step: int = 0) -> None:
        check_range("EMA.decay", decay, 0, 1, exclusive="high")
        check_range("EMA.every_n_steps", every_n_steps, 1)
        check_range("EMA.start_step", start_step, 0)
        self.decay, self.every_n_steps, self.start_step = decay, every_n_steps, start_step
        self.updates = 0
        self.average: dict[str, Tensor] = {}  # by parameter; empty before the first update
        self._raw: dict[str, Tensor] = {}  # the raw weights, while the network holds the average
        self._step = 0
        self._statistics: list[str] = []  # of batch norms, by name

    def _weights(self, module: LightningModule) -> dict[str, Tensor]:
        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
        return weights | {name: module.get_buffer(name) for name in self._statistics}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what would put raw weights into files unseen, and looks which statistics there are to average."""
        norms = [(name, layer) for name, layer in pl_module.named_modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
        self._statistics = [f"{name}.{kind}" for name, _ in norms for kind in ("running_mean", "running_var")]
        if pl_module._device_mesh is not None:
            raise InputError("EMA does not average weights that are sharded over devices: leave out EMA or the overlay fsdp.")
        if any(isinstance(callback, ModelCheckpoint) and callback.save_weights_only for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise InputError("EMA puts the average into whole checkpoints alone: leave save_weights_only out of ModelCheckpoint.")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._step or step <= self.start_step or step % self.every_n_steps:
            return  # no optimizer step (gradients accumulate), or none that counts
        self._step = step
        weights = self._weights(pl_module)
        if not self.average:
            self.average = {name: _wide(weight).clone() for name, weight in weights.items()}
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), [_wide(weight) for weight in weights.values()], 1 - decay)

    def _put(self, pl_module: LightningModule, values: Mapping[str, Tensor]) -> None:
        weights = self._weights(pl_module)
        torch._foreach_copy_(list(weights.values()), [values[name] for name in weights])

    def _show_average(self, pl_module: LightningModule) -> None:
        if self.average and not self._raw:
            self._raw = {name: weight.clone() for name, weight in self._weights(pl_module).items()}
            self._put(pl_module, self.average)

    def _show_raw(self, pl_module: LightningModule) -> None:
        if self._raw:
            self._put(pl_module, self._raw)
            self._raw = {}

    @contextmanager
    def raw_weights(self, pl_module: LightningModule) -> Iterator[None]:
        """Puts the raw weights into a network that holds the average, for a while."""
        raw, self._raw = self._raw, {}
        if raw:
            self._put(pl_module, raw)
        try:
            yield
        finally:
            self._raw = raw
            if raw:
                self._put(pl_module, self.average)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show_raw(pl_module)  # a second fit goes on where the first one stopped
        self.average = {name: weight.to(pl_module.device) for name, weight in self.average.items()}  # a checkpoint is read before the GPU is in use

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # after a training the network holds the average, and it may be another one's turn
            self._show_average(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._show_raw(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._show_raw(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show_average(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the average as the network's weights, and the raw ones beside it."""
        if self.average:
            checkpoint["ema"] = {"raw": self._raw or self._weights(pl_module), "updates": self.updates, "step": self._step}
            checkpoint["state_dict"] |= self.average

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes up the average of a checkpoint; a training goes on from its raw weights, anything else sees the average.

        Raises:
            InputError: The average is of other weights than the network's.
        """
        found = checkpoint.get("ema")
        self._raw = {}
        if found is None:
            self.average, self.updates = {}, 0
            return
        if other := found["raw"].keys() ^ self._weights(pl_module).keys():
            raise InputError(f"the checkpoint's average (ema) is none of this network's weights: {sorted(other)[0]} is only in one of the two.")
        # As the file has it: the network may be of 16 bits.
        self.average = {name: _wide(checkpoint["state_dict"][name]).to(pl_module.device, copy=True) for name in self._weights(pl_module)}
        self.updates, self._step = found["updates"], found["step"]
        if trainer.state.fn == TrainerFn.FITTING:
            self._put(pl_module, {name: weight.to(pl_module.device) for name, weight in found["raw"].items()})
        else:
            self._raw = {name: weight.to(pl_module.device) for name, weight in found["raw"].items()}


def _wide(weight: Tensor) -> Tensor:
    """Returns weights of 16 bits in float32, others as they are."""
    return weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
