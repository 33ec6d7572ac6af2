"""How fast a run trains."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Measures training images per second over all devices, loading included, validation and the first steps left out.

    On a GPU the host runs a few steps ahead, which cancels over an epoch.

    Args:
        warmup_steps: First steps of the run that don't count: allocation, autotuning, compilation.
    """

    def __init__(self, warmup_steps: int = 5) -> None:
        self.warmup_steps = warmup_steps
        self.images, self.seconds = 0, 0.0
        self._since: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Images per second so far; None before a step was measured."""
        return self.images / self.seconds if self.seconds else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if trainer.global_step > self.warmup_steps and self._since is not None:
            self.images += len(batch[1]) * trainer.world_size
            self.seconds += now - self._since
        self._since = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()  # a validation inside an epoch is no training time
