"""How far a run is: one line on a terminal, a line now and then in a log file."""

import math
import shutil
import sys
import time
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as Bar

from cct_lightning.errors import check_range
from cct_lightning.wording import clock, percent

from .throughput import Throughput


class ProgressBar(Bar):
    """Tells epoch, step, loss, learning rate, images per second, validation accuracy with the best so far, and the time left.

    On a terminal it is one line that is drawn anew, by the clock and not by the step: drawing takes longer than a small network's step, and
    the loss waits for a GPU. Elsewhere, in a log file, lines follow each other, seldom enough to be read.

    Args:
        per_second: How often the line of a terminal is drawn anew, at most.
        log_every_seconds: Time between two lines where there is no terminal; the last step is always told.
    """

    def __init__(self, per_second: float = 4.0, log_every_seconds: float = 15.0) -> None:
        super().__init__()
        check_range("ProgressBar.per_second", per_second, 0, exclusive="low")
        check_range("ProgressBar.log_every_seconds", log_every_seconds, 0)
        self.per_second, self.log_every_seconds = per_second, log_every_seconds
        self._enabled = True
        self._drawn = 0.0
        self._begin, self._began = 0, 0.0
        self._accuracy: float | None = None
        self._best = 0.0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **options: Any) -> None:
        self._clear()
        print(*args, **options)

    @property
    def _stream(self) -> TextIO:
        return sys.stderr

    def _is_due(self) -> bool:
        """Tells whether the time for another line has come."""
        seconds = 1 / self.per_second if self._stream.isatty() else self.log_every_seconds
        return self._enabled and time.monotonic() - self._drawn >= seconds

    def _show(self, line: str) -> None:
        self._drawn = time.monotonic()
        if self._stream.isatty():
            width = shutil.get_terminal_size().columns
            self._stream.write(f"\r\x1b[K{line[: width - 1]}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._enabled and self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin, self._began = trainer.global_step, time.monotonic()
        self._drawn = self._began

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._is_due():
            self._show(self._line(trainer))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count(f"{self._line(trainer)}  " if trainer.training or trainer.state.fn == "fit" else "", "validation", batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count("", "test", batch_idx)

    def _count(self, before: str, what: str, batch_idx: int) -> None:
        if self._stream.isatty() and self._is_due():
            self._show(f"{before}{what} batch {batch_idx + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (accuracy := trainer.callback_metrics.get("val/accuracy")) is not None and not trainer.sanity_checking:
            self._accuracy = float(accuracy)
            self._best = max(self._best, self._accuracy)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and self._drawn == self._began:  # that it runs is known after the first epoch at the latest
            self._show(self._line(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            self._show(self._line(trainer))
            if self._stream.isatty():
                self._stream.write("\n")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._enabled and self._stream.isatty():
            self._stream.write("\n")

    def _line(self, trainer: Trainer) -> str:
        done, total = trainer.global_step, trainer.estimated_stepping_batches
        epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
        epoch = trainer.current_epoch + 1
        parts = [f"epoch {min(epoch, epochs)}/{epochs}" if epochs else f"epoch {epoch}"]
        parts.append(f"step {done}/{int(total)}" if math.isfinite(total) else f"step {done}")
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            parts.append(f"loss {float(loss):.3f}")
        if trainer.optimizers:
            parts.append(f"lr {float(trainer.optimizers[0].param_groups[0]['lr']):.1e}")
        rate = next((callback.images_per_second for callback in trainer.callbacks if isinstance(callback, Throughput)), None)  # type: ignore[attr-defined]
        if rate:
            parts.append(f"{rate:,.0f} images/s")
        if self._accuracy is not None:
            parts.append(f"val {percent(self._accuracy)} (best {percent(self._best)})")
        seconds, steps = time.monotonic() - self._began, done - self._begin
        if steps and math.isfinite(total):
            parts.append(f"{clock(seconds / steps * (total - done))} left" if done < total else f"{clock(seconds)} in all")
        return "  ".join(parts)
