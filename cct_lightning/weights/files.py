"""Reads files of weights without running code of theirs."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.weights.programs import read_weights
from cct_lightning.weights.schema import KEY as KEY
from cct_lightning.weights.schema import check_about, check_export, read_json
from cct_lightning.weights.soundness import check_archive, check_finite
from cct_lightning.weights.sources import check_digest
from cct_lightning.wording import reason

WRAPPERS = ("module.", "model.")
CONTAINERS = ("state_dict_ema", "state_dict", "model")  # the average before the raw weights, as timm does


@dataclass(frozen=True)
class Opened:
    """A file of weights that has been read, once, for all that a command wants of it.

    Attributes:
        name: As it was asked for.
        path: The file.
        content: What it holds.
    """

    name: str
    path: Path
    content: Mapping[str, Any]

    @property
    def about(self) -> Mapping[str, Any] | None:
        """What a checkpoint or export of ours says of itself; None in files of others."""
        about = self.content.get(KEY)
        return about if isinstance(about, Mapping) else None


def open_weights(path: Path, name: str | None = None) -> Opened:
    """Reads a file by ``read_checkpoint``; ``name`` is what it was asked for by."""
    return Opened(name or str(path), path, read_checkpoint(path))


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Reads a .safetensors file, a folder that ``cct export`` wrote, or a file of ``torch.save`` without running any code of it.

    Raises:
        InputError: There is no such file, it is damaged, it holds more than tensors and plain values, or weights that are NaN or inf.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.name == "config.json" or (path.name == "model.safetensors" and (path.parent / "config.json").is_file()):
        return _read_folder(path.parent)  # which says what the tensors can't
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".ckpt", ".pth", ".pt", ".safetensors"))[:5]
        raise InputError(f"There is no file {path}." + (f" Beside it: {', '.join(near)}." if near else ""))
    return read_tensors(path)


def read_tensors(path: Path, digest: str | None = None) -> Mapping[str, Any]:
    """Reads a file of tensors; where its sha256 is given, what is read are the very bytes that were compared with it.

    Raises:
        InputError: As ``read_checkpoint``, and where the digest differs.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        if path.suffix in (".safetensors", ".pt2"):
            data = path.read_bytes()
            if digest is not None:
                check_digest(path, digest, hashlib.sha256(data).hexdigest())
            tensors = load(data) if path.suffix == ".safetensors" else read_weights(data)
            check_finite(tensors, path)
            return tensors
        check_archive(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # a newer one does no harm: what is not understood is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain values; it was not opened further, since reading it would run its code.\n"
            f"  If you trust it, load it yourself and save its state_dict() alone."
        ) from None
    except Exception as error:  # whatever a damaged or foreign pickle has torch raise
        raise InputError(f"{path} can't be read as weights: {reason(error)}. Is it complete?") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    weights = _innermost(content)
    _check_spread(weights, path)
    check_finite(weights, path)
    return {**content, KEY: check_about(content[KEY], str(path))} if KEY in content else content


def _check_spread(weights: Mapping[str, Any], path: Path) -> None:
    """Refuses tensors of terabytes that show the same few numbers again and again, before anything is computed of them."""
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.nbytes > max(10**9, tensor.untyped_storage().nbytes()):
            raise InputError(f"{path}: {str(name)[:80]} has {tensor.numel():,} numbers and holds fewer: the file was made to fill the memory.")


def _read_folder(folder: Path) -> Mapping[str, Any]:
    """Reads an exported folder: its weights, and what config.json says about them."""
    config = folder / "config.json"
    about = read_json(config, f": is {folder} a folder that `cct export` wrote?")
    ours = check_export(config, about[KEY]) if isinstance(about, dict) and KEY in about else None
    path = folder / (ours["weights"] if ours else "model.safetensors")
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is a graph to predict with, not weights to train: export with --format safetensors, or give the run's checkpoint.")
    return {"state_dict": read_tensors(path, ours["sha256"] if ours else None), **({KEY: ours} if ours else {})}


def _innermost(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the container that holds the weights, the content itself where there is none."""
    return next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), content)


def without_guide(state: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what was trained beside a network to learn from a teacher's features."""
    return {name: tensor for name, tensor in state.items() if not str(name).startswith("guide.")}


def unwrap(content: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """Opens the containers and strips the wrappers that training code puts around a state dict."""
    content = without_guide(_innermost(content))
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in content.items() if isinstance(tensor, Tensor) and isinstance(name, str)}
    for wrapper in WRAPPERS * 2:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    if not state:
        raise InputError(f"{path} holds no tensors. Its keys: {', '.join(map(str, list(content)[:8]))}.")
    return state
