"""Measures what is offered for images of one's own: python -m benchmarks.own_data ROW [--photos DIR] [--seeds 1]

Each row is `cct finetune` as it comes, with one thread, on photographs in class folders (train and val), but where a row says otherwise. The accuracy
is that of the last epoch on val: no epoch is chosen by it.

- fit: data.fit=crop, pad and squash side by side.
- labels: two and three of scikit-learn's digits pasted into an image of 32 pixels, 1,500 to train on, 300 to choose epoch and thresholds by, 500 to
  test on; the handwritten digits of each are others. The labels are the digits that are there (task multilabel), measured on the test images.
- sum: the same images, and the sum of their digits (task regression).
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
import numpy as np
import PIL.Image
import torch
from sklearn.datasets import load_digits

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


def paste_digits(folder: Path) -> None:
    """Writes images of digits two and three to an image, and their CSVs: labels.csv and sums.csv."""
    digits, source = load_digits(), np.random.default_rng(0)
    order = source.permutation(len(digits.images))
    parts = {"train": (order[:1200], 1500), "val": (order[1200:1400], 300), "test": (order[1400:], 500)}
    labels, sums = ["path,labels,split"], ["path,sum,split"]
    for split, (among, count) in parts.items():
        for number in range(count):
            chosen, cells = source.choice(among, source.integers(2, 4)), source.permutation(4)
            canvas = np.zeros((32, 32))
            for index, cell in zip(chosen, cells, strict=False):
                row, column = 16 * (cell // 2), 16 * (cell % 2)
                canvas[row : row + 16, column : column + 16] = np.kron(digits.images[index], np.ones((2, 2)))
            name, told = f"{split}{number:04d}.png", digits.target[chosen]
            PIL.Image.fromarray((canvas * 255 / 16).astype(np.uint8)).save(folder / name)
            labels.append(f"{name},{';'.join(map(str, sorted(set(told.tolist()))))},{split}")
            sums.append(f"{name},{told.sum()},{split}")
    (folder / "labels.csv").write_text("\n".join(labels))
    (folder / "sums.csv").write_text("\n".join(sums))


# A crop would cut digits out that the labels name, and a mirrored digit is none.
PASTED = (
    "--data.image_size", "32", "--trainer.max_epochs", "12", "--model.optim.name", "muon", "--model.optim.lr", "1e-2", "--model.optim.layer_decay",
    "null", "--data.augment.crop_scale", "null", "--data.augment.flip", "0", "--data.augment.policy", "none", "--data.augment.shift", "2",
    "--trainer.callbacks", "null",
)  # fmt: skip


def tell_pasted(options: argparse.Namespace, table: str, measures: tuple[str, ...], shares: tuple[str, ...]) -> None:
    """Prints what a test of pasted digits measured."""
    with tempfile.TemporaryDirectory() as folder:
        paste_digits(Path(folder))
        found = [finetune(str(Path(folder, table)), *PASTED, "--seed_everything", str(seed)) for seed in range(options.seeds)]
    told = [f"{name} {mean_and_deviation([run['test'][name] for run in found], 100 if name in shares else 1)}{' %' * (name in shares)}"
            for name in measures]  # fmt: skip
    seconds = mean_and_deviation([run["cpu_seconds"] for run in found], digits=0)
    print(f"{table}, test: {', '.join(told)}; {seconds} CPU-seconds, n = {len(found)}", flush=True)


def learn_labels(options: argparse.Namespace) -> None:
    """Prints a line of several labels."""
    tell_pasted(options, "labels.csv", ("mAP", "f1", "f1_micro", "exact"), ("mAP", "f1", "f1_micro", "exact"))


def learn_sums(options: argparse.Namespace) -> None:
    """Prints a line of a number."""
    tell_pasted(options, "sums.csv", ("r2", "mae", "rmse"), ("r2",))


def compare_fits(options: argparse.Namespace) -> None:
    """Prints a line for each way in which a photograph gets into 64 x 64 pixels."""
    for fit in ("crop", "pad", "squash"):
        found = [finetune(options.photos, "--data.fit", fit, "--seed_everything", str(seed)) for seed in range(options.seeds)]
        accuracy = mean_and_deviation([run["val_accuracy_last"] for run in found], 100)
        seconds = mean_and_deviation([run["cpu_seconds"] for run in found], digits=0)
        print(f"data.fit={fit}: val accuracy {accuracy} %, {seconds} CPU-seconds, n = {len(found)}", flush=True)


ROWS: dict[str, Callable[[argparse.Namespace], None]] = {"fit": compare_fits, "labels": learn_labels, "sum": learn_sums}


def main() -> None:
    """Prints the lines of a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--photos")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.row == "fit" and options.photos is None:
        parser.error("--photos DIR is missing")
    print(machine("cuda" if torch.cuda.is_available() else "cpu", 1, lightning), flush=True)
    ROWS[options.row](options)


if __name__ == "__main__":
    main()
