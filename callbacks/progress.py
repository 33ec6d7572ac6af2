"""How far a run is: one line on a terminal and in a notebook, a line now and then in a log file."""

import math
import shutil
import sys
import time
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as Bar

from cct_lightning.errors import check_range
from cct_lightning.evaluation.measures import MEASURES
from cct_lightning.training.optimizers import shown_rate
from cct_lightning.wording import clock, percent

from .throughput import Throughput

NOTEBOOK_SECONDS = 1.0  # between two drawings there: each is a message to a browser


def _in_notebook(stream: TextIO) -> bool:
    """Tells whether a stream's text is shown below a notebook's cell: by its class, so that neither ipykernel nor IPython is imported.

    It is no terminal and knows no terminal's codes, but a carriage return overwrites the line.
    """
    return any(kind.__module__.partition(".")[0] == "ipykernel" for kind in type(stream).__mro__)


class ProgressBar(Bar):
    """Tells epoch, step, loss, learning rate, images per second, validation accuracy, or the task's other measure, with the best so far, and the time
    left; of what learns no labels the validation loss, and how many nearest neighbours are of an image's class.

    On a terminal it is one line that is drawn anew, by the clock and not by the step: drawing takes longer than a small network's step, and
    the loss waits for a GPU. So it is in a notebook, once a second at most. Elsewhere, in a log file, lines follow each other, seldom enough to
    be read.

    Args:
        per_second: How often the line of a terminal is drawn anew, at most.
        log_every_seconds: Time between two lines in a log file; the last step is always told.
    """

    def __init__(self, per_second: float = 4.0, log_every_seconds: float = 15.0) -> None:
        super().__init__()
        check_range("ProgressBar.per_second", per_second, 0, exclusive="low")
        check_range("ProgressBar.log_every_seconds", log_every_seconds, 0)
        self.per_second, self.log_every_seconds = per_second, log_every_seconds
        self._enabled = True
        self._drawn = 0.0
        self._width = 0  # of the line that a notebook shows
        self._told: tuple[int, float | None] | None = None  # the step of the last line of the training, and the measure in it
        self._begin, self._began = 0, 0.0
        self._measured: float | None = None
        self._name = ""  # of the measure, where that is not the accuracy
        self._best = 0.0
        self._others: dict[str, float] = {}  # what a validation without accuracy found last

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

    @property
    def _in_place(self) -> bool:
        """Whether one line is drawn anew."""
        return _in_notebook(self._stream) or self._stream.isatty()

    def _is_due(self) -> bool:
        """Tells whether the time for another line has come."""
        if _in_notebook(self._stream):
            seconds = max(1 / self.per_second, NOTEBOOK_SECONDS)
        else:
            seconds = 1 / self.per_second if self._stream.isatty() else self.log_every_seconds
        return self._enabled and time.monotonic() - self._drawn >= seconds

    def _show(self, line: str) -> None:
        self._drawn = time.monotonic()
        if _in_notebook(self._stream):
            self._stream.write(f"\r{line.ljust(self._width)}")
            self._width = len(line)
        elif self._stream.isatty():
            width = shutil.get_terminal_size().columns
            self._stream.write(f"\r\x1b[K{line[: width - 1]}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def _tell(self, trainer: Trainer) -> None:
        self._told = (trainer.global_step, self._measured)
        self._show(self._line(trainer))

    def _clear(self) -> None:
        if self._enabled and self._in_place:
            self._stream.write(f"\r{' ' * self._width}\r" * bool(self._width) if _in_notebook(self._stream) else "\r\x1b[K")
            self._width = 0
            self._stream.flush()

    def _end(self) -> None:
        """Leaves the line as it is: what follows begins below it."""
        if self._enabled and self._in_place:
            self._stream.write("\n")
            self._width = 0
            self._stream.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin, self._began = trainer.global_step, time.monotonic()
        self._drawn = self._began
        self._told = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._is_due():
            self._tell(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._in_place and self._is_due():
            before = f"{self._line(trainer)}  " if trainer.training or trainer.state.fn == "fit" else ""
            self._show(f"{before}validation batch {batch_idx + 1}")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._in_place and self._is_due():
            self._show(f"test batch {batch_idx + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = trainer.callback_metrics
        if trainer.sanity_checking:
            return
        if (name := next((name for name in MEASURES if f"val/{name}" in found), None)) is not None:
            self._measured, self._name = float(found[f"val/{name}"]), "" if name == "accuracy" else f" {MEASURES[name].title}"
            self._best = max(self._best, self._measured)
        else:
            self._others |= {name: float(found[name]) for name in ("val/loss", "val/knn") if name in found}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and self._drawn == self._began:  # that it runs is known after the first epoch at the latest
            self._tell(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and (self._in_place or self._told != (trainer.global_step, self._measured)):
            self._tell(trainer)
        self._end()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def _line(self, trainer: Trainer) -> str:
        done, total = trainer.global_step, trainer.estimated_stepping_batches
        epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
        epoch = trainer.current_epoch + 1
        parts = [f"epoch {min(epoch, epochs)}/{epochs}" if epochs else f"epoch {epoch}"]
        parts.append(f"step {done}/{int(total)}" if math.isfinite(total) else f"step {done}")
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            parts.append(f"loss {float(loss):.3f}")
        if trainer.optimizers:
            parts.append(f"lr {shown_rate(trainer.optimizers[0]):.1e}")
        rate = next((callback.images_per_second for callback in trainer.callbacks if isinstance(callback, Throughput)), None)  # type: ignore[attr-defined]
        if rate:
            parts.append(f"{rate:,.0f} images/s")
        if self._measured is not None:
            parts.append(f"val{self._name} {percent(self._measured)} (best {percent(self._best)})")
        parts += [f"val loss {self._others['val/loss']:.3f}"] if "val/loss" in self._others else []
        parts += [f"k-NN {percent(self._others['val/knn'])}"] if "val/knn" in self._others else []
        seconds, steps = time.monotonic() - self._began, done - self._begin
        if steps and math.isfinite(total):
            parts.append(f"{clock(seconds / steps * (total - done))} left" if done < total else f"{clock(seconds)} in all")
        return "  ".join(parts)
