"""Builds a network from what describes it."""

from dataclasses import replace
from typing import Any

from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import Encoder, ViTEncoder
from cct_lightning.networks.options import ClassToken, Position
from cct_lightning.networks.poolings import POOLINGS
from cct_lightning.networks.presets import VARIANTS, Variant
from cct_lightning.networks.tokenizers import ConvTokenizer, PatchTokenizer, Tokenizer


def create_network(
    arch: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    pooling: str | None = None,
    position: Position | None = None,
    class_token_position: bool | None = None,
    residual_norm: bool | None = None,
    drop_path: float = 0.1,
    attn_drop: float = 0.1,
    proj_drop: float = 0.0,
    head_hidden_dim: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_ratio: float | None = None,
    kernel_size: int | None = None,
    num_conv_layers: int | None = None,
) -> ImageClassifier:
    """Builds a network by name; what is None is what the name says.

    Initial values follow from ``torch.initial_seed()`` and each tensor's name, so networks that differ in the pooling alone start
    equal in everything else.

    Args:
        arch: A name of ``VARIANTS``, or ``timm/NAME`` for a network of timm that returns tokens.
        num_classes: K; 0 returns features.
        image_size: Side of square images, or (H, W), pixels.
        in_chans: Channels of the images.
        pooling: A name of ``POOLINGS``.
        position: ``learned``, ``sine`` or ``none``.
        class_token_position: Whether the class token has a position (default True).
        residual_norm: The published block (True) or standard pre-norm (False).
        drop_path: Drop path of the last layer; rises linearly from 0.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout behind positions, projections and in the MLP.
        head_hidden_dim: Width of a hidden tanh layer of the head.
        embed_dim: D.
        depth: Number of transformer layers.
        num_heads: Heads of the attention.
        mlp_ratio: Width of the MLP's hidden layer over D.
        kernel_size: Side of the tokenizer's kernels or patches, pixels.
        num_conv_layers: Convolutions of a CCT's tokenizer.

    Raises:
        InputError: Unknown names, sizes that don't fit, options that a timm network can't honour.
    """
    dropouts = {"drop_path": drop_path, "attn_drop": attn_drop, "proj_drop": proj_drop}
    for name, rate in dropouts.items():
        check_range(name, rate, 0, 1, exclusive="high")
    shape: dict[str, Any] = {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "kernel_size": kernel_size,
        "num_conv_layers": num_conv_layers,
    }
    for name, count in {**shape, "head_hidden_dim": head_hidden_dim}.items():
        check_range(name, 1 if count is None else count, 1)
    check_range("mlp_ratio", 1 if mlp_ratio is None else mlp_ratio, 0, exclusive="low")
    check_range("num_classes", 1 if num_classes is None else num_classes, 0)
    variant = VARIANTS.get(arch)
    if variant is None and not arch.startswith("timm/"):
        hint = did_you_mean(arch, VARIANTS) or f" Known: {', '.join(list(VARIANTS)[::4])}, ...; or timm/NAME."
        raise InputError(f"arch={arch!r} is unknown.{hint}")
    kind = pooling or (variant.pooling if variant else "mean")
    if kind not in POOLINGS:
        raise InputError(f"pooling={pooling!r} is unknown.{did_you_mean(kind, POOLINGS)}")
    class_token = POOLINGS[kind].class_token
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    ours = {"position": position, "class_token_position": class_token_position, "residual_norm": residual_norm}
    ours = {name: value for name, value in ours.items() if value is not None}
    shape = {name: value for name, value in (shape | {"mlp_ratio": mlp_ratio}).items() if value is not None}
    if variant:
        if num_conv_layers is not None and variant.tokenizer == "patch":
            raise InputError(f"num_conv_layers={num_conv_layers} can't be chosen for arch={arch}, which cuts patches: take a cct_... arch.")
        variant = replace(variant, **shape)
        encoder = _preset_encoder(variant, in_chans, size, class_token, {**ours, **dropouts})
    else:
        encoder = _timm_encoder(arch, in_chans, size, class_token, {**ours, **shape}, dropouts)
    classes = num_classes if num_classes is not None else variant.num_classes if variant else 1000
    return ImageClassifier(encoder, POOLINGS[kind](encoder.embed_dim, encoder.num_heads), classes, head_hidden_dim)


def _preset_encoder(variant: Variant, in_chans: int, size: tuple[int, int] | None, class_token: ClassToken, options: dict[str, Any]) -> Encoder:
    tokenizer: Tokenizer
    if variant.tokenizer == "conv":
        tokenizer = ConvTokenizer(in_chans, variant.embed_dim, variant.kernel_size, num_conv_layers=variant.num_conv_layers)
    else:
        tokenizer = PatchTokenizer(in_chans, variant.embed_dim, variant.kernel_size)
    size = size or (variant.image_size, variant.image_size)
    options = {"position": variant.position, **options}
    return ViTEncoder(tokenizer, size, variant.depth, variant.num_heads, variant.mlp_ratio, class_token, **options)


def _timm_encoder(
    arch: str, in_chans: int, size: tuple[int, int] | None, class_token: ClassToken, ours: dict[str, Any], dropouts: dict[str, float]
) -> Encoder:
    for name, value in ours.items():
        raise InputError(f"{name}={value!r} can't be chosen for arch={arch}: timm's networks bring their own.")
    from cct_lightning.networks.timm_encoder import TimmEncoder  # timm takes three times as long to import as torch

    options = {"in_chans": in_chans, **{f"{name}_rate": rate for name, rate in dropouts.items()}}
    return TimmEncoder.create(arch.removeprefix("timm/"), class_token, **options, **({"img_size": size} if size else {}))
