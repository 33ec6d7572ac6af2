"""What a callback may need of the LightningModule it is given, whoever wrote it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from cct_lightning.evaluation.reports import AnyOutcomes
from cct_lightning.networks.classifier import ImageClassifier


@runtime_checkable
class TellsImages(Protocol):
    """Tells how its images were normalised and what their classes are called, each None where it is not known; every ``Task`` does."""

    @property
    def mean(self) -> Sequence[float] | None: ...
    @property
    def std(self) -> Sequence[float] | None: ...
    @property
    def class_names(self) -> Sequence[str] | None: ...


@runtime_checkable
class KeepsOutcomes(Protocol):
    """Keeps in ``outcomes`` what came of each image of an evaluation, where ``collect`` is set; every ``Labelled`` does."""

    collect: bool
    outcomes: AnyOutcomes | None


def classifier_of(module: nn.Module) -> ImageClassifier | None:
    """Returns the image classifier that a module trains as its ``model``; None where it has none."""
    model = getattr(module, "model", None)  # the module may be anybody's
    return model if isinstance(model, ImageClassifier) else None
