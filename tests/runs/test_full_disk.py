import errno
import io
import json
import re
import resource

import pytest
import torch

from cct_lightning import LitClassifier
from cct_lightning.errors import RunError
from cct_lightning.runs import checkpointing, metrics_file
from cct_lightning.runs.full_disk import full_disk

# 4 steps an epoch; the disk is full from the second on.
SMALL = (
    "--data.per_class", 7, "--data.batch_size", 16, "--trainer.max_epochs", 2, "--trainer.precision", "32-true", "--trainer.log_every_n_steps", 2,
    "--trainer.enable_progress_bar", "false",
)  # fmt: skip


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def fill(monkeypatch):
    """Fills the disk in the second epoch, in one of several ways; the disk has room again behind the test or once called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def by(kind):
        class Full(io.BytesIO):  # torch wraps what it raises
            write = full

        def begin(self, *_):
            if self.global_step == 6:
                match kind:
                    case "ulimit":
                        monkeypatch.setattr("sys.dont_write_bytecode", True)  # cut off, it would be there for good
                        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
                    case "checkpoint":
                        save = torch.save
                        monkeypatch.setattr(checkpointing.torch, "save", lambda content, file: save(content, Full()))
                    case "end of the file":
                        monkeypatch.setattr("os.fsync", full)
                    case "metrics":
                        monkeypatch.setattr(metrics_file.ExperimentWriter, "save", full)

        monkeypatch.setattr(LitClassifier, "on_train_batch_end", begin, raising=False)

    yield by
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["ulimit", "checkpoint", "end of the file", "metrics"])
def test_r05_a_full_disk_costs_two_lines_and_no_file(cct, fill, monkeypatch, tmp_path, kind):
    fill(kind)
    outcome = cct("fit", "-c", "digits", *SMALL)
    assert outcome.code == 1, outcome.err
    first, second = outcome.err.splitlines()[-2:]
    (run,) = tmp_path.glob("runs/digits/*")
    what = {"ulimit": "File too large"}.get(kind, "No space left on device")
    of_metrics = kind in ("metrics", "end of the file")  # whose header changes first
    size, file = ("", "metrics.csv") if of_metrics else (r"it needs [1-9]\d*\.\d MB, ", "(last|best).ckpt")
    assert re.fullmatch(rf"error: \S*{file} can't be written \({what}\): {size}[\d,]+\.\d MB are free there.*\.", first), first
    assert ("a file may have 0.1 MB (ulimit -f)" in first) == (kind == "ulimit")
    assert f"last.ckpt (step 4) and best.ckpt (step 4) are whole, from before; cct resume {run.relative_to(tmp_path)} goes on." in second
    assert "Traceback" not in outcome.err
    assert list(run.rglob("*.part")) == []
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4

    monkeypatch.undo()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)  # there is room again
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert cct("resume", run).code == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 8


def test_r05_a_disk_that_is_full_at_once(cct, monkeypatch):
    monkeypatch.setattr("os.fsync", full)
    outcome = cct("fit", "-c", "digits", *SMALL)
    assert outcome.code == 1
    assert "images.csv.gz can't be written (No space left on device): " in outcome.err
    assert outcome.err.rstrip().endswith("No checkpoint was written before.")


def test_other_faults_are_no_full_disk(tmp_path):
    assert full_disk(PermissionError(errno.EACCES, "no"), tmp_path) is None
    assert full_disk(RuntimeError("x")) is None
    try:
        try:
            full()
        finally:
            raise RuntimeError("unexpected pos")  # as torch does
    except RuntimeError as error:
        found = full_disk(error, tmp_path / "not" / "there", 12_340_000)
    assert isinstance(found, RunError)
    assert re.fullmatch(
        rf"{tmp_path}/not/there can't be written \(No space left on device\): it needs 12.3 MB, [\d,]+.\d MB are free there.", str(found)
    )
