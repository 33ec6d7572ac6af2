"""cct-lightning: small vision transformers trained on your own data, with PyTorch Lightning.

The names below are imported when they are first used, so that ``import cct_lightning`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cct_lightning.commands.calls import finetune as finetune
    from cct_lightning.commands.calls import fit as fit
    from cct_lightning.commands.calls import pretrain as pretrain
    from cct_lightning.commands.calls import resume as resume
    from cct_lightning.commands.calls import tune as tune
    from cct_lightning.data.augment.options import AugmentConfig as AugmentConfig
    from cct_lightning.data.module import ImageDataModule as ImageDataModule
    from cct_lightning.errors import InputError as InputError
    from cct_lightning.inference.opening import load as load
    from cct_lightning.inference.predictor import Predictor as Predictor
    from cct_lightning.networks.classifier import ImageClassifier as ImageClassifier
    from cct_lightning.networks.encoder import Encoder as Encoder
    from cct_lightning.networks.encoder import Tokens as Tokens
    from cct_lightning.networks.encoder import ViTEncoder as ViTEncoder
    from cct_lightning.networks.poolings import POOLINGS as POOLINGS
    from cct_lightning.networks.poolings import Pooling as Pooling
    from cct_lightning.networks.timm_encoder import TimmEncoder as TimmEncoder
    from cct_lightning.networks.tokenizers import ConvTokenizer as ConvTokenizer
    from cct_lightning.networks.tokenizers import PatchTokenizer as PatchTokenizer
    from cct_lightning.runs.run import Run as Run
    from cct_lightning.studies.folds import Folds as Folds
    from cct_lightning.tasks.classification import LitClassifier as LitClassifier
    from cct_lightning.training.options import OptimConfig as OptimConfig
    from cct_lightning.training.options import ScheduleConfig as ScheduleConfig
    from cct_lightning.weights.loading import create_model as create_model
    from cct_lightning.weights.loading import load_weights as load_weights

_HOMES = {
    "fit": "commands.calls",
    "finetune": "commands.calls",
    "pretrain": "commands.calls",
    "resume": "commands.calls",
    "tune": "commands.calls",
    "Run": "runs.run",
    "Folds": "studies.folds",
    "AugmentConfig": "data.augment.options",
    "ImageDataModule": "data.module",
    "InputError": "errors",
    "load": "inference.opening",
    "Predictor": "inference.predictor",
    "ImageClassifier": "networks.classifier",
    "Encoder": "networks.encoder",
    "Tokens": "networks.encoder",
    "ViTEncoder": "networks.encoder",
    "POOLINGS": "networks.poolings",
    "Pooling": "networks.poolings",
    "TimmEncoder": "networks.timm_encoder",
    "ConvTokenizer": "networks.tokenizers",
    "PatchTokenizer": "networks.tokenizers",
    "LitClassifier": "tasks.classification",
    "OptimConfig": "training.options",
    "ScheduleConfig": "training.options",
    "create_model": "weights.loading",
    "load_weights": "weights.loading",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cct_lightning' has no attribute {name!r}")
    return getattr(import_module(f"cct_lightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
