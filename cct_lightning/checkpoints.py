"""Reads weights: our own, those of SHI-Labs/Compact-Transformers and vit-pytorch's CCT (the same key names), and says what became of them."""

import math
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from cct_lightning.encoders import Encoder, ViTEncoder, sine_table
from cct_lightning.errors import InputError
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
        source: The file.
        format: ``cct-lightning``, or ``reference`` for the names of SHI-Labs' code.
        loaded: Tensors of the network that took the file's values.
        resized: Those of them whose grid changed, as (from, to).
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
        lines += [f"  new {', '.join(self.new)}"] if self.new else []
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Reads a .safetensors file, or a file of ``torch.save`` without running any code of it.

    Raises:
        InputError: There is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".ckpt", ".pth", ".pt", ".safetensors"))[:5]
        raise InputError(f"There is no file {path}." + (f" Beside it: {', '.join(near)}." if near else ""))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
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


def _unwrap(content: Mapping[str, Any], path: str) -> dict[str, Tensor]:
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
        report.dropped["encoder.pos_embed"] = "equals the fixed sine table, which the network makes itself for its own grid"
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
        report.resized["encoder.pos_embed"] = ("x".join(map(str, old_grid)), "x".join(map(str, encoder.grid_size)))
    if encoder.position == "sine":
        encoder.learn_positions(state["encoder.pos_embed"], cls_pos_embed if encoder.class_token_position else None)
        report.notes.append("the file's positions are trained, not the sine table of the network's name: kept as learned positions")


def _fit_class_token(encoder: ViTEncoder, state: dict[str, Tensor], report: LoadReport) -> None:
    """Folds the class token's position into the token where the network keeps none."""
    both = {"encoder.cls_pos_embed", "encoder.cls_token"} <= state.keys()
    if both and encoder.class_token != "none" and not encoder.class_token_position:
        state["encoder.cls_token"] = state["encoder.cls_token"] + state.pop("encoder.cls_pos_embed")
        report.notes.append("the class token's position was added to the token, which has none of its own here")


GROUPS = {
    "head": ("head.",),
    "pooling": ("pooling.", "encoder.cls_token", "encoder.cls_pos_embed"),
}


def load_weights(model: nn.Module, source: str | Path, allow: Collection[str] = ()) -> LoadReport:
    """Loads a file into an ``ImageClassifier``: every tensor of both is used, or the report or an error says why not.

    Positions of another grid are resized (bilinear). Half-precision values are widened.

    Args:
        model: Changed in place.
        source: Our checkpoint or weights, or those of SHI-Labs/Compact-Transformers or vit-pytorch; .safetensors or ``torch.save``.
        allow: Parts that may differ between file and network and then start anew: ``head`` (another number of classes) and
            ``pooling`` (another pooling, with the class token).

    Raises:
        InputError: The file can't be read, or a tensor is missing, unexpected or of another shape in a part that was not named.
    """
    content = read_checkpoint(source)
    state = _unwrap(content, str(source))
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    reference = any(name.startswith(("classifier.", "tokenizer.conv_layers.")) for name in state)
    report = LoadReport(str(source), "reference" if reference else "cct-lightning")
    for name in sorted(EXAMPLES & state.keys()):
        del state[name]
        report.dropped[name] = "an example that the file carries, not a weight"
    if isinstance(encoder, ViTEncoder):
        if reference:
            state = _to_our_names(state, encoder)
        grid = content.get(KEY, {}).get("grid_size") if isinstance(content.get(KEY), Mapping) else None
        _fit_class_token(encoder, state, report)
        if not (encoder.position == "none" and "encoder.pos_embed" in state):
            _fit_positions(encoder, state, tuple(grid) if grid else None, report)
    if reference and isinstance(encoder, ViTEncoder) and encoder.position == "sine" and "encoder.pos_embed" not in state:
        raise InputError(f"{source} was trained without positions; the network has position='sine'. Build it with position='none'.")
    _check_block_form(content, encoder, report.source)
    target = model.state_dict()
    for part, prefixes in GROUPS.items():
        ours = {name: tensor.shape for name, tensor in target.items() if name.startswith(prefixes)}
        theirs = {name: tensor.shape for name, tensor in state.items() if name.startswith(prefixes)}
        if part in allow and ours != theirs:
            for name in sorted(theirs.keys() - {n for n in ours if theirs.get(n) == ours[n] and n.startswith("encoder.")}):
                del state[name]
                report.dropped[name] = f"the {part} is another one here"
            report.new += sorted(ours.keys() - state.keys())
    _check(state, {name: tensor for name, tensor in target.items() if name not in report.new}, report.source, encoder)
    model.load_state_dict({name: state.get(name, tensor) for name, tensor in target.items()})
    report.loaded = sorted(state)
    if any(tensor.is_floating_point() and tensor.dtype != target[name].dtype for name, tensor in state.items()):
        report.notes.append(f"stored in {', '.join(sorted({str(t.dtype) for t in state.values()}))}; widened")
    return report


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

    def some(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    lines = [f"{source} does not fit this network."]
    lines += [f"  missing in the file: {some(missing)}"] if missing else []
    lines += [f"  not in the network: {some(unexpected)}"] if unexpected else []
    if shapes:
        first = shapes[0]
        other = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        lines.append(f"  other shape: {first} is {tuple(state[first].shape)} in the file, {tuple(target[first].shape)} in the network{other}")
    hints = []
    if any(name.startswith("encoder.pos_embed") for name in missing):
        hints.append("position='none'")
    if any(name.startswith(GROUPS["pooling"]) for name in (*missing, *unexpected)):
        hints.append("pooling= by name, to start it anew or to choose the file's")
    if any(name.startswith("head.") for name in shapes):
        hints.append("num_classes= by name, to start the head anew")
    lines.append("  Choose the arch that the weights were made with" + (f"; or give {', or '.join(hints)}." if hints else "."))
    raise InputError("\n".join(lines))
