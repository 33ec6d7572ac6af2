"""Where a run writes: its folder, metrics.csv, checkpoints, W&B."""

import http.client
import netrc
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

from cct_lightning.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases.

    Args:
        mode: online, offline, disabled, or auto: online where a key is configured and the server answers within 3 s, else offline.
        project: Name of the project.
        entity: User or team that owns the project; null: the key's.
        tags: Tags of the run.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "cct-lightning"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointConfig:
    """Which epoch is the best, kept as best.ckpt; the last is always kept as last.ckpt.

    Args:
        monitor: Measure that is compared after each validation.
        mode: max keeps the highest, min the lowest.
    """

    monitor: str = "val/accuracy"
    mode: Literal["max", "min"] = "max"


PROBE_SECONDS = 3.0
INIT_SECONDS = 15.0


def _key_is_configured(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Tells whether a server answers within the time of the probe, in any words. In a thread, since a name server may take minutes."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
            answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)
        except (OSError, ValueError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answered)


def wandb_mode(mode: str) -> str:
    """Decides what ``auto`` means here and now; never asks, and waits at most 3 s. WANDB_MODE in the environment decides for auto."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return "online" if _key_is_configured(urlparse(url).hostname or "") and _answers(url) else "offline"


def wandb_id(run_dir: Path) -> str | None:
    """Returns the id under which the run is tracked, by the name of a folder that W&B left, run-<time>-<id>; None for a new run."""
    found = next((run_dir / "wandb").glob("*run-*-*"), None)
    return found.name.partition("run-")[2].partition("-")[2] if found else None


def wandb_logger(config: WandbConfig, run_dir: Path, name: str) -> "WandbLogger | None":
    """Builds the logger that writes into the run folder, or None where W&B is disabled.

    Raises:
        InputError: ``online`` was asked for and W&B refuses, for want of a key or of a network. ``auto`` goes offline then.
    """
    mode = wandb_mode(config.mode)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")  # the summary at the end tells what there is to tell
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    def build(offline: bool) -> WandbLogger:
        settings = wandb.Settings(init_timeout=INIT_SECONDS)
        # W&B's own process has a working directory of its own
        logger = WandbLogger(
            name=name, project=config.project, entity=config.entity, tags=config.tags or None, save_dir=run_dir.resolve(), offline=offline,
            settings=settings, id=wandb_id(run_dir),
        )  # fmt: skip
        logger._wandb_init.pop("anonymous", None)  # W&B warns of this argument, which Lightning 2.6 always passes
        return logger

    if mode == "offline":
        return build(offline=True)
    logger = build(offline=False)
    try:
        logger.experiment  # noqa: B018  # logs in, on the first rank
    except (wandb.errors.Error, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        if config.mode != "auto":
            raise InputError(f"wandb.mode={config.mode}: {reason} Set WANDB_API_KEY, or choose wandb.mode offline.") from error
        print(f"W&B does not take the run ({reason}): tracking it offline in {run_dir}/wandb")
        wandb.teardown()  # its process would go on to hold the run's id
        return build(offline=True)
    return logger


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
