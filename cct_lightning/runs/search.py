"""``cct fit --find-lr`` and ``--find-batch-size``: searches that tell a value to put into the recipe and train nothing."""

import logging
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from torch import Tensor

from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError
from cct_lightning.evaluation.pictures import save_picture
from cct_lightning.tasks.task import Task

LR_STEPS = 200  # from the least rate to the largest
SKIP = 10  # first steps, in which the average of the loss settles
MEMORY = 0.9  # of that average
LEAST_LR, LARGEST_LR = 1e-6, 1.0
LARGEST_BATCH = 8192  # or as many as there are training images, less what a power of two leaves


class RateRamp(Callback):
    """Raises the learning rate from step to step, evenly in its logarithm, and keeps the loss of each.

    "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186, section 3.3). Lightning's own finder (2.6.6) keeps a running mean
    that begins at half its value and is too slow for so few steps: on digits its loss never falls.
    """

    def __init__(self) -> None:
        self.shares: list[float] = []  # of the groups: with layer_decay lower layers have lower rates
        self.rates = [LEAST_LR * (LARGEST_LR / LEAST_LR) ** (step / (LR_STEPS - 1)) for step in range(LR_STEPS)]
        self.losses: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        self.shares = [group["initial_lr"] / max(other["initial_lr"] for other in groups) for group in groups]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for group, share in zip(trainer.optimizers[0].param_groups, self.shares, strict=True):
            rate = self.rates[trainer.global_step] * share
            if isinstance(group["lr"], Tensor):  # a recorded step reads its rate there
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.losses) < trainer.global_step:  # the first batch of a step, where gradients accumulate
            self.losses.append(float(outputs["loss"]))


def smooth(losses: list[float]) -> list[float]:
    """Returns the exponential mean of the losses up to each, corrected for its start; what follows the first that is no number is left out."""
    mean, found = 0.0, []
    for step, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            break
        mean = MEMORY * mean + (1 - MEMORY) * loss
        found.append(mean / (1 - MEMORY**step))
    return found


def steepest_fall(losses: list[float]) -> int:
    """Returns where smoothed losses fall fastest, before their least.

    Raises:
        InputError: They do not fall.
    """
    end = min(range(SKIP, len(losses)), key=lambda step: losses[step], default=0)
    falls = [(losses[step + 1] - losses[step - 1], step) for step in range(SKIP, end)]
    if not falls or min(falls)[0] >= 0:
        raise InputError(
            "--find-lr: the loss fell at no rate, or was no number soon: are the images and labels right? Larger batches are less noisy."
        )
    return min(falls)[1]


def find_lr(trainer: Trainer, module: Task, data: ImageDataModule) -> str:
    """Raises the learning rate step by step, and takes that where the loss falls fastest; draws the curve into pictures/find-lr.png.

    Args:
        trainer: Of ``LR_STEPS`` steps; its progress bar, where it has one, tells how far the search is.
        module: Is trained on the way, and of no use afterwards.
        data: Its training images.

    Returns:
        What was found, and the flag that sets it.

    Raises:
        InputError: The optimizer has several rates, or the loss falls at none.
    """
    if module.optim.name.lower() == "muon":
        raise InputError("--find-lr tries one rate for all parameters, and optim.name=muon has two: try it with --model.optim.name adamw.")
    ramp = RateRamp()
    trainer.callbacks.append(ramp)  # type: ignore[attr-defined]
    module.may_diverge = True
    trainer.fit(module, data)
    losses = smooth(ramp.losses)
    rates = ramp.rates[: len(losses)]
    found = rates[steepest_fall(losses)]
    path = save_picture(trainer, "find-lr", _curve(rates, losses, found))
    told = f"learning rate where the loss falls fastest: {found:.2g}  ({path})"
    return f"{told}\nnext\n  the same command with --model.optim.lr {found:.2g} for --find-lr"


def _curve(rates: list[float], losses: list[float], found: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="#0072b2")
    axes.axvline(found, color="#d55e00", linestyle="--", label=f"{found:.2g}")
    low, high = min(losses), losses[0]
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed", ylim=(low - 0.1 * (high - low), high + 0.3 * (high - low)))
    axes.legend(title="falls fastest at")
    return figure


class _Sizes(logging.Filter):
    """Says on stderr which batch is tried, in the place of what Lightning's search (2.6.6) says: it leaves out the first, and names one that it
    never tries."""

    def __init__(self, first: int, most: int) -> None:
        super().__init__()
        self.most, self.fitted = most, False
        self._tell(f"trying batches of {first} images")

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if found := re.match(r"Batch size (\d+) (succeeded|failed), trying batch size (\d+)", message):
            fits, following = found[2] == "succeeded", int(found[3])
            goes_on = following <= self.most if fits else not self.fitted
            self.fitted = self.fitted or fits
            self._tell(f"{found[1]} images {'fit' if fits else 'do not fit'}" + (f", trying {following}" if goes_on else ""))
        return not re.match(r"Batch size \d|Reached the maximum batch size|The batch size \d+ is greater", message)

    @staticmethod
    def _tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def _telling_sizes(first: int, most: int) -> Iterator[None]:
    tells = _Sizes(first, most)
    speakers = [logging.getLogger(f"lightning.{part}.utilities.rank_zero") for part in ("pytorch", "fabric")]
    for speaker in speakers:
        speaker.addFilter(tells)
    try:
        yield
    finally:
        for speaker in speakers:
            speaker.removeFilter(tells)


def find_batch_size(trainer: Trainer, module: Task, data: ImageDataModule) -> str:
    """Doubles the batch until the memory is full; returns the largest that fitted, and the flag that sets it. Says on stderr what it tries."""
    data.prepare_data()
    data.setup("fit")
    most = min(LARGEST_BATCH, 2 ** int(math.log2(len(data.splits["train"][1]))))
    first = min(16, most)
    with _telling_sizes(first, most):
        # Lightning takes max_val for granted without trying it.
        found = Tuner(trainer).scale_batch_size(module, datamodule=data, mode="power", init_val=first, max_val=2 * most)
    found = min(found or first, most)
    end = ": more were not tried, memory is not the limit" if found == most else ""
    return (
        f"largest batch that fits: {found} images{end}\nnext\n"
        f"  the same command with --data.batch_size {found} for --find-batch-size; another batch wants another learning rate (--find-lr)"
    )


# By the flags of the command line: what looks for the value, and how long its trainer may run.
SEARCHES: dict[str, Callable[[Trainer, Task, ImageDataModule], str]] = {"find-lr": find_lr, "find-batch-size": find_batch_size}
LENGTHS: dict[str, dict[str, int]] = {"find-lr": {"max_steps": LR_STEPS, "max_epochs": -1, "limit_val_batches": 0}, "find-batch-size": {}}
