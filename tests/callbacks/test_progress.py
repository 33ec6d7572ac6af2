import io
import os
from types import SimpleNamespace

import pytest
import torch
from cct_lightning.callbacks import ProgressBar, Throughput


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stand_in(**options):
    """What the progress bar reads of a trainer, in the middle of a run."""
    throughput = Throughput()
    throughput.images, throughput.seconds = 24_690, 10.0
    metrics = {"train/loss": torch.tensor(0.5123)}
    group = {"lr": 9.12e-4}
    return SimpleNamespace(**{
        "global_step": 100, "estimated_stepping_batches": 400, "current_epoch": 4, "max_epochs": 20, "callback_metrics": metrics,
        "optimizers": [SimpleNamespace(param_groups=[group])], "callbacks": [throughput], "training": True, "sanity_checking": False, **options,
    })  # fmt: skip


def at(monkeypatch, seconds, stream):
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    monkeypatch.setattr(ProgressBar, "_stream", stream)


def test_the_progress_bar_tells_what_one_wants_to_know(monkeypatch):
    seconds = [50.0]
    at(monkeypatch, seconds, io.StringIO())
    bar, trainer = ProgressBar(), stand_in(global_step=0)
    bar.on_train_start(trainer, None)
    seconds[0], trainer.global_step = 150.0, 100
    trainer.callback_metrics["val/accuracy"] = torch.tensor(0.9)
    bar.on_validation_end(trainer, None)
    trainer.callback_metrics["val/accuracy"] = torch.tensor(0.875)
    bar.on_validation_end(trainer, None)
    expected = "epoch 5/20  step 100/400  loss 0.512  lr 9.1e-04  2,469 images/s  val 87.5 % (best 90.0 %)  5:00 left"
    assert bar._line(trainer) == expected
    assert bar._line(stand_in(global_step=400, current_epoch=20)).endswith("1:40 in all")


def test_of_what_classifies_nothing_it_tells_the_loss_and_the_neighbours(monkeypatch):
    at(monkeypatch, [50.0], io.StringIO())
    bar, trainer = ProgressBar(), stand_in()
    trainer.callback_metrics |= {"val/loss": torch.tensor(0.75), "val/knn": torch.tensor(0.25)}
    bar.on_validation_end(trainer, None)
    del trainer.callback_metrics["val/knn"]  # measured every few epochs
    bar.on_validation_end(trainer, None)
    assert "images/s  val loss 0.750  k-NN 25.0 %" in bar._line(trainer)


def test_a_terminal_has_one_line_that_is_drawn_by_the_clock(monkeypatch):
    seconds, stream = [100.0], Terminal()
    at(monkeypatch, seconds, stream)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((40, 20)))  # pytest asks, too
    bar, trainer = ProgressBar(per_second=2), stand_in()
    bar.on_train_start(trainer, None)
    for _ in range(16):
        seconds[0] += 0.125
        bar.on_train_batch_end(trainer, None, None, None, 0)
    drawn = stream.getvalue().split("\r\x1b[K")[1:]
    assert len(drawn) == 4
    assert all(len(line) == 39 for line in drawn)
    assert "\n" not in stream.getvalue()


def test_a_log_file_has_few_lines_and_the_last(monkeypatch):
    seconds, stream = [100.0], io.StringIO()
    at(monkeypatch, seconds, stream)
    bar, trainer = ProgressBar(log_every_seconds=10), stand_in()
    bar.on_train_start(trainer, None)
    for step in range(61):
        seconds[0] += 0.5
        trainer.global_step = 100 + step
        bar.on_train_batch_end(trainer, None, None, None, 0)
        bar.on_validation_batch_end(trainer, None, None, None, 0)
    bar.on_train_end(trainer, None)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert "\r" not in stream.getvalue()
    bar.disable()
    bar.on_train_end(trainer, None)
    assert len(stream.getvalue().splitlines()) == 4


class Notebook(io.StringIO):
    """Text below a cell, as ipykernel's ``OutStream`` takes it."""

    @property
    def shown(self):
        """What a notebook shows of it: a carriage return goes back to the line's begin, what is written then replaces what was there."""
        lines = []
        for line in self.getvalue().split("\n"):
            seen = ""
            for part in line.split("\r"):
                seen = part + seen[len(part) :]
            lines.append(seen.rstrip())
        return lines


Notebook.__module__ = "ipykernel.iostream"


def run(bar, trainer, seconds, steps, pause=0.5, accuracy=None):
    """Takes ``steps`` steps of an epoch that ends with a validation."""
    bar.on_train_start(trainer, None)
    for _ in range(steps):
        seconds[0] += pause
        trainer.global_step += 1
        bar.on_train_batch_end(trainer, None, None, None, 0)
    if accuracy is not None:
        trainer.callback_metrics["val/accuracy"] = torch.tensor(accuracy)
        bar.on_validation_end(trainer, None)
    bar.on_train_epoch_end(trainer, None)
    seconds[0] += pause
    bar.on_train_end(trainer, None)


def test_a_notebook_has_one_line_that_is_drawn_once_a_second(monkeypatch):
    seconds, stream = [100.0], Notebook()
    at(monkeypatch, seconds, stream)
    bar, trainer = ProgressBar(), stand_in(global_step=0, estimated_stepping_batches=16)
    run(bar, trainer, seconds, 16, pause=0.25, accuracy=0.5)
    text = stream.getvalue()
    assert text.count("\r") == 5  # after each of four seconds, and at the end
    assert "\x1b" not in text
    assert len(stream.shown) == 2
    assert stream.shown[1] == ""  # the line is left, and the summary begins below it
    assert stream.shown[0].endswith("step 16/16  loss 0.512  lr 9.1e-04  2,469 images/s  val 50.0 % (best 50.0 %)  0:04 in all")


def test_a_shorter_line_leaves_nothing_of_a_longer_one_in_a_notebook(monkeypatch):
    seconds, stream = [100.0], Notebook()
    at(monkeypatch, seconds, stream)
    bar = ProgressBar()
    for line in ("a long line", "short"):
        bar._show(line)
    assert stream.shown == ["short"]
    bar.print("beside it", file=stream)
    assert stream.shown == ["beside it", ""]
    bar.on_test_end(None, None)
    assert stream.shown == ["beside it", ""]


def test_a_notebook_is_told_from_a_terminal_and_a_file_by_the_streams_class(monkeypatch):
    for stream, in_place in ((io.StringIO(), False), (Terminal(), True), (Notebook(), True)):
        monkeypatch.setattr(ProgressBar, "_stream", stream)
        assert ProgressBar()._in_place == in_place
    kernel = pytest.importorskip("ipykernel.iostream")
    monkeypatch.setattr(ProgressBar, "_stream", kernel.OutStream.__new__(kernel.OutStream))
    assert ProgressBar()._in_place


@pytest.mark.parametrize("pause", [0.5, 20.0])
@pytest.mark.parametrize("accuracy", [None, 0.5])
def test_the_last_line_of_a_log_file_stands_there_once(monkeypatch, pause, accuracy):
    seconds, stream = [100.0], io.StringIO()
    at(monkeypatch, seconds, stream)
    bar, trainer = ProgressBar(), stand_in(global_step=0, estimated_stepping_batches=3, max_epochs=1, current_epoch=0)
    run(bar, trainer, seconds, 3, pause, accuracy)
    told = [line.rpartition("  ")[0] for line in stream.getvalue().splitlines()]  # less the time
    assert len(set(told)) == len(told)
    assert "step 3/3" in told[-1]
    assert ("val 50.0 %" in told[-1]) == (accuracy is not None)
    stream.truncate(0)
    trainer.global_step = 0
    run(bar, trainer, seconds, 3, pause, accuracy)  # the next run in the same process tells its end, too
    assert stream.getvalue().count("step 3/3") >= 1
