"""Networks by name. Importing this module registers the names with timm: ``timm.create_model("cct_7_3x1_32", num_classes=10)``."""

import inspect
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models import register_model
from timm.models._builder import _resolve_pretrained_source, resolve_pretrained_cfg
from timm.models._hub import download_from_hf
from torch import Tensor, nn

from cct_lightning.checkpoints import LoadReport, load_weights
from cct_lightning.encoders import ClassToken, Encoder, Position, TimmEncoder, Tokens, ViTEncoder
from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.pooling import POOLINGS, Pooling
from cct_lightning.randomness import initialise
from cct_lightning.tokenizers import ConvTokenizer, PatchTokenizer, Tokenizer


class ImageClassifier(nn.Module):
    """An encoder, a pooling and a head. Keeps the contract of timm's networks, so timm's optimizers and tools take it.

    Args:
        encoder: Any ``Encoder``, also one of your own.
        pooling: Turns the tokens into a feature (B, D); its class token must be the encoder's.
        num_classes: K; 0 leaves the head out, and the network returns the feature.
        head_hidden_dim: Width of one hidden layer with tanh before the logits, ViT's pre-training head; None has none.

    Raises:
        InputError: The pooling needs a class token that the encoder has not, or the encoder has one that nobody reads.
    """

    def __init__(self, encoder: Encoder, pooling: Pooling, num_classes: int, head_hidden_dim: int | None = None) -> None:
        super().__init__()
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

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images (B, C, H, W): logits (B, K)."""
        logits: Tensor = self.head(self.pooling(self.encoder(images)))
        return logits

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
        if isinstance(self.encoder, TimmEncoder):
            names: set[str] = getattr(self.encoder.model, "no_weight_decay", set)()
            return {f"encoder.model.{name}" for name in names}
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups the parameters by depth for timm's layer-wise learning rates: stem, each block, then all behind the blocks."""
        blocks = r"^encoder\.(?:model\.)?blocks\.(\d+)"
        behind = r"^(?:encoder\.(?:model\.)?(?:fc_)?norm\.|pooling\.)"
        stem = r"^encoder\.(?:model\.)?(?:tokenizer|patch_embed|pos_embed|cls_|reg_token|norm_pre|dist_token)"
        return {"stem": stem, "blocks": blocks if coarse else [(blocks, None), (behind, (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: activations inside a block are computed again in the backward pass.

        Raises:
            InputError: The encoder does not offer it.
        """
        if isinstance(self.encoder, ViTEncoder):
            self.encoder.grad_checkpointing = enable
        elif isinstance(self.encoder, TimmEncoder):
            self.encoder.model.set_grad_checkpointing(enable)  # type: ignore[operator]
        else:
            raise InputError(f"{type(self.encoder).__name__} does not offer gradient checkpointing.")


@dataclass(frozen=True)
class Variant:
    """What a name stands for. Shapes of the published networks: SHI-Labs/Compact-Transformers, Variants.md."""

    depth: int
    num_heads: int
    mlp_ratio: float
    embed_dim: int
    tokenizer: Literal["conv", "patch"]
    kernel_size: int
    num_conv_layers: int
    image_size: int
    num_classes: int
    position: Position
    pooling: str


# depth: heads, mlp_ratio, embed_dim
SHAPES = {2: (2, 1.0, 128), 4: (2, 1.0, 128), 6: (4, 2.0, 256), 7: (4, 2.0, 256), 14: (6, 3.0, 384)}
NAMES = """
vit_2_4_32 vit_2_4_32_sine vit_4_4_32 vit_4_4_32_sine vit_6_4_32 vit_6_4_32_sine vit_7_4_32 vit_7_4_32_sine
cvt_2_4_32 cvt_2_4_32_sine cvt_4_4_32 cvt_4_4_32_sine cvt_6_4_32 cvt_6_4_32_sine cvt_7_4_32 cvt_7_4_32_sine
cct_2_3x2_32 cct_2_3x2_32_sine cct_4_3x2_32 cct_4_3x2_32_sine cct_6_3x1_32 cct_6_3x1_32_sine cct_6_3x2_32 cct_6_3x2_32_sine
cct_7_3x1_32 cct_7_3x1_32_sine cct_7_3x1_32_c100 cct_7_3x1_32_sine_c100 cct_7_3x2_32 cct_7_3x2_32_sine
cct_7_7x2_224 cct_7_7x2_224_sine cct_14_7x2_224 cct_14_7x2_384 cct_14_7x2_384_fl
""".split()
CLASSES_BY_NAME = {"cct_14_7x2_224": 1000, "cct_14_7x2_384": 1000, "cct_14_7x2_384_fl": 102, "cct_7_7x2_224": 102, "cct_7_7x2_224_sine": 102}


def _variant(name: str) -> Variant:
    """Reads family_depth_kernel[xconvs]_size[_sine][_c100]."""
    match = re.fullmatch(r"(vit|cvt|cct)_(\d+)_(\d+)(?:x(\d))?_(\d+)(_sine)?(_c100|_fl)?", name)
    assert match is not None
    family, depth, kernel, convs, size, sine, data = match.groups()
    num_classes = CLASSES_BY_NAME.get(name, 100 if data == "_c100" else 10)
    return Variant(
        int(depth), *SHAPES[int(depth)], tokenizer="conv" if family == "cct" else "patch", kernel_size=int(kernel),
        num_conv_layers=int(convs or 1), image_size=int(size), num_classes=num_classes,
        position="sine" if sine else "learned", pooling="class_token" if family == "vit" else "seqpool",
    )  # fmt: skip


VARIANTS: dict[str, Variant] = {name: _variant(name) for name in NAMES}


def create_model(
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
    pretrained: str | Path | None = None,
    new_head: bool = False,
    class_names: Sequence[str] | None = None,
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
        pretrained: Where weights come from, see ``sources.SOURCES``; ``load_report`` of the result says what was loaded. Head and pooling
            may differ from the file's where num_classes and pooling are given.
        new_head: The head starts at zero even where the weights have one that fits.
        class_names: Of the logits; a head for other names starts at zero, too.

    Raises:
        InputError: Unknown names, sizes that don't fit, options that a timm network can't honour, weights that don't fit.
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
    model = ImageClassifier(encoder, POOLINGS[kind](encoder.embed_dim, encoder.num_heads), classes, head_hidden_dim)
    if pretrained is not None:
        allow = [part for part, given in (("head", num_classes), ("pooling", pooling)) if given is not None]
        model.load_report = load_weights(model, pretrained, allow, new_head, class_names)
    return model


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
    options = {"in_chans": in_chans, **{f"{name}_rate": rate for name, rate in dropouts.items()}}
    return TimmEncoder.create(arch.removeprefix("timm/"), class_token, **options, **({"img_size": size} if size else {}))


def count_flops(model: ImageClassifier) -> int:
    """Counts the floating-point operations of classifying one image, a multiplication and an addition as two."""
    from torch.utils.flop_counter import FlopCounterMode

    modes = {module: module.training for module in model.modules()}  # a frozen part is not in training where the rest is
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, model.encoder.in_chans, *model.encoder.image_size))
    for module, mode in modes.items():
        module.training = mode
    return int(counter.get_total_flops())


# timm's names for our arguments.
TIMM_NAMES = {
    "img_size": "image_size",
    "drop_path_rate": "drop_path",
    "attn_drop_rate": "attn_drop",
    "proj_drop_rate": "proj_drop",
    "global_pool": "pooling",
}
OPTIONS = [name for name in inspect.signature(create_model).parameters if name not in ("arch", "pretrained", "new_head", "class_names")]


def _weights_of(name: str, cfg: dict[str, Any], cache_dir: Any) -> str:
    """Returns the file or folder of the weights that timm's description of a network names."""
    source, place = _resolve_pretrained_source(cfg)
    if source == "hf-hub":
        hub_id, file = place if isinstance(place, tuple) else (place, "model.safetensors")
        return str(download_from_hf(hub_id, file, cache_dir=cache_dir))
    if source not in ("local-dir", "file"):
        raise InputError(f"pretrained=True: no weights are published for {name}. Give a file: cct_lightning.create_model({name!r}, pretrained=FILE).")
    return str(place)


def _entrypoint(name: str) -> Callable[..., ImageClassifier]:
    def entrypoint(
        pretrained: bool = False, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, cache_dir: Any = None, **options: Any
    ) -> ImageClassifier:
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).to_dict()  # type: ignore[no-untyped-call]
        weights = _weights_of(name, cfg, cache_dir) if pretrained else None
        if options.pop("features_only", False):
            raise InputError(f"features_only=True is not offered for {name}, which has one grid of tokens; use forward_features(images).")
        # What config.json says of the network that the weights are of. timm adds it to the caller's options, which win under either name.
        saved = options.pop("pretrained_model_args", {})
        if isinstance(pretrained_cfg, dict):
            channels, *size = cfg["input_size"]
            saved = {"num_classes": cfg["num_classes"], "in_chans": channels, "img_size": size, **saved}
        theirs, ours = ({TIMM_NAMES.get(option, option): value for option, value in args.items()} for args in (saved, {**saved, **options}))
        for option in ours.keys() - OPTIONS:
            raise InputError(f"{name} has no option {option!r}.{did_you_mean(option, OPTIONS, listed=20)}")
        if isinstance(ours.get("image_size"), list):
            ours["image_size"] = tuple(ours["image_size"])
        model = create_model(name, **ours)
        if weights is not None:
            parts = {"head": "num_classes", "pooling": "pooling"}
            model.load_report = load_weights(model, weights, [part for part, key in parts.items() if ours.get(key) != theirs.get(key)])
        if model.num_classes != cfg["num_classes"]:
            cfg.pop("label_names", None)
        now = {"input_size": (model.encoder.in_chans, *model.encoder.image_size), "num_classes": model.num_classes}
        model.pretrained_cfg = model.default_cfg = {**cfg, **now}  # type: ignore[assignment]
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"Builds {name} for timm: {VARIANTS[name]}."
    return entrypoint


def _default_cfg(name: str, variant: Variant) -> dict[str, Any]:
    """timm's description of inputs; mean and standard deviation are ImageNet's."""
    first = "encoder.tokenizer.convs.0" if variant.tokenizer == "conv" else "encoder.tokenizer.proj"
    return {
        "url": "", "num_classes": variant.num_classes, "input_size": (3, variant.image_size, variant.image_size),
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic", "crop_pct": 1.0 if variant.image_size < 224 else 0.9,
        "fixed_input_size": True, "first_conv": first, "classifier": "head",
    }  # fmt: skip


default_cfgs = {name: _default_cfg(name, variant) for name, variant in VARIANTS.items()}
__all__ = ["VARIANTS", "ImageClassifier", "Variant", "create_model"]
for _name in VARIANTS:
    setattr(sys.modules[__name__], _name, register_model(_entrypoint(_name)))
