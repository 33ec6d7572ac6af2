import json
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from runs_alike import SMALL, assert_same

import cct_lightning
from cct_lightning.run_folder import replacing
from cct_lightning.runs.checkpointing import WholeFileIO
from cct_lightning.runs.stopping import Stopping

CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}


@pytest.fixture
def signalled(monkeypatch):
    """Returns what sends signals in a hook of the run, before it asks whether it shall stop: hook, batch, signals; once."""

    def at(hook, batch, *numbers, epoch=None):
        done = []
        there = getattr(Stopping, hook)

        def send(self, trainer, *rest):
            here = batch is None or next(part for part in rest if type(part) is int) == batch
            if here and not done and not trainer.sanity_checking and epoch in (None, trainer.current_epoch):
                done.append(True)
                for number in numbers:
                    signal.raise_signal(number)
            return there(self, trainer, *rest)

        monkeypatch.setattr(Stopping, hook, send)

    return at


def only(paths):
    (path,) = paths
    return path


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Runs without faults, by their words, kept for all who compare with them."""
    return {}


@pytest.fixture
def fit(cct, tmp_path):
    def run(*words):
        before = set(tmp_path.glob("runs/*/*"))
        outcome = cct("fit", "-c", "digits", *SMALL, *words)
        return outcome, next(iter(set(tmp_path.glob("runs/*/*")) - before), None)

    return run


@pytest.mark.parametrize("name", CODES)
def test_r03_a_signal_in_the_final_test_leaves_a_summary_and_resume_measures_it(fit, cct, signalled, tmp_path, name, references):
    if not references:
        references["fit"] = tmp_path / "reference"
        fit()[1].rename(references["fit"])
    signalled("on_test_batch_end", 1, getattr(signal, name))
    outcome, run = fit()
    assert outcome.code == CODES[name], outcome.err
    assert "Traceback" not in outcome.err
    assert f"cct resume {run.relative_to(tmp_path)} measures the test images" in outcome.out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["finished"], summary["trained"], summary["test_accuracy"], summary["epochs"]) == (False, True, None, 3)
    assert cct("resume", run).code == 0
    assert_same(run, references["fit"])


def test_r03_a_signal_in_the_validation_of_the_raw_weights_does_so_too(fit, cct, signalled):
    words = ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.9", "--trainer.max_epochs", 1)
    _, reference = fit(*words)
    signalled("on_validation_batch_end", 2, signal.SIGTERM, epoch=1)  # after the only epoch
    outcome, run = fit(*words)
    assert outcome.code == 143, outcome.err
    assert "measures the test images" in outcome.out
    assert cct("resume", run).code == 0
    assert_same(run, reference)


def test_r03_a_signal_in_a_long_validation_stops_it_and_loses_nothing(fit, cct, signalled, monkeypatch, tmp_path):
    words = ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.9")
    _, reference = fit(*words)
    seen = []
    monkeypatch.setattr(Stopping, "on_validation_batch_start", lambda *args: seen.append(args[4]))
    signalled("on_validation_batch_end", 3, signal.SIGHUP, epoch=1)
    outcome, run = fit(*words)
    assert outcome.code == 129, outcome.err
    assert seen[-1] == 3  # the batch at hand was its last
    assert f"  cct resume {run.relative_to(tmp_path)}\n" in outcome.out
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8  # both epochs' steps, not those of the first alone
    assert cct("resume", run).code == 0
    assert_same(run, reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_r03_ctrl_c_while_the_checkpoint_is_written_waits_for_it(fit, cct, signalled, monkeypatch, number):
    save = WholeFileIO.save_checkpoint

    def interrupted(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeFileIO, "save_checkpoint", interrupted)
    signalled("on_train_batch_end", 1, number, epoch=1)
    outcome, run = fit()
    assert outcome.code == 128 + number
    assert "Traceback" not in outcome.err
    assert "saving the checkpoint, then the run ends" in outcome.err
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert [path.name for path in (run / "checkpoints").glob("*.part")] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_r03_a_signal_before_the_first_step_ends_the_run_at_once(fit, monkeypatch, tmp_path, number, code):
    monkeypatch.setattr(Stopping, "setup", lambda *_, stage: signal.raise_signal(number))
    outcome, run = fit()
    assert outcome.code == code
    assert "Traceback" not in outcome.err
    assert "stopped before its first step" in outcome.err
    assert run is None


def test_r03_signals_find_their_old_handlers_again(fit, signalled):
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.getsignal(number) for number in numbers]
    signalled("on_test_batch_end", 1, signal.SIGTERM)
    fit()
    assert [signal.getsignal(number) for number in numbers] == before


def test_r03_what_nohup_ignores_stays_ignored(fit, signalled):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signalled("on_train_batch_end", 1, signal.SIGHUP)
        assert fit()[0].code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ranks_ask_each_other_about_once_a_second_and_not_each_step(monkeypatch):
    asked, clock = [], [0.0]
    monkeypatch.setattr("cct_lightning.runs.stopping.time.monotonic", lambda: clock[0])

    def reduce(told, reduce_op):
        asked.append(clock[0])
        return torch.maximum(told, torch.tensor([15.0 if clock[0] > 60 else 0.0, 0.0]))  # another rank got a SIGTERM

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    stopping, trainer = Stopping(), SimpleNamespace(world_size=2, strategy=strategy)
    stopping._ask_soon()
    steps = 0
    while not stopping._is_asked(trainer):
        steps += 1
        clock[0] += 0.005
    assert 60 < clock[0] < 62
    assert len(asked) < 75 < steps / 100
    assert stopping.received == signal.SIGTERM
    clock[0] += 1  # a validation of longer steps
    stopping._ask_soon()
    asked.clear()
    for _ in range(10):
        clock[0] += 3
        stopping._is_asked(trainer)
    assert len(asked) == 10


def test_a_signal_that_comes_while_the_ranks_ask_is_told_with_the_next_question():
    """It was forgotten: the run had said that it stops, and went on."""
    heard = []

    def reduce(told, reduce_op):
        heard.append(int(told[0]))
        if len(heard) == 1:
            stopping._receive(signal.SIGINT, None)  # as Python calls it once the message has come back
        return told

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    stopping, trainer = Stopping(), SimpleNamespace(world_size=2, strategy=strategy)
    stopping.began, stopping._speaks = True, False
    assert not stopping._is_asked(trainer)  # the other rank leaves no loop either
    stopping._ask_soon()
    assert stopping._is_asked(trainer)
    assert heard == [0, signal.SIGINT]
    assert stopping.received == signal.SIGINT


@pytest.mark.parametrize(("hook", "tested"), [("on_test_end", True), ("on_fit_end", False)])
def test_a_signal_that_comes_too_late_to_stop_a_run_ends_what_was_to_follow(fit, signalled, hook, tested):
    """A study, a search or a loop over seeds went on with the next run, and a shell with its next command."""
    signalled(hook, None, signal.SIGTERM)
    outcome, run = fit(*([] if tested else ["--trainer.limit_test_batches=0"]))
    assert outcome.code == 143
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"]
    assert (summary["test_accuracy"] is not None) == tested


def test_a_late_signal_is_raised_to_who_calls_from_python(signalled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {name.removeprefix("--"): value for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    signalled("on_test_end", None, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cct_lightning.fit("digits", {**keys, "trainer.max_epochs": 1})
    assert len(list(tmp_path.glob("runs/*/*/summary.json"))) == 1


def test_ctrl_c_inside_a_save_is_no_fault_of_the_program(tmp_path, monkeypatch):
    """torch found its file shorter than it had written, and the run ended with a RuntimeError; the file of before is whole."""
    path, io = tmp_path / "last.ckpt", WholeFileIO()
    io.save_checkpoint({"global_step": 1}, path)
    before = path.read_bytes()

    class Interrupted:
        def __init__(self, file):
            self.file, self.writes = file, 0

        def write(self, data):
            self.writes += 1
            if self.writes == 3:
                raise KeyboardInterrupt
            return self.file.write(data)

    @contextmanager
    def opened(path):
        with replacing(path) as file:
            yield Interrupted(file)

    monkeypatch.setattr("cct_lightning.runs.checkpointing.replacing", opened)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"global_step": 2, "weights": torch.zeros(10**5)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
