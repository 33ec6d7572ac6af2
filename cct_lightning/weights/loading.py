"""Reads weights: our own, those of SHI-Labs/Compact-Transformers and vit-pytorch's CCT (the same key names), and timm's, and says what became
of them."""

import socket
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub.constants
import timm
import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.build import create_network
from cct_lightning.networks.classifier import ImageClassifier, LoadReport
from cct_lightning.networks.encoder import Encoder, ViTEncoder
from cct_lightning.networks.timm_encoder import TimmEncoder
from cct_lightning.weights.conversion import check_block_form, fit_channels, fit_class_token, fit_positions, from_timm, to_our_names
from cct_lightning.weights.files import KEY, Opened, read_checkpoint, unwrap
from cct_lightning.weights.sources import locate

# Golden files carry an example to check the network with.
EXAMPLES = {"input", "logits"}


def _read_source(source: str | Path | Opened, encoder: Encoder) -> Mapping[str, Any]:
    """Reads weights by name or from a file; timm's by name through timm, which downloads them."""
    if isinstance(source, Opened):
        return source.content
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


GROUPS = {
    "head": ("head.",),
    "pooling": ("pooling.", "encoder.cls_token", "encoder.cls_pos_embed"),
}


def create_model(
    arch: str,
    *,
    pretrained: str | Path | Opened | None = None,
    new_head: bool = False,
    class_names: Sequence[str] | None = None,
    **network: Any,
) -> ImageClassifier:
    """Builds a network by name, see ``create_network``, and loads weights into it.

    Args:
        arch: A name of ``VARIANTS``, or ``timm/NAME`` for a network of timm that returns tokens.
        pretrained: Where weights come from, see ``sources.locate``; ``load_report`` of the result says what was loaded. Head and pooling
            may differ from the file's where num_classes and pooling are given.
        new_head: The head starts at zero even where the weights have one that fits.
        class_names: Of the logits; a head for other names starts at zero, too.
        network: What else describes the network.

    Raises:
        InputError: Unknown names, sizes that don't fit, options that a timm network can't honour, weights that don't fit.
    """
    model = create_network(arch, **network)
    if pretrained is not None:
        allow = [part for part, key in (("head", "num_classes"), ("pooling", "pooling")) if network.get(key) is not None]
        model.load_report = load_weights(model, pretrained, allow, new_head, class_names)
    return model


def load_weights(
    model: nn.Module, source: str | Path | Opened, allow: Collection[str] = (), new_head: bool = False, class_names: Sequence[str] | None = None
) -> LoadReport:
    """Loads weights into an ``ImageClassifier``: every tensor of both is used, or the report or an error says why not.

    Positions of another grid are resized (bilinear; timm's by timm, bicubic), the first convolution is fitted to the channels, half-precision
    values are widened. A head that starts anew starts at zero ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.2).

    Args:
        model: Changed in place.
        source: What was opened already, or see ``sources.locate``: a file or
            exported folder of ours, of SHI-Labs/Compact-Transformers, vit-pytorch or timm; or a name.
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
    source = source.name if isinstance(source, Opened) else str(source)
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
            state = to_our_names(state, encoder)
        grid = about.get("grid_size")
        fit_class_token(encoder, state, report)
        if not (encoder.position == "none" and "encoder.pos_embed" in state):
            fit_positions(encoder, state, tuple(grid) if grid else None, report)
    elif isinstance(encoder, TimmEncoder) and report.format == "timm":
        state = from_timm(state, encoder, report)
    fit_channels(encoder, state, report)
    if reference and isinstance(encoder, ViTEncoder) and encoder.position == "sine" and "encoder.pos_embed" not in state:
        raise InputError(f"{source} was trained without positions; the network has position='sine'. Build it with position='none'.")
    check_block_form(content, encoder, report.source)
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
