"""Pictures of a run: PNG files in its folder, and the same in W&B where it is tracked."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from cct_lightning.data.files import Array
from cct_lightning.data.folders import UNLABELLED
from cct_lightning.errors import InputError
from cct_lightning.wording import percent, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


def denormalize(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Array:
    """Turns images (B, C, H, W), uint8 or float normalised, into pixels (B, H, W, C) as float, cut off at 0 and 1.

    Without mean and std each image is stretched to its own darkest and brightest value.
    """
    if images.dtype == torch.uint8:
        pixels = images / 255
    elif mean is None or std is None:
        low, high = images.float().amin(dim=(1, 2, 3), keepdim=True), images.float().amax(dim=(1, 2, 3), keepdim=True)
        pixels = (images.float() - low) / (high - low).clamp(min=1e-6)
    else:
        pixels = images.float() * images.new_tensor(std, dtype=torch.float32).view(-1, 1, 1)
        pixels += images.new_tensor(mean, dtype=torch.float32).view(-1, 1, 1)
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()  # type: ignore[no-any-return]


def show_image(axes: "Axes", image: Array) -> None:
    """Draws pixels (H, W, C), 0..1, grey or in colour, without ticks."""
    axes.imshow(image if image.shape[2] == 3 else image.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


def class_name(names: Sequence[str] | None, number: int, width: int = 22) -> str:
    """Returns a class's name, without its middle where it is wider, or its number where it has none."""
    return shortened(names[number] if names else str(number), width)


def label(target: Tensor, names: Sequence[str] | None, kind: str | None = "class") -> str:
    """Tells a class (), that there is none, or of probabilities (K,) the two largest: "cat (70 %)", "+ dog (30 %)" in a line each.

    Args:
        target: Of several labels how much there is of each, 0..1, (K,); of numbers these, (K,).
        names: In the order of the logits.
        kind: class, labels or numbers.
    """
    if kind == "numbers":
        told = [f"{class_name(names, number, 14)} {value:.4g}" for number, value in enumerate(target.tolist())]
        return "\n".join(("; ".join(told[:2]), "; ".join(told[2:4]))).strip() if len(told) > 1 else f"{float(target[0]):.4g}"
    if kind == "labels":
        found = sorted(((share, number) for number, share in enumerate(target.tolist()) if share > 0.005), key=lambda pair: (-pair[0], pair[1]))
        told = [class_name(names, number, 14) + (f" ({percent(share, 0)})" if share < 0.995 else "") for share, number in found]
        lines = ["; ".join(told[first : first + 2]) for first in (0, 2)]
        return "\n".join(filter(None, lines)) + (f"; {len(told) - 4} more" if len(told) > 4 else "") if told else "no label"
    if target.ndim == 0 and target == UNLABELLED:
        return "no label"
    if target.ndim == 0:
        return class_name(names, int(target))
    shares, numbers = target.float().topk(min(2, len(target)))
    told = [f"{class_name(names, number, 14)} ({percent(share, 0)})" for share, number in zip(shares.tolist(), numbers.tolist(), strict=True)]
    return class_name(names, int(numbers[0])) if shares[0] >= 0.995 else "\n+ ".join(told)
