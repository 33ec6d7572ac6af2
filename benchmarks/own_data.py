"""Measures what is offered for images of one's own: python -m benchmarks.own_data ROW --photos DIR [--seeds 1]

Each row is `cct finetune` as it comes, on photographs in class folders (train and val), with one thread. The accuracy is that of the last epoch on
val: no epoch is chosen by it.

- fit: data.fit=crop, pad and squash side by side.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch

from benchmarks.common import machine
from benchmarks.time_to_accuracy import mean_and_deviation


def finetune(photos: str, *words: str) -> dict[str, Any]:
    """Fine-tunes in a process of its own, and returns the run's summary."""
    environment = os.environ | ({} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"})
    with tempfile.TemporaryDirectory() as folder:
        usual = ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", folder]
        command = [sys.executable, "-m", "cct_lightning", "finetune", photos, *usual, *words]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        (summary,) = Path(folder).glob("finetune/*/summary.json")
        found: dict[str, Any] = json.loads(summary.read_text())
        return found


def compare_fits(options: argparse.Namespace) -> None:
    """Prints a line for each way in which a photograph gets into 64 x 64 pixels."""
    for fit in ("crop", "pad", "squash"):
        found = [finetune(options.photos, "--data.fit", fit, "--seed_everything", str(seed)) for seed in range(options.seeds)]
        accuracy = mean_and_deviation([run["val_accuracy_last"] for run in found], 100)
        seconds = mean_and_deviation([run["cpu_seconds"] for run in found], digits=0)
        print(f"data.fit={fit}: val accuracy {accuracy} %, {seconds} CPU-seconds, n = {len(found)}", flush=True)


ROWS: dict[str, Callable[[argparse.Namespace], None]] = {"fit": compare_fits}


def main() -> None:
    """Prints the lines of a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    print(machine("cuda" if torch.cuda.is_available() else "cpu", 1, lightning), flush=True)
    ROWS[options.row](options)


if __name__ == "__main__":
    main()
