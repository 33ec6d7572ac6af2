"""What a run began with, so that two runs can be compared before their first step."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class StartRecord(Callback):
    """Writes start.json into the run's folder: shape and digest of each initial tensor of the network and whether it is a parameter, which a buffer
    such as a table of sines is not, and digests of the images and their order in the first steps.

    Two runs that differ in one thing alone have equal digests in all the rest: tensors of equal names and kinds, and batches. A run that goes on
    keeps what its first sitting wrote.

    Args:
        batches: First training batches that are recorded.
    """

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches
        self._started: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:
            parameters = dict(pl_module.named_parameters())
            tensors = {
                name: [list(tensor.shape), digest(tensor), name in parameters]
                for name, tensor in pl_module.state_dict().items()
                if name.startswith("model.")
            }
            self._started = {"tensors": tensors, "batches": []}
            self._write(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._started is None:
            return
        if len(self._started["batches"]) < self.batches:
            indices = getattr(batch, "indices", None)
            self._started["batches"].append(
                {"images": digest(batch[0]), "targets": digest(batch[1]), "indices": None if indices is None else digest(indices)}
            )
        if len(self._started["batches"]) == self.batches:
            self._write(trainer)
            self._started = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._started is not None:  # of fewer batches
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        path = Path(trainer.default_root_dir, "start.json")
        path.write_text(json.dumps(self._started) + "\n", encoding="utf-8")


def digest(tensor: Tensor) -> str:
    """Returns a digest of a tensor's values, whatever its layout in memory."""
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
