"""Measures what Lightning and all that `cct fit` adds cost in a step: python -m benchmarks.loop [-n N] [--device cuda] [--batch B] [--arch A]

A whole `cct fit` runs with progress bar, CSV log, metrics, schedule and throughput; a callback stops it every few steps, takes as many steps
of a bare loop (same images, augmentation, network, optimizer and schedule; nothing else), and compares. Both are timed in turns in one process.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.common import machine, spread

STEPS = 20  # in a turn


def endless(trainer: Trainer) -> Iterator[Any]:
    """Yields training batches as the run gets them, epoch after epoch."""
    loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    while True:
        loader.sampler.set_epoch(loader.sampler.epoch + 1)
        yield from loader


class Turns(Callback):
    """Takes turns between the run and a bare loop; ``seconds`` of a step by who took it."""

    seconds: dict[str, list[float]]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        from cct_lightning.tasks.classification import LitClassifier
        from cct_lightning.training.engine import StepGraph

        type(self).seconds = {"fit": [], "bare": []}
        self.module = LitClassifier(**{**pl_module.model_config, "optim": pl_module.optim, "schedule": pl_module.schedule})
        self.module.to(pl_module.device).train()
        self.module.trainer = trainer
        configured = self.module.configure_optimizers()
        self.optimizer, self.scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        self.batches, self.graph, self.kind = endless(trainer), None, StepGraph
        if pl_module._records:
            self.module.model.compile()
        self._restart(pl_module)

    def _restart(self, module: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % STEPS:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds["fit"].append((time.perf_counter() - self.began) / STEPS)
        self._restart(pl_module)
        for _ in range(STEPS):
            self._bare_step(trainer, pl_module._records)
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds["bare"].append((time.perf_counter() - self.began) / STEPS)
        self._restart(pl_module)

    def _bare_step(self, trainer: Trainer, records: bool) -> None:
        batch = trainer.datamodule.on_after_batch_transfer(next(self.batches), 0)  # type: ignore[attr-defined]
        if records:
            targets = torch.nn.functional.one_hot(batch.targets, self.module.model.num_classes).float()
            with trainer.precision_plugin.forward_context():
                self.graph = self.graph or self.kind(self.module.training_loss, self.optimizer, batch.images, targets, None)
                self.graph(batch.images, targets)
        else:
            with trainer.precision_plugin.forward_context():
                loss = self.module.training_loss(batch.images, batch.targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.scheduler.step()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch:
            self._restart(pl_module)


def main() -> None:
    """Prints the milliseconds of a step of both, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=15, help="turns")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--arch", default="cct_2_3x2_32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", default="~/.cache/cct-lightning", help="folder with CIFAR-10")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from cct_lightning.commands.main import prepare
    from cct_lightning.commands.running import train

    with tempfile.TemporaryDirectory() as folder:
        engine = "graph" if options.device == "cuda" else "eager"
        steps = (options.n + 2) * STEPS
        words = {
            "data.root": options.root, "data.batch_size": options.batch, "model.arch": options.arch, "model.engine": engine,
            "trainer.accelerator": "gpu" if options.device == "cuda" else "cpu", "trainer.max_steps": steps, "trainer.max_epochs": -1,
            "trainer.limit_val_batches": 0, "trainer.limit_test_batches": 0, "trainer.default_root_dir": folder, "wandb.mode": "disabled",
            "trainer.callbacks": "benchmarks.loop.Turns",
        }  # fmt: skip
        arguments = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        train(prepare(["fit", "-c", "cifar10_small", *arguments, "--allow-import", "benchmarks"]))
    from benchmarks.loop import Turns as Measured  # as a module of its own: this file runs as __main__

    fit, bare = (Measured.seconds[name][2:] for name in ("fit", "bare"))
    print(f"\n{machine(options.device, options.threads, L)}; n = {len(fit)} turns of {STEPS} steps")
    print(f"{options.arch}, batch {options.batch}: ms per step of `cct fit` {spread([1e3 * s for s in fit])}, bare {spread([1e3 * s for s in bare])}")
    rates = {name: spread([options.batch / s for s in seconds], ",.0f") for name, seconds in (("`cct fit`", fit), ("bare", bare))}
    print(f"images/s, augmentation included: {', '.join(f'{name} {rate}' for name, rate in rates.items())}")
    print(f"`cct fit` / bare: {spread([a / b for a, b in zip(fit, bare, strict=True)], '.3f')}")
    print(f"ms more per step: {spread([1e3 * (a - b) for a, b in zip(fit, bare, strict=True)])}")


if __name__ == "__main__":
    main()
