import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cct_lightning.callbacks import Throughput


def test_throughput_counts_training_alone(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    callback, trainer, batch = Throughput(warmup_steps=2), SimpleNamespace(global_step=0, world_size=2), (None, torch.zeros(8))
    assert callback.images_per_second is None
    for _ in range(2):
        callback.on_train_epoch_start(trainer, None)
        for _ in range(4):
            clock[0] += 0.5
            trainer.global_step += 1
            callback.on_train_batch_end(trainer, None, None, batch, 0)
        clock[0] += 100  # validation
        callback.on_validation_end(trainer, None)
    assert callback.images_per_second == pytest.approx(2 * 8 / 0.5)
    assert callback.images == 6 * 16


def test_the_folder_is_no_package_of_its_own():
    done = subprocess.run([sys.executable, "-c", "import callbacks"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert "import cct_lightning.callbacks" in done.stderr
