"""Opens a trained network: a run's, an exported folder's, a graph's."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch

from cct_lightning.data.options import MAX_MEGAPIXELS, Fit, Preprocessing
from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.inference.options import ACCELERATORS, PRECISIONS
from cct_lightning.inference.predictor import Network, Predictor
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.ensemble import Ensemble
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.options import as_size
from cct_lightning.weights.ensemble import build_network
from cct_lightning.weights.files import Opened
from cct_lightning.weights.trained import Saved, read_calibration, read_saved
from cct_lightning.wording import reason


def load(
    source: str | Path | Opened,
    *,
    accelerator: str = "auto",
    precision: str = "32-true",
    batch_size: int | None = None,
    crop_pct: float | None = None,
    fit: Fit | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    calibrated: bool = True,
    max_megapixels: float = MAX_MEGAPIXELS,
    **changes: Any,
) -> "Predictor":
    """Opens a trained network: ``cct_lightning.load("best.ckpt").predict("x.jpg")``.

    No file's code is run. Of a .pt2 the weights alone are read, as plain numbers, into the network that its config.json describes: the graph in it
    is for programs that call ``torch.export.load``, which runs what an archive pickles and so is for archives of your own.

    Args:
        source: What was opened already; or a run's checkpoint or folder, a folder that ``cct export`` wrote, or the network's file in it.
        accelerator: ``cpu``, ``cuda``, ``mps``, or ``auto``: a GPU where there is one.
        precision: ``32-true``, or ``bf16-mixed`` and ``16-mixed``, which are faster on a GPU and round more.
        batch_size: Images at a time; halved whenever they don't fit into memory. None: 256 on a GPU, else 32.
        crop_pct: Share of the image that is seen; None: as in the training.
        fit: How an image of other proportions gets into the network's size: crop, pad or squash; None: as in the training.
        mean: Of each channel, 0..1; None: the training's.
        std: Likewise.
        calibrated: Divide logits by the temperature that ``Predictor.calibrate`` or `cct test --calibrate` kept, where one did, and answer ``none``
            below the threshold that ``Predictor.reject`` or `cct test --reject` kept.
        max_megapixels: Images of more millions of pixels are refused, by their header, before they are decoded.
        changes: Arguments of ``create_model`` that shall differ from the training's, such as image_size.

    Raises:
        InputError: The source can't be read, or its weights don't fit the changes.
    """
    _check_names(precision, fit)
    check_range("batch_size", 1 if batch_size is None else batch_size, 1)
    check_range("max_megapixels", max_megapixels, 0, exclusive="low")
    if (size := changes.pop("image_size", None)) is not None:
        changes["image_size"] = as_size("image_size", size)
    saved = read_saved(source)
    given = {"image_size": changes.get("image_size"), "crop_pct": crop_pct, "fit": fit, "mean": mean, "std": std}
    values = saved.preprocessing | {name: value for name, value in given.items() if value is not None}
    if values["mean"] is None or values["std"] is None:
        raise InputError(
            f"{saved.weights} was trained on images that were normalised elsewhere: load(..., mean=[...], std=[...]) takes their values."
        )
    preprocessing = Preprocessing.from_json(values)
    temperature, rejection = read_calibration(saved) if calibrated else (1.0, None)
    check_range("crop_pct", preprocessing.crop_pct, 0, 1, exclusive="low")
    if saved.format == "onnx":
        predictor = _open_graph(saved, preprocessing, changes, accelerator, precision, batch_size)
    else:
        device = choose_device(accelerator)
        network = _build_with_weights(saved, changes).to(device)
        predictor = Predictor(network, preprocessing, saved.class_names, device, batch_size, precision, saved=saved)
    predictor.temperature, predictor.rejection, predictor.max_megapixels = temperature, rejection, max_megapixels
    return predictor


def _check_names(precision: str, fit: str | None) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision} is none of those for predictions.{did_you_mean(precision, PRECISIONS)}")
    if fit is not None and fit not in get_args(Fit):
        raise InputError(f"fit={fit} is unknown.{did_you_mean(fit, get_args(Fit))}")


def _build_with_weights(saved: Saved, changes: Mapping[str, Any]) -> ImageClassifier | Ensemble:
    taken = sorted({option.name for option in fields(NetworkOptions)} - {"num_classes", "in_chans"})
    for name in sorted(changes.keys() - set(taken)):
        raise InputError(f"{name}={changes[name]!r} can't be changed for predictions.{did_you_mean(name, taken, listed=0)}")
    try:
        model = build_network(saved, changes)
    except InputError as error:
        if not changes or "does not fit this network" not in str(error):
            raise
        given = ", ".join(f"{name}={value}" for name, value in changes.items())
        raise InputError("\n".join([f"{saved.weights} does not fit a network with {given}: leave it out.", *str(error).splitlines()[1:-1]])) from None
    if model.num_classes != len(saved.class_names):
        raise InputError(f"{saved.weights} has {model.num_classes} logits, and names of {len(saved.class_names)} classes come with it.")
    return model


def choose_device(accelerator: str) -> torch.device:
    """Returns the device to compute on; ``auto`` is a GPU where there is one.

    Raises:
        InputError: There is no such device on this machine.
    """
    if accelerator not in ACCELERATORS:
        raise InputError(f"accelerator={accelerator} is unknown.{did_you_mean(accelerator, ACCELERATORS)}")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    meant = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(accelerator, (accelerator,))
    kind = next((kind for kind in meant if there[kind]), None)
    if kind is None:
        raise InputError(f"accelerator={accelerator}: torch {torch.__version__} finds none here. Leave it out, or give cpu.")
    return torch.device(kind)


def _open_graph(
    saved: Saved, preprocessing: Preprocessing, changes: Mapping[str, Any], accelerator: str, precision: str, batch_size: int | None
) -> "Predictor":
    """Opens an exported graph: what it computes, and for which image size, is fixed in it."""
    fixed = saved.model | {"image_size": tuple(saved.preprocessing["image_size"]), "precision": "32-true"}
    for name, value in {**changes, "precision": precision}.items():
        if value != fixed.get(name):
            raise InputError(
                f"{saved.weights} computes with {name}={fixed.get(name)}, not {value}: a graph can't be changed; give the run's checkpoint instead."
            )
    network, name = _onnx_session(saved.weights, accelerator)
    # It takes images from the CPU, wherever it computes.
    predictor = Predictor(network, preprocessing, saved.class_names, torch.device("cpu"), batch_size, device_name=name, saved=saved)
    classes = predictor.logits(torch.zeros(1, preprocessing.in_chans, *preprocessing.image_size)).shape[1]
    if classes != len(saved.class_names):
        raise InputError(f"{saved.weights} has {classes} logits, and names of {len(saved.class_names)} classes come with it.")
    return predictor


def _onnx_session(path: Path, accelerator: str) -> tuple[Network, str]:
    """Returns the network, and what computes it."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f'{path} needs onnxruntime, which is not installed: pip install "cct-lightning[onnx]"') from None
    providers, can = ["CPUExecutionProvider"], "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if accelerator in ("auto", "cuda", "gpu") and can:
        providers.insert(0, "CUDAExecutionProvider")
    elif accelerator not in ("auto", "cpu"):
        raise InputError(f"accelerator={accelerator}: onnxruntime {onnxruntime.__version__} computes on the CPU here. Leave it out, or give cpu.")
    try:
        session = onnxruntime.InferenceSession(path, providers=providers)
    except Exception as error:  # its exceptions have no class in common
        raise InputError(f"{path} can't be read by onnxruntime {onnxruntime.__version__}: {reason(error, whole=True).rstrip('.')}.") from None
    name = f"onnxruntime's {session.get_providers()[0].removesuffix('ExecutionProvider')}"
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0]), name
