"""What check and measure share: where they run, what they tell, and a training of digits whose losses are kept."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from cct_lightning import AugmentConfig, ImageDataModule, LitClassifier, OptimConfig, ScheduleConfig
from cct_lightning.tasks import task
from cct_lightning.training.engine import StepGraph

ADAMW = OptimConfig(lr=1e-3, clip_norm=1.0)
MUON = OptimConfig("muon", lr=1e-3, betas=(0.9, 0.99))

# By device: 60 steps, and 6 in a dry run.
EPOCHS, BATCH, IMAGES = {"cuda": 5, "cpu": 2}, {"cuda": 100, "cpu": 40}, {"cuda": None, "cpu": 12}  # images of each class


class Told:
    """Prints what was found, a line each, and keeps it as a line of JSON.

    Args:
        path: Grows by a line for each; None: kept nowhere.

    Attributes:
        failed: What was found wrong.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.failed: list[str] = []

    def __call__(self, right: bool | None, what: str, detail: object = "") -> None:
        """Tells one thing: True is as it should be, False a defect, None a measurement."""
        if right is False:
            self.failed.append(what)
        word = {True: "ok  ", False: "FAIL", None: "info"}[right]
        print(f"{word} {what}" + (f": {detail}" if detail != "" else ""), flush=True)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps({"right": right, "what": what, "detail": str(detail), "time": round(time.time())}) + "\n")


def again(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Stands in for the recorder of CUDA graphs where there is no GPU: a replay runs the step."""
    result = torch.zeros(())
    return (lambda: result.copy_(step())), result


@contextmanager
def stand_ins() -> Iterator[None]:
    """Lets the engines graph and compile run on a CPU: the step is run instead of replayed, and networks are neither traced nor compiled."""
    kept = task.check_graph, task.StepGraph
    task.check_graph = lambda *_: None
    task.StepGraph = lambda *arguments, **named: StepGraph(*arguments, record=again, **named)  # type: ignore[misc,assignment]
    try:
        with compiled_with(disable=True):
            yield
    finally:
        task.check_graph, task.StepGraph = kept  # type: ignore[misc]


@contextmanager
def compiled_with(**words: Any) -> Iterator[None]:
    """Has networks compiled by these words of ``torch.compile``; of two such blocks the inner one counts."""
    compile_module = nn.Module.compile
    nn.Module.compile = lambda self, **named: compile_module(self, **{**words, **named})  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.compile = compile_module  # type: ignore[method-assign]


class Fitted(NamedTuple):
    """A training that has ended.

    Attributes:
        module: What was trained.
        trainer: Its trainer.
        losses: Of all steps, (steps,), float32 on the host.
    """

    module: LitClassifier
    trainer: L.Trainer
    losses: Tensor


class Watch(L.Callback):
    """Keeps the loss of each step, a checkpoint of the first epoch, and the network while it trains.

    Args:
        keep: Where the checkpoint of the first epoch goes.
        probe: Is called with the module at the end of the training, when its graph is still there.
    """

    def __init__(self, keep: Path | None, probe: Callable[[LitClassifier], None] | None) -> None:
        self.keep, self.probe = keep, probe
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach().clone())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.keep is not None and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.keep)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.probe is not None:
            self.probe(pl_module)


def fit(
    device: str,
    engine: str,
    optim: OptimConfig = ADAMW,
    *,
    precision: Any = "32-true",
    start: Path | None = None,
    keep: Path | None = None,
    probe: Callable[[LitClassifier], None] | None = None,
    callbacks: Sequence[L.Callback] = (),
    deterministic: bool = False,
    **options: Any,
) -> Fitted:
    """Trains a CCT-2/3x2 on digits at 16 pixels: schedule, MixUp that ends half-way, clipping, validation after each epoch in other batches.

    Args:
        device: cuda or cpu.
        engine: eager, compile or graph.
        start: A checkpoint to go on from.
        keep: Where to write a checkpoint after the first epoch.
        probe: Called with the module when the last step is done.
        options: Of ``LitClassifier``; without dropout unless told otherwise.
    """
    torch.manual_seed(0)
    epochs = EPOCHS[device]
    augment = AugmentConfig(shift=1, mixup=0.5, mix_off_epoch=epochs // 2)
    data = ImageDataModule("digits", image_size=16, batch_size=BATCH[device], augment=augment, seed=0, per_class=IMAGES[device])
    module = LitClassifier(
        "cct_2_3x2_32", image_size=(16, 16), in_chans=1, mean=[0.3], std=[0.4], engine=engine, optim=optim,  # type: ignore[arg-type]
        schedule=ScheduleConfig("linear", warmup_epochs=1), **{"drop_path": 0.0, "attn_drop": 0.0, **options},
    )  # fmt: skip
    watch = Watch(keep, probe)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=precision, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, max_epochs=epochs, callbacks=[*callbacks, watch], deterministic=deterministic,
        log_every_n_steps=1000,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=start, weights_only=None if start is None else True)
    return Fitted(module, trainer, torch.stack(watch.losses).float().cpu())


def furthest(one: Fitted, other: Fitted) -> float:
    """Returns the largest difference of the weights of two trainings."""
    theirs = other.module.state_dict()
    return max(float((value.cpu().float() - theirs[name].cpu().float()).abs().max()) for name, value in one.module.state_dict().items())


def apart(one: Tensor, other: Tensor) -> float:
    """Returns the largest difference of the losses of steps that both took, counted from the last."""
    count = min(len(one), len(other))
    return float((one[-count:] - other[-count:]).abs().max())


def equal_or(distance: float) -> str:
    """Says a difference."""
    return "equal to the bit" if distance == 0 else f"{distance:.1e} apart"
