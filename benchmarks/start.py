"""Measures what a prediction costs before it predicts, in CPU-seconds against ``import torch``: python -m benchmarks.start [--rounds 5]

Each contestant is a process of its own: `import torch`, `import timm`, `cct predict CKPT one.png`, the same from Python, and the errors of `cct fit`
that need no torch. They take turns; user and system time are the kernel's, of the process and its children. Files are read once before, so that no
disk is measured. Ratios are taken within a round, medians stand before least and most.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image

from benchmarks.common import machine, spread

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "tests" / "frozen" / "ema.ckpt"
PYTHON = "import cct_lightning, sys; print(cct_lightning.load(sys.argv[1], accelerator='cpu').predict(sys.argv[2]))"


def cpu_seconds(words: list[str]) -> float:
    """Runs a command to its end; returns user and system time, as /usr/bin/time does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Prints a line for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{machine('cpu', 1)}; n = {options.rounds} rounds; CPU-seconds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "one.png")
        PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
        cct = [sys.executable, "-m", "cct_lightning"]
        missing = str(Path(folder) / "missing")
        contestants = {
            "import torch": [sys.executable, "-c", "import torch"],
            "import timm": [sys.executable, "-c", "import timm"],
            "cct predict CKPT one.png": [*cct, "predict", str(CHECKPOINT), picture, "--trainer.accelerator", "cpu"],
            "cct_lightning.load(CKPT).predict(one.png)": [sys.executable, "-c", PYTHON, str(CHECKPOINT), picture],
            "cct fit with a missing data.root": [*cct, "fit", "-c", "image_folder", "--data.root", missing],
            "cct fit with an unknown optimizer": [*cct, "fit", "-c", "digits", "--model.optim.name", "adamx"],
            "cct fit with an unknown timm/NAME": [*cct, "fit", "-c", "digits", "--model.arch", "timm/vit_tinny"],
        }
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for words in contestants.values():
            cpu_seconds(words)
        for _ in range(options.rounds):
            for name, words in contestants.items():
                taken[name].append(cpu_seconds(words))
    for name, seconds in taken.items():
        shares = [ours / torch for ours, torch in zip(seconds, taken["import torch"], strict=True)]
        print(f"{name:43}{spread(seconds):>22}   {spread(shares)} of import torch", flush=True)


if __name__ == "__main__":
    main()
