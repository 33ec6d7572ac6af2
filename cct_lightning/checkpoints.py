"""Reads weights: our own, those of SHI-Labs/Compact-Transformers and vit-pytorch's CCT (the same key names), and timm's, and says what became
of them."""

import json
import math
import pickle
import re
import socket
import sys
import urllib.request
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub.constants
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from cct_lightning.encoders import Encoder, TimmEncoder, ViTEncoder, sine_table
from cct_lightning.errors import InputError
from cct_lightning.sources import locate, sha256
from cct_lightning.tokenizers import PatchTokenizer

KEY = "cct_lightning"  # where our checkpoints keep their own plain dictionary
WRAPPERS = ("module.", "model.")
CONTAINERS = ("state_dict_ema", "state_dict", "model")  # the average before the raw weights, as timm does
# Golden files carry an example to check the network with.
EXAMPLES = {"input", "logits"}

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


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Reads a .safetensors file, a folder that ``cct export`` wrote, or a file of ``torch.save`` without running any code of it.

    Raises:
        InputError: There is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.name == "model.safetensors" and (path.parent / "config.json").is_file():
        return _read_folder(path.parent)  # which says what the tensors can't
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".ckpt", ".pth", ".pt", ".safetensors"))[:5]
        raise InputError(f"There is no file {path}." + (f" Beside it: {', '.join(near)}." if near else ""))
    return _read_tensors(path)


def _read_tensors(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # a newer one does no harm: what is not understood is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain values; it was not opened further, since reading it would run its code.\n"
            f"  If you trust it, load it yourself and save its state_dict() alone."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} can't be read as weights: {reason}. Is it complete?") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return content


def _read_folder(folder: Path) -> Mapping[str, Any]:
    """Reads an exported folder: its weights, and what config.json says about them."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/config.json can't be read ({error}): is {folder} a folder that `cct export` wrote?") from None
    ours = about.get(KEY) if isinstance(about, dict) else None
    path = folder / (ours["weights"] if ours else "model.safetensors")
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is a graph to predict with, not weights to train: export with --format safetensors, or give the run's checkpoint.")
    if ours and path.is_file() and sha256(path) != ours["sha256"]:
        raise InputError(f"{path} is not the file that {folder}/config.json describes: their sha256 differ. Is it complete?")
    return {"state_dict": _read_tensors(path), **({KEY: ours} if ours else {})}


def unwrap(content: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """Opens the containers and strips the wrappers that training code puts around a state dict."""
    for name in CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    for wrapper in WRAPPERS * 2:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    if not state:
        raise InputError(f"{path} holds no tensors. Its keys: {', '.join(map(str, list(content)[:8]))}.")
    return state


def _to_our_names(state: dict[str, Tensor], encoder: ViTEncoder) -> dict[str, Tensor]:
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


def _fit_positions(encoder: ViTEncoder, state: dict[str, Tensor], old_grid: tuple[int, int] | None, report: LoadReport) -> None:
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
        # Bilinear, no antialias, corners not aligned: what SHI-Labs' code does. A class token's position stays as it is.
        state["encoder.pos_embed"] = resample_abs_pos_embed(
            pos_embed, list(encoder.grid_size), list(old_grid), num_prefix_tokens=0, interpolation="bilinear", antialias=False
        )
        report.resized["encoder.pos_embed"] = ("x".join(map(str, old_grid)), "x".join(map(str, encoder.grid_size)) + " (bilinear)")
    if encoder.position == "sine":
        encoder.learn_positions(state["encoder.pos_embed"], cls_pos_embed if encoder.class_token_position else None)
        report.notes.append("the file's positions are trained, not the sine table of the network's name: kept as learned positions")


def _fit_class_token(encoder: ViTEncoder, state: dict[str, Tensor], report: LoadReport) -> None:
    """Folds the class token's position into the token where the network keeps none."""
    both = {"encoder.cls_pos_embed", "encoder.cls_token"} <= state.keys()
    if both and encoder.class_token != "none" and not encoder.class_token_position:
        state["encoder.cls_token"] = state["encoder.cls_token"] + state.pop("encoder.cls_pos_embed")
        report.notes.append("the class token's position was added to the token, which has none of its own here")


def _read_source(source: str | Path, encoder: Encoder) -> Mapping[str, Any]:
    """Reads weights by name or from a file; timm's by name through timm, which downloads them."""
    name = str(source).removeprefix("timm/")
    if not str(source).startswith("timm/"):
        return read_checkpoint(locate(source))
    if not isinstance(encoder, TimmEncoder):
        raise InputError(f"{source} are weights of a timm network: choose it with model.arch={source}.")
    if not timm.is_model(name):
        raise InputError(f"{source}: timm {timm.__version__} has no network {name!r}.")
    was_offline = huggingface_hub.constants.HF_HUB_OFFLINE
    # Without a network the client tries for a minute, and tells each of its tries.
    huggingface_hub.constants.HF_HUB_OFFLINE = was_offline or not _reaches(huggingface_hub.constants.ENDPOINT)
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # whatever a hub client raises
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120].strip()
        if huggingface_hub.constants.HF_HUB_OFFLINE and not was_offline:
            reason = f"{huggingface_hub.constants.ENDPOINT} does not answer, and nothing was downloaded before"
        raise InputError(
            f"{source}: the weights can't be had ({reason}).\n"
            f"  Without a network give a file of them: --model.arch {source} --model.pretrained FILE.safetensors"
        ) from None
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = was_offline


def _reaches(address: str) -> bool:
    """Tells whether a server takes a connection within 3 s; through a proxy it is taken for granted."""
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection((urlparse(address).hostname or "", 443), timeout=3).close()
    except OSError:
        return False
    return True


def _from_timm(state: dict[str, Tensor], encoder: TimmEncoder, report: LoadReport) -> dict[str, Tensor]:
    """Maps a state dict of timm's, or one that timm can convert, to our names; timm resizes its positions (bicubic, antialias)."""
    inner, target = encoder.model, encoder.state_dict()
    convert = getattr(sys.modules[type(inner).__module__], "checkpoint_filter_fn", None)
    converted: dict[str, Tensor] = convert(state, inner) if convert is not None else state
    ours = {}
    for name, tensor in converted.items():
        if name.startswith("attn_pool."):
            report.dropped[name] = "timm's own pooling; the pooling is one of ours here"
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


def _fit_channels(encoder: Encoder, state: dict[str, Tensor], report: LoadReport) -> None:
    """Makes the first convolution take other channels: colours are summed into grey, grey is spread over colours, as timm does it."""
    for name in ("encoder.tokenizer.convs.0.weight", "encoder.tokenizer.proj.weight", "encoder.model.patch_embed.proj.weight"):
        weight = state.get(name)
        if weight is not None and weight.ndim == 4 and weight.shape[1] != encoder.in_chans:
            state[name] = adapt_input_conv(encoder.in_chans, weight, base_chans=weight.shape[1])
            report.resized[name] = (f"{weight.shape[1]} channel(s)", f"{encoder.in_chans} (summed or spread)")


GROUPS = {
    "head": ("head.",),
    "pooling": ("pooling.", "encoder.cls_token", "encoder.cls_pos_embed"),
}


def load_weights(
    model: nn.Module, source: str | Path, allow: Collection[str] = (), new_head: bool = False, class_names: Sequence[str] | None = None
) -> LoadReport:
    """Loads weights into an ``ImageClassifier``: every tensor of both is used, or the report or an error says why not.

    Positions of another grid are resized (bilinear; timm's by timm, bicubic), the first convolution is fitted to the channels, half-precision
    values are widened. A head that starts anew starts at zero ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.2).

    Args:
        model: Changed in place.
        source: See ``sources.locate``: a file or exported folder of ours, of SHI-Labs/Compact-Transformers, vit-pytorch or timm; or a name.
        allow: Parts that may differ between file and network and then start anew: ``head`` (another number of classes) and
            ``pooling`` (another pooling, with the class token).
        new_head: The head starts anew even where the file's fits.
        class_names: Of the network; where the file knows its own and they differ, the head starts anew.

    Raises:
        InputError: The source can't be read, or a tensor is missing, unexpected or of another shape in a part that was not named.
    """
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    content = _read_source(source, encoder)
    state = unwrap(content, str(source))
    reference = any(name.startswith(("classifier.", "tokenizer.conv_layers.")) for name in state)
    ours = any(name.startswith("encoder.") for name in state)
    report = LoadReport(str(source), "reference" if reference else "cct-lightning" if ours or isinstance(encoder, ViTEncoder) else "timm")
    for name in sorted(EXAMPLES & state.keys()):
        del state[name]
        report.dropped[name] = "an example that the file carries, not a weight"
    about = content[KEY] if isinstance(content.get(KEY), Mapping) else {}
    if isinstance(encoder, ViTEncoder):
        if reference:
            state = _to_our_names(state, encoder)
        grid = about.get("grid_size")
        _fit_class_token(encoder, state, report)
        if not (encoder.position == "none" and "encoder.pos_embed" in state):
            _fit_positions(encoder, state, tuple(grid) if grid else None, report)
    elif isinstance(encoder, TimmEncoder) and report.format == "timm":
        state = _from_timm(state, encoder, report)
    _fit_channels(encoder, state, report)
    if reference and isinstance(encoder, ViTEncoder) and encoder.position == "sine" and "encoder.pos_embed" not in state:
        raise InputError(f"{source} was trained without positions; the network has position='sine'. Build it with position='none'.")
    _check_block_form(content, encoder, report.source)
    names = about.get("class_names")
    other_classes = False
    if names and class_names and list(names) != list(class_names):
        other_classes = True
        report.notes.append(f"the weights know other classes ({_some(names)}) than these ({_some(class_names)})")
    target = model.state_dict()
    for part, prefixes in GROUPS.items():
        wanted = {name: tensor.shape for name, tensor in target.items() if name.startswith(prefixes)}
        theirs = {name: tensor.shape for name, tensor in state.items() if name.startswith(prefixes)}
        anew = part == "head" and (new_head or other_classes)
        if anew or (part in allow and wanted != theirs):
            keep = set() if anew else {name for name in wanted if theirs.get(name) == wanted[name] and name.startswith("encoder.")}
            for name in sorted(theirs.keys() - keep):
                del state[name]
                report.dropped[name] = "the head starts anew" if part == "head" else f"the {part} is another one here"
            report.new += sorted(wanted.keys() - state.keys())
    _check(state, {name: tensor for name, tensor in target.items() if name not in report.new}, report.source, encoder)
    zero = {name for name in report.new if name.startswith(("head.out.", "head.weight", "head.bias"))}
    model.load_state_dict({name: torch.zeros_like(tensor) if name in zero else state.get(name, tensor) for name, tensor in target.items()})
    report.loaded = sorted(state)
    if any(tensor.is_floating_point() and tensor.dtype != target[name].dtype for name, tensor in state.items()):
        report.notes.append(f"stored in {', '.join(sorted({str(t.dtype) for t in state.values()}))}; widened")
    return report


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_block_form(content: Mapping[str, Any], encoder: Encoder, source: str) -> None:
    """Refuses a run's checkpoint whose blocks are of the other form: the tensors can't tell."""
    about = content.get(KEY)
    if isinstance(about, Mapping) and about.get("model") and isinstance(encoder, ViTEncoder) and len(encoder.blocks):
        theirs, ours = about["model"]["residual_norm"] is not False, bool(encoder.blocks[0].residual_norm)
        if theirs != ours:
            raise InputError(f"{source} was trained with residual_norm={theirs}; the network has residual_norm={ours}. Build it with {theirs}.")


def _check(state: dict[str, Tensor], target: dict[str, Tensor], source: str, encoder: Encoder) -> None:
    missing, unexpected = sorted(target.keys() - state.keys()), sorted(state.keys() - target.keys())
    shapes = [name for name in sorted(target.keys() & state.keys()) if target[name].shape != state[name].shape]
    if not (missing or unexpected or shapes):
        return

    lines = [f"{source} does not fit this network."]
    lines += [f"  missing in the file: {_some(missing)}"] if missing else []
    lines += [f"  not in the network: {_some(unexpected)}"] if unexpected else []
    if shapes:
        first = shapes[0]
        other = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        lines.append(f"  other shape: {first} is {tuple(state[first].shape)} in the file, {tuple(target[first].shape)} in the network{other}")
    if any(name.startswith(("patch_embed.", "blocks.")) for name in unexpected):
        raise InputError("\n".join([*lines, "  They are of a timm network: choose it with model.arch=timm/NAME."]))
    hints = []
    if any(name.startswith("encoder.pos_embed") for name in missing):
        hints.append("position='none'")
    if any(name.startswith(GROUPS["pooling"]) for name in (*missing, *unexpected)):
        hints.append("pooling= by name, to start it anew or to choose the file's")
    if any(name.startswith("head.") for name in shapes):
        hints.append("num_classes= by name, to start the head anew")
    lines.append("  Choose the arch that the weights were made with" + (f"; or give {', or '.join(hints)}." if hints else "."))
    raise InputError("\n".join(lines))
