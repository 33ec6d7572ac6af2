"""A training that somebody watches, who may end it after a validation."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from cct_lightning.runs.options import Watch


class Watched(Callback):
    """Tells the measures of each validation to who watches; the training ends there where that is the answer, as if it had been that long.

    Args:
        watch: Is asked on rank zero; all follow.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:  # EMA's raw weights are validated behind the training
            return
        measures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        share = min(trainer.global_step / max(float(trainer.estimated_stepping_batches), 1.0), 1.0)
        strategy: Any = trainer.strategy
        trainer.should_stop |= strategy.broadcast(trainer.is_global_zero and self._watch(measures, share))
