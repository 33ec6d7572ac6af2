"""Where a run writes, and what it says of itself beside its recipe."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cct_lightning
from cct_lightning.errors import InputError


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


@dataclass(frozen=True)
class CheckpointConfig:
    """Which epoch is the best, kept as best.ckpt; the last is always kept as last.ckpt.

    Args:
        monitor: Measure that is compared after each validation.
        mode: max keeps the highest, min the lowest.
    """

    monitor: str = "val/accuracy"
    mode: Literal["max", "min"] = "max"


def make_run_dir(recipe: str, base: Path = Path("runs")) -> Path:
    """Makes base/<recipe>/<time>/, for this run alone: two runs that begin in the same second get two folders.

    The processes that a launch starts on this machine find the folder of the first one in the environment. Ranks on other machines write
    nothing, and Lightning tells them where the checkpoints lie.
    """
    if told := os.environ.get("CCT_RUN_DIR"):
        return Path(told)
    stem = base / recipe / time.strftime("%Y%m%d-%H%M%S")
    folder, number = stem, 1
    is_first = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
    while is_first:
        try:
            folder.mkdir(parents=True, exist_ok=False)
            break
        except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
            raise InputError(
                f"{folder.resolve()} can't be made ({error.strerror}): name another place with --trainer.default_root_dir DIR."
            ) from None
        except FileExistsError:
            number += 1
            folder = stem.with_name(f"{stem.name}-{number}")
    os.environ["CCT_RUN_DIR"] = str(folder)
    return folder


def about(num_parameters: int, flops_per_image: int | None) -> dict[str, Any]:
    """Returns what a recipe does not say of a run: versions, the commit of the repository it was started in, the network's size."""
    versions = {"cct-lightning": cct_lightning.__version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "lightning", "timm")}
    return {"versions": versions, "git_commit": _git_commit(), "num_parameters": num_parameters, "flops_per_image": flops_per_image}


def _git_commit() -> str | None:
    """Returns the commit of the working directory's repository, with -dirty where files were changed; None where there is none."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=3, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
