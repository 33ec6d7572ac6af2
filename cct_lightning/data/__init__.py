"""Data sets, the data module, and the loader between them."""

from cct_lightning.data.module import ImageDataModule
from cct_lightning.data.sets import DATASETS

__all__ = ["DATASETS", "ImageDataModule"]
