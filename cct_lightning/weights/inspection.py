"""``cct finetune``: what the weights to start from say about the network and its images, as a recipe between the default one and the flags."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cct_lightning.data.sets import DATASETS, IMAGENET_MEAN, IMAGENET_STD
from cct_lightning.errors import InputError
from cct_lightning.networks.encoder import sine_table
from cct_lightning.networks.presets import SHAPES, VARIANTS
from cct_lightning.networks.tokenizers import ConvTokenizer
from cct_lightning.weights.files import Opened, unwrap
from cct_lightning.weights.sources import PUBLISHED

# Of a network's description, what its tensors need; the rest is how it was trained.
NETWORK = (
    "arch", "pooling", "position", "class_token_position", "residual_norm", "head_hidden_dim", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "kernel_size", "num_conv_layers", "hidden_channels", "num_queries",
)  # fmt: skip
HEADS = {shape[2]: shape[0] for shape in SHAPES.values()}  # by width: all published networks of a width have as many


def describe(source: str | Opened, given: Mapping[str, str] = {}) -> dict[str, Any]:
    """Returns the keys of a recipe that follow from weights: the network, and size, channels and normalisation of its images.

    Args:
        source: What was opened, or timm/NAME.
        given: Keys that the user set; needed are model.arch of a file of timm's, and model.num_heads of a width that no published network has.
    """
    if not isinstance(source, Opened):
        return _of_timm(source)
    about, name = source.about, source.name
    if about is not None and about.get("model"):
        return _of_ours(about, given)
    state = unwrap(source.content, name)
    if given.get("model.arch", "").startswith("timm/"):
        return _of_timm(given["model.arch"])
    if any(name.startswith(("patch_embed.", "blocks.0.", "conv1.", "layer1.")) for name in state):
        raise InputError(f"{name} holds weights of a timm network by its names, and not of which: give --model.arch timm/NAME.")
    network, data = _of_tensors(state, name, given)
    if (published := Path(name).stem) in PUBLISHED:  # by name, or the file under its published name
        known = DATASETS.get(PUBLISHED[published].dataset)
        mean, std = (known.mean, known.std) if known else (IMAGENET_MEAN, IMAGENET_STD)
        network["arch"], data = PUBLISHED[published].arch, {**data, "mean": list(mean), "std": list(std)}
    return {"model": network, "data": data}


def _of_timm(arch: str) -> dict[str, Any]:
    import timm  # takes three times as long as torch

    about = timm.models.get_pretrained_cfg(arch.removeprefix("timm/"))
    if about is None:
        raise InputError(f"model.arch={arch}: timm {timm.__version__} has no such network.")
    data = {"image_size": list(about.input_size[1:]), "mean": list(about.mean), "std": list(about.std), "crop_pct": about.crop_pct}
    return {"model": {"arch": arch, "residual_norm": None}, "data": data}


def _of_ours(about: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    model, recipe = about["model"], about.get("recipe")
    said = about.get("preprocessing") or (recipe["data"] if recipe else {})
    data = {name: model[name] for name in ("image_size", "in_chans", "mean", "std") if model[name] is not None}
    network = {name: model.get(name) for name in NETWORK}
    if given.get("model.pooling", model.get("pooling")) != model.get("pooling"):
        network["num_queries"] = None  # of the pooling that is replaced
    return {
        "model": network,
        "data": {**data, "crop_pct": said.get("crop_pct", 1.0), "fit": said.get("fit") or "crop", "value_range": said.get("value_range")},
    }


def _find(state: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    """Returns the tensors whose whole name matches, in the order of the numbers in it."""
    return [state[name] for name in sorted(state) if re.fullmatch(pattern, name)]


def _of_tensors(state: Mapping[str, Tensor], source: str, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a network off the shapes of its tensors, under the names of SHI-Labs' code or ours; returns keys of model and of data."""
    convs = _find(state, r"(?:tokenizer\.conv_layers\.\d+\.0|encoder\.tokenizer\.(?:convs\.\d+|proj))\.weight")
    blocks = {int(match[1]) for name in state if (match := re.match(r"(?:classifier|encoder)\.blocks\.(\d+)\.", name))}
    widths = _find(state, r"(?:classifier|encoder)\.blocks\.0\.(?:linear1|mlp\.fc1)\.weight")
    if not convs or not blocks or not widths:
        names = ", ".join(list(state)[:3])
        raise InputError(f"{source} holds no CCT, CVT or ViT-Lite by the names of its tensors ({names}, ...): give --model.arch, such as timm/NAME.")
    patches = bool(_find(state, r"(?:tokenizer\.conv_layers\.0\.0|encoder\.tokenizer\.proj)\.bias"))
    embed_dim, in_chans, kernel_size = convs[-1].shape[0], convs[0].shape[1], convs[0].shape[2]
    asked = given.get("model.num_heads", "")
    if not (num_heads := int(asked) if asked.isdecimal() else HEADS.get(embed_dim)):
        raise InputError(f"{source} has tokens of width {embed_dim}, whose number of heads can't be read off the tensors: give --model.num_heads N.")
    shape: dict[str, Any] = {
        "depth": max(blocks) + 1, "num_heads": num_heads, "mlp_ratio": widths[0].shape[0] / embed_dim, "embed_dim": embed_dim,
        "kernel_size": kernel_size, "num_conv_layers": len(convs),
    }  # fmt: skip
    if len(convs) > 1:
        shape["hidden_channels"] = convs[0].shape[0]
    kind = "patch" if patches else "conv"
    alike = [name for name, v in VARIANTS.items() if v.tokenizer == kind and all(getattr(v, key) == value for key, value in shape.items())]
    class_token = bool(_find(state, r"classifier\.class_emb|encoder\.cls_token"))
    pooling = _pooling(state, class_token)
    queries = {"num_queries": state["pooling.queries"].shape[1]} if given.get("model.pooling", pooling) == pooling == "multi_query" else {}
    family = "cct" if kind == "conv" else "vit" if pooling == "class_token" else "cvt"
    arch = next((name for name in alike if name.startswith(family)), None)
    if arch is None:
        arch = {"cct": "cct_2_3x2_32", "cvt": "cvt_2_4_32", "vit": "vit_2_4_32"}[family]
        if patches:
            del shape["num_conv_layers"]
    else:
        shape = {}
    tables = _find(state, r"classifier\.positional_emb|encoder\.pos_embed")
    if not tables:
        return {"arch": arch, "pooling": pooling, **queries, "position": "none", "residual_norm": None, **shape}, {"in_chans": in_chans}
    table = tables[0]
    extra = _find(state, r"encoder\.cls_pos_embed")
    whole = torch.cat((*extra, table), dim=1)
    position = "sine" if torch.allclose(whole.float(), sine_table(whole.shape[1], embed_dim), atol=1e-5) else "learned"
    side = math.isqrt(table.shape[1] - int(class_token and not extra))
    size = side * kernel_size if patches else _pixels(ConvTokenizer(in_chans, embed_dim, kernel_size, num_conv_layers=len(convs)), side)
    model = {"arch": arch, "pooling": pooling, **queries, "position": position, "residual_norm": None, **shape}
    return model, {"in_chans": in_chans, "image_size": size}


def _pooling(state: Mapping[str, Tensor], class_token: bool) -> str:
    for name, pattern in (("seqpool", r"(?:classifier\.attention_pool|pooling\.score)\.weight"), ("class_attention", r"pooling\.cls_token"),
                          ("map", r"pooling\..*latent.*"), ("multi_query", r"pooling\.queries")):  # fmt: skip
        if _find(state, pattern):
            return name
    return "class_token" if class_token else "mean"


def _pixels(tokenizer: ConvTokenizer, side: int) -> int:
    """Returns the largest size of square images that the tokenizer makes a grid of this side of; the published networks' sizes are those."""
    pixels = tokenizer.kernel_size
    while tokenizer.grid_size((pixels + 1, pixels + 1))[0] <= side:
        pixels += 1
    return pixels
