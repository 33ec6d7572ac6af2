"""Pictures of a run: PNG files in its folder, and the same in W&B where it is tracked."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from cct_lightning.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(trainer: Trainer, name: str, figure: "Figure") -> Path:
    """Writes pictures/<name>.png into the run's folder and shows it in W&B under pictures/<name less its epoch>; on the first rank.

    Args:
        trainer: Its ``default_root_dir`` is the run's folder.
        name: Of the file; ``-epoch003`` at its end tells several of a kind apart.
        figure: Drawn with matplotlib.

    Returns:
        The file.

    Raises:
        InputError: The folder can't be written.
    """
    path = Path(trainer.default_root_dir, "pictures", f"{name}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # of class names in scripts that the font has not: boxes are drawn
            figure.savefig(path, dpi=120, bbox_inches="tight", facecolor="white")
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from error
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name.split('-epoch')[0]}", [str(path)], step=trainer.global_step)
    return path
