"""Measures what is offered for images of one's own: python -m benchmarks.own_data ROW [--root DIR] [--seeds 1]

DIR holds hymenoptera/ (photographs, train and val with class folders), cifar10/ (test with class folders), and torchvision's files of MNIST and
Fashion-MNIST. Each row is `cct finetune` as it comes on those photographs, with one thread, but where a row says otherwise. The accuracy is that of
the last epoch on val: no epoch is chosen by it.

- fit: data.fit=crop, pad and squash side by side.
- labels: two and three of scikit-learn's digits pasted into an image of 32 pixels, 1,500 to train on, 300 to choose epoch and thresholds by, 500 to
  test on; the handwritten digits of each are others. The labels are the digits that are there (task multilabel), measured on the test images.
- sum: the same images, and the sum of their digits (task regression).
- folds: the photographs of train and val in five folds, each tested by a network that has not seen it.
- wrong_labels: 2,000 of CIFAR-10's test images, which the weights inside the package have not seen, of which 5 % get another label; how many of the
  list that five folds make are among them.
- reject: a short training on Fashion-MNIST, and what it says of MNIST's digits, with a threshold that 95 % of the right answers reach.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import PIL.Image
import torch
from sklearn.datasets import load_digits

from benchmarks.common import machine
from benchmarks.time_to_accuracy import mean_and_deviation


def cct(*words: str) -> str:
    """Runs a command in a process of its own, and returns what it said."""
    environment = os.environ | ({} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"})
    return subprocess.run([sys.executable, "-m", "cct_lightning", *words], check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def trained(command: str, *words: str) -> Iterator[Path]:
    """Trains, and yields the folder of the run, or of the folds."""
    with tempfile.TemporaryDirectory() as folder:
        usual = ("--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", folder)
        cct(command, *words, *usual)
        (summary,) = Path(folder).glob("*/*/summary.json")
        yield summary.parent


def read(path: Path) -> dict[str, Any]:
    """Reads a JSON file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def finetune(images: str, *words: str) -> dict[str, Any]:
    """Fine-tunes, and returns the run's summary."""
    with trained("finetune", images, *words) as run:
        return read(run / "summary.json")


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
        found = [finetune(f"{options.root}/hymenoptera", "--data.fit", fit, "--seed_everything", str(seed)) for seed in range(options.seeds)]
        accuracy = mean_and_deviation([run["val_accuracy_last"] for run in found], 100)
        seconds = mean_and_deviation([run["cpu_seconds"] for run in found], digits=0)
        print(f"data.fit={fit}: val accuracy {accuracy} %, {seconds} CPU-seconds, n = {len(found)}", flush=True)


def test_in_folds(options: argparse.Namespace) -> None:
    """Prints what five folds say of the photographs, and in how many seconds."""
    for seed in range(options.seeds):
        with trained(
            "finetune", f"{options.root}/hymenoptera", "--folds", "5", "--trainer.callbacks", "null", "--seed_everything", str(seed)
        ) as folds:
            found = read(folds / "summary.json")
            seconds = sum(read(Path(run, "summary.json"))["cpu_seconds"] for run in found["runs"])
        each = ", ".join(f"{100 * accuracy:.2f}" for accuracy in found["accuracies"])
        print(f"five folds of {found['n']} photographs: {100 * found['accuracy']:.2f} ± {100 * found['deviation']:.2f} % ({each}), "
              f"pooled {100 * found['pooled']['accuracy']:.2f} %, {seconds:.0f} CPU-seconds, seed {seed}", flush=True)  # fmt: skip


def find_wrong_labels(options: argparse.Namespace) -> None:
    """Prints how many of the labels that look wrong are wrong."""
    place, source = Path(options.root, "cifar10", "test").resolve(), np.random.default_rng(0)
    files = sorted(place.glob("*/*.png"))
    chosen = [files[index] for index in sorted(source.permutation(len(files))[:2000])]
    names = sorted({file.parent.name for file in files})
    flipped = {chosen[index] for index in source.permutation(len(chosen))[: len(chosen) // 20]}
    given = {file: source.choice([name for name in names if name != file.parent.name]) if file in flipped else file.parent.name for file in chosen}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "images.csv")
        table.write_text("path,label\n" + "".join(f"{file},{label}\n" for file, label in given.items()))
        words = ("--folds", "5", "--data.image_size", "32", "--trainer.max_epochs", "10", "--trainer.callbacks", "null")
        with trained("finetune", str(table), *words) as folds, (folds / "wrong_labels.csv").open() as rows:
            found, listed = read(folds / "summary.json"), [Path(row["image"]) in flipped for row in csv.DictReader(rows)]
    shares = "; ".join(f"the first {n}: {100 * sum(listed[:n]) / n:.0f} %" for n in (50, 100) if n <= len(listed))
    told = f"{100 * found['accuracy']:.2f} ± {100 * found['deviation']:.2f} % over the folds"
    print(f"{told}; of {len(listed)} listed {100 * np.mean(listed):.0f} % are "
          f"flipped ({shares}), which are {100 * sum(listed) / len(flipped):.0f} % of the {len(flipped)} flipped ones", flush=True)  # fmt: skip


def answer_none(options: argparse.Namespace) -> None:
    """Prints what a network of Fashion-MNIST says of digits, by either score."""
    from torchvision.datasets import MNIST

    digits = MNIST(options.root, train=False)
    words = ("-c", "fashion_mnist", "--data.root", options.root, "--trainer.max_epochs", "3", "--trainer.callbacks", "null")
    with tempfile.TemporaryDirectory() as outliers, trained("fit", *words) as run:
        for number in range(2000):
            digits[number][0].save(Path(outliers, f"{number:04d}.png"))
        for score in ("energy", "probability"):
            told = cct(
                "test", str(run / "checkpoints" / "best.ckpt"), "--calibrate", "--reject", "0.95", "--reject_by", score, "--outliers", outliers
            )
            lines = told[told.index("rejection  ") :].splitlines()[:4]
            print("\n".join(line.replace(outliers, "digits").replace(str(run), "RUN") for line in lines), flush=True)


ROWS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fit": compare_fits, "labels": learn_labels, "sum": learn_sums, "folds": test_in_folds, "wrong_labels": find_wrong_labels, "reject": answer_none,
}  # fmt: skip


def main() -> None:
    """Prints the lines of a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--root", default=".")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    print(machine("cuda" if torch.cuda.is_available() else "cpu", 1, lightning), flush=True)
    ROWS[options.row](options)


if __name__ == "__main__":
    main()
