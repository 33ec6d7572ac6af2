"""Reads weights: our own, those of SHI-Labs/Compact-Transformers and vit-pytorch's CCT (the same key names), and timm's, and says what became
of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.build import create_network
from cct_lightning.networks.classifier import ImageClassifier, LoadReport
from cct_lightning.networks.encoder import Encoder, ViTEncoder
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.options import keywords_of
from cct_lightning.weights.conversion import check_block_form, fit_channels, fit_class_token, fit_positions, to_our_names
from cct_lightning.weights.files import KEY, Opened, open_weights, read_checkpoint, unwrap
from cct_lightning.weights.soundness import check_finite
from cct_lightning.weights.sources import HUB, locate
from cct_lightning.wording import some

# Golden files carry an example to check the network with.
EXAMPLES = {"input", "logits"}
GROUPS = {
    "head": ("head.",),
    "pooling": ("pooling.", "encoder.cls_token", "encoder.cls_pos_embed"),
}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(NetworkOptions):
    """A network and its first weights.

    Args:
        pretrained: Where weights come from, see ``sources.locate``; ``load_report`` of the result says what was loaded. Head and pooling
            may differ from the file's where num_classes and pooling are given.
        new_head: The head starts at zero even where the weights have one that fits.
        class_names: Of the logits; a head for other names starts at zero, too.
    """

    pretrained: str | Path | Opened | None = None
    new_head: bool = False
    class_names: Sequence[str] | None = None


@keywords_of(ModelOptions)
def create_model(options: ModelOptions) -> ImageClassifier:
    """Builds a network by name, see ``create_network``, and loads weights into it.

    Raises:
        InputError: Unknown names, sizes that don't fit, options that a timm network can't honour, weights that don't fit.
    """
    model = create_network(options)
    if options.pretrained is not None:
        allow = [part for part, given in (("head", options.num_classes), ("pooling", options.pooling or options.num_queries)) if given is not None]
        model.load_report = load_weights(model, options.pretrained, allow, options.new_head, options.class_names)
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
            ``pooling`` (another pooling, with the class token). Both may where masked patches were learned, without either.
        new_head: The head starts anew even where the file's fits.
        class_names: Of the network; where the file knows its own and they differ, the head starts anew.

    Raises:
        InputError: The source can't be read, or a tensor is missing, unexpected or of another shape in a part that was not named.
    """
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    if str(source).startswith(HUB):
        source = open_weights(locate(str(source)), str(source))
    commit = source.path.parent.name if isinstance(source, Opened) and source.name.startswith(HUB) else ""
    content = _read(source, encoder)
    source = source.name if isinstance(source, Opened) else str(source)
    state = unwrap(content, str(source))
    is_reference = any(name.startswith(("classifier.blocks.", "tokenizer.conv_layers.")) for name in state)
    is_ours = any(name.startswith("encoder.") for name in state) or isinstance(encoder, ViTEncoder)
    report = LoadReport(str(source), "reference" if is_reference else "cct-lightning" if is_ours else "timm")
    if commit:
        report.notes.append(f"commit {commit} of the hub")
    for name in sorted(EXAMPLES & state.keys()):
        del state[name]
        report.dropped[name] = "an example that the file carries, not a weight"
    about = content[KEY] if isinstance(content.get(KEY), Mapping) else {}
    if decoder := [name for name in state if name.startswith("decoder.")]:
        state = {name: tensor for name, tensor in state.items() if name not in decoder}
        report.dropped[f"decoder ({len(decoder)} tensors)"] = "it fills in masked patches, for the pre-training alone"
        allow = GROUPS.keys()  # there was neither a head nor a pooling
    if (members := about.get("members")) is not None:
        raise InputError(f"{source} is an ensemble of {members} networks, and one is needed here: give the run of a fold, such as its best.ckpt.")
    state = _fit(state, encoder, about.get("grid_size"), report)
    check_block_form(content, encoder, report.source)
    anew = {"head"} if _knows_other_classes(about.get("class_names"), class_names, report) or new_head else set()
    target = model.state_dict()
    _leave_out(state, target, anew, allow, report)
    _check(state, {name: tensor for name, tensor in target.items() if name not in report.new}, report.source, encoder)
    zero = {name for name in report.new if name.startswith(("head.out.", "head.weight", "head.bias"))}
    model.load_state_dict({name: torch.zeros_like(tensor) if name in zero else state.get(name, tensor) for name, tensor in target.items()})
    report.loaded = sorted(state)
    if any(tensor.is_floating_point() and tensor.dtype != target[name].dtype for name, tensor in state.items()):
        report.notes.append(f"stored in {', '.join(sorted({str(t.dtype) for t in state.values()}))}; widened")
    return report


def _read(source: str | Path | Opened, encoder: Encoder) -> Mapping[str, Any]:
    """Reads weights by name or from a file; timm's by name through timm."""
    if isinstance(source, Opened):
        return source.content
    if not str(source).startswith("timm/"):
        return read_checkpoint(locate(source))
    from cct_lightning.weights.timm_weights import read_timm  # timm takes three times as long to import as torch

    state = read_timm(str(source), encoder)
    check_finite(state, source)
    return state


def _fit(state: dict[str, Tensor], encoder: Encoder, grid: Sequence[int] | None, report: LoadReport) -> dict[str, Tensor]:
    """Puts a file's tensors under our names and makes them fit the encoder; ``grid`` is that of the file's positions, where it says so."""
    if isinstance(encoder, ViTEncoder):
        if report.format == "reference":
            state = to_our_names(state, encoder)
        fit_class_token(encoder, state, report)
        if not (encoder.position == "none" and "encoder.pos_embed" in state):
            fit_positions(encoder, state, (grid[0], grid[1]) if grid else None, report)
    elif report.format == "timm":
        from cct_lightning.weights.timm_weights import from_timm

        state = from_timm(state, encoder, report)
    else:
        from cct_lightning.weights.timm_weights import fit_positions_of_timm

        fit_positions_of_timm(encoder, state, (grid[0], grid[1]) if grid else None, report)
    fit_channels(encoder, state, report)
    is_sine = isinstance(encoder, ViTEncoder) and encoder.position == "sine"
    if report.format == "reference" and is_sine and "encoder.pos_embed" not in state:
        raise InputError(f"{report.source} was trained without positions; the network has position='sine'. Build it with position='none'.")
    return state


def _knows_other_classes(theirs: Sequence[str] | None, ours: Sequence[str] | None, report: LoadReport) -> bool:
    if not theirs or not ours or list(theirs) == list(ours):
        return False
    report.notes.append(f"the weights know other classes ({some(theirs)}) than these ({some(ours)})")
    return True


def _leave_out(state: dict[str, Tensor], target: Mapping[str, Tensor], anew: Collection[str], allow: Collection[str], report: LoadReport) -> None:
    """Takes the parts that start anew out of ``state``: those in ``anew``, and those in ``allow`` that differ between file and network."""
    for part, prefixes in GROUPS.items():
        wanted = {name: tensor.shape for name, tensor in target.items() if name.startswith(prefixes)}
        theirs = {name: tensor.shape for name, tensor in state.items() if name.startswith(prefixes)}
        if part in anew or (part in allow and wanted != theirs):
            keep = set() if part in anew else {name for name in wanted if theirs.get(name) == wanted[name] and name.startswith("encoder.")}
            for name in sorted(theirs.keys() - keep):
                del state[name]
                report.dropped[name] = "the head starts anew" if part == "head" else f"the {part} is another one here"
            report.new += sorted(wanted.keys() - state.keys())


def _check(state: dict[str, Tensor], target: dict[str, Tensor], source: str, encoder: Encoder) -> None:
    missing, unexpected = sorted(target.keys() - state.keys()), sorted(state.keys() - target.keys())
    shapes = [name for name in sorted(target.keys() & state.keys()) if target[name].shape != state[name].shape]
    if not (missing or unexpected or shapes):
        return

    lines = [f"{source} does not fit this network."]
    lines += [f"  missing in the file: {some(missing)}"] if missing else []
    lines += [f"  not in the network: {some(unexpected)}"] if unexpected else []
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
