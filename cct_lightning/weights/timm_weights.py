"""timm's weights: had by name, and put under our names. Imports timm, so it is itself imported where these are meant."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import huggingface_hub.constants
import timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.networks.classifier import LoadReport
from cct_lightning.networks.encoder import Encoder
from cct_lightning.networks.timm_encoder import TimmEncoder
from cct_lightning.weights.sources import reaches, unreachable
from cct_lightning.wording import reason


def read_timm(source: str, encoder: Encoder) -> Mapping[str, Any]:
    """Reads the weights timm/NAME through timm, which downloads them.

    Raises:
        InputError: timm has no such network, the encoder is none of timm's, or the weights can't be had.
    """
    if not isinstance(encoder, TimmEncoder):
        raise InputError(f"{source} are weights of a timm network: choose it with model.arch={source}.")
    return fetch_timm(source)


def fetch_timm(source: str) -> Mapping[str, Tensor]:
    """Has timm fetch the weights timm/NAME; returns them under timm's names.

    Raises:
        InputError: timm has no such network, or the weights can't be had.
    """
    name = source.removeprefix("timm/")
    if not timm.is_model(name):
        raise InputError(f"{source}: timm {timm.__version__} has no network {name!r}.")
    was_offline = huggingface_hub.constants.HF_HUB_OFFLINE
    # Without a network the client tries for a minute, and tells each of its tries.
    huggingface_hub.constants.HF_HUB_OFFLINE = was_offline or not reaches(huggingface_hub.constants.ENDPOINT)
    try:
        fetched: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
        return fetched
    except Exception as error:  # whatever a hub client raises
        why = reason(error, 120)
        if huggingface_hub.constants.HF_HUB_OFFLINE and not was_offline:
            why = f"{huggingface_hub.constants.ENDPOINT} does not answer, and nothing was downloaded before"
        raise unreachable(source, why) from None
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = was_offline


def from_timm(state: dict[str, Tensor], encoder: Encoder, report: LoadReport) -> dict[str, Tensor]:
    """Maps a state dict of timm's, or one that timm can convert, to our names; timm resizes its positions (bicubic, antialias).

    For an encoder that is none of timm's nothing is changed.
    """
    if not isinstance(encoder, TimmEncoder):
        return state
    inner, target = encoder.model, encoder.state_dict()
    convert = getattr(sys.modules[type(inner).__module__], "checkpoint_filter_fn", None)
    converted: dict[str, Tensor] = convert(state, inner) if convert is not None else state
    ours = {}
    classifier = f"{inner.pretrained_cfg['classifier']}."  # type: ignore[index]
    for name, tensor in converted.items():
        if name.startswith("attn_pool."):
            report.dropped[name] = "timm's own pooling; the pooling is one of ours here"
        elif encoder.returns_map and name.startswith(classifier) and tensor.ndim <= 2:
            ours[f"head.{name.removeprefix(classifier)}"] = tensor
        elif encoder.returns_map:
            ours[f"encoder.model.{name}"] = tensor
        elif name.startswith(("head.", "fc.")) and tensor.ndim <= 2:
            ours[f"head.{name.split('.', 1)[1]}"] = tensor
        elif name.startswith(("head_dist.", "head.")):
            report.dropped[name] = "a head that only timm's network has"
        elif name.startswith(("fc_norm.", "norm.")) and f"model.{name}" not in target:
            # The last norm stands before or behind the pool, as timm's network was built; it acts on each token in both.
            leaf = name.split(".", 1)[1]
            ours[f"encoder.norm.{leaf}" if f"norm.{leaf}" in target else f"encoder.model.norm.{leaf}"] = tensor
        else:
            ours[f"encoder.model.{name}"] = tensor
        if name == "pos_embed" and name in state and state[name].shape != tensor.shape:
            report.resized["encoder.model.pos_embed"] = (f"{state[name].shape[1]} positions", f"{tensor.shape[1]} (bicubic)")
    return ours


def fit_positions_of_timm(encoder: Encoder, state: dict[str, Tensor], old_grid: tuple[int, int] | None, report: LoadReport) -> None:
    """Resizes the positions of a network of timm's that was trained here, under our names, as timm does (bicubic, antialias).

    Only those of a table (1, P + N, D) of all patches are; what else differs is refused where shapes are compared.
    """
    name, target = "encoder.model.pos_embed", encoder.state_dict().get("model.pos_embed")
    if not isinstance(encoder, TimmEncoder) or target is None or (table := state.get(name)) is None or table.ndim != 3 or table.shape == target.shape:
        return
    prefix = target.shape[1] - math.prod(encoder.grid_size)  # the class token has a position in some networks
    side = math.isqrt(max(table.shape[1] - prefix, 0))
    grid = old_grid or (side, side)
    if prefix < 0 or math.prod(grid) != table.shape[1] - prefix:
        return
    state[name] = resample_abs_pos_embed(table, list(encoder.grid_size), list(grid), prefix)
    report.resized[name] = ("x".join(map(str, grid)), "x".join(map(str, encoder.grid_size)) + " (bicubic)")
