"""Measures accuracy for a budget: python -m benchmarks.time_to_accuracy --budget 100 [--seeds 3] [--root DIR]

Runs the recipe of the budget as it is, `cct fit -c NAME --seed_everything S`, once for each seed from 0 on. A recipe's budget is a number of
optimizer steps, so it repeats; the time that they take is what is measured. On a CPU the runs have one thread.

CPU-seconds    of all threads and children, from before the images are read until the last step: training, reading, no test.
at 350         the same of cores that multiply bfloat16 at 350 GFLOP/s, by the speed measured before, in the middle of and after the run: machines
               differ by a factor of two in it. A recipe's budget is meant so.
seconds        by the clock. On a shared machine only CPU-seconds compare.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import timm
import torch

from benchmarks.common import machine

RECIPES = {
    "100": "cifar10_cpu_2min", "600": "cifar10_cpu_10min", "gpu-1min": "cifar10_1min", "gpu-3min": "cifar10_3min", "gpu-9min": "cifar10_9min",
}  # fmt: skip


def mean_and_deviation(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Writes mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * deviation:.{digits}f}"


def at_350(runs: Sequence[dict[str, Any]]) -> str:
    """Writes the CPU-seconds that the runs would take at 350 GFLOP/s a core, and the speeds that were measured; nothing where none were."""
    if any(run["cpu_seconds_at_350"] is None for run in runs):
        return ""
    speeds = [speed for run in runs for speed in run["product_speeds"]]
    taken = [run["cpu_seconds_at_350"] for run in runs]
    return (
        f" of {min(speeds):.0f} to {max(speeds):.0f} GFLOP/s ({mean_and_deviation(taken, digits=1) if len(runs) > 1 else f'{taken[0]:.1f}'} at 350)"
    )


def main() -> None:
    """Prints a line for each run, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=RECIPES, required=True, help="CPU-seconds of one core at 350 GFLOP/s, or a budget on a GPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", default="~/.cache/cct-lightning", help="folder with CIFAR-10")
    parser.add_argument("more", nargs="*", help="further arguments of cct fit, after --")
    options = parser.parse_args()
    name, on_gpu = RECIPES[options.budget], options.budget.startswith("gpu")
    print(machine("cuda" if on_gpu else "cpu", 1, lightning, timm) + f"; recipe {name}", flush=True)
    environment = os.environ | ({} if on_gpu else {"OMP_NUM_THREADS": "1"})
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            words = ["fit", "-c", name, "--seed_everything", str(seed), "--data.root", options.root, "--wandb.mode", "disabled"]
            words += ["--trainer.default_root_dir", folder, "--trainer.enable_progress_bar", "false", *options.more]
            subprocess.run([sys.executable, "-m", "cct_lightning", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
            latest = max(Path(folder).glob(f"{name}/*/summary.json"), key=lambda path: path.stat().st_mtime)
            found.append(json.loads(latest.read_text()))
            run = found[-1]
            print(
                f"seed {seed}: test {100 * run['test_accuracy']:.2f} %, {run['steps']} steps, {run['cpu_seconds']:.1f} CPU-seconds{at_350([run])}, "
                f"{run['seconds']:.1f} s on {run['device']}", flush=True,
            )  # fmt: skip
    print(
        f"{name}: test accuracy {mean_and_deviation([run['test_accuracy'] for run in found], 100)} %, "
        f"{mean_and_deviation([run['cpu_seconds'] for run in found], digits=1)} CPU-seconds{at_350(found)}, "
        f"{mean_and_deviation([run['seconds'] for run in found], digits=1)} s, n = {len(found)}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
