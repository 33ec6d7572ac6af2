"""Measures what a command costs before it predicts or trains, in CPU-seconds against ``import torch``: python -m benchmarks.start [--rounds 5]

Each contestant is a process of its own: `import torch`, `import timm`, `cct predict CKPT one.png`, the same from Python, and the errors of `cct fit`
that need no torch. They take turns; user and system time are the kernel's, of the process and its children, on one thread: others wait by spinning.
Files are read once before, so that no disk is measured. Ratios are taken within a round, medians stand before least and most.

`--training` measures `cct fit -c digits` instead, from Enter to the end of its first step and to its summary: `--first-step` the former alone,
`--offline` the latter with W&B offline, too. `--against CHECKOUT` has another state take turns with this one, which is installed in CHECKOUT/.venv.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from benchmarks.common import machine, spread

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "tests" / "frozen" / "ema.ckpt"
PYTHON = "import cct_lightning, sys; print(cct_lightning.load(sys.argv[1], accelerator='cpu').predict(sys.argv[2]))"
# A callback that ends the process with its first step.
LEAVE = """
import os
from lightning.pytorch import Callback
class Leave(Callback):
    def on_train_batch_end(self, *_):
        os._exit(0)
"""


class Contestant(NamedTuple):
    """A command.

    Attributes:
        words: What is run.
        checkout: Where.
        succeeds: Whether it ends without an error.
    """

    words: Sequence[str]
    checkout: Path = ROOT
    succeeds: bool = True


def cpu_seconds(contestant: Contestant, folder: str) -> float:
    """Runs a command to its end; returns user and system time, as /usr/bin/time does."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        contestant.words,
        cwd=contestant.checkout,
        env=kept | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if contestant.succeeds == (done.returncode > 0):
        raise RuntimeError(f"{' '.join(contestant.words)} ended with {done.returncode}:\n{done.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def predictions(folder: str) -> dict[str, Contestant]:
    """Returns what is measured by default, by what it is called."""
    picture = str(Path(folder) / "one.png")
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    cct = [sys.executable, "-m", "cct_lightning"]
    return {
        "import torch": Contestant([sys.executable, "-c", "import torch"]),
        "import timm": Contestant([sys.executable, "-c", "import timm"]),
        "cct predict CKPT one.png": Contestant([*cct, "predict", str(CHECKPOINT), picture, "--trainer.accelerator", "cpu"]),
        "cct_lightning.load(CKPT).predict(one.png)": Contestant([sys.executable, "-c", PYTHON, str(CHECKPOINT), picture]),
        "cct fit with a missing data.root": Contestant([*cct, "fit", "-c", "image_folder", "--data.root", f"{folder}/missing"], succeeds=False),
        "cct fit with an unknown optimizer": Contestant([*cct, "fit", "-c", "digits", "--model.optim.name", "adamx"], succeeds=False),
        "cct fit with an unknown timm/NAME": Contestant([*cct, "fit", "-c", "digits", "--model.arch", "timm/vit_tinny"], succeeds=False),
    }


def trainings(folder: str, against: Path | None, whole: bool, offline: bool) -> dict[str, Contestant]:
    """Returns those of ``--training``; of the other state under the same name with ``before``."""
    Path(folder, "leave.py").write_text(LEAVE)
    found = {"import torch": Contestant([sys.executable, "-c", "import torch"])}
    for when, checkout in (("", ROOT), ("before: ", against)):
        if checkout is None:
            continue
        python = sys.executable if checkout is ROOT else str(checkout / ".venv" / "bin" / "python")
        fit = [python, "-m", "cct_lightning", "fit", "-c", "digits", "--trainer.default_root_dir", folder, "--wandb.mode"]
        found[f"{when}first training step"] = Contestant([*fit, "disabled", "--allow-import", "leave", "--trainer.callbacks+=leave.Leave"], checkout)
        if whole:
            found[f"{when}digits, to the summary"] = Contestant([*fit, "disabled"], checkout)
        if offline:
            found[f"{when}the same, W&B offline"] = Contestant([*fit, "offline"], checkout)
    return found


def main() -> None:
    """Prints a line for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--first-step", action="store_true", help="of --training, that alone")
    parser.add_argument("--offline", action="store_true", help="of --training, with W&B offline, too")
    options = parser.parse_args()
    print(f"{machine('cpu', 1)}; n = {options.rounds} rounds; CPU-seconds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        contestants = trainings(folder, options.against, not options.first_step, options.offline) if options.training else predictions(folder)
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for name, contestant in contestants.items():
            if "summary" not in name and "offline" not in name:  # whose files the first step has read
                cpu_seconds(contestant, folder)
        for _ in range(options.rounds):
            for name, contestant in contestants.items():
                taken[name].append(cpu_seconds(contestant, folder))
    for name, seconds in taken.items():
        shares = [ours / torch for ours, torch in zip(seconds, taken["import torch"], strict=True)]
        print(f"{name:43}{spread(seconds):>22}   {spread(shares)} of import torch", flush=True)
    for name, seconds in taken.items():
        if (earlier := taken.get(f"before: {name}")) is not None:
            print(f"{name:43}{spread([now / then for now, then in zip(seconds, earlier, strict=True)]):>22} of before", flush=True)


if __name__ == "__main__":
    main()
