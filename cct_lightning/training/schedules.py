"""Learning rates over a run: pure functions of the step."""

import math

import torch

from cct_lightning.training.options import ScheduleConfig


def learning_rate(at: float, total: float, lr: float, config: ScheduleConfig, unit: float = 1.0) -> float:
    """Returns the learning rate ``at`` steps (or epochs) from the start.

    The cosine runs over the whole run less the cool-down and is not shifted by the warm-up, as timm's ``CosineLRScheduler`` and with it
    the published recipes; the linear decay begins at the end of the warm-up.

    Args:
        at: Steps or epochs since the start.
        total: Length of the run in the same unit.
        lr: Highest rate; rates of the configuration that are above it count as this one.
        config: Form and lengths.
        unit: Steps (or epochs) in an epoch, by which the lengths of the configuration are multiplied.
    """
    start, end = min(config.warmup_lr, lr), min(config.min_lr, lr)
    warmup, decay_end = config.warmup_epochs * unit, total - config.cooldown_epochs * unit
    if at < warmup:
        return start + at * (lr - start) / warmup
    if at >= decay_end:
        return end
    match config.name:
        case "cosine":
            return end + 0.5 * (lr - end) * (1 + math.cos(math.pi * at / decay_end))
        case "linear":
            return lr + (end - lr) * (at - warmup) / (decay_end - warmup)
        case "constant":
            return lr


def fit_schedule(config: ScheduleConfig, epochs: float) -> tuple[ScheduleConfig, str | None]:
    """Shortens warm-up and cool-down for a run that has no room for them; returns a sentence that says so, or None."""
    if config.warmup_epochs + config.cooldown_epochs < epochs:
        return config, None
    warmup = epochs / 10 if config.per == "step" or epochs >= 10 else 0.0  # a rate for each epoch: the first would be at its start throughout
    short = ScheduleConfig(config.name, config.per, warmup, config.warmup_lr, config.min_lr, 0.0)
    cooldown = f" and cooldown_epochs={config.cooldown_epochs:g}" if config.cooldown_epochs else ""
    told = f"the run of {epochs:g} epochs has no room for warmup_epochs={config.warmup_epochs:g}{cooldown}: "
    told += ("warming up for a tenth of it" if warmup else "no warm-up") + (", no cool-down" if cooldown else "")
    return short, told


def create_scheduler(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, lr: float, epochs: float, steps_per_epoch: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Builds the schedule, to be stepped once a step or once an epoch as ``config.per`` says; each group's rate keeps its share of ``lr``."""
    unit = steps_per_epoch if config.per == "step" else 1.0
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: learning_rate(at, epochs * unit, lr, config, unit) / lr)
