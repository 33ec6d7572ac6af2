"""What each task is told, in plain values: importing this needs no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from cct_lightning.errors import check_range
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.training.options import LossConfig, TrainingOptions

# What a module takes from its data module: LightningCLI links data.NAME to model.NAME.
FROM_DATA = ("num_classes", "image_size", "in_chans", "class_names", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class _ClassifierOptions(NetworkOptions):
    """What a classifier is besides its training. Apart from ``ClassificationOptions`` for the order of the keys alone.

    Args:
        num_classes: Number of classes; comes from the data.
        image_size: Side of square images, or height and width, pixels; comes from the data.
        in_chans: Channels of the images; comes from the data.
        label_smoothing: Share of each target that is spread over all classes.
        pretrained: Weights to start from: a checkpoint of a run, an exported folder, a file of SHI-Labs/Compact-Transformers, vit-pytorch or
            timm; by name, where there is a network: one of SHI-Labs' published weights, such as cct_7_3x1_32_cifar10_300epochs, or timm/NAME.
        new_head: Start the head at zero even where the weights have one that fits; it always is where classes differ.
        freeze: backbone trains the pooling and the head alone.
        loss: The loss.
    """

    arch: str = field(default="cct_7_3x1_32", kw_only=False)
    num_classes: int = 10
    label_smoothing: float = 0.1
    pretrained: str | None = None
    new_head: bool = False
    freeze: Literal["none", "backbone"] = "none"
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(TrainingOptions, _ClassifierOptions):
    """A classifier and its training: the keys ``model`` of a recipe.

    Raises:
        InputError: A number is out of range.
    """


def to_config(options: ClassificationOptions) -> dict[str, Any]:
    """Returns what a checkpoint keeps of the options, in plain values: all but the weights that were started from."""
    config: dict[str, Any] = {}
    for option in fields(ClassificationOptions):
        value = getattr(options, option.name)
        if option.name not in ("pretrained", "new_head"):
            config[option.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    for name in ("class_names", "mean", "std"):
        config[name] = list(config[name]) if config[name] else None
    return config


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords that ``to_config`` made a configuration of; a group of keys may be given as an object, too."""
    groups: dict[str, Any] = {name: kind for name, kind in get_type_hints(ClassificationOptions).items() if is_dataclass(kind)}
    return {name: groups[name](**value) if name in groups and isinstance(value, Mapping) else value for name, value in config.items()}
