"""What can be typed, called from Python: the same road, checks, folders and files as ``cct``."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import yaml

from cct_lightning.commands import finetune as finetuning
from cct_lightning.commands import fit as fitting
from cct_lightning.commands import folds as folding
from cct_lightning.commands import pretrain as pretraining
from cct_lightning.commands import resume as resuming
from cct_lightning.commands import tune as tuning
from cct_lightning.commands.keys import flatten
from cct_lightning.commands.permissions import Permissions
from cct_lightning.commands.requests import Request
from cct_lightning.commands.running import train
from cct_lightning.commands.tune import Tuned
from cct_lightning.errors import InputError
from cct_lightning.runs.options import Watch
from cct_lightning.runs.run import Run
from cct_lightning.studies.space import plain

if TYPE_CHECKING:
    from cct_lightning.studies.folds import Folds

Recipe = str | PathLike[str]


def fit(
    recipe: Recipe | Sequence[Recipe],
    keys: Mapping[str, Any] | None = None,
    *,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
    watch: Watch | None = None,
) -> Run:
    """Trains a recipe: ``cct fit -c RECIPE --key value ...``, to the bit.

    Args:
        recipe: A recipe's name or path, or several, of which each is laid over those before.
        keys: Keys to set, by dotted names as ``{"model.pooling": "map"}`` or in groups as ``{"model": {"pooling": "map"}}``.
        allow_import: Packages of your own whose classes recipes and keys may name; they run with all your rights. ``__main__`` is the program.
        allow_path: Folders outside the run's that a recipe's callbacks and loggers may write to.
        watch: Is called after each validation with its measures by name, such as ``{"val/accuracy": 0.87}``, and the share of the training that is
            done; where it returns True, the training ends there.

    Returns:
        The run, with its folder, its summary and its best checkpoint.

    Raises:
        InputError: Anything the user can mend.
        KeyboardInterrupt: Ctrl-C; the run's folder then holds what ``resume`` needs.
    """
    recipes = [recipe] if isinstance(recipe, str | PathLike) else list(recipe)
    named = [word for path in recipes for word in ("-c", str(path))]
    return carry_out(replace(fitting.prepare([*named, *_words(keys), *_allowed(allow_import, allow_path)]), watch=watch))


@overload
def finetune(
    images: str | PathLike[str],
    keys: Mapping[str, Any] | None = None,
    *,
    pretrained: str | PathLike[str] | Run | None = None,
    recipe: Recipe | Sequence[Recipe] = (),
    folds: None = None,
    jobs: int = 1,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> Run: ...


@overload
def finetune(
    images: str | PathLike[str],
    keys: Mapping[str, Any] | None = None,
    *,
    pretrained: str | PathLike[str] | Run | None = None,
    recipe: Recipe | Sequence[Recipe] = (),
    folds: int,
    jobs: int = 1,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> "Folds": ...


def finetune(
    images: str | PathLike[str],
    keys: Mapping[str, Any] | None = None,
    *,
    pretrained: str | PathLike[str] | Run | None = None,
    recipe: Recipe | Sequence[Recipe] = (),
    folds: int | None = None,
    jobs: int = 1,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> "Run | Folds":
    """Trains on images of your own: ``cct finetune IMAGES --model.pretrained PRETRAINED --key value ...``.

    Args:
        images: A folder of class folders, or a CSV with the columns path and label.
        keys: Keys to set, as in ``fit``.
        pretrained: Weights to start from: a run, or what ``model.pretrained`` takes; None: those inside the package where they suit, as
            `cct finetune --help` says. ``{"model.pretrained": None}`` among the keys starts from nothing.
        recipe: Recipes that are laid over the default one.
        folds: Parts of the images, each of which a run of its own is tested on, after being trained on the others; None: one run.
        jobs: Runs of folds side by side.
        allow_import: As in ``fit``.
        allow_path: As in ``fit``.

    Returns:
        As ``fit``; of folds what all of them found.

    Raises:
        InputError: Anything the user can mend.
        KeyboardInterrupt: Ctrl-C.
    """
    recipes = [recipe] if isinstance(recipe, str | PathLike) else list(recipe)
    source = pretrained.folder if isinstance(pretrained, Run) else pretrained
    words = [word for path in recipes for word in ("-c", str(path))] + _words(keys) + _allowed(allow_import, allow_path)
    words = [str(images), *([] if source is None else ["--model.pretrained", str(source)]), *words]
    if folds is None:
        return carry_out(finetuning.prepare(words))
    return _of_folds(["finetune", *words, f"--folds={folds}", f"--jobs={jobs}"])


def pretrain(
    images: str | PathLike[str],
    keys: Mapping[str, Any] | None = None,
    *,
    recipe: Recipe | Sequence[Recipe] = (),
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> Run:
    """Learns from images without labels: ``cct pretrain IMAGES --key value ...``. ``finetune`` then begins with its weights, by ``pretrained``.

    Args:
        images: A folder of images at any depth, a CSV with the columns path and label, or the name of a data set.
        keys: Keys to set, as in ``fit``.
        recipe: Recipes that are laid over the default one.
        allow_import: As in ``fit``.
        allow_path: As in ``fit``.

    Returns:
        As ``fit``; its network classifies nothing.

    Raises:
        InputError: Anything the user can mend.
        KeyboardInterrupt: Ctrl-C.
    """
    recipes = [recipe] if isinstance(recipe, str | PathLike) else list(recipe)
    words = [word for path in recipes for word in ("-c", str(path))] + _words(keys) + _allowed(allow_import, allow_path)
    return carry_out(pretraining.prepare([str(images), *words]))


@overload
def resume(
    run: str | PathLike[str] | Run,
    keys: Mapping[str, Any] | None = None,
    *,
    extend_to: int | None = None,
    accept_changed_data: bool = False,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> Run: ...


@overload
def resume(
    run: "Folds",
    keys: Mapping[str, Any] | None = None,
    *,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> "Folds": ...


def resume(
    run: "str | PathLike[str] | Run | Folds",
    keys: Mapping[str, Any] | None = None,
    *,
    extend_to: int | None = None,
    accept_changed_data: bool = False,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> "Run | Folds":
    """Goes on with a run that was stopped, or with one that has ended to more epochs: ``cct resume RUN --extend-to EPOCHS``.

    Args:
        run: The run, or its folder; or folds, or theirs.
        keys: Where it is computed, such as ``{"trainer.accelerator": "cpu"}``.
        extend_to: Epochs in all.
        accept_changed_data: Whether it may go on with other images than it was trained on; summary and config.yaml then say so.
        allow_import: As in ``fit``; what the run was allowed at its start is not remembered.
        allow_path: Likewise.

    Returns:
        The run; as it was, where it has ended and shall not have more epochs. Of folds, also by the path of their folder, the folds.

    Raises:
        InputError: Anything the user can mend.
        KeyboardInterrupt: Ctrl-C.
    """
    folder = str(run if isinstance(run, str | PathLike) else run.folder)
    flags = [f"--{resuming.ACCEPT}"] if accept_changed_data else []
    flags += [] if extend_to is None else ["--extend-to", str(extend_to)]
    words = [folder, *flags, *_words(keys), *_allowed(allow_import, allow_path)]
    if folding.are_asked(["resume", *words]):
        return _of_folds(["resume", *words])
    request = resuming.prepare(words)
    assert request.run is not None
    if resuming.say_finished(request):
        return Run.read(request.run.path)
    return carry_out(request)


def tune(
    recipe: Recipe | Sequence[Recipe],
    search: Mapping[str, str | Sequence[Any]],
    keys: Mapping[str, Any] | None = None,
    *,
    trials: int = tuning.TRIALS,
    minutes: float | None = None,
    out: str | PathLike[str] | None = None,
    jobs: int = 1,
    allow_import: Sequence[str] = (),
    allow_path: Sequence[str | PathLike[str]] = (),
) -> Tuned:
    """Tries values of a recipe's keys: ``cct tune -c RECIPE --key NAME=VALUES --trials N``, by the validation images alone.

    Args:
        recipe: As in ``fit``.
        search: What each key may take: a range as ``{"model.optim.lr": "1e-4..1e-2:log"}``, or its values as ``{"model.depth": [2, 3, 4]}``.
        keys: Keys of all trials, as in ``fit``.
        trials: How many in all, those that are there included.
        minutes: After which none begins.
        out: Folder of the search; None: ``tuning/<recipe>``.
        jobs: How many side by side.
        allow_import: As in ``fit``.
        allow_path: As in ``fit``.

    Returns:
        The best values, their measure, and the folder.

    Raises:
        InputError: Anything the user can mend.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    recipes = [recipe] if isinstance(recipe, str | PathLike) else list(recipe)
    words = [word for path in recipes for word in ("-c", str(path))]
    words += [f"--key={key}={values if isinstance(values, str) else ','.join(map(plain, values))}" for key, values in search.items()]
    words += [f"--{name}={value}" for name, value in {"trials": trials, "minutes": minutes, "out": out, "jobs": jobs}.items() if value is not None]
    return tuning.run(tuning.prepare([*words, *_words(keys), *_allowed(allow_import, allow_path)]))


def carry_out(request: Request) -> Run:
    """Trains what was asked for, and says what came of it.

    Raises:
        InputError: Anything the user can mend.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: Another signal that asks a process to end.
    """
    session = train(request)
    if session.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if session.signal:
        raise SystemExit(128 + session.signal)
    return Run(session.folder.path, session.summary)


def _of_folds(words: list[str]) -> "Folds":
    root, summary = folding.run(folding.prepare(words))
    from cct_lightning.studies.folds import Folds

    return Folds(root, summary)


def _allowed(imports: Sequence[str], paths: Sequence[str | PathLike[str]]) -> list[str]:
    """Writes what is allowed as it is typed."""
    for name, given in (("allow_import", imports), ("allow_path", paths)):
        if isinstance(given, str | PathLike):
            raise InputError(f"{name}={given!r} is one: give a list, such as {name}=[{str(given)!r}].")
    return Permissions(tuple(imports), tuple(map(Path, paths))).words


def _words(keys: Mapping[str, Any] | None) -> list[str]:
    """Writes keys and their values as they are typed."""
    flat = flatten(dict(keys or {}))
    for key in flat:
        if not isinstance(key, str) or key.startswith("-"):
            raise InputError(f"keys are given by their names, such as model.pooling, not {key!r}.")
    return [f"--{key}={_text(value)}" for key, value in flat.items()]


def _text(value: Any) -> str:
    """Writes a value as YAML in one line; text and paths as they are, since that is how they are typed."""
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, tuple):
        value = list(value)
    try:
        return str(yaml.safe_dump(value, default_flow_style=True, width=10**9)).removesuffix("\n").removesuffix("...").strip()
    except yaml.YAMLError:
        raise InputError(f"a key's value is a plain one, such as a number, text, a list or null, not {type(value).__name__}.") from None
