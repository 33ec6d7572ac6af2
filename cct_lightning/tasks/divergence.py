"""Whether a training still computes with numbers."""

from collections.abc import Callable, Mapping, Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.nn import Module
from torchmetrics import MeanMetric

from cct_lightning.errors import RunError
from cct_lightning.training.hardware import is_sharded
from cct_lightning.training.options import OptimConfig
from cct_lightning.weights.soundness import not_finite
from cct_lightning.wording import some

EVERY = 50  # steps, at most, from one look to the next: a look waits for the device
LEAST_SCALE = 2.0**-16  # of a 16-bit loss: it begins at 2^16 and is halved by each step whose gradients overflow


class DivergenceError(RunError):
    """The loss, the weights or the optimizer's averages of a training are no numbers any more."""


class MeanLoss(MeanMetric):
    """The mean of losses that is no number where one of them is none: by default a MeanMetric leaves these out.

    It stays float32 in a network of another precision: bfloat16 counts to 256.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        return super()._apply(lambda value: fn(value).to(value.dtype), exclude_state)


def check_numbers(trainer: Trainer, loss: Tensor, tensors: Mapping[str, Tensor], optim: OptimConfig, sound: int) -> None:
    """Ends a training that diverged, on all devices after the same step.

    Steps that a 16-bit loss scale left out since their gradients overflowed are none of it, until it has left out all of some thirty.

    Args:
        trainer: Of the training; all its devices call this at the same step.
        loss: A sum of losses, (): one that is no number stays in it.
        tensors: By name: weights, and what else is about to be written.
        optim: For the message.
        sound: The step at which all were numbers.

    Raises:
        DivergenceError: Says when, what, and what to try.
    """
    local = {name: tensor.to_local() if is_sharded(tensor) else tensor for name, tensor in tensors.items()}
    names = not_finite({"": loss.detach(), **local})
    if "" in names:
        what = "the training loss is not a finite number"
    elif names:
        what = f"{some(names)} hold{'s' if len(names) == 1 else ''} NaN or inf"
    else:
        plugin = trainer.precision_plugin
        scale = plugin.scaler.get_scale() if isinstance(plugin, MixedPrecision) and plugin.scaler is not None else 1.0
        what = f"its gradients overflow 16 bits however the loss is scaled ({scale:.0e} at last)" if scale < LEAST_SCALE else ""
    if not trainer.strategy.reduce_boolean_decision(bool(what), all=False):
        return
    ways = [f"a lower rate (--model.optim.lr {optim.lr / 10:.2g}; it was {optim.lr:g})"]
    ways += ["clipped gradients (--model.optim.clip_norm 1)"] if optim.clip_norm is None else []
    ways += [f"more digits (--trainer.precision 32-true; it was {trainer.precision})"] if "16" in str(trainer.precision) else []
    raise DivergenceError(
        f"the training diverged after step {sound}, found at step {trainer.global_step} (epoch {trainer.current_epoch + 1}): "
        f"{what or 'on another device'}.\n  Try {'; '.join(ways)}."
    )
