"""Measures what a start from weights is worth: python -m benchmarks.finetune --photos DIR [--weights SOURCE] [--seeds 3] [--only NAME]

Runs `cct finetune DIR` as it comes, by the default recipe, from weights and from scratch, once for each seed from 0 on. DIR holds train and
val; SOURCE is a checkpoint, else the weights inside the package. The accuracy is that of the last epoch on val: no epoch is chosen by it. On a CPU
the runs have one thread; CPU-seconds are those of the training, reading of the images included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning
import timm
import torch

from benchmarks.common import machine
from benchmarks.time_to_accuracy import mean_and_deviation
from cct_lightning.weights.files import open_weights
from cct_lightning.weights.inspection import describe
from cct_lightning.weights.sources import locate

# The same network throughout, but for the last row.
CONTESTANTS = {
    "fine-tuned, 64 px": ["--model.pretrained", "WEIGHTS", "--data.image_size", "64"],
    "fine-tuned, 32 px": ["--model.pretrained", "WEIGHTS"],
    "linear probe, 64 px": ["-c", "linear_probe", "--model.pretrained", "WEIGHTS", "--data.image_size", "64"],
    "from scratch, 64 px": ["NETWORK", "--model.pretrained", "null", "--data.image_size", "64"],
    "from scratch, the default CCT-7/7x2 at 128 px": ["--model.pretrained", "null"],
    "as it comes": [],  # the weights inside the package at 64 px, where images are few
}


def main() -> None:
    """Prints a line for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--weights", default="cct_2_3x2_32_cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    print(machine("cuda" if on_gpu else "cpu", 1, lightning, timm), flush=True)
    environment = os.environ | ({} if on_gpu else {"OMP_NUM_THREADS": "1"})
    network = [f"--model.{key}={value}" for key, value in describe(open_weights(locate(options.weights)))["model"].items() if value is not None]
    stand_for = {"WEIGHTS": [options.weights], "NETWORK": network}
    for name, flags in CONTESTANTS.items():
        if options.only not in (None, name):
            continue
        found = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                words = [
                    "finetune",
                    options.photos,
                    "--seed_everything",
                    str(seed),
                    "--wandb.mode",
                    "disabled",
                    "--trainer.enable_progress_bar",
                    "false",
                ]
                words += ["--trainer.default_root_dir", folder, *(word for flag in flags for word in stand_for.get(flag, [flag]))]
                subprocess.run([sys.executable, "-m", "cct_lightning", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
                (summary,) = Path(folder).glob("finetune/*/summary.json")
                found.append(json.loads(summary.read_text()))
        print(
            f"{name}: val accuracy {mean_and_deviation([run['val_accuracy_last'] for run in found], 100)} %, "
            f"{mean_and_deviation([run['cpu_seconds'] for run in found], digits=0)} CPU-seconds, n = {len(found)}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
