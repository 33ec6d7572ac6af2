"""Callbacks for any Lightning Trainer; recipes name them by their class alone. In a checkout this folder is ``cct_lightning.callbacks``."""

if __name__ == "callbacks":
    raise ImportError("import cct_lightning.callbacks: the folder callbacks/ is no package of its own.")

from .batch_preview import BatchPreview
from .ema import EMA
from .knn_accuracy import KNNAccuracy
from .pooling_maps import PoolingMaps
from .progress import ProgressBar
from .reconstruction_preview import ReconstructionPreview
from .start_record import StartRecord
from .test_report import TestReport
from .throughput import Throughput

__all__ = [
    "EMA",
    "BatchPreview",
    "KNNAccuracy",
    "PoolingMaps",
    "ProgressBar",
    "ReconstructionPreview",
    "StartRecord",
    "TestReport",
    "Throughput",
]
