"""Measures what helps with few labels: python -m benchmarks.small_data --root DIR --out FOLDER [--rows NAME ...] [--seeds 3]

DIR holds cifar10/ (train and test with class folders) and hymenoptera/ (train and val). Each row is one to three runs of `cct`, by recipes as they
are shipped, with all seeds from 0 on. A run that several rows begin with, such as a pre-training, is done once a seed; what has been measured is kept
in FOLDER/results.jsonl, and an interrupted measurement goes on with the next run. CPU-seconds are those of all runs of a row, pre-training and
teacher included, at 350 GFLOP/s a core (see time_to_accuracy). Accuracy is that of the test images with the last weights, once; of hymenoptera,
which has no test, that of the last epoch on val. On a CPU the runs have one thread; on one without bfloat16 CPU-seconds are told as they are.
ROW: as in the lines that are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import timm

from benchmarks.common import machine
from benchmarks.time_to_accuracy import mean_and_deviation

PHOTOS, CIFAR = "hymenoptera", "cifar10"
KEPT = "results.jsonl"
QUIET = {"--trainer.callbacks": "null"}
LAST = {"--data.val_fraction": "0.0"}  # nothing is chosen by validation: the last weights count


@dataclass(frozen=True)
class Phase:
    """A run of a row.

    Attributes:
        words: Behind ``cct``; DIR stands for the folder of the data.
        keys: Keys and values.
        takes: Key that is given the folder of the run before, such as --model.pretrained.
        views: Whether its last weights are tested with a mirror as well.
    """

    words: tuple[str, ...]
    keys: Mapping[str, str] = field(default_factory=dict)
    takes: str | None = None
    views: bool = False


def typed(keys: Mapping[str, str]) -> dict[str, str]:
    """Turns names as Python takes them into keys: model__arch into --model.arch."""
    return {f"--{name.replace('__', '.')}": value for name, value in keys.items()}


def few(labels: int, steps: int, takes: str | None = None, **keys: str) -> Phase:
    """A training on some labels of each class of CIFAR-10 by the recipe for few labels."""
    told = {"--data.root": f"DIR/{CIFAR}", "--data.per_class": str(labels), "--trainer.max_steps": str(steps), **LAST}
    told |= {"--model.whiten": "none"} if takes == PRETRAINED else {}
    return Phase(("fit", "-c", "cifar10_few"), told | typed(keys), takes, views=True)


def pretrained(*words: str, images: str = CIFAR, **keys: str) -> Phase:
    """A pre-training on the training images of CIFAR-10, or of a folder, whose labels are not looked at."""
    told = {"--data.root": f"DIR/{CIFAR}", "--data.val_fraction": "0.01"} if images == CIFAR else {}
    return Phase(("pretrain", images, *words), QUIET | told | typed(keys))


PRETRAINED, TEACHER = "--model.pretrained", "--model.teacher"
SCRATCH = {**QUIET, "--data.image_size": "64", "--model.arch": "cct_2_3x2_32", PRETRAINED: "null"}
FIFTY = {"--data.per_class": "25"}
THREE = {"model__num_conv_layers": "3"}
# Settings that suit a CCT-2/3x2, a CVT and a network of convolutions, with few labels.
SLOWER = {
    "model__num_conv_layers": "null", "model__pooling": "null", "model__label_smoothing": "0.1", "model__optim__lr": "5e-3",
    "model__optim__muon_lr": "0.01", "model__schedule__warmup_epochs": "10", "model__schedule__warmup_lr": "5e-5", "data__batch_size": "64",
    "data__augment__shift": "0", "data__augment__flip_alternate": "false", "data__augment__flip": "0.5", "data__augment__crop_scale": "[0.4,1.0]",
    "data__augment__policy": "trivialaugment",
}  # fmt: skip
PATCHES = SLOWER | {"model__arch": "cvt_2_4_32", "model__whiten": "none"}
CNN = SLOWER | {"model__arch": "timm/resnet10t", "model__whiten": "none", "data__image_size": "64"}
MAE, ALL = ("-c", "pretrain_mae"), ("fit", "-c", "cifar10_cct2")
# 600 steps, so that all is done in ten minutes; an epoch of 184 photographs is one step.
THEMSELVES = pretrained(images=f"DIR/{PHOTOS}", trainer__max_steps="600", trainer__check_val_every_n_epoch="50")
ROWS: dict[str, list[Phase]] = {
    "photos, from nothing": [Phase(("finetune", f"DIR/{PHOTOS}"), SCRATCH)],
    "photos, weights inside": [Phase(("finetune", f"DIR/{PHOTOS}"), QUIET)],
    "photos, pre-trained on themselves": [THEMSELVES, Phase(("finetune", f"DIR/{PHOTOS}"), QUIET, PRETRAINED)],
    "50 photos, from nothing": [Phase(("finetune", f"DIR/{PHOTOS}"), SCRATCH | FIFTY)],
    "50 photos, weights inside": [Phase(("finetune", f"DIR/{PHOTOS}"), QUIET | FIFTY)],
    "50 photos, pre-trained on all 245": [THEMSELVES, Phase(("finetune", f"DIR/{PHOTOS}"), QUIET | FIFTY, PRETRAINED)],
    "500 labels": [few(50, 200)],
    "500 labels, pre-trained": [pretrained(**THREE), few(50, 200, PRETRAINED)],
    "5,000 labels": [few(500, 1040)],
    "5,000 labels, pre-trained": [pretrained(**THREE), few(500, 1040, PRETRAINED)],
    "500 labels, CCT-2/3x2": [few(50, 800, **SLOWER)],
    "500 labels, CCT-2/3x2, pre-trained": [pretrained(), few(50, 800, PRETRAINED, **SLOWER)],
    "5,000 labels, CCT-2/3x2": [few(500, 2000, **SLOWER)],
    "5,000 labels, CCT-2/3x2, pre-trained": [pretrained(), few(500, 2000, PRETRAINED, **SLOWER)],
    "5,000 labels, CCT-2/3x2, teacher": [few(500, 2000, **CNN), few(500, 2000, TEACHER, **SLOWER)],
    "5,000 labels, CVT": [few(500, 2000, **PATCHES)],
    "5,000 labels, CVT, pre-trained": [pretrained(*MAE), few(500, 2000, PRETRAINED, **PATCHES)],
    "all labels": [Phase(ALL, {"--data.root": f"DIR/{CIFAR}"}, views=True)],
    "all labels, pre-trained": [
        pretrained(),
        Phase(ALL, {"--data.root": f"DIR/{CIFAR}", "--trainer.max_steps": "7400", "--model.whiten": "none"}, PRETRAINED, views=True),
    ],
}


def run(phase: Phase, before: str | None, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Carries out a run, and returns what its summary says."""
    place = Path(options.out, "runs")
    words = [word.replace("DIR", options.root) for word in phase.words]
    keys = {key: value.replace("DIR", options.root) for key, value in phase.keys.items()}
    if phase.takes is not None:
        assert before is not None
        keys[phase.takes] = before
    keys |= {
        "--seed_everything": str(seed),
        "--wandb.mode": "disabled",
        "--trainer.enable_progress_bar": "false",
        "--trainer.default_root_dir": str(place),
    }
    known = set(place.glob("*/*/summary.json"))
    _cct(*words, *(word for pair in keys.items() for word in pair))
    (path,) = set(place.glob("*/*/summary.json")) - known
    summary = json.loads(path.read_text())
    accuracy = summary["test_accuracy"] if summary["test_accuracy"] is not None else summary["val_accuracy_last"]
    mirrored = None
    if phase.views:
        _cct("test", str(path.parent / "checkpoints" / "last.ckpt"), "--tta", "mirror", "--trainer.enable_progress_bar", "false")
        (measures,) = (path.parent / "checkpoints").glob("last-*-test/measures.json")
        mirrored = json.loads(measures.read_text())["accuracy"]
    spent = {"at_350": summary["cpu_seconds_at_350"], "cpu_seconds": summary["cpu_seconds"]}
    return {"run": str(path.parent), "accuracy": accuracy, "mirrored": mirrored, **spent}


def _cct(*words: str) -> None:
    command = [sys.executable, "-m", "cct_lightning", *words]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def measure(row: str, seed: int, options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Carries out those runs of a row that are not there yet."""
    done: list[dict[str, Any]] = []
    name = f"seed {seed}"
    for phase in ROWS[row]:
        before = done[-1]["run"] if done else None
        name = json.dumps([name, *phase.words, phase.keys, phase.takes])
        if name not in found:
            found[name] = run(phase, before, seed, options)
            with Path(options.out, KEPT).open("a") as file:
                file.write(json.dumps({"name": name, **found[name]}) + "\n")
        done.append(found[name])
    return done


def main() -> None:
    """Prints a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    kept = Path(options.out, KEPT)
    print(machine("cpu", 1, lightning, timm), flush=True)
    found = {one.pop("name"): one for one in map(json.loads, kept.read_text().splitlines() if kept.exists() else [])}
    for row in options.rows:
        runs = [measure(row, seed, options, found) for seed in range(options.seeds)]
        last = [one[-1] for one in runs]
        mirrored = [one["mirrored"] for one in last if one["mirrored"] is not None]
        views = f", with a mirror {mean_and_deviation(mirrored, 100)} %" if mirrored else ""
        known = all(phase["at_350"] for phases in runs for phase in phases)
        unit = "at_350" if known else "cpu_seconds"
        cost = " + ".join(f"{statistics.mean(phase.get(unit, 0) for phase in phases):.0f}" for phases in zip(*runs, strict=True))
        cost += f" CPU-seconds{' at 350' * known}"
        print(f"{row}: {mean_and_deviation([one['accuracy'] for one in last], 100)} %{views}, {cost}, n = {len(runs)}", flush=True)


if __name__ == "__main__":
    main()
