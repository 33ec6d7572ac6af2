"""A study as its file says it, in plain values: importing this needs no torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.plain_yaml import read_yaml_file
from cct_lightning.training.options import OptimConfig

RATE = "learning_rate"  # in tune: factors on the recipe's own rate, whatever its optimizer
OPTIMIZER, MATRICES, ALL = "model.optim.name", "model.optim.muon_lr", "model.optim.lr"
TUNING_SEED = 1000  # seeds of the runs that choose a value begin here, those that are reported at 0
Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """Runs that differ in one thing.

    Attributes:
        name: Of the study.
        factor: What the arms differ in: a key of the recipe, or words for several.
        arms: Keys of each arm over the recipe's, by its name.
        baseline: The arm that the others are held against.
        across: Keys whose values make a comparison each, such as shares of the data.
        tune: Keys whose value is chosen for each arm, by validation images and by seeds that are not reported; learning_rate, which is no key, stands
            for factors on all rates of the recipe.
        tune_seeds: Number of these.
        fixed: Keys over the recipe's, the same for all.
        pad: Key that is raised in smaller arms until they have the weights of the largest, such as model.mlp_ratio; None: they stay smaller.
        seeds: How many are reported.
        expected: What was expected before anything was measured, in a sentence, to be shown beside what was found.
        rates: The recipe's learning rates by key, where they are tuned: see ``with_rates``.
    """

    name: str
    factor: str
    arms: Mapping[str, Keys]
    baseline: str
    across: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tune_seeds: int = 1
    fixed: Keys = field(default_factory=dict)
    pad: str | None = None
    seeds: int = 3
    expected: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def cells(self) -> list[Keys]:
        """The keys of each comparison: every combination of ``across``, one without keys where there is none."""
        return _combinations(self.across)

    @property
    def trials(self) -> list[Keys]:
        """The keys that are tried for each arm: every combination of ``tune``; none where nothing is."""
        return _combinations(self.tune) if self.tune else []

    def keys_of(self, trial: Keys) -> Keys:
        """Returns the keys that tuned values set: those of all rates for a factor on them."""
        keys = {key: value for key, value in trial.items() if key != RATE}
        return keys | {key: float(f"{trial[RATE] * rate:.6g}") for key, rate in self.rates.items() if RATE in trial}


def _combinations(values: Mapping[str, Sequence[Any]]) -> list[Keys]:
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def told(keys: Keys) -> str:
    """Writes keys and values as a folder's name and a heading: "fraction 0.1, mixup 0"; of none "all"."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in keys.items()) or "all"


def slug(name: str) -> str:
    """Turns a name into one that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", name).strip("-.") or "-"


def read_study(path: Path) -> Study:
    """Reads a study's file.

    Raises:
        InputError: It is none; says what is wrong, and what it should be.
    """
    found = read_yaml_file(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} is no study: it should hold factor and values, such as factor: model.pooling, values: [seqpool, class_token].")
    known = [option.name for option in fields(Study) if option.name not in ("name", "arms", "rates")] + ["values"]
    for name in found:
        if name not in known:
            raise InputError(f"{path}: {name!r} is no part of a study.{did_you_mean(name, known)}")
    factor, values = found.pop("factor", None), found.pop("values", None)
    if not isinstance(factor, str) or not isinstance(values, list | dict) or len(values) < 2:
        raise InputError(f"{path}: factor names what the arms differ in, a key such as model.pooling, and values has two of its values or more.")
    arms = _arms(path, factor, values)
    baseline = found.pop("baseline", next(iter(arms)))
    baseline = str(baseline).lower() if isinstance(baseline, bool) else str(baseline)
    if baseline not in arms:
        raise InputError(f"{path}: baseline={baseline!r} is none of the arms.{did_you_mean(baseline, arms)}")
    for name in ("across", "tune"):
        _check_lists(path, name, found.get(name) or {})
    fixed = found.get("fixed") or {}
    if not isinstance(fixed, dict):
        raise InputError(f"{path}: fixed holds keys with a value each, such as fixed: {{data.per_class: 500}}.")
    kept = {name: value for name, value in found.items() if value is not None}
    study = Study(path.stem, factor, arms, baseline, **kept)
    check_range(f"{path}: seeds", study.seeds, 1)
    check_range(f"{path}: tune_seeds", study.tune_seeds, 1)
    check_once(study, str(path))
    return study


def _arms(path: Path, factor: str, values: Any) -> dict[str, Keys]:
    if isinstance(values, list):
        if "." not in factor:
            raise InputError(f"{path}: factor={factor!r} is no key; with words, values says the keys of each: {{one: {{model.depth: 1}}, two: ...}}.")
        return {str(value).lower() if isinstance(value, bool) else str(value): {factor: value} for value in values}
    for name, keys in values.items():
        if not isinstance(keys, dict):
            raise InputError(f"{path}: values: {name} holds keys, such as {name}: {{model.depth: 1}}; an arm that changes nothing is {{}}.")
    arms: dict[str, Keys] = {str(name): dict(keys) for name, keys in values.items()}
    if len({slug(name) for name in arms}) < len(arms):
        raise InputError(f"{path}: two of the arms {', '.join(arms)} would have the same folder: names differ in more than spaces and signs.")
    return arms


def _check_lists(path: Path, name: str, values: Any) -> None:
    if not isinstance(values, dict) or not all(isinstance(chosen, list) and chosen for chosen in values.values()):
        raise InputError(f"{path}: {name} holds keys with a list of values each, such as {name}: {{model.optim.lr: [1.0e-3, 2.0e-3]}}.")


def with_rates(study: Study, keys: Keys) -> Study:
    """Adds the rates that ``tune: {learning_rate: [0.5, 1, 2]}`` multiplies: model.optim.lr, and with Muon model.optim.muon_lr as well.

    Args:
        study: As its file says it.
        keys: All keys of the recipe and of ``fixed``.

    Raises:
        InputError: A factor is no number above 0; arms or comparisons differ in the optimizer; the rate of Muon is tuned of another optimizer.
    """
    if not {RATE, MATRICES} & set(study.tune):
        return study
    if any(OPTIMIZER in group for group in (*study.arms.values(), study.across, study.tune)):
        raise InputError(f"tune: {RATE} and {MATRICES} go by one optimizer, and the study compares {OPTIMIZER}: tune {ALL}, or make one for each.")
    name = keys.get(OPTIMIZER, OptimConfig.name)
    if MATRICES in study.tune and name != "muon":
        raise InputError(f"tune: {MATRICES} is the rate of muon, and the recipe's optimizer is {name}: {RATE}: [0.5, 1, 2] suits any recipe.")
    for factor in study.tune.get(RATE, ()):
        if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
            raise InputError(f"tune: {RATE}: {factor!r} is no factor on the recipe's rate: numbers above 0, such as {RATE}: [0.5, 1, 2].")
    rates = {ALL: keys.get(ALL, OptimConfig.lr)} | ({MATRICES: keys.get(MATRICES, OptimConfig.muon_lr)} if name == "muon" else {})
    return replace(study, rates=rates) if RATE in study.tune else study


def check_once(study: Study, where: str) -> None:
    """Refuses a key that is set in two places: which of them counts should not have to be known.

    Raises:
        InputError: Names the key and the places.
    """
    places: dict[str, list[str]] = {}
    for place, keys in {
        "across": study.across, "tune": [*study.rates, *(key for key in study.tune if key != RATE)],
        "fixed": [key for key in study.fixed if key not in study.rates], "pad": [study.pad] if study.pad else [],
        "the seeds": ["seed_everything"], "values": {key for arm in study.arms.values() for key in arm},
    }.items():  # fmt: skip
        for key in keys:
            places.setdefault(key, []).append(place)
    for key, found in places.items():
        if len(found) > 1:
            raise InputError(f"{where}: {key} is set by {' and by '.join(found)}: say it in one place.")
