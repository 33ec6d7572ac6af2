"""What a checkpoint or an exported folder says about itself, and the network built from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cct_lightning.errors import InputError
from cct_lightning.networks.options import NetworkOptions, Rejection
from cct_lightning.networks.outputs import Output
from cct_lightning.run_folder import replacing
from cct_lightning.weights.schema import KEY, check_export, check_head, check_rejection, check_temperature, read_json
from cct_lightning.weights.sources import check_digest, find_source, sha256
from cct_lightning.wording import reason

if TYPE_CHECKING:
    from cct_lightning.networks.classifier import ImageClassifier
    from cct_lightning.weights.files import Opened


@dataclass(frozen=True)
class Saved:
    """What is known of a trained network before it is built.

    Attributes:
        weights: The file that holds it.
        format: ``checkpoint``, or the export's: ``safetensors``, ``onnx``, ``torch-export`` or ``timm``.
        model: Its configuration, ``LitClassifier.model_config``.
        class_names: In the order of the logits; numbers where nobody named them.
        preprocessing: As ``Preprocessing.to_json``; in a checkpoint mean and std may be None.
        opened: Its weights, and all else that the file holds; None of a graph.
        temperature: That an export's logits are divided by; a checkpoint's stands in a file of its own, see ``read_temperature``.
        rejection: Threshold below which an export's answer is none of the classes; a checkpoint's stands likewise.
        members: Networks of this configuration that it holds, more than one in an ensemble.
        output: What its logits mean.
    """

    weights: Path
    format: str
    model: dict[str, Any]
    class_names: list[str]
    preprocessing: dict[str, Any]
    opened: Opened | None = field(default=None, compare=False)
    temperature: float = 1.0
    members: int = 1
    output: Output = Output()
    rejection: Rejection | None = None


def read_saved(source: str | Path | Opened) -> Saved:
    """Tells what a trained network says about itself: one that was opened already, a checkpoint or a run's folder by ``read_run``, an exported
    folder, the network's file in one, or weights inside the package by their name by ``read_export``.

    Raises:
        InputError: As they do, and where there is no such file, or it lies without the config.json that describes it.
    """
    if not isinstance(source, str | Path):
        return describe_run(source)
    path = find_source(source)
    if path.name == "config.json":
        return read_export(path)
    if path.suffix not in (".onnx", ".pt2", ".safetensors"):
        return read_run(path)
    if not (config := path.with_name("config.json")).is_file():
        raise InputError(
            f"{path} has no config.json beside it, and does not say itself what its classes are and how images are prepared.\n"
            "  `cct export` writes both into one folder: keep them together."
        )
    saved = read_export(config)
    if saved.weights.name != path.name:
        raise InputError(f"{config} describes {saved.weights.name}, not {path.name}: keep each export in a folder of its own.")
    return saved


def _class_names(names: list[str] | None, model: Mapping[str, Any]) -> list[str]:
    return list(names) if names else [str(label) for label in range(model["num_classes"])]


def read_export(config: Path) -> Saved:
    """Reads the config.json of an export and checks that the network's file beside it is the one it was written with.

    Raises:
        InputError: One of the two is missing, damaged or not the other's.
    """
    whole = read_json(config)
    about = check_export(config, whole.get(KEY) if isinstance(whole, dict) else None)
    weights = config.with_name(about["weights"])
    if not weights.is_file():
        raise InputError(f"{config} describes {about['weights']}, which is not beside it: copy the whole folder that `cct export` wrote.")
    opened = None
    if weights.suffix == ".onnx":
        check_digest(weights, about["sha256"], sha256(weights))
    else:
        from cct_lightning.weights.files import Opened, read_tensors

        opened = Opened(str(config.parent), weights, {"state_dict": read_tensors(weights, about["sha256"]), KEY: about})
    names, temperature = _class_names(about["class_names"], about["model"]), about.get("temperature", 1.0)  # older exports have none
    temperature, members = check_temperature(temperature, config), about.get("members") or 1
    output, rejection = Output.from_json(about.get("output")), check_rejection(about.get("reject"), config)
    return Saved(weights, about["format"], about["model"], names, about["preprocessing"], opened, temperature, members, output, rejection)


def read_run(path: Path) -> Saved:
    """Reads what a run's checkpoint says about itself.

    Raises:
        InputError: The file is damaged, no checkpoint of ours, or holds a network that only Python can build.
    """
    from cct_lightning.weights.files import open_weights

    return describe_run(open_weights(path))


def describe_run(opened: Opened) -> Saved:
    """Tells what a checkpoint that has been opened says about itself.

    Raises:
        InputError: It is no checkpoint of ours, or holds a network that only Python can build.
    """
    path = opened.path
    if (about := opened.about) is None:
        raise InputError(f"{path} is no checkpoint of cct-lightning: it does not say of what network and classes it is.")
    if (model := about["model"]) is None:
        raise InputError(
            f"{path} was trained with a network of its own, which only Python can build:\n"
            f"  LitClassifier.load_from_checkpoint({str(path)!r}, model=YOURS)"
        )
    check_head(path, model)
    data = about.get("preprocessing") or (about["recipe"]["data"] if about["recipe"] else {})
    seen = {"crop_pct": data.get("crop_pct", 1.0), "fit": data.get("fit") or "crop"}
    seen |= {"value_range": data["value_range"]} if data.get("value_range") else {}
    preprocessing = {name: model[name] for name in ("image_size", "in_chans", "mean", "std")} | seen
    names, members, output = _class_names(model["class_names"], model), about.get("members") or 1, Output.from_json(about.get("output"))
    return Saved(path, "checkpoint", dict(model), names, preprocessing, opened, members=members, output=output)


def calibration_path(checkpoint: Path) -> Path:
    """Names the file beside a checkpoint that holds its temperature: best.calibration.json beside best.ckpt."""
    return checkpoint.with_name(f"{checkpoint.stem}.calibration.json")


def _write_calibration(checkpoint: Path, values: Mapping[str, Any]) -> Path:
    path = calibration_path(checkpoint)
    whole = {"temperature": 1.0, "checkpoint": checkpoint.name, "sha256": sha256(checkpoint), **values}
    with replacing(path) as file:
        file.write((json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())
    return path


def kept_beside(checkpoint: Path) -> dict[str, Any]:
    """Returns the temperature and the threshold that lie beside a checkpoint, and what was measured of them; nothing where they are not its own."""
    try:
        about = read_json(calibration_path(checkpoint))
    except InputError:
        return {}
    said = about.get("sha256") if isinstance(about, dict) else None
    return dict(about) if said is not None and said == sha256(checkpoint) else {}


def write_rejection(checkpoint: Path, rejection: Rejection, about: Mapping[str, Any]) -> Path:
    """Keeps a threshold of "none of these" beside a checkpoint, where its temperature is; returns the file.

    Raises:
        OSError: The folder can't be written.
    """
    return _write_calibration(checkpoint, {**kept_beside(checkpoint), "reject": {**rejection._asdict(), **about}})


def write_temperature(checkpoint: Path, temperature: float, about: Mapping[str, Any]) -> Path:
    """Keeps a temperature beside a checkpoint, whole, with the checkpoint's sha256 and what else there is to say of it; returns the file.

    A threshold of probabilities that lies there goes, since they are others now; one of energies, which are of logits as they are, stays.

    Raises:
        OSError: The folder can't be written.
    """
    reject = kept_beside(checkpoint).get("reject")
    stays = {"reject": reject} if isinstance(reject, dict) and reject.get("by") == "energy" else {}
    return _write_calibration(checkpoint, {"temperature": temperature, **about, **stays})


def read_temperature(saved: Saved) -> float:
    """Returns what the logits of a trained network are divided by: of a checkpoint what ``write_temperature`` kept, 1 where nothing was.

    Raises:
        InputError: The file is damaged, or was fitted to another checkpoint of this name.
    """
    return read_calibration(saved)[0]


def with_calibration(saved: Saved) -> Saved:
    """Returns the same with its temperature and threshold, wherever they stand.

    Raises:
        InputError: As ``read_temperature``.
    """
    temperature, rejection = read_calibration(saved)
    return replace(saved, temperature=temperature, rejection=rejection)


def read_calibration(saved: Saved) -> tuple[float, Rejection | None]:
    """Returns that temperature, and the threshold that ``write_rejection`` kept, None where none was.

    Raises:
        InputError: As ``read_temperature``.
    """
    if saved.format != "checkpoint" or not (path := calibration_path(saved.weights)).is_file():
        return saved.temperature, saved.rejection
    way = f"fit it anew with cct test {saved.weights} --calibrate, or delete it"
    try:
        about = read_json(path)
        digest, temperature = about["sha256"], about["temperature"]
    except (InputError, KeyError, TypeError):
        raise InputError(f"{path} can't be read as a temperature (damaged): {way}.") from None
    if digest != sha256(saved.weights):
        raise InputError(f"{path} was fitted to another {saved.weights.name}, which has changed since: {way}.")
    return check_temperature(temperature, path), check_rejection(about.get("reject"), path)


SLACK = 10**8  # weights, 400 MB: positions of larger images, another pooling
# Ours of sizes up to these are below 10**9 weights; counting takes torch a second of imports.
USUAL = {"image_size": 1024, "num_classes": 50_000, "embed_dim": 1536, "depth": 32, "head_hidden_dim": 10_000, "mlp_ratio": 8, "num_conv_layers": 8,
         "hidden_channels": 1536, "kernel_size": 32, "in_chans": 32}  # fmt: skip


def build(model_config: Mapping[str, Any], source: Saved | None = None) -> ImageClassifier:
    """Builds the network of a ``LitClassifier.model_config``, without its weights, in eval mode.

    Args:
        model_config: What describes it.
        source: The weights that it is for, where its size is to be compared with theirs before it takes memory.

    Raises:
        InputError: There is no such network, or it would be far larger than the weights.
    """
    import torch

    from cct_lightning.networks.build import create_network

    options = NetworkOptions(**{option.name: model_config[option.name] for option in fields(NetworkOptions) if option.name in model_config})
    try:
        if source is not None and not _is_usual(options):
            with torch.device("meta"):  # takes no memory
                wanted = sum(tensor.numel() for tensor in create_network(options).state_dict().values())
            _check_size(wanted, source)
        return create_network(options).eval()
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{source.weights if source else options.arch}: there is no such network ({reason(error)}).") from error


def _is_usual(options: NetworkOptions) -> bool:
    sizes = {name: max(options.size or (1,)) if name == "image_size" else getattr(options, name) or 1 for name in USUAL}
    return not options.arch.startswith("timm/") and all(sizes[name] <= most for name, most in USUAL.items())


def _check_size(wanted: int, source: Saved) -> None:
    from cct_lightning.weights.files import unwrap

    assert source.opened is not None
    held = sum(tensor.numel() for tensor in unwrap(source.opened.content, source.opened.name).values())
    if wanted > 2 * held + SLACK:
        raise InputError(f"{source.weights} describes a network of {wanted:,} weights, and holds {held:,}: a size is wrong.")
