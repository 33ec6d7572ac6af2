"""cct-lightning: small vision transformers trained on your own data, with PyTorch Lightning.

The names below are imported when they are first used, so that ``import cct_lightning`` costs nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_here = Path(__file__).parent
# In a checkout callbacks/ and recipes/ lie beside the package; installed they lie inside it.
if not (_here / "callbacks").is_dir() and (_here.parent / "callbacks").is_dir():
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from cct_lightning.augment import AugmentConfig as AugmentConfig
    from cct_lightning.checkpoints import load_weights as load_weights
    from cct_lightning.data import ImageDataModule as ImageDataModule
    from cct_lightning.encoders import Encoder as Encoder
    from cct_lightning.encoders import TimmEncoder as TimmEncoder
    from cct_lightning.encoders import Tokens as Tokens
    from cct_lightning.encoders import ViTEncoder as ViTEncoder
    from cct_lightning.errors import InputError as InputError
    from cct_lightning.models import ImageClassifier as ImageClassifier
    from cct_lightning.models import create_model as create_model
    from cct_lightning.module import LitClassifier as LitClassifier
    from cct_lightning.optim import OptimConfig as OptimConfig
    from cct_lightning.optim import ScheduleConfig as ScheduleConfig
    from cct_lightning.pooling import POOLINGS as POOLINGS
    from cct_lightning.pooling import Pooling as Pooling
    from cct_lightning.predictor import Predictor as Predictor
    from cct_lightning.predictor import load as load
    from cct_lightning.tokenizers import ConvTokenizer as ConvTokenizer
    from cct_lightning.tokenizers import PatchTokenizer as PatchTokenizer

_HOMES = {
    "AugmentConfig": "augment", "load_weights": "checkpoints", "ImageDataModule": "data", "Encoder": "encoders", "TimmEncoder": "encoders",
    "Tokens": "encoders", "ViTEncoder": "encoders", "InputError": "errors", "ImageClassifier": "models", "create_model": "models",
    "LitClassifier": "module", "OptimConfig": "optim", "ScheduleConfig": "optim", "POOLINGS": "pooling", "Pooling": "pooling",
    "Predictor": "predictor", "load": "predictor", "ConvTokenizer": "tokenizers", "PatchTokenizer": "tokenizers",
}  # fmt: skip
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cct_lightning' has no attribute {name!r}")
    return getattr(import_module(f"cct_lightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
