"""Builds a network from what describes it."""

from dataclasses import replace
from typing import Any

from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import Encoder, ViTEncoder
from cct_lightning.networks.options import ClassToken, NetworkOptions
from cct_lightning.networks.poolings import POOLINGS, MultiQueryPooling
from cct_lightning.networks.presets import VARIANTS, Variant
from cct_lightning.networks.tokenizers import ConvTokenizer, PatchTokenizer, Tokenizer

# Options by what they are: the sizes and the form of the layers, which a network of timm brings itself, and the dropouts.
SHAPE = ("embed_dim", "depth", "num_heads", "kernel_size", "num_conv_layers", "hidden_channels", "mlp_ratio")
FORM = ("position", "class_token_position", "residual_norm")
DROPOUTS = ("drop_path", "attn_drop", "proj_drop")


def create_network(options: NetworkOptions) -> ImageClassifier:
    """Builds a network by name; what is None is what the name says.

    Initial values follow from ``torch.initial_seed()`` and each tensor's name, so networks that differ in the pooling alone start
    equal in everything else.

    Raises:
        InputError: Unknown names, sizes that don't fit, options that a timm network can't honour.
    """
    arch, variant = options.arch, VARIANTS.get(options.arch)
    if variant is None and not arch.startswith("timm/"):
        hint = did_you_mean(arch, VARIANTS) or f" Known: {', '.join(list(VARIANTS)[::4])}, ...; or timm/NAME."
        raise InputError(f"arch={arch!r} is unknown.{hint}")
    pooling = options.pooling or (variant.pooling if variant else "mean")
    if pooling not in POOLINGS:
        raise InputError(f"pooling={options.pooling!r} is unknown.{did_you_mean(pooling, POOLINGS)}")
    kind = POOLINGS[pooling]
    encoder = _preset_encoder(variant, options, kind.class_token) if variant else _timm_encoder(options, kind.class_token)
    classes = options.num_classes if options.num_classes is not None else variant.num_classes if variant else 1000
    queries = {} if options.num_queries is None else {"num_queries": options.num_queries}
    if queries and not issubclass(kind, MultiQueryPooling):
        raise InputError(f"num_queries={options.num_queries} can't be chosen for pooling={pooling}: take multi_query, or leave it out.")
    return ImageClassifier(encoder, kind(encoder.embed_dim, encoder.num_heads, **queries), classes, options.head_hidden_dim)


def _given(options: NetworkOptions, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _preset_encoder(variant: Variant, options: NetworkOptions, class_token: ClassToken) -> Encoder:
    for name in ("num_conv_layers", "hidden_channels"):
        if (value := getattr(options, name)) is not None and variant.tokenizer == "patch":
            raise InputError(f"{name}={value} can't be chosen for arch={options.arch}, which cuts patches: take a cct_... arch.")
    variant = replace(variant, **_given(options, SHAPE))
    tokenizer: Tokenizer
    if variant.tokenizer == "conv":
        layers = {"num_conv_layers": variant.num_conv_layers, "hidden_channels": variant.hidden_channels}
        tokenizer = ConvTokenizer(options.in_chans, variant.embed_dim, variant.kernel_size, **layers)
    else:
        tokenizer = PatchTokenizer(options.in_chans, variant.embed_dim, variant.kernel_size)
    size = options.size or (variant.image_size, variant.image_size)
    form = {"position": variant.position, **_given(options, FORM + DROPOUTS)}
    return ViTEncoder(tokenizer, size, variant.depth, variant.num_heads, variant.mlp_ratio, class_token, **form)


def _timm_encoder(options: NetworkOptions, class_token: ClassToken) -> Encoder:
    for name, value in _given(options, FORM + SHAPE).items():
        raise InputError(f"{name}={value!r} can't be chosen for arch={options.arch}: timm's networks bring their own.")
    from cct_lightning.networks.timm_encoder import TimmEncoder  # timm takes three times as long to import as torch

    theirs = {"in_chans": options.in_chans, **{f"{name}_rate": rate for name, rate in _given(options, DROPOUTS).items()}}
    return TimmEncoder.create(options.arch.removeprefix("timm/"), class_token, **theirs, **({"img_size": options.size} if options.size else {}))
