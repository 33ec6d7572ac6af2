"""``cct predict``: what is typed, checked without torch, and the rows that are written."""

import json
import shlex
import sys
import textwrap
import time
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from cct_lightning.commands.keys import check_value, groups, known_keys
from cct_lightning.commands.rows import opened_for_rows, row_writer
from cct_lightning.commands.words import CONFIG, read_words
from cct_lightning.data.files import find_images
from cct_lightning.data.options import Fit
from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.evaluation.options import PASSES, cost
from cct_lightning.inference.options import ACCELERATORS, PRECISIONS
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.plain_yaml import read_yaml
from cct_lightning.tasks.options import FROM_DATA
from cct_lightning.weights.sources import find_source

if TYPE_CHECKING:
    from cct_lightning.inference.predictor import Predictor


FORMATS = ("csv", "jsonl")
CHOICES = {
    "format": FORMATS,
    "data.fit": get_args(Fit),
    "tta": tuple(PASSES),
    "trainer.accelerator": ACCELERATORS,
    "trainer.precision": PRECISIONS,
}
NUMBERS = ("top_k", "data.image_size", "data.crop_pct", "data.batch_size", "data.max_megapixels")
OPTIONS = ("out", "overwrite", *CHOICES, *NUMBERS)
NO_EFFECT = ("drop_path", "attn_drop", "proj_drop", *FROM_DATA)  # options of a network that change no prediction
HELP = """cct predict SOURCE PATH... [--key value] ...

Classifies images, or tells their labels or numbers; needs no recipe. SOURCE is a run's checkpoint or folder, a folder that `cct export` wrote, or
the .onnx or .pt2 in it. PATH is an image, a folder (with all below it), a glob ("photos/**/*.jpg") or a .tar of WebDataset. What can't be read
becomes a row with an error.

  --out FILE                   .csv or .jsonl, one row for each image, in order; rows are there as soon as they are known.
                               Left out: CSV to the screen.
  --overwrite                  replace FILE where it exists
  --format csv|jsonl           of what goes to the screen (default: csv)
  --top_k N                    the N most probable classes of each image (default: 1); of task multilabel beside the labels by their thresholds
  --tta none|mirror|shift      what is seen of each image (default: none, the image): mirror sees its mirror, too, and takes twice the time;
                               shift sees both as they are and shifted by a pixel for each 32 of a side, up and to the left, down and to
                               the right, and takes six times. The mean of the probabilities counts.
  --data.image_size N          side of the images given to the network (default: as in the training)
  --data.crop_pct X            share of the image that is seen, along each side (default: as in the training)
  --data.fit crop|pad|squash   how an image of other proportions gets into that size (default: as in the training)
  --data.batch_size N          images at a time (default: 256 on a GPU, else 32; halved where they don't fit into memory)
  --data.max_megapixels X      images of more millions of pixels are not read (default: 100)
  --trainer.accelerator auto|cpu|cuda|gpu|mps
                               auto takes a GPU where there is one
  --trainer.precision 32-true|bf16-mixed|16-mixed
                               (default: 32-true, so that every machine gives the same; the others are faster on a GPU)
  --model.KEY VALUE            another network than the checkpoint's, as long as its weights fit; KEY is one of
                               {network}
Dashes may stand for underscores: --top-k 3.

After `cct test SOURCE --reject 0.95` each row has a score; where that is below the threshold the class is none, without a probability, and the
classes follow it.

Exit code: 0; 1 where not one image could be read; 2 where the command is wrong."""


def load(source: str | Path, **options: Any) -> "Predictor":
    """Opens a trained network, see ``predictor.load``; importing this one needs no torch."""
    predictor: Predictor = import_module("cct_lightning.inference.opening").load(source, **options)
    return predictor


class Request(NamedTuple):
    """What was typed: the network's source, paths of images, and options by their names."""

    source: str
    paths: list[str]
    options: dict[str, Any]


def network_keys() -> tuple[str, ...]:
    """Returns the keys that describe the network."""
    return tuple(f"model.{option.name}" for option in fields(NetworkOptions) if option.name not in NO_EFFECT)


def parse(arguments: list[str], command: str = "predict", options_taken: tuple[str, ...] = OPTIONS) -> Request:
    """Reads the words behind ``cct predict`` or another command that has a network read images.

    Args:
        arguments: The words.
        command: As typed, for the messages.
        options_taken: Its options, beside those that describe the network; dashes in a name may be typed for underscores.

    Raises:
        InputError: An unknown option, a value that an option can't have, or a word is missing.
    """
    takes = [*options_taken, *network_keys()]
    typed = read_words(arguments, command, ("overwrite",), lambda key: _meant(key, takes, command))
    options = {option.key: True if option.value is None else _value(option.key, option.value, command) for option in typed.options}
    positional = typed.alone
    if not positional:
        raise InputError(f"{command} needs a network and images: cct {command} runs/.../checkpoints/best.ckpt photos/")
    if len(positional) == 1:
        raise InputError(f"{command} needs images, too: files, folders or globs, as in cct {command} {positional[0]} photos/")
    return Request(positional[0], positional[1:], options)


def _meant(typed: str, takes: list[str], command: str) -> str:
    """Returns the name of an option that was typed, perhaps with dashes for underscores; refuses what the command does not take."""
    for name in (typed, typed.replace("-", "_")):
        if name in takes:
            return name
    if (name := typed) == CONFIG:
        raise InputError(f"{command} takes no recipe: the checkpoint knows its own, and options such as --data.crop_pct win over it.")
    if name in groups():
        raise InputError(f"--{name} is a group of keys: give one of them. `cct {command} --help` lists those that {command} takes.")
    if name in known_keys():
        why = "the checkpoint knows it" if name.startswith("model.") and name.removeprefix("model.") in FROM_DATA else "it is for trainings and tests"
        raise InputError(f"--{name} means nothing to {command}: {why}. `cct {command} --help` lists what it takes.")
    raise InputError(f"{command} has no option --{name}.{did_you_mean(name, takes, listed=0)} `cct {command} --help` lists them.")


def _value(name: str, text: str, command: str) -> Any:
    """Reads an option's value, and refuses what it can't be."""
    if name in CHOICES:
        if text not in CHOICES[name]:
            raise InputError(f"--{name}={text}: {command} takes {', '.join(CHOICES[name])}.{did_you_mean(text, CHOICES[name], listed=0)}")
        return text
    if name in ("out", "picture"):
        return text
    try:
        value = read_yaml(text, f"--{name}")
    except InputError:
        value = text
    if name.startswith("model."):
        return _network_value(name, value)
    if name == "data.image_size" and isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value):
        check_range(f"--{name}", min(value), 1)
        return tuple(value)
    whole = name not in ("data.crop_pct", "data.max_megapixels")
    if type(value) is not int and (whole or type(value) is not float):
        raise InputError(f"--{name}={text}: it takes a {'whole ' if whole else ''}number.")
    low, high = (1, float("inf")) if whole else (0, 1.0 if name == "data.crop_pct" else float("inf"))
    check_range(f"--{name}", value, low, high, exclusive="" if whole else "low")
    return value


def _network_value(name: str, value: object) -> object:
    check_value(name, value, "command line")
    takes = known_keys()[name].type.split(" | ")
    fits = {"int": type(value) is int, "float": type(value) in (int, float), "bool": type(value) is bool, "None": value is None}
    if not any(fits.get(kind, isinstance(value, str)) for kind in takes):
        names = {"int": "a whole number", "float": "a number", "bool": "true or false", "None": "null"}
        raise InputError(f"--{name}={value}: it takes {' or '.join(names.get(kind, 'a name') for kind in takes)}.")
    return value


def check_out(out: Path, overwrite: bool, asked: str | None) -> str:
    """Returns the format that a file's name asks for.

    Raises:
        InputError: It asks for none, or the file can't be written or must not.
    """
    suffix = out.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise InputError(f"--out {out}: the name says the format, and ends in .csv or .jsonl.")
    if asked not in (None, suffix):
        raise InputError(f"--out {out} and --format {asked} contradict each other: --format is for what goes to the screen.")
    check_place(out, overwrite)
    return suffix


def check_place(out: Path, overwrite: bool, option: str = "out") -> None:
    """Refuses a file that can't be written, or must not.

    Raises:
        InputError: It is a folder or in none, or is there and shall not be replaced.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--{option} {out}: {'that is a folder' if out.is_dir() else f'there is no folder {out.parent}'}.")
    if out.exists() and not overwrite:
        raise InputError(f"--{option} {out} exists: name another file, or replace it with --overwrite.")


def check_images(paths: list[str]) -> None:
    """Refuses paths that lead to no image at all, before anything heavy is imported.

    Raises:
        InputError: Says why the first of them leads to none.
    """
    if all(found.error for found in find_images(paths)):
        found = next(find_images(paths))
        others = f", and nothing at the other {len(paths) - 1} path(s)" if len(paths) > 1 else ""
        raise InputError(f"No image to classify. {found.path}: {found.error}{others}.")


def open_network(source: str, options: dict[str, Any]) -> "Predictor":
    """Opens a trained network with what was typed."""
    return load(source, **{key.rpartition(".")[2]: value for key, value in options.items() if "." in key})


def print_usage(text: str) -> None:
    """Prints a help, with the names of the keys that describe the network in the place of ``{network}``."""
    names = ", ".join(name.removeprefix("model.") for name in network_keys())
    print(text.format(network=textwrap.fill(names, 110, subsequent_indent=" " * 31)))


def main(arguments: list[str]) -> None:
    """Runs ``cct predict`` with the words behind it."""
    if {"-h", "--help"} & set(arguments):
        print_usage(HELP)
        return
    source, paths, options = parse(arguments)
    find_source(source)
    out = Path(options["out"]).expanduser() if "out" in options else None
    kind = check_out(out, "overwrite" in options, options.get("format")) if out else options.get("format", "csv")
    check_images(paths)

    predictor = open_network(source, options)
    top_k = options.get("top_k", 1)
    check_range("--top_k", top_k, 1)
    if top_k > 1 and predictor.output.kind == "numbers":
        raise InputError(f"--top_k={top_k} is for classes and labels, and this network tells numbers: leave it out.")
    top_k = min(top_k, len(predictor.class_names))  # of two classes there are no three most probable
    total = bad = rejected = 0
    began, interrupted = time.perf_counter(), False
    with opened_for_rows(out) as file:
        write = row_writer(file, kind, top_k, predictor.output.kind, predictor.class_names, predictor.rejection is not None)
        try:
            for batch in predictor.batches(paths, top_k, options.get("tta", "none")):
                for prediction in batch:
                    write(prediction)
                    total, bad = total + 1, bad + (prediction.error is not None)
                    rejected += prediction.score is not None and prediction.probability is None
                file.flush()
        except KeyboardInterrupt:
            interrupted = True
    speed = f"{total / (time.perf_counter() - began):,.0f} images/s on {predictor.device_name}"
    which = f"{bad:,} of them bad (the rows say why)" if bad else "none bad"
    which += f", {rejected:,} none of the classes" if predictor.rejection is not None else ""
    told = f"{total:,} image(s), {which}, {speed}{cost(options.get('tta', 'none'))}"
    print(f"{'interrupted: ' if interrupted else ''}{told}{f'; written to {out}' if out else ''}", file=sys.stdout if out else sys.stderr)
    print(f"next\n  {_next(source, paths, options)}", file=sys.stdout if out else sys.stderr)
    if interrupted or bad == total:
        sys.exit(130 if interrupted else 1)


def _next(source: str, paths: list[str], options: dict[str, Any]) -> str:
    """Returns what to type next: rows to the screen were a try, and a checkpoint whose rows are kept is worth an export."""
    out, command = options.get("out"), shlex.join(["cct", "predict", source])
    kept = {name: value for name, value in options.items() if name not in ("out", "overwrite", "format")}
    if out is None:
        where = shlex.join(paths) if len(paths) < 4 else "PATH..."
        return f"{command} {where}{_typed(kept)} --out predictions.{options.get('format', 'csv')}"
    if find_source(source).suffix == ".ckpt":
        return f"{shlex.join(['cct', 'export', source])} --format onnx"
    return f"{command} PATH...{_typed({'out': out, 'top_k': 3} | kept)} --overwrite"


def _typed(options: dict[str, Any]) -> str:
    """Returns options as they are typed."""
    words = ((f"--{name}", value if isinstance(value, str) else json.dumps(value)) for name, value in options.items())
    return "".join(f" {shlex.join(pair)}" for pair in words)
