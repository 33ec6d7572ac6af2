"""The card of a trained network: README.md beside its weights, as the Hugging Face Hub shows it. It is written from what the run left."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import cct_lightning
from cct_lightning.data.fingerprint import read_rows
from cct_lightning.data.sets import DATASETS
from cct_lightning.errors import InputError
from cct_lightning.evaluation.measures import measure_of, measured
from cct_lightning.evaluation.options import PASSES
from cct_lightning.run_folder import ENSEMBLE, RunFolder, tables_beside
from cct_lightning.side_files import read_json, read_text, to_number
from cct_lightning.tasks.registry import DEFAULT
from cct_lightning.weights.sources import HUB, PUBLISHED, inside, sha256
from cct_lightning.weights.trained import Saved
from cct_lightning.wording import percent, printable

CARD = "README.md"
PLACE = "FOLDER-OF-THIS-FILE"  # what stands for the network in commands until it has a name on the hub
# What named sets are called on the hub.
ON_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist",
          "imagenet": "ILSVRC/imagenet-1k"}  # fmt: skip
# Keys of a run that say where it was computed, or where something lies: neither repeats it, and the latter is nobody's business.
PLACES = ("data.root", "data.unlabelled", "data.num_workers", "data.cache", "data.max_megapixels", "model.distill.cache")
NO_PATHS = ("model.arch", "data.fold")  # though there is a / in their values
# What says of a test which images it sees, and how.
TESTED = {"dataset", "root", "test_fraction", "split_seed", "fold", "image_size", "crop_pct", "fit", "value_range"}
TRAINER = ("max_epochs", "min_epochs", "max_steps", "min_steps", "precision", "accumulate_grad_batches", "gradient_clip_val",
           "gradient_clip_algorithm", "check_val_every_n_epoch", "val_check_interval", "limit_train_batches", "limit_val_batches",
           "limit_test_batches")  # fmt: skip
SHARES = ("accuracy", "mAP", "r2", "exact", "f1", "f1_micro", "top5", "calibration_error", "knn")  # measures that are told in per cent
LISTED = 40  # classes by name
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,39}")


@dataclass(frozen=True)
class Told:
    """What is known of how a network came about; nothing of what is not.

    Attributes:
        recipe: All keys of its run.
        summary: What came of the run; of folds what came of these.
        test: What its test measured.
        rows: Number of the images that were there, by split, before any were set aside.
    """

    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    test: Mapping[str, Any]
    rows: Mapping[str, int]

    def key(self, name: str) -> Any:
        """Returns the value of a key; None where it is not known."""
        value: Any = self.recipe
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def look_up(saved: Saved) -> Told:
    """Reads what a checkpoint and the run around it tell of it; what is damaged is not known."""
    about = (saved.opened.about if saved.opened is not None else None) or {}
    recipe, path = about.get("recipe") or {}, saved.weights
    if path.name == ENSEMBLE:
        return Told(recipe, _numbers(read_json(path.with_name("summary.json"))), {}, {})
    run = RunFolder(path.parent.parent) if path.parent.name == "checkpoints" else None
    test = read_json(tables_beside(path, str(_group(recipe, "data").get("dataset")), "test") / "measures.json")
    if not _is_of(test, path, _group(recipe, "data")):
        test = {}
    rows: dict[str, int] = {}
    for row in read_rows(run.images_file) if run is not None else []:
        if row.split != "class":
            rows[row.split] = rows.get(row.split, 0) + (row.size if row.name == f"the set of {row.split} images" else 1)
    views = {"tta": test["tta"]} if test.get("tta") in tuple(PASSES) else {}
    return Told(recipe, run.summary if run is not None else {}, _numbers(test) | views, rows)


def _is_of(test: Mapping[str, Any], checkpoint: Path, data: Mapping[str, Any]) -> bool:
    """Tells whether a test was of these very weights, and of the images that its run sets aside, as the run sees them."""
    theirs = _group(test, "data")
    same = all(theirs[name] == (list(data[name]) if isinstance(data[name], tuple) else data[name]) for name in TESTED & theirs.keys() & data.keys())
    return same and ("sha256" not in test or test["sha256"] == sha256(checkpoint))


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}


def _group(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = recipe.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def card(saved: Saved, told: Told) -> str:
    """Writes the card. No path, no name of a project, a machine or a user of the run's is in it; names of classes are.

    Args:
        saved: The network.
        told: What is known of it.
    """
    head = yaml.safe_dump(_head(saved, told), sort_keys=False, allow_unicode=True, width=140)
    title = f"{saved.model['arch']} on {_data_name(told)}"
    parts = [f"---\n{head}---\n# {title}", _what(saved, told), _use(), _figures(saved, told), _data(told), _limits(saved, told), _again(saved, told)]
    return "\n\n".join(filter(None, parts)) + "\n"


def is_card(path: Path) -> bool:
    """Tells whether a file is a card that was written here, edited or not."""
    return "library_name: cct-lightning\n" in read_text(path)[:2000]


def with_license(text: str, license: str) -> str:
    """Puts a licence into the card's head, in the place of one that is there.

    Raises:
        InputError: It is none that the hub would know, by its form; the card has no head.
    """
    if not LICENSE.fullmatch(license):
        raise InputError(f"--license {license}: it is named as on the hub, such as apache-2.0, mit, cc-by-4.0 or other.")
    if not text.startswith("---\n"):
        raise InputError(f"{CARD} does not begin with a head between lines of ---: write license: {license} into one.")
    head, end, body = text.removeprefix("---\n").partition("\n---\n")
    kept = [line for line in head.splitlines() if not line.startswith("license:")]
    body = body.replace("Licence: not stated.", f"Licence: {license}.")
    return "\n".join(["---", f"license: {license}", *kept]) + end + body


def _task(told: Told) -> str:
    return str(told.recipe.get("task") or DEFAULT)


def _data_name(told: Told) -> str:
    return "images of its author's own" if _is_own(told) else str(told.key("data.dataset"))


def _is_own(told: Told) -> bool:
    """Tells whether the images are the user's own, and not a set by name."""
    about = DATASETS.get(str(told.key("data.dataset")))
    return about is None or about.num_classes is None


def _measured(told: Told) -> dict[str, float]:
    """Returns the measures of the test that are numbers, the accuracy first."""
    return {name: float(value) for name, value in told.test.items() if name not in ("n", "split_size", "tta")}


def _head(saved: Saved, told: Told) -> dict[str, Any]:
    """What the hub reads: kind, tags, data, measures."""
    arch, dataset, measured = str(saved.model["arch"]), told.key("data.dataset"), _measured(told)
    head: dict[str, Any] = {"library_name": "cct-lightning"}
    if _task(told) in (DEFAULT, "multilabel"):
        head["pipeline_tag"] = "image-classification"
    head["tags"] = ["cct-lightning", "vision-transformer", "pytorch", arch.replace("/", "-")]
    if dataset in ON_HUB:
        head["datasets"] = [ON_HUB[dataset]]
    if (source := str(told.key("model.pretrained") or "")).startswith(HUB):
        head["base_model"] = source.removeprefix(HUB).partition("@")[0]
    if found := [name for name in ("accuracy", "f1") if name in measured]:
        head["metrics"] = found
    if "accuracy" in measured and _task(told) == DEFAULT:
        about = {"name": _data_name(told), "type": ON_HUB.get(str(dataset), "imagefolder" if _is_own(told) else str(dataset)), "split": "test"}
        value = {"type": "accuracy", "value": round(measured["accuracy"], 4)}
        result = {"task": {"type": "image-classification"}, "dataset": about, "metrics": [value]}
        head["model-index"] = [{"name": arch, "results": [result]}]
    return head


def _what(saved: Saved, told: Told) -> str:
    height, width = saved.preprocessing["image_size"]
    channels, names = saved.preprocessing["in_chans"], [printable(name) for name in saved.class_names]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    several = f"{saved.members} networks {saved.model['arch']}, the mean of whose probabilities counts" if saved.members > 1 else saved.model["arch"]
    count = told.summary.get("num_parameters")
    size = f" ({count:,} parameters)" if isinstance(count, int) else ""
    return (
        f"{several}{size}, for images of {height} x {width} pixels and {channels} channel{'s' * (channels > 1)}.\n\n"
        f"Tells {len(names)}: {', '.join(names[:LISTED])}{more}. config.json has them in their order, and how images are prepared."
    )


def _use() -> str:
    return f"""## Use

    pip install cct-lightning
    cct predict {PLACE} photo.jpg
    cct finetune YOUR_IMAGES --model.pretrained {PLACE}

or in Python `cct_lightning.load("{PLACE}").predict("photo.jpg")`. The weights are safetensors: nothing of them is run."""


def _figures(saved: Saved, told: Told) -> str:
    lines, found, summary = [], _measured(told), told.summary
    if found and (n := told.test.get("n")):
        shown = ", ".join(f"{name.replace('_', ' ')} {_figure(name, value)}" for name, value in found.items())
        views = told.test.get("tta", "none")
        lines.append(
            f"- test, {n:,} images, {'each seen once, as it is' if views in ('none', None) else f'each seen as --tta {views} says'}: {shown}"
        )
    if saved.members > 1 and {"accuracy", "deviation", "n"} <= summary.keys():
        spread = f"{percent(summary['accuracy'], 2).removesuffix(' %')} ± {100 * summary['deviation']:.2f} %"
        lines.append(f"- folds, {summary['n']:,} images, each tested once by the one network that had not seen it: accuracy {spread}")
        if {"test_accuracy", "num_tested"} <= summary.keys():
            lines.append(
                f"- test, {summary['num_tested']:,} images in no fold, all networks together: accuracy {percent(summary['test_accuracy'], 2)}"
            )
    elif (validation := measured(summary, "val")) is not None and saved.weights.name == "best.ckpt":
        lines.append(f"- validation: {measure_of(summary).title} {percent(validation, 2)}, by which the epoch was chosen, so it flatters")
    lines = lines or ["- nothing was measured, or what was is not known here"]
    heat = (
        f"\n\nLogits are to be divided by {saved.temperature:.3g} (config.json), a temperature fitted to validation images."
        if saved.temperature != 1
        else ""
    )
    return "## Figures\n\n" + "\n".join(lines) + heat


def _figure(name: str, value: float) -> str:
    return percent(value, 2) if name in SHARES else f"{value:.4g}"


def _data(told: Told) -> str:
    text = [f"Trained on {_data_name(told)}{', which are not published here' * _is_own(told)}."]
    if told.rows:
        text.append(f"There were {', '.join(f'{count:,} {split} images' for split, count in told.rows.items())}.")
        aside = [name for name in ("val", "test") if name not in told.rows and told.key(f"data.{name}_fraction")]
        if aside:
            shares = " and ".join(f"{name} (data.{name}_fraction {told.key(f'data.{name}_fraction')})" for name in aside)
            text.append(f"Of the train images some were set aside for {shares}, by data.split_seed {told.key('data.split_seed')}.")
    if (few := told.key("data.per_class")) is not None:
        text.append(f"It learned from {few} images of each class.")
    elif told.key("data.fraction") not in (None, 1, 1.0):
        text.append(f"It learned from the share {told.key('data.fraction')} of them.")
    for key, what in (("model.pretrained", "It began with"), ("model.teacher", "It learned, too, from")):
        if (source := told.key(key)) is not None:
            text.append(f"{what} {f'the weights {source}' if _is_public(str(source)) else 'weights of its author'}.")
    return "## Data\n\n" + " ".join(text)


def _is_public(source: str) -> bool:
    name, _, file = source.partition("@")
    return source in inside() or source in PUBLISHED or source.startswith(HUB) or (name.startswith("timm/") and not file)


def _limits(saved: Saved, told: Told) -> str:
    lines = []
    if _task(told) == DEFAULT:
        lines.append(
            f"- It answers with one of its {len(saved.class_names)} classes whatever it is shown, also for images of none of them, unless\n"
            "  config.json has a threshold (reject) below which it says none."
        )
    lines.append(
        "- How right it is on images from elsewhere (another camera, place, time) is not known: the figures are of images like those it learned."
    )
    lines.append("- Whom or what its mistakes concern was not looked at; test it on your own images before anything depends on it.")
    return "## Limits\n\n" + "\n".join(lines) + "\n\nLicence: not stated."


def _again(saved: Saved, told: Told) -> str:
    if not told.recipe:
        return ""
    summary = told.summary
    cost = []
    if summary.get("steps") and summary.get("epochs") is not None:
        cost.append(f"{summary['epochs']:,} epochs, {summary['steps']:,} steps")
    if to_number(summary.get("seconds")) == summary.get("seconds") and summary.get("device"):
        cost.append(f"{summary['seconds']:,.0f} s on {summary['device']}")
    versions = f"cct-lightning {cct_lightning.__version__}"
    command = f"cct fit -c recipe.yaml{' --data.root YOUR_IMAGES' * _is_own(told)}"
    text = yaml.safe_dump(recipe_of(told), sort_keys=False, width=140, default_flow_style=None)
    note = "" if saved.members == 1 else "It is that of each fold, without its number: `cct finetune YOUR_IMAGES --folds N -c recipe.yaml`.\n\n"
    return f"## Again\n\n    {command}\n\n{note}{', '.join([*cost, f'written by {versions}'])}. recipe.yaml is\n\n```yaml\n{text}```"


def recipe_of(told: Told) -> dict[str, Any]:
    """Returns the keys that repeat a run, and none that says where something lies on somebody's machine."""
    recipe = told.recipe
    kept: dict[str, Any] = {"seed_everything": recipe.get("seed_everything", 0), "task": _task(told)}
    for group in ("model", "data"):
        kept[group] = _without_places(_group(recipe, group), f"{group}.")
    trainer = _group(recipe, "trainer")
    kept["trainer"] = {name: trainer[name] for name in TRAINER if trainer.get(name) is not None}
    if averages := [_callback(one) for one in _listed(trainer.get("callbacks")) if _name(one) == "EMA"]:
        kept["trainer"]["callbacks"] = averages
    return kept | ({"checkpoint": checkpoint} if (checkpoint := _group(recipe, "checkpoint")) else {})


def _without_places(group: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in group.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found[name] = _without_places(dict(value), f"{key}.")
        elif value is not None and key not in PLACES and not _is_place(key, value):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _is_place(key: str, value: object) -> bool:
    """Tells whether a value may be a path, or a file's name."""
    if not isinstance(value, str) or _is_public(value):
        return False
    return key in ("model.pretrained", "model.teacher") or (key not in NO_PATHS and bool(re.search(r"[/\\\\~]", value)))


def _listed(callbacks: Any) -> Sequence[Any]:
    return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def _name(callback: Any) -> str:
    return str(callback.get("class_path") if isinstance(callback, Mapping) else callback).rpartition(".")[2]


def _callback(callback: Any) -> Any:
    arguments = callback.get("init_args") if isinstance(callback, Mapping) else None
    return {"class_path": "EMA", "init_args": dict(arguments)} if arguments else "EMA"
