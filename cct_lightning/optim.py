"""Optimizers, parameter groups and learning-rate schedules. Weight decay skips norms and biases; schedules are pure functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal

import timm.optim
import torch
from torch import nn

from cct_lightning.errors import InputError, check_range, did_you_mean


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer.

    Args:
        name: Any optimizer of timm's, by its name there: adamw, sgd, lamb, lion, muon, ...
        lr: Highest learning rate.
        weight_decay: Weight decay of matrices and convolutions; norms and biases never decay.
        layer_decay: Factor on the learning rate from each layer to the one below; null: the same everywhere.
        clip_norm: Largest norm of the gradient; null: not clipped.
    """

    name: str = "adamw"
    lr: float = 5.5e-4
    weight_decay: float = 0.06
    layer_decay: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_range("optim.lr", self.lr, 0, exclusive="low")
        check_range("optim.weight_decay", self.weight_decay, 0)
        check_range("optim.layer_decay", 1 if self.layer_decay is None else self.layer_decay, 0, 1, exclusive="low")
        check_range("optim.clip_norm", 1 if self.clip_norm is None else self.clip_norm, 0, exclusive="low")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run: a linear warm-up, a decay, a cool-down at the end.

    Args:
        name: Form of the decay: cosine, linear or constant.
        per: step sets the rate anew for every step, epoch once an epoch, as timm and the published recipes do.
        warmup_epochs: Length of the warm-up.
        warmup_lr: Rate at its start.
        min_lr: Rate at the end of the decay and through the cool-down.
        cooldown_epochs: Last epochs of the run, at min_lr.
    """

    name: Literal["cosine", "linear", "constant"] = "cosine"
    per: Literal["step", "epoch"] = "step"
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
            check_range(f"schedule.{name}", getattr(self, name), 0)


def learning_rate(at: float, total: float, lr: float, config: ScheduleConfig, unit: float = 1.0) -> float:
    """Returns the learning rate ``at`` steps (or epochs) from the start.

    The cosine runs over the whole run less the cool-down and is not shifted by the warm-up, as timm's ``CosineLRScheduler`` and with it
    the published recipes; the linear decay begins at the end of the warm-up.

    Args:
        at: Steps or epochs since the start.
        total: Length of the run in the same unit.
        lr: Highest rate.
        config: Form and lengths.
        unit: Steps (or epochs) in an epoch, by which the lengths of the configuration are multiplied.
    """
    warmup, decay_end = config.warmup_epochs * unit, total - config.cooldown_epochs * unit
    if at < warmup:
        return config.warmup_lr + at * (lr - config.warmup_lr) / warmup
    if at >= decay_end:
        return config.min_lr
    match config.name:
        case "cosine":
            return config.min_lr + 0.5 * (lr - config.min_lr) * (1 + math.cos(math.pi * at / decay_end))
        case "linear":
            return lr + (config.min_lr - lr) * (at - warmup) / (decay_end - warmup)
        case "constant":
            return lr


def fit_schedule(config: ScheduleConfig, epochs: float) -> tuple[ScheduleConfig, str | None]:
    """Shortens warm-up and cool-down for a run that has no room for them; returns a sentence that says so, or None."""
    if config.warmup_epochs + config.cooldown_epochs < epochs:
        return config, None
    short = ScheduleConfig(config.name, config.per, epochs / 10, config.warmup_lr, config.min_lr, 0.0)
    told = (
        f"the run of {epochs:g} epochs has no room for warmup_epochs={config.warmup_epochs:g} and cooldown_epochs={config.cooldown_epochs:g}: "
        f"warming up for a tenth of it, no cool-down"
    )
    return short, told


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds timm's optimizer over the trainable parameters, with the layer-wise rates folded into each group's ``lr``.

    Raises:
        InputError: timm has no optimizer of this name, or nothing is trainable.
    """
    names = [str(name) for name in timm.optim.list_optimizers()]
    if config.name.lower() not in names:
        raise InputError(f"optim.name={config.name!r} is no optimizer of timm {timm.__version__}.{did_you_mean(config.name, names)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("No parameter is trainable: freeze=backbone leaves the pooling and the head, and this network has neither.")
    optimizer = timm.optim.create_optimizer_v2(model, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_scale", 1.0)  # timm's own schedulers read lr_scale, torch's don't
    return optimizer


def create_scheduler(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, lr: float, epochs: float, steps_per_epoch: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Builds the schedule, to be stepped once a step or once an epoch as ``config.per`` says; each group's rate keeps its share of ``lr``."""
    unit = steps_per_epoch if config.per == "step" else 1.0
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: learning_rate(at, epochs * unit, lr, config, unit) / lr)
