"""What each task is told, in plain values: importing this needs no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.options import Tta, check_tta
from cct_lightning.networks.options import MaskedTarget, NetworkOptions
from cct_lightning.training.options import DistillConfig, LabelsLossConfig, LossConfig, NumbersLossConfig, TrainingOptions

# What a module takes from its data module: LightningCLI links data.NAME to model.NAME.
FROM_DATA = ("num_classes", "image_size", "in_chans", "class_names", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class _HeadOptions(NetworkOptions):
    """What a network with a head is besides its training.

    Args:
        num_classes: Number of classes; comes from the data.
        image_size: Side of square images, or height and width, pixels; comes from the data.
        in_chans: Channels of the images; comes from the data.
        pretrained: Weights to start from: a checkpoint of a run, an exported folder, a file of SHI-Labs/Compact-Transformers, vit-pytorch or
            timm; by name, as `cct models` lists them: cct_2_3x2_32_cifar10, which is inside the package, and where there is a network one of
            SHI-Labs' published weights, such as cct_7_3x1_32_cifar10_300epochs, or timm/NAME.
        new_head: Start the head at zero even where the weights have one that fits; it always is where classes differ.
        freeze: backbone trains the pooling and the head alone.
        tta: What tests, `cct validate` and predictions see of each image: none the image, mirror it and its mirror (twice the time), shift both of
            it, too, shifted by a pixel for each 32 (six times). The mean of the probabilities counts. The validation of a training sees the image.
    """

    arch: str = field(default="cct_7_3x1_32", kw_only=False)
    num_classes: int = 10
    pretrained: str | None = None
    new_head: bool = False
    freeze: Literal["none", "backbone"] = "none"
    tta: Tta = "none"

    def __post_init__(self) -> None:
        check_tta(self.tta)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class HeadOptions(TrainingOptions, _HeadOptions):
    """A network with a head and its training: what all tasks have that learn labels."""


@dataclass(frozen=True, kw_only=True)
class _ClassifierOptions(_HeadOptions):
    """What a classifier is besides its training. Apart from ``ClassificationOptions`` for the order of the keys alone.

    Args:
        label_smoothing: Share of each target that is spread over all classes.
        loss: The loss.
        teacher: A trained network of the same classes to learn from beside the labels: a checkpoint or run, an exported folder, or timm/NAME@FILE,
            a network of timm's with a file of its weights. It sees the same augmented images.
        distill: What is learned of the teacher.
    """

    arch: str = field(default="cct_7_3x1_32", kw_only=False)
    label_smoothing: float = 0.1
    loss: LossConfig = LossConfig()
    teacher: str | None = None
    distill: DistillConfig = DistillConfig()

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(HeadOptions, _ClassifierOptions):
    """A classifier and its training: the keys ``model`` of a recipe.

    Raises:
        InputError: A number is out of range.
    """


@dataclass(frozen=True, kw_only=True)
class _MultilabelOptions(_HeadOptions):
    """What tells several labels of an image, besides its training. Apart from ``MultilabelOptions`` for the order of the keys alone.

    Args:
        label_smoothing: Share of the way that each target is moved towards a half.
        loss: The loss.
    """

    arch: str = field(default="cct_7_3x1_32", kw_only=False)
    label_smoothing: float = 0.0
    loss: LabelsLossConfig = LabelsLossConfig()

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class MultilabelOptions(HeadOptions, _MultilabelOptions):
    """What tells several labels of an image, and its training: the keys ``model`` of a recipe that says ``task: multilabel``.

    Raises:
        InputError: A number is out of range.
    """


@dataclass(frozen=True, kw_only=True)
class _RegressionOptions(_HeadOptions):
    """What tells numbers of an image, besides its training. Apart from ``RegressionOptions`` for the order of the keys alone.

    Args:
        loss: The loss.
    """

    arch: str = field(default="cct_7_3x1_32", kw_only=False)
    loss: NumbersLossConfig = NumbersLossConfig()


@dataclass(frozen=True, kw_only=True)
class RegressionOptions(HeadOptions, _RegressionOptions):
    """What tells numbers of an image, and its training: the keys ``model`` of a recipe that says ``task: regression``.

    Raises:
        InputError: A number is out of range.
    """


@dataclass(frozen=True, kw_only=True)
class _MaskedOptions(NetworkOptions):
    """What fills in masked patches, besides its training. Apart from ``MaskedOptions`` for the order of the keys alone.

    Args:
        pooling: Tells whether the encoder has a class token, and what kind; the pooling itself is left to the fine-tuning.
        num_classes: Number of classes; comes from the data, and nothing is made of it: no label is looked at.
        target: What is learned of the masked patches (task masked): mae, their pixels, while the encoder sees the other patches alone; simmim, the
            same, while mask tokens stand in their places; mpp, their mean colour in 3 bits a channel.
        mask_ratio: Share of the patches that is masked (task masked); null: 0.75 for mae, 0.6 for simmim, 0.5 for mpp.
        mask_block: Side of the square blocks of patches that are masked together (task masked); where a patch is few pixels, its neighbours tell it.
        decoder_dim: Width of the decoder's tokens (target mae).
        decoder_depth: Layers of the decoder (target mae).
        decoder_heads: Heads of the decoder's attention (target mae); they divide decoder_dim.
        normalize_target: Whether each masked patch's pixels are predicted less their mean and over their deviation (target mae).
    """

    arch: str = field(default="cct_7_3x1_32", kw_only=False)
    drop_path: float = 0.0
    attn_drop: float = 0.0
    target: MaskedTarget = "mae"
    mask_ratio: float | None = None
    mask_block: int = 1
    decoder_dim: int = 128
    decoder_depth: int = 1
    decoder_heads: int = 4
    normalize_target: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("mask_ratio", 0.5 if self.mask_ratio is None else self.mask_ratio, 0, 1, exclusive="low high")
        for name in ("mask_block", "decoder_dim", "decoder_depth", "decoder_heads"):
            check_range(name, getattr(self, name), 1)
        if self.head_hidden_dim is not None:
            raise InputError(f"head_hidden_dim={self.head_hidden_dim}: masked patches are learned without a head. Give it to the fine-tuning.")


@dataclass(frozen=True, kw_only=True)
class MaskedOptions(TrainingOptions, _MaskedOptions):
    """Masked patches and the training on them: the keys ``model`` of a recipe that says ``task: masked``.

    Raises:
        InputError: A number is out of range.
    """


def to_config(options: TrainingOptions, kind: type[TrainingOptions] = ClassificationOptions) -> dict[str, Any]:
    """Returns what a checkpoint keeps of the options, in plain values: all fields of ``kind`` but the weights that were started from,
    the teacher, and what a test sees, which is asked for each time."""
    config: dict[str, Any] = {}
    for option in fields(kind):
        value = getattr(options, option.name)
        if option.name not in ("pretrained", "new_head", "tta", "teacher", "distill"):
            config[option.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    for name in ("class_names", "mean", "std"):
        config[name] = list(config[name]) if config[name] else None
    return config


def from_config(config: Mapping[str, Any], kind: type[TrainingOptions] = ClassificationOptions) -> dict[str, Any]:
    """Returns the keywords that ``to_config`` made a configuration of; a group of keys may be given as an object, too."""
    groups: dict[str, Any] = {name: group for name, group in get_type_hints(kind).items() if is_dataclass(group)}
    return {name: groups[name](**value) if name in groups and isinstance(value, Mapping) else value for name, value in config.items()}
