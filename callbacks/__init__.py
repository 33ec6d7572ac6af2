"""Callbacks for any Lightning Trainer; recipes name them by their class alone. In a checkout this folder is ``cct_lightning.callbacks``."""

if __name__ == "callbacks":
    raise ImportError("import cct_lightning.callbacks: the folder callbacks/ is no package of its own.")

from .ema import EMA
from .progress import ProgressBar
from .throughput import Throughput

__all__ = ["EMA", "ProgressBar", "Throughput"]
