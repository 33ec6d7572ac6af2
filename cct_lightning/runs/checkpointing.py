"""The files that a run keeps: the best epoch and the last, written whole."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from cct_lightning.errors import InputError
from cct_lightning.run_folder import replacing
from cct_lightning.runs.full_disk import full_disk
from cct_lightning.side_files import set_aside
from cct_lightning.weights.files import Opened, read_checkpoint
from cct_lightning.weights.soundness import check_archive, tensors_in


class RunCheckpoint(ModelCheckpoint):
    """Keeps a file of the run's folder, wherever that has been moved between two sittings."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if absent := self.state_dict().keys() - state_dict.keys():
            raise InputError(
                f"the checkpoint's state of {type(self).__name__} lacks {sorted(absent)[0]}: it was changed, or written by something else."
            )

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})
        self.current_score = state_dict["current_score"]  # which Lightning 2.6 leaves out


class BestCheckpoint(RunCheckpoint):
    """Keeps the best epoch, of equal ones the last: with few validation images the first 100 % comes long before the network is done.

    An epoch whose measure or validation loss is no finite number is never kept.

    Attributes:
        measure: Of the task, logged as ``val/...``; None where it has none.
        measured: What it was in the epoch that is kept, whatever measure chose that; in a checkpoint it is called accuracy, whatever it is.
    """

    measure: str | None = None
    measured: float | None = None
    _validated = False  # since it chose last: a run given in steps may end inside an epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        if self._validated:
            self._validated = False
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        for name in (self.monitor, "val/loss"):
            found = trainer.callback_metrics.get(str(name))
            if found is not None and not math.isfinite(found):
                rank_zero_info(f"{name} is {float(found):g}: epoch {trainer.current_epoch + 1} is not kept as the best")
                return False
        tie = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        if chosen := tie or super().check_monitor_top_k(trainer, current):
            found = trainer.callback_metrics.get(f"val/{self.measure}")
            self.measured = None if found is None else float(found)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "accuracy": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.measured = state_dict["accuracy"]
        if self.best_model_path and (told := _lost(Path(self.best_model_path))):
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print(f"{told}; the next epoch that is validated takes its place")
            self.best_model_path = self.kth_best_model_path = ""
            self.best_k_models, self.best_model_score, self.measured = {}, None, None


def _lost(path: Path) -> str:
    """Says that a checkpoint is gone or damaged, and sets it aside; the empty string where it is whole."""
    try:
        if path.is_file():
            check_archive(path)
            return ""
    except InputError:
        with suppress(FileNotFoundError):  # another process was quicker
            return set_aside(path)
    return f"{path} is gone"


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it. Lightning 2.6 writes to the temporary folder, which may be another disk, and copies.

    Args:
        opened: A checkpoint that has been read; it is handed on once.

    Attributes:
        steps: Of the files that were written or read, by name.
    """

    def __init__(self, opened: Opened | None = None) -> None:
        super().__init__()
        self._opened = opened
        self.steps: dict[str, int] = {}

    def load_checkpoint(self, path: str | Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Returns what the command has opened already, the first time that it is asked for; else reads the file, with all checks.

        Raises:
            InputError: See ``read_checkpoint``.
        """
        opened, self._opened = self._opened, None
        taken = opened is not None and opened.path.exists() and opened.path.samefile(path)
        content = dict(opened.content if opened is not None and taken else read_checkpoint(path))
        self.steps[Path(path).name] = content.get("global_step", 0)
        return content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a file, or leaves the one that is there.

        Raises:
            RunError: There is no room.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # a second Ctrl-C: torch then finds its file too short
                raise error.__context__ from None
            if full := full_disk(error, Path(path), sum(tensor.nbytes for tensor in tensors_in(checkpoint).values())):
                raise full from error
            raise
        self.steps[Path(path).name] = checkpoint.get("global_step", 0)
