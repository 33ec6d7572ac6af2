"""What files say about the networks they hold, checked before it is believed: types, ranges, sizes. Importing this needs no torch.

One check for what stands in a checkpoint, in an export's config.json and in the calibration beside a checkpoint: such a file may come from
anywhere, and what it says decides which network is built and how much memory that takes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cct_lightning.data.options import Fit
from cct_lightning.errors import InputError
from cct_lightning.networks.options import NetworkOptions, RejectBy, Rejection
from cct_lightning.training.options import LabelsLossConfig, LossConfig, NumbersLossConfig, TrainingOptions

KEY = "cct_lightning"  # where our checkpoints and exports keep their own plain dictionary
MAX_BYTES = 32 * 2**20  # of a config.json: 100,000 names of classes, three times over, are less
MAX_DEPTH = 16  # of what is nested; a recipe's callbacks reach 6
# The file that each format of an export writes: name and format must agree, since the name decides how it is read.
FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx", "torch-export": "model.pt2", "timm": "model.safetensors"}
# The largest of each size that a file may ask for. A network of sizes below these may still be too large: ``trained.build`` counts its weights.
LARGEST = {
    "num_classes": 10**6, "image_size": 4096, "in_chans": 1024, "head_hidden_dim": 10**5, "embed_dim": 10**5, "depth": 1000, "num_heads": 10**4,
    "mlp_ratio": 1000, "kernel_size": 1024, "num_conv_layers": 32, "hidden_channels": 10**5, "num_queries": 10**5, "grid_size": 4096, "members": 1000,
}  # fmt: skip


def check_head(path: Path, model: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that holds no head, as a training on masked patches leaves it.

    Args:
        path: The checkpoint, for the message.
        model: What it says of its network.

    Raises:
        InputError: Says how to get one.
    """
    if "target" in model:  # of masked patches
        raise InputError(
            f"{path} was trained without labels and tells no classes yet: train it on labelled images first,\n"
            f"  cct finetune DIR --model.pretrained {path}"
        )


def read_json(path: Path, what: str = "") -> Any:
    """Reads a small JSON file.

    Args:
        path: The file.
        what: Ends the error, such as a way out.

    Raises:
        InputError: It can't be read, is larger than 32 MB, or nested too deeply.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MB: it is none that cct-lightning wrote{what}.")
        return json.loads(text)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path} can't be read as JSON: it is nested too deeply{what}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as JSON: {getattr(error, 'strerror', None) or str(error)[:200]}{what}.") from None


@cache
def _model_types() -> dict[str, Any]:
    """Returns the types of what a checkpoint says of its network and training."""
    types = {**get_type_hints(NetworkOptions), **get_type_hints(TrainingOptions)}
    del types["_"]  # where a dataclass' keywords begin
    loss = LossConfig | LabelsLossConfig | NumbersLossConfig
    return {**types, "num_classes": int, "image_size": list[int], "label_smoothing": float, "loss": loss, "freeze": str}


# What a dictionary must say, of which type; None beside a type: it may be left out.
ABOUT: dict[str, Any] = {
    "model": dict | None, "class_names": list[str] | None, "recipe": dict | None, "mean": list[float] | None, "std": list[float] | None,
    "grid_size": list[int] | None, "seed": int | None, "epoch_loss": float | None, "preprocessing": dict | None,
    "format": int | str | None, "weights": str | None, "sha256": str | None, "members": int | None, "output": dict | None,
}  # fmt: skip
OUTPUT: dict[str, Any] = {"kind": Literal["class", "labels", "numbers"], "thresholds": list[float], "mean": list[float], "std": list[float]}
PREPROCESSING: dict[str, Any] = {
    "image_size": list[int],
    "in_chans": int,
    "mean": list[float] | None,
    "std": list[float] | None,
    "crop_pct": float,
    "fit": Fit | None,
    "value_range": list[float] | None,
}
RECIPE: dict[str, Any] = {"data": dict, "trainer": dict | None, "model": dict | None, "seed_everything": int | bool | None, "task": str | None}
DATA: dict[str, Any] = {
    "dataset": str | None, "root": str, "crop_pct": float, "fit": Fit, "image_size": int | list[int] | None, "value_range": list[float] | None,
}  # fmt: skip


def check_about(about: object, where: str) -> Mapping[str, Any]:
    """Refuses what a file says of its network where that is of another type than it should be, out of range or too large.

    Args:
        about: What a checkpoint holds under ``KEY``, or an export's config.json.
        where: The file, for the message.

    Returns:
        The same, with None for what it does not say.

    Raises:
        InputError: Names the first thing that is wrong.
    """
    if not isinstance(about, Mapping):
        raise _wrong(where, KEY, about, "a dictionary")
    _check_depth(about, where)
    _check(about, ABOUT, where, "")
    if (model := about.get("model")) is not None:
        _check(model, _model_types(), where, "model.", partly=True)
        _check_images(model, where, "model.")
        for name in ("arch", "num_classes", "image_size", "in_chans"):
            if model.get(name) is None:
                raise InputError(f"{where} does not say {KEY}.model.{name}: it was not written by cct-lightning, or was changed since.")
    if (preprocessing := about.get("preprocessing")) is not None:
        _check(preprocessing, PREPROCESSING, where, "preprocessing.")
        _check_images(preprocessing, where, "preprocessing.")
    if (output := about.get("output")) is not None:
        _check_output(output, model, where)
    if recipe := about.get("recipe"):
        _check(recipe, RECIPE, where, "recipe.")
        _check(recipe["data"], DATA, where, "recipe.data.", partly=True)
    whole = {**dict.fromkeys(("model", "class_names", "recipe", "mean", "std", "seed")), **about}
    if model is not None:
        whole["model"] = {**{name: None for name, wanted in _model_types().items() if _fits(None, wanted)}, **model}
    return whole


def check_export(config: Path, about: object) -> Mapping[str, Any]:
    """Does so for the config.json of an export, which must also say which file it describes, and name it as its format does.

    Raises:
        InputError: As ``check_about``; something is missing; the name is another than the format's.
    """
    needed = {"format", "weights", "sha256", "model", "class_names", "preprocessing"}
    if not isinstance(about, Mapping) or (absent := needed - about.keys()):
        what = f"the key {KEY}" if not isinstance(about, Mapping) else f"{KEY}.{sorted(absent)[0]}"
        raise InputError(f"{config} lacks {what}: it was not written by `cct export`, or was changed since.")
    about = check_about(about, str(config))
    for name in ("format", "weights", "sha256"):
        if not isinstance(about[name], str):
            raise _wrong(str(config), name, about[name], "text")
    for name in ("model", "preprocessing"):
        if about[name] is None:
            raise _wrong(str(config), name, None, "a dictionary")
    if about["format"] not in FILES:
        raise InputError(f"{config}: {KEY}.format={about['format'][:80]!r} is none of {', '.join(FILES)}.")
    if about["weights"] != FILES[about["format"]]:
        raise InputError(
            f"{config} is of the format {about['format']}, whose file is {FILES[about['format']]}, and names {about['weights'][:80]!r}.\n"
            "  It was changed: nothing is opened. Write the export anew with `cct export`."
        )
    return about


def check_temperature(value: object, where: Path) -> float:
    """Refuses what is no number that logits can be divided by.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{where}: temperature={str(value)[:80]} is no number above 0.")
    return float(value)


def check_rejection(value: object, where: Path) -> Rejection | None:
    """Refuses what is no threshold of "none of these"; None is none.

    Raises:
        InputError: It is something else.
    """
    if value is None:
        return None
    given: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    by: Any = given.get("by")
    threshold = given.get("threshold")
    if by not in get_args(RejectBy) or isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not math.isfinite(threshold):
        raise InputError(f"{where}: reject={str(value)[:80]} is no threshold of {' or '.join(get_args(RejectBy))}.")
    return Rejection(by, float(threshold))


def _wrong(where: str, name: str, value: object, wanted: str) -> InputError:
    return InputError(f"{where}: {f'{KEY}.{name}'.removesuffix(f'.{KEY}')} is {_shown(value)}, and should be {wanted}.")


def _shown(value: object) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**50 else "a number of many digits"
        return text if len(text) < 60 else f"{text[:60]}..."
    return f"a {type(value).__name__}"


def _check(values: object, types: Mapping[str, Any], where: str, prefix: str, partly: bool = False) -> None:
    """Refuses values of other types; with ``partly`` what is not there keeps its default, else None must be allowed."""
    if not isinstance(values, Mapping):
        raise _wrong(where, prefix.removesuffix("."), values, "a dictionary")
    for name, wanted in types.items():
        if name not in values and (partly or _fits(None, wanted)):
            continue
        value = values.get(name)
        if not _fits(value, wanted):
            raise _wrong(where, f"{prefix}{name}", value, _in_words(wanted))
        if name in LARGEST and value is not None:
            sizes = list(value) if isinstance(value, (list, tuple)) else [value]
            if not all(0 <= size <= LARGEST[name] for size in sizes):
                raise InputError(f"{where}: {KEY}.{prefix}{name}={_shown(max(sizes, key=abs))} is out of range: it is 0 to {LARGEST[name]} here.")


def _check_images(values: Mapping[str, Any], where: str, prefix: str) -> None:
    size = values.get("image_size")
    if isinstance(size, (list, tuple)) and (len(size) != 2 or min(size) < 1):
        raise InputError(f"{where}: {KEY}.{prefix}image_size={list(size)[:4]} should be height and width, in pixels.")
    for name in ("mean", "std"):
        numbers = values.get(name)
        if numbers is not None and (len(numbers) != values.get("in_chans") or (name == "std" and not all(number > 0 for number in numbers))):
            rule = "one number for each channel" + (", above 0" if name == "std" else "")
            raise InputError(f"{where}: {KEY}.{prefix}{name}={str(numbers)[:80]} should be {rule}.")
    if (limits := values.get("value_range")) is not None and not (len(limits) == 2 and limits[0] < limits[1]):
        raise InputError(f"{where}: {KEY}.{prefix}value_range={str(limits)[:80]} should be the lowest and the highest value.")
    if not 0 < values.get("crop_pct", 1) <= 1:
        raise InputError(f"{where}: {KEY}.{prefix}crop_pct={values['crop_pct']} is out of range: it must be more than 0 and at most 1.")


def _check_output(output: object, model: Mapping[str, Any] | None, where: str) -> None:
    _check(output, OUTPUT, where, "output.")
    assert isinstance(output, Mapping)
    needed = {"labels": ("thresholds",), "numbers": ("mean", "std")}.get(output["kind"], ())
    for name in needed:
        if model is not None and len(output[name]) != model["num_classes"]:
            raise InputError(f"{where}: {KEY}.output.{name} has {len(output[name])} values, and the network tells {model['num_classes']}.")


def _fits(value: object, wanted: Any) -> bool:
    """Tells whether a plain value is of a type: numbers are finite, a tuple may be a list, a group of keys a dictionary of them."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (list, tuple):
        fixed = origin is tuple and Ellipsis not in inner
        return isinstance(value, (list, tuple)) and (not fixed or len(value) == len(inner)) and all(_fits(one, inner[0]) for one in value)
    if is_dataclass(wanted):
        types = get_type_hints(wanted)
        return isinstance(value, Mapping) and all(name in types and _fits(one, types[name]) for name, one in value.items())
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if wanted is NoneType:
        return value is None
    return isinstance(value, Mapping if wanted is dict else wanted)


def _in_words(wanted: Any) -> str:
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", NoneType: "nothing", dict: "a dictionary"}
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_in_words(one) for one in inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (list, tuple):
        return f"a list, each item {_in_words(inner[0])}"
    return words.get(wanted, "its group of keys")


def _check_depth(values: object, where: str) -> None:
    """Refuses what is nested deeper than anything of ours, without descending further."""
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH):
        inner = (one for value in level for one in (value.values() if isinstance(value, Mapping) else value))
        level = list({id(one): one for one in inner if isinstance(one, (Mapping, list, tuple))}.values())  # each once, however often it is named
        if not level:
            return
    raise InputError(f"{where}: what it says of its network is nested deeper than {MAX_DEPTH} levels: it was not written by cct-lightning.")
