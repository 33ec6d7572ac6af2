"""Measures what all callbacks cost: python -m benchmarks.callbacks [--rounds 5] [--root DIR]

Runs `cct fit` with EMA, BatchPreview, PoolingMaps and TestReport and without, in turns, each time the same steps of the same recipe, and compares
the images per second of summary.json: training steps with their data, without the first five and without validation, where PoolingMaps draws;
BatchPreview draws in the first step, TestReport after the last. What drawing adds to the whole training is told beside it. One thread.

A shared machine changes its speed by more than the callbacks cost. So a run with them also measures what their hooks around each step take, in
the run itself, as a share of the step (after the first five): python -m benchmarks.callbacks --hooks
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch

from benchmarks.common import machine, ratios, spread

RUNS = {
    "digits, CCT-2/3x2 at 16 px, batch 64": ["-c", "digits", "--trainer.max_epochs", "20"],
    "CIFAR-10, CCT-2/3x2 at 32 px, batch 64": ["-c", "cifar10_cct2", "--trainer.max_steps", "300", "--data.val_fraction", "0.02",
                                               "--trainer.val_check_interval", "100"],
}  # fmt: skip
CALLBACKS = "[EMA, BatchPreview, {class_path: PoolingMaps, init_args: {every_n_epochs: 10}}, TestReport]"


def run(words: list[str], callbacks: str) -> tuple[float, float]:
    """Trains once; returns images per second of the steps, and seconds of the whole training."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", *words, "--trainer.callbacks", callbacks, "--trainer.default_root_dir", folder, "--wandb.mode", "disabled"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "cct_lightning", *words, "--trainer.enable_progress_bar", "false"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (summary,) = Path(folder).glob("*/*/summary.json")
        found = json.loads(summary.read_text())
    return found["images_per_second"], found["cpu_seconds"]


def hooks(name: str, words: list[str]) -> None:
    """Trains in this process, and prints what the callbacks' hooks around the steps take."""
    from cct_lightning import callbacks
    from cct_lightning.commands.main import prepare
    from cct_lightning.commands.running import train

    taken: dict[str, list[float]] = {}

    def timed(kind: type, hook: str) -> None:
        original = getattr(kind, hook)

        def call(*arguments: Any) -> None:
            began = time.perf_counter()
            original(*arguments)
            taken.setdefault(kind.__name__, []).append(time.perf_counter() - began)

        setattr(kind, hook, call)

    steps: list[float] = []
    measure = callbacks.Throughput.on_train_batch_end

    def step(self: Any, *arguments: Any) -> None:
        steps.append(time.perf_counter())
        measure(self, *arguments)

    callbacks.Throughput.on_train_batch_end = step  # type: ignore[method-assign]
    for kind in (callbacks.EMA, callbacks.BatchPreview, callbacks.PoolingMaps, callbacks.TestReport):
        for hook in ("on_train_batch_start", "on_train_batch_end"):
            timed(kind, hook)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        words = ["fit", *words, "--trainer.callbacks", CALLBACKS, "--trainer.default_root_dir", folder, "--wandb.mode", "disabled"]
        train(prepare([*words, "--trainer.enable_progress_bar", "false"]))
    whole = statistics.median(after - before for before, after in pairwise(steps[5:]))
    shares = {kind: 2 * statistics.mean(times[10:]) / whole for kind, times in taken.items()}  # two hooks a step
    told = ", ".join(f"{kind} {100 * share:.2f}" for kind, share in shares.items())
    print(f"{name}: the hooks take {100 * sum(shares.values()):.2f} % of a step of {1000 * whole:.1f} ms ({told})", flush=True)


def main() -> None:
    """Prints a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", default="~/.cache/cct-lightning", help="folder with CIFAR-10")
    parser.add_argument("--hooks", action="store_true", help="time the hooks in one run")
    options = parser.parse_args()
    print(machine("cpu", 1, lightning), flush=True)
    if options.hooks:
        torch.set_num_threads(1)
        for name, words in RUNS.items():
            hooks(name, [*words, "--data.root", options.root])
        return
    for name, words in RUNS.items():
        rates: dict[str, list[float]] = {CALLBACKS: [], "null": []}
        seconds: dict[str, list[float]] = {CALLBACKS: [], "null": []}
        for _ in range(options.rounds):
            for callbacks in rates:
                rate, whole = run([*words, "--data.root", options.root], callbacks)
                rates[callbacks].append(rate)
                seconds[callbacks].append(whole)
        slower = [ratio - 1 for ratio in ratios(rates[CALLBACKS], rates["null"])]
        drawing = statistics.median(seconds[CALLBACKS]) - statistics.median(seconds["null"])
        print(
            f"{name}: a step takes {spread([100 * share for share in slower], '+.1f')} % longer with all callbacks, n = {options.rounds}; "
            f"with drawing the training takes {drawing:+.1f} CPU-seconds", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
