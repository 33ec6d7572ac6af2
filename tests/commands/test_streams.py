"""Real processes, since the interpreter's own end is part of it; the front takes a tenth of a second."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLI = [sys.executable, str(Path(__file__).parents[2] / "cli.py")]


def run(words, **streams):
    return subprocess.run([*CLI, *words], text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams})


def unread():
    """Returns the writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_r19_a_reader_that_has_gone_is_no_error():
    done = run(["recipes"], stdout=unread())
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_r19_a_full_stdout_costs_one_line():
    with open("/dev/full", "w") as full:
        done = run(["recipes"], stdout=full)
        assert done.returncode == 1
        assert done.stderr == "error: stdout can't be written (No space left on device): what follows is said nowhere.\n"
        assert run(["nonsense"], stderr=full).returncode == 2


@pytest.mark.parametrize("closed", [1, 2])
def test_r19_a_closed_stream_is_as_good_as_none(closed):
    def close():
        os.close(closed)

    done = run(["recipes" if closed == 1 else "nonsense"], preexec_fn=close)
    assert (done.returncode, done.stdout, done.stderr) == (0 if closed == 1 else 2, "", "")


@pytest.mark.parametrize("stream", ["full", "unread"])
def test_r19_a_training_goes_on_without_its_stdout(cct, tmp_path, monkeypatch, stream):
    lost, kept = os.open("/dev/full", os.O_WRONLY) if stream == "full" else unread(), os.dup(1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", open(1, "w", closefd=False))  # noqa: SIM115  # as the interpreter has it; it owns no descriptor
        os.dup2(lost, 1)
        try:
            outcome = cct(
                "fit",
                "-c",
                "digits",
                "--data.per_class",
                5,
                "--data.batch_size",
                16,
                "--trainer.max_epochs",
                1,
                "--trainer.enable_progress_bar",
                "false",
            )
        finally:
            os.dup2(kept, 1)
            os.close(lost)
            os.close(kept)
    assert outcome.code == 0
    assert "Traceback" not in outcome.err
    assert outcome.err.count("stdout can't be written") == (stream == "full")
    assert list(tmp_path.glob("runs/digits/*/summary.json"))
