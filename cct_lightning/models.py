"""Networks by name. Importing this module registers the names with timm: ``timm.create_model("cct_7_3x1_32", num_classes=10)``."""

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from timm.models import register_model
from timm.models._builder import _resolve_pretrained_source, resolve_pretrained_cfg
from timm.models._hub import download_from_hf

from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.networks.presets import VARIANTS, Variant, describe_images
from cct_lightning.weights.loading import create_model, load_weights

# timm's names for our arguments.
TIMM_NAMES = {
    "img_size": "image_size",
    "drop_path_rate": "drop_path",
    "attn_drop_rate": "attn_drop",
    "proj_drop_rate": "proj_drop",
    "global_pool": "pooling",
}
OPTIONS = [option.name for option in fields(NetworkOptions) if option.name != "arch"]


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
        model = create_model(name, **ours)
        if weights is not None:
            parts = {"head": "num_classes", "pooling": "pooling"}
            model.load_report = load_weights(model, weights, [part for part, key in parts.items() if ours.get(key) != theirs.get(key)])
        if model.num_classes != cfg["num_classes"]:
            cfg.pop("label_names", None)
        now = {"input_size": (model.encoder.in_chans, *model.encoder.image_size), "num_classes": model.num_classes}
        model.pretrained_cfg = model.default_cfg = {**cfg, **now}
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"Builds {name} for timm: {VARIANTS[name]}."
    return entrypoint


def _default_cfg(name: str, variant: Variant) -> dict[str, Any]:
    """timm's description of inputs and outputs."""
    first = "encoder.tokenizer.convs.0" if variant.tokenizer == "conv" else "encoder.tokenizer.proj"
    images = describe_images(3, (variant.image_size, variant.image_size))
    return {**images, "num_classes": variant.num_classes, "first_conv": first, "classifier": "head"}


default_cfgs = {name: _default_cfg(name, variant) for name, variant in VARIANTS.items()}
__all__ = ["VARIANTS", "ImageClassifier", "Variant", "create_model"]
for _name in VARIANTS:
    setattr(sys.modules[__name__], _name, register_model(_entrypoint(_name)))
