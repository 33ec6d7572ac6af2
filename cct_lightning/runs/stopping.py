"""A run is stopped from outside: what signals do to it, and how all ranks agree to leave after the same step."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cct_lightning.runs.lightning_private import accumulates, stop_after_step

STOPS = b"\nstopping after this step; Ctrl-C again leaves at once, without its checkpoint\n"
SAVES = b"\nsaving the checkpoint, then the run ends\n"
SHARE_SECONDS = 1.0  # between two questions to the other ranks, about


class Stopping(Callback):
    """Ends a run on SIGTERM, SIGHUP and Ctrl-C: a training after the optimizer step at hand, a validation or a test after its batch.

    Before the first step there is nothing to keep: the run ends at once. A second Ctrl-C leaves at once, unless the checkpoint is being written.
    Several ranks leave after the same batch, whichever got the signal: they ask each other about once a second, after batches that all count
    alike, so that a step costs neither a message nor a wait for the device.

    Attributes:
        received: The signal that ends the run, or 0.
        began: Whether the training took up its work.
        saving: Whether the checkpoint of the stop is being written.
    """

    def __init__(self) -> None:
        self.received = 0
        self.began = self.saving = False
        self._speaks = True
        self._batches, self._due = 0, 1  # since the last question, and until the next
        self._asked = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals for as long as a run lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            numbers.append(signal.SIGHUP)
        before = [signal.signal(number, self._receive) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.received = bool(self.received), self.received or number
        if self.saving:
            self._say(SAVES)
        elif number == signal.SIGINT and (again or not self.began):
            raise KeyboardInterrupt
        elif not self.began:
            raise SIGTERMException(128 + number)
        elif not again:
            self._say(STOPS)

    def _say(self, line: bytes) -> None:
        if self._speaks:
            with suppress(OSError):
                os.write(2, line)  # print may be at work already

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began, self._speaks = True, trainer.is_global_zero

    def _ask_soon(self) -> None:
        """Asks after the next batch: those of another phase may take longer."""
        self._batches, self._due, self._asked = 0, 1, time.monotonic()

    def _is_asked(self, trainer: Trainer) -> bool:
        """Tells whether a signal has come to any rank, where it is time to ask; all find the same."""
        if trainer.world_size == 1:
            return bool(self.received)
        self._batches += 1
        if self._batches < self._due:
            return False
        told = torch.tensor([float(self.received), time.monotonic() - self._asked], device=trainer.strategy.root_device)
        number, seconds = trainer.strategy.reduce(told, reduce_op="max").tolist()  # type: ignore[union-attr]
        if number:  # else one that came meanwhile, which the others have not heard of, is kept for the next question
            self.received = int(number)
        each = seconds / self._batches
        self._batches, self._due, self._asked = 0, max(1, min(2 * self._due, int(SHARE_SECONDS / max(each, 1e-6)))), time.monotonic()
        return bool(number)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Has Lightning leave the loop once it has logged the step; not while gradients accumulate, which no checkpoint keeps."""
        if trainer.state.fn == TrainerFn.FITTING and accumulates(trainer):
            return
        if self._is_asked(trainer):
            stop_after_step(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask_soon()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask_soon()
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask_soon()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask_soon()
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask_soon()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_if_asked(trainer)
