"""Data sets, the data module, and the loader between them. The names are imported when they are first used: data.sets needs no Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cct_lightning.data.module import ImageDataModule as ImageDataModule
    from cct_lightning.data.sets import DATASETS as DATASETS

_HOMES = {"DATASETS": "sets", "ImageDataModule": "module"}
__all__ = ["DATASETS", "ImageDataModule"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cct_lightning.data' has no attribute {name!r}")
    return getattr(import_module(f"cct_lightning.data.{_HOMES[name]}"), name)
