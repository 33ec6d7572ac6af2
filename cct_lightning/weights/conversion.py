"""Weights under others' names, of other grids and channels, made to fit our networks."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.classifier import LoadReport
from cct_lightning.networks.encoder import Encoder, ViTEncoder, sine_table
from cct_lightning.networks.tokenizers import PatchTokenizer
from cct_lightning.weights.files import KEY

REFERENCE_NAMES = (
    (r"tokenizer\.conv_layers\.(\d+)\.0\.(.*)", r"encoder.tokenizer.convs.\1.\2"),
    (r"classifier\.blocks\.(\d+)\.pre_norm\.(.*)", r"encoder.blocks.\1.norm1.\2"),
    (r"classifier\.blocks\.(\d+)\.self_attn\.(.*)", r"encoder.blocks.\1.attn.\2"),
    (r"classifier\.blocks\.(\d+)\.norm1\.(.*)", r"encoder.blocks.\1.norm2.\2"),
    (r"classifier\.blocks\.(\d+)\.linear1\.(.*)", r"encoder.blocks.\1.mlp.fc1.\2"),
    (r"classifier\.blocks\.(\d+)\.linear2\.(.*)", r"encoder.blocks.\1.mlp.fc2.\2"),
    (r"classifier\.norm\.(.*)", r"encoder.norm.\1"),
    (r"classifier\.attention_pool\.(.*)", r"pooling.score.\1"),
    (r"classifier\.class_emb", r"encoder.cls_token"),
    (r"classifier\.positional_emb", r"encoder.pos_embed"),
    (r"classifier\.fc\.(.*)", r"head.\1"),
)


def to_our_names(state: dict[str, Tensor], encoder: ViTEncoder) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in state.items():
        renamed = name
        for pattern, replacement in REFERENCE_NAMES:
            if re.fullmatch(pattern, name):
                renamed = re.sub(pattern, replacement, name)
        if isinstance(encoder.tokenizer, PatchTokenizer):
            renamed = renamed.replace("tokenizer.convs.0.", "tokenizer.proj.")
        ours[renamed] = tensor
    if "encoder.cls_token" in ours and "encoder.pos_embed" in ours:
        # One table there, with the class token's position in row 0.
        table = ours["encoder.pos_embed"]
        ours["encoder.cls_pos_embed"], ours["encoder.pos_embed"] = table[:, :1], table[:, 1:]
    return ours


def resize_positions(table: Tensor, old_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resizes positions (1, N, D) from one grid (h, w) to another: bilinear, no antialias, corners not aligned, as in SHI-Labs' code."""
    maps = table.float().transpose(1, 2).reshape(1, -1, *old_grid)  # (1, D, h, w)
    return F.interpolate(maps, size=grid, mode="bilinear").flatten(2).transpose(1, 2).to(table.dtype)


def fit_positions(encoder: ViTEncoder, state: dict[str, Tensor], old_grid: tuple[int, int] | None, report: LoadReport) -> None:
    """Makes the file's positions in ``state`` those that the encoder needs: resized, regenerated, folded or learned."""
    if (pos_embed := state.get("encoder.pos_embed")) is None:
        return
    cls_pos_embed = state.get("encoder.cls_pos_embed")
    rows = pos_embed.shape[1]
    table = pos_embed if cls_pos_embed is None else torch.cat((cls_pos_embed, pos_embed), dim=1)
    is_sine = torch.allclose(table.float(), sine_table(table.shape[1], table.shape[2]), atol=1e-5)
    if encoder.position == "sine" and is_sine:
        own = encoder.state_dict()
        for name in ("pos_embed", "cls_pos_embed"):
            state.pop(f"encoder.{name}", None)
            if name in own:
                state[f"encoder.{name}"] = own[name]
        # The file's patches begin at 1 behind a class token, at 0 without one, and stay where they are whatever this network's pooling needs.
        first = int(cls_pos_embed is not None)
        state["encoder.pos_embed"] = sine_table(first + own["pos_embed"].shape[1], table.shape[2])[:, first:]
        report.dropped["encoder.pos_embed"] = f"equals the fixed sine table, which is made anew for this grid; the patches begin at {first} as there"
        return
    num_patches = encoder.grid_size[0] * encoder.grid_size[1]
    side = math.isqrt(rows)
    old_grid = old_grid or (encoder.grid_size if rows == num_patches else (side, side))
    if old_grid[0] * old_grid[1] != rows:
        raise InputError(f"{report.source}: {rows} positions are not a square grid, so they can't be resized to {encoder.grid_size}.")
    if old_grid != encoder.grid_size:
        state["encoder.pos_embed"] = resize_positions(pos_embed, old_grid, encoder.grid_size)
        report.resized["encoder.pos_embed"] = ("x".join(map(str, old_grid)), "x".join(map(str, encoder.grid_size)) + " (bilinear)")
    if encoder.position == "sine":
        encoder.learn_positions(state["encoder.pos_embed"], cls_pos_embed if encoder.class_token_position else None)
        report.notes.append("the file's positions are trained, not the sine table of the network's name: kept as learned positions")


def fit_class_token(encoder: ViTEncoder, state: dict[str, Tensor], report: LoadReport) -> None:
    """Folds the class token's position into the token where the network keeps none."""
    both = {"encoder.cls_pos_embed", "encoder.cls_token"} <= state.keys()
    if both and encoder.class_token != "none" and not encoder.class_token_position:
        state["encoder.cls_token"] = state["encoder.cls_token"] + state.pop("encoder.cls_pos_embed")
        report.notes.append("the class token's position was added to the token, which has none of its own here")


def with_channels(weight: Tensor, in_chans: int) -> Tensor:
    """Makes the weight (D, C, k, k) of a first convolution take other channels: for grey the colours' are summed, so that an image of equal
    channels gives what it gave; for more they are repeated and scaled to the same sum. As ``adapt_input_conv`` of timm."""
    C = weight.shape[1]
    if in_chans == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-in_chans // C), 1, 1)[:, :in_chans]
    return (repeated * (C / in_chans)).to(weight.dtype)


def fit_channels(encoder: Encoder, state: dict[str, Tensor], report: LoadReport) -> None:
    """Makes the first convolution take other channels: colours are summed into grey, grey is spread over colours, as timm does it."""
    first = next((layer for layer, module in encoder.named_modules() if isinstance(module, nn.Conv2d)), None)
    name = f"encoder.{first}.weight"
    weight = state.get(name)
    if weight is not None and weight.ndim == 4 and weight.shape[1] != encoder.in_chans:
        state[name] = with_channels(weight, encoder.in_chans)
        report.resized[name] = (f"{weight.shape[1]} channel(s)", f"{encoder.in_chans} (summed or spread)")


def check_block_form(content: Mapping[str, Any], encoder: Encoder, source: str) -> None:
    """Refuses a run's checkpoint whose blocks are of the other form: the tensors can't tell."""
    about = content.get(KEY)
    if isinstance(about, Mapping) and about.get("model") and isinstance(encoder, ViTEncoder) and len(encoder.blocks):
        theirs, ours = about["model"]["residual_norm"] is not False, bool(encoder.blocks[0].residual_norm)
        if theirs != ours:
            raise InputError(f"{source} was trained with residual_norm={theirs}; the network has residual_norm={ours}. Build it with {theirs}.")
