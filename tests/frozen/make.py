"""Wrote the fixtures beside it, with version 0.1.0 at commit 2e3bd57. Run once; not to be run again, and free to fail with later versions.

What lies here is what that version wrote: later ones have to read it (tests/test_frozen.py). Written anew, it would say nothing of that version.

- ``ema.ckpt``: the best checkpoint of a run on the digits with the callback EMA, in float32
- ``images.npz``: ten uint8 images (B, H, W, C) of every class, and the logits and probabilities that ``ema.ckpt`` gives for them
- ``exports/FORMAT/``: ``ema.ckpt`` by ``cct export``, once a format
- ``stopped/``: the folder of a run that got SIGTERM inside its second epoch of three, with EMA, dropout, drop path and augmentation on; of one
  convolution, to be smaller
- ``stopped_end/``: metrics.csv of the same run where nothing stopped it, the tensors of its last.ckpt (``state_dict``, the average, and under
  ``raw.`` the weights that are trained), and the machine it ran on: bits are the same on such a one alone
- ``keys.json``: names in that last.ckpt, and the names of all keys of a recipe
- ``print_config.yaml``: what ``cct fit -c digits --print_config`` prints, without the comment that tells Lightning's version

Checkpoints note the absolute path of their folder, so the runs were made in one that tells nothing of a machine: /frozen, removed afterwards.
The command was ``OMP_NUM_THREADS=1 uv run python tests/frozen/make.py`` as root, on two cores of an AMD EPYC (Genoa) with torch 2.15.0.
"""

import io
import json
import os
import shutil
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from cct_lightning.keys import known_keys
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from cct_lightning import LitClassifier, load, resume
from cct_lightning.__main__ import main

HERE = Path(__file__).parent
WORK = Path("/frozen")
TINY = (
    "--model.embed_dim", 8, "--model.depth", 2, "--model.num_heads", 2, "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
    "--wandb.mode", "disabled", "--trainer.callbacks", "null", "--trainer.callbacks+=EMA",
)  # fmt: skip
LEARNED = ("--model.optim.lr", 1e-2, "--model.schedule.warmup_epochs", 1, "--trainer.callbacks.decay=0.99", "--trainer.max_epochs", 20)
STOPPED = (
    "--model.num_conv_layers", 1, "--model.attn_drop", 0.1, "--model.proj_drop", 0.1, "--model.drop_path", 0.1, "--model.optim.lr", 1e-2,
    "--model.schedule.warmup_epochs", 1, "--data.per_class", 7, "--data.batch_size", 16, "--data.augment.policy", "randaugment",
    "--data.augment.cutmix", 0.5, "--trainer.max_epochs", 3, "--trainer.log_every_n_steps", 2, "--trainer.callbacks.decay=0.9",
)  # fmt: skip
STOP = (1, 1)  # epoch and batch
FORMATS = ("safetensors", "onnx", "torch-export", "timm")


def cct(*words: object) -> str:
    """Runs ``cct WORDS`` in this process; returns what it prints."""
    sys.argv = ["cct", *map(str, words)]
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            main()
    except SystemExit as exit:
        print(f"cct {words[0]} ended with {exit.code}")
    return printed.getvalue()


def fit(*words: object) -> Path:
    """Trains; returns the run's folder."""
    before = set(WORK.glob("runs/*/*"))
    print(cct("fit", "-c", "digits", *TINY, *words))
    (folder,) = set(WORK.glob("runs/*/*")) - before
    return folder


def make_predictions(checkpoint: Path) -> None:
    shutil.copy(checkpoint, HERE / "ema.ckpt")
    digits = load_digits()
    chosen = [np.flatnonzero(digits.target == label)[-1] for label in range(10)]
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)[..., None]
    with torch.inference_mode():
        logits = LitClassifier.load_from_checkpoint(checkpoint)(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.savez_compressed(HERE / "images.npz", images=images, logits=logits.numpy(), probabilities=load(checkpoint).probabilities(images))
    for format in FORMATS:
        print(cct("export", checkpoint, "--format", format, "--out", HERE / "exports" / format))


def make_stopped() -> None:
    whole = fit(*STOPPED)
    end = HERE / "stopped_end"
    end.mkdir()
    shutil.copy(whole / "metrics.csv", end)
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    save_file(last["state_dict"] | {f"raw.{name}": weight for name, weight in last["ema"]["raw"].items()}, end / "weights.safetensors")
    machine = {
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpu": {name: value for name, value in torch.cpu.get_capabilities().items() if not name.startswith("num_")},
    }
    (end / "machine.json").write_text(json.dumps(machine, indent=2, sort_keys=True) + "\n")

    inner = ("cct_lightning", "sitting", "ema")
    keys = {
        "checkpoint": sorted(last),
        "state_dict": list(last["state_dict"]),
        "callbacks": {name: sorted(state) for name, state in last["callbacks"].items()},
        **{name: sorted(last[name]) for name in inner},
        "recipe": list(known_keys()),
    }
    (HERE / "keys.json").write_text(json.dumps(keys, indent=2) + "\n")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == STOP:
            signal.raise_signal(signal.SIGTERM)

    resume.Sitting.on_train_batch_start = on_train_batch_start
    shutil.copytree(fit(*STOPPED), HERE / "stopped")


if __name__ == "__main__":
    torch.set_num_threads(1)
    WORK.mkdir()
    os.chdir(WORK)
    make_predictions(fit(*LEARNED) / "checkpoints" / "best.ckpt")
    make_stopped()
    printed = cct("fit", "-c", "digits", "--print_config").splitlines(keepends=True)
    (HERE / "print_config.yaml").write_text("".join(line for line in printed if not line.startswith("#")))
    shutil.rmtree(WORK)
