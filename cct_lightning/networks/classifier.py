"""An encoder, a pooling and a head: the network that is trained, and what became of weights it was given."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.networks.encoder import Encoder, Tokens
from cct_lightning.networks.initial_values import initialise
from cct_lightning.networks.options import OWN_NETWORK
from cct_lightning.networks.poolings import POOLINGS, Pooling


class ImageClassifier(nn.Module):
    """An encoder, a pooling and a head. Keeps the contract of timm's networks, so timm's optimizers and tools take it.

    Args:
        encoder: Any ``Encoder``, also one of your own.
        pooling: Turns the tokens into a feature (B, D); its class token must be the encoder's.
        num_classes: K; 0 leaves the head out, and the network returns the feature.
        head_hidden_dim: Width of one hidden layer with tanh before the logits, ViT's pre-training head; None has none.

    Raises:
        InputError: The encoder is none; the pooling needs a class token that the encoder has not, or the encoder has one that nobody reads.
    """

    def __init__(self, encoder: Encoder, pooling: Pooling, num_classes: int, head_hidden_dim: int | None = None) -> None:
        super().__init__()
        if lacking := [name for name in Encoder.__annotations__ if not hasattr(encoder, name)]:
            raise InputError(
                f"{type(encoder).__name__} is no Encoder, or does not tell all that one tells: it lacks {', '.join(lacking)}.\n"
                f"  Derive it from cct_lightning.Encoder, set these in its __init__, and return Tokens(prefix, patches): {OWN_NETWORK}."
            )
        wanted, given = pooling.class_token, encoder.class_token
        if wanted != given and not (wanted == "none" and given == "full"):
            raise InputError(
                f"pooling={type(pooling).__name__} needs class_token={wanted!r}, the encoder {type(encoder).__name__} has {given!r}: "
                f"build it with class_token={wanted!r}, or take a pooling that suits it."
            )
        if pooling.embed_dim != encoder.embed_dim:
            raise InputError(f"pooling.embed_dim={pooling.embed_dim} differs from the encoder's embed_dim={encoder.embed_dim}.")
        self.encoder = encoder
        self.pooling = pooling
        self.num_features = encoder.embed_dim
        self.head_hidden_dim = head_hidden_dim
        self.head_hidden_size = head_hidden_dim or encoder.embed_dim  # timm's name for the width before the logits
        self.load_report: LoadReport | None = None
        self.reset_classifier(num_classes)
        first_conv = next((name for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d)), None)
        about = {**encoder.describe_images(), "num_classes": num_classes, "first_conv": first_conv, "classifier": "head"}
        self.pretrained_cfg = self.default_cfg = about  # under timm's names: ``timm.data.resolve_model_data_config`` reads the one

    def forward(self, images: Tensor, layers: Sequence[int] = ()) -> Any:
        """Classifies images (B, C, H, W): logits (B, K).

        Args:
            images: Float, normalised.
            layers: Numbers of transformer layers, from 0: their patches (B, N, D) are returned, too, as a list behind the logits.
        """
        if not layers:
            return self.head(self.pooling(self.encoder(images)))
        last, kept = self.encoder.intermediates(images, layers, norm=False, stop_early=False)
        return self.forward_head(last), [tokens[:, self.encoder.num_prefix_tokens :] for tokens in kept]

    def forward_features(self, images: Tensor) -> Tensor:
        """Encodes images: all tokens (B, P + N, D), prefix first, after the final norm."""
        return torch.cat(self.encoder(images), dim=1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Turns all tokens (B, P + N, D) into logits (B, K), or with ``pre_logits`` into what the last linear layer reads."""
        prefix = self.encoder.num_prefix_tokens
        feature: Tensor = self.pooling(Tokens(features[:, :prefix], features[:, prefix:]))
        if not pre_logits:
            feature = self.head(feature)
        elif isinstance(self.head, nn.Sequential):
            feature = self.head[:-1](feature)
        return feature

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Encodes images and keeps the patches behind some layers, as ``forward_intermediates`` of timm's ViT does.

        Args:
            x: Images (B, C, H, W), float normalised.
            indices: The last so many layers, or their numbers, from 0 or, negative, from the end; None: all.
            return_prefix_tokens: Return pairs of patches and prefix tokens (B, P, D) where there are such.
            norm: Whether the final norm acts on what is kept; with it the last layer's patches are those of ``forward_features``.
            stop_early: Leave out the layers behind the last that is kept.
            output_fmt: ``NCHW`` lays the patches out as (B, D, h, w), ``NLC`` returns them as (B, N, D).
            intermediates_only: Return the list alone.

        Returns:
            All tokens (B, P + N, D) after the last layer computed and the final norm, and the list in the order of the layers.

        Raises:
            InputError: There is no such layer or format, or the encoder does not offer it.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt={output_fmt!r} is unknown. Known: NCHW, NLC.")
        depth, P = len(tuple(self.encoder.layers())), self.encoder.num_prefix_tokens
        taken = range(depth - indices, depth) if isinstance(indices, int) else range(depth) if indices is None else indices
        if not len(taken) or not all(-depth <= number < depth for number in taken) or (isinstance(indices, int) and indices > depth):
            raise InputError(f"indices={indices} names no layers: {self.encoder.title()} has {depth}.")
        last, kept = self.encoder.intermediates(x, [number % depth for number in taken], norm, stop_early)
        patches = [tokens[:, P:] for tokens in kept]
        if output_fmt == "NCHW":
            patches = [tokens.transpose(1, 2).reshape(len(x), -1, *self.encoder.grid_size).contiguous() for tokens in patches]
        pairs = list(zip(patches, (tokens[:, :P] for tokens in kept), strict=True))
        out = pairs if return_prefix_tokens and P else patches
        return out if intermediates_only else (last, out)

    def get_classifier(self) -> nn.Module:
        """Returns the head: a linear layer, with a hidden one a ``Sequential`` of (hidden, act, out), or ``Identity``."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new head with K = num_classes, at its initial value, in the place of the old one.

        Raises:
            InputError: ``global_pool`` is given. The pooling is a module here, chosen when the network is built.
        """
        if global_pool is not None:
            raise InputError(
                f"global_pool={global_pool!r} can't be changed in place: build the network with pooling={did_you_mean('', POOLINGS)[8:-1]}."
            )
        self.num_classes = num_classes
        width = self.encoder.embed_dim
        if num_classes == 0:
            self.head: nn.Module = nn.Identity()
        elif self.head_hidden_dim is None:
            self.head = nn.Linear(width, num_classes)
        else:
            hidden = self.head_hidden_dim
            layers = [("hidden", nn.Linear(width, hidden)), ("act", nn.Tanh()), ("out", nn.Linear(hidden, num_classes))]
            self.head = nn.Sequential(OrderedDict(layers))
        initialise(self.head, "head")
        self.head.to(next(self.encoder.parameters()).device)

    def no_weight_decay(self) -> set[str]:
        """Names parameters that never decay. Like SHI-Labs' code and unlike timm's ViT, ours decays positions and class token;
        a timm encoder keeps timm's choice. Norms and biases are left out by the optimizer."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups the parameters by depth for timm's layer-wise learning rates: stem, each block, then all behind the blocks."""
        if (own := self.encoder.group_matcher(coarse)) is not None:
            return own
        blocks = r"^encoder\.(?:model\.)?blocks\.(\d+)"
        behind = r"^(?:encoder\.(?:model\.)?(?:fc_)?norm\.|pooling\.)"
        stem = r"^encoder\.(?:model\.)?(?:tokenizer|patch_embed|pos_embed|cls_|reg_token|norm_pre|dist_token)"
        return {"stem": stem, "blocks": blocks if coarse else [(blocks, None), (behind, (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: activations inside a block are computed again in the backward pass.

        Raises:
            InputError: The encoder does not offer it.
        """
        self.encoder.set_grad_checkpointing(enable)


def check_network(model: object) -> ImageClassifier:
    """Returns a network of the user's own.

    Raises:
        InputError: It is no ``ImageClassifier``.
    """
    if isinstance(model, ImageClassifier):
        return model
    raise InputError(
        f"model={type(model).__name__}(...) is no ImageClassifier: ImageClassifier(encoder, pooling, num_classes) makes one.\n"
        f"  The encoder, derived from cct_lightning.Encoder, turns images into Tokens(prefix, patches), and tells its\n"
        f"  {', '.join(Encoder.__annotations__)}: {OWN_NETWORK}."
    )


def count_flops(model: ImageClassifier) -> int:
    """Counts the floating-point operations of classifying one image, a multiplication and an addition as two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    modes = {module: module.training for module in model.modules()}  # a frozen part is not in training where the rest is
    # As two products: not every version of torch counts the CPU's fused kernel. With gradients: torch 2.15's counter fails without them where a
    # parameter, such as a pooling's class token, is what a layer is given.
    with FlopCounterMode(display=False) as counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.zeros(1, model.encoder.in_chans, *model.encoder.image_size))
    for module, mode in modes.items():
        module.training = mode
    return int(counter.get_total_flops())


@dataclass
class LoadReport:
    """What became of every tensor of a file and of a network.

    Attributes:
        source: The file, or the name it was asked for by.
        format: ``cct-lightning``, ``timm``, or ``reference`` for the names of SHI-Labs' code.
        loaded: Tensors of the network that took the file's values.
        resized: Those of them whose grid or channels changed, as (from, to).
        dropped: Tensors of the file that were not used, and why.
        new: Tensors of the network that keep their initial values.
        notes: What else changed.
    """

    source: str
    format: str
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, tuple[str, str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"weights from {self.source} ({self.format}): {len(self.loaded)} tensors loaded"]
        lines += [f"  resized {name}: {old} -> {new}" for name, (old, new) in self.resized.items()]
        lines += [f"  dropped {name}: {why}" for name, why in self.dropped.items()]
        lines += [f"  new {', '.join(self.new)}" + (" (the head at zero)" if "head." in str(self.new) else "")] if self.new else []
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
