"""Where a run writes, and what it says of itself beside its recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

# Is told the measures of a validation by name, and the share of the training that is done; tells whether the training shall end there.
Watch = Callable[[Mapping[str, float], float], bool]


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases.

    Args:
        mode: online, offline, disabled, or auto: online where a key is configured and the server answers within 3 s, else offline.
        project: Name of the project.
        entity: User or team that owns the project; null: the key's.
        tags: Tags of the run.
        group: Group of the run; null: the recipe's name.
        log_model: best uploads the best checkpoint at the end of the training.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "cct-lightning"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    log_model: Literal["none", "best"] = "none"


Mode = Literal["max", "min"]


@dataclass(frozen=True)
class CheckpointConfig:
    """Which epoch is the best, kept as best.ckpt; the last is always kept as last.ckpt.

    Args:
        monitor: Measure that is compared after each validation. Left out, it is the task's own: val/mAP of task multilabel, val/r2 of regression, and
            val/loss, with mode min, of masked.
        mode: max keeps the highest, min the lowest; null: the lowest of losses and errors (loss, calibration_error, mae, rmse), else the highest.
    """

    monitor: str = "val/accuracy"
    mode: Mode | None = None


def mode_of(monitor: str, mode: Mode | None = None) -> Mode:
    """Returns which of a measure is better, where it was not said."""
    return mode or ("min" if monitor.split("/")[1:2] in (["loss"], ["calibration_error"], ["mae"], ["rmse"]) else "max")


# Where a run is computed, not what it is: these keys may differ when it is resumed.
WHERE = (
    "data.root", "data.unlabelled", "data.cache", "data.max_megapixels", "data.num_workers", "model.teacher", "model.distill.cache",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.enable_progress_bar", "wandb.mode",
)  # fmt: skip
