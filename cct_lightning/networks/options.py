"""What describes a network, in plain values: importing this needs no torch."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

from cct_lightning.errors import InputError, check_range
from cct_lightning.options import as_size

ClassToken = Literal["none", "full", "read_only"]
Position = Literal["learned", "sine", "none"]
MaskedTarget = Literal["mae", "simmim", "mpp"]
OWN_NETWORK = 'see "A network of your own" in the README'


RejectBy = Literal["energy", "probability"]


class Rejection(NamedTuple):
    """A threshold below which an answer is none of the network's classes.

    Attributes:
        by: Of what: see ``evaluation.rejection.score``.
        threshold: Scores from it on are answered.
    """

    by: RejectBy
    threshold: float


@dataclass(frozen=True)
class NetworkOptions:
    """A network by name; what is None is what the name says.

    Args:
        arch: Network: a preset such as cct_7_3x1_32, or timm/NAME for a network of timm that returns tokens (a ViT) or a map of them (a ResNet).
        pooling: How tokens become one feature: class_token, masked_class_token, class_token_mean, class_attention, map,
            multi_query, seqpool or mean; null: the arch's.
        num_queries: Queries of the pooling multi_query, each of which reads an equal part of the channels; null: 32, or as many of them as divide
            embed_dim evenly.
        num_classes: Number of classes; 0: the network returns features.
        image_size: Side of square images, or height and width, pixels.
        in_chans: Channels of the images.
        position: Position embedding: learned, sine or none; null: the arch's.
        class_token_position: Whether the class token has a position; null: yes.
        residual_norm: The published block (true) or standard pre-norm (false); null: the published one.
        drop_path: Drop path of the last layer; rises linearly from 0 at the first.
        attn_drop: Dropout of attention weights; a network of timm without attention has none.
        proj_drop: Dropout behind positions, projections and in the MLP.
        head_hidden_dim: Width of a hidden tanh layer of the head; null: the head is one linear layer.
        embed_dim: Width of a token; null: the arch's, as in the six keys below.
        depth: Number of transformer layers.
        num_heads: Heads of the attention; they divide embed_dim.
        mlp_ratio: Width of the MLP's hidden layer over embed_dim.
        kernel_size: Side of the tokenizer's kernels or patches, pixels.
        num_conv_layers: Convolutions of a CCT's tokenizer.
        hidden_channels: Channels of all of them but the last, which has embed_dim; null: 64, as published.

    Raises:
        InputError: A number is out of range, or arch no name.
    """

    arch: str
    _: KW_ONLY  # covers this class alone: a subclass says kw_only=True, or its fields become positional
    pooling: str | None = None
    num_queries: int | None = None
    num_classes: int | None = None
    image_size: int | tuple[int, int] | None = None
    in_chans: int = 3
    position: Position | None = None
    class_token_position: bool | None = None
    residual_norm: bool | None = None
    drop_path: float = 0.1
    attn_drop: float = 0.1
    proj_drop: float = 0.0
    head_hidden_dim: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    kernel_size: int | None = None
    num_conv_layers: int | None = None
    hidden_channels: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.arch, str):
            raise InputError(
                f"arch takes a name, such as cct_7_3x1_32 or timm/NAME, not a {type(self.arch).__name__}.\n"
                f"  A network of your own is an ImageClassifier around an Encoder, and LitClassifier takes it as model=: {OWN_NETWORK}."
            )
        for name in ("drop_path", "attn_drop", "proj_drop"):
            check_range(name, getattr(self, name), 0, 1, exclusive="high")
        for name in ("embed_dim", "depth", "num_heads", "kernel_size", "num_conv_layers", "hidden_channels", "head_hidden_dim", "num_queries"):
            if (count := getattr(self, name)) is not None:
                check_range(name, count, 1)
        if self.mlp_ratio is not None:
            check_range("mlp_ratio", self.mlp_ratio, 0, exclusive="low")
        if self.num_classes is not None:
            check_range("num_classes", self.num_classes, 0)
        if self.image_size is not None:  # one number from Python, a list from a checkpoint
            object.__setattr__(self, "image_size", as_size("image_size", self.image_size))

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the images, pixels; None: the arch's."""
        return None if self.image_size is None else as_size("image_size", self.image_size)
