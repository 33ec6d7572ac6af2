"""The trainer of a run, with its callbacks and loggers."""

import os
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from cct_lightning.callbacks import Throughput
from cct_lightning.run_folder import replacing
from cct_lightning.runs.sitting import VARIABLE
from cct_lightning.runs.summary import about
from cct_lightning.runs.tracking.tracker import Tracker


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration into the run folder, the checkpoints and W&B."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.already_saved or stage != "fit":
            return
        self.already_saved = True
        path = Path(trainer.default_root_dir, self.config_filename)
        resumed = VARIABLE in os.environ
        if resumed:  # the same run, wherever it is computed; only its length may be another
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
            recipe["trainer"]["max_epochs"] = self.config.trainer.max_epochs
        else:
            text = self.parser.dump(self.config, skip_none=False, format="yaml")
            recipe = yaml.safe_load(text)
        pl_module.recipe = recipe
        if trainer.is_global_zero:
            if not resumed:
                path.write_text(text, encoding="utf-8")
            if others := [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]:
                flops = next((callback.flops_per_image for callback in trainer.callbacks if isinstance(callback, Throughput)), None)  # type: ignore[attr-defined]
                told = recipe | {"about": about(sum(p.numel() for p in pl_module.model.parameters()), flops)}
                for logger in others:
                    logger.log_hyperparams(told)
            if not resumed:
                self._log_recipe(trainer, path)

    @staticmethod
    def _log_recipe(trainer: Trainer, path: Path) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.log_recipe(path)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Writes the new length of a resumed run, now that nothing more can hinder it."""
        path = Path(trainer.default_root_dir, self.config_filename)
        if trainer.is_global_zero and yaml.safe_load(path.read_text(encoding="utf-8")) != pl_module.recipe:
            with replacing(path) as file:
                file.write(yaml.safe_dump(pl_module.recipe, sort_keys=False).encode())
            self._log_recipe(trainer, path)
