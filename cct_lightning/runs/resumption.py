"""Whether a run can go on from its last checkpoint: looked at before anything is built, since what is wrong in it would train on unseen."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from cct_lightning.callbacks import ProgressBar
from cct_lightning.errors import InputError
from cct_lightning.tasks.registry import DEFAULT
from cct_lightning.training.options import OptimConfig
from cct_lightning.weights.files import Opened
from cct_lightning.weights.soundness import not_finite, tensors_in


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_duration(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _is_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())


def _are_measures(value: object) -> bool:  # of which one may be NaN
    return isinstance(value, Mapping) and all(isinstance(name, str) and isinstance(part, int | float) for name, part in value.items())


def _is_one_mapping(value: object) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping)


def _are_mappings(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, Mapping) for part in value)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_text_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


# What a last.ckpt must hold, by names, and how it is told from what it can't be.
WANTED: dict[tuple[str, ...], tuple[Callable[[object], bool], str]] = {
    ("epoch",): (_is_count, "a number of epochs"),
    ("global_step",): (_is_count, "a number of steps"),
    ("state_dict",): (_is_tensors, "the weights by name"),
    ("optimizer_states",): (_is_one_mapping, "the state of one optimizer"),
    ("optimizer_states", "state"): (lambda value: isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values()), "averages"),
    ("optimizer_states", "param_groups"): (_are_mappings, "groups of parameters"),
    ("lr_schedulers",): (_is_one_mapping, "the state of one schedule"),
    ("lr_schedulers", "last_epoch"): (_is_count, "a number of steps"),
    ("lr_schedulers", "base_lrs"): (_are_numbers, "rates"),
    ("lr_schedulers", "_last_lr"): (_are_numbers, "rates"),
    ("loops", "fit_loop", "epoch_progress", "current", "processed"): (_is_count, "a number of epochs"),
    ("loops", "fit_loop", "epoch_loop.batch_progress", "current", "processed"): (_is_count, "a number of batches"),
    ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed"): (
        _is_count, "a number of steps",
    ),
    ("callbacks",): (_is_text_mapping, "the state of the callbacks"),
    ("ImageDataModule", "epoch"): (_is_count, "a number of epochs"),
    ("ImageDataModule", "batches"): (_is_count, "a number of batches"),
    ("sitting", "number"): (_is_count, "a number of sittings"),
    ("sitting", "seconds"): (_is_duration, "seconds"),
    ("sitting", "cpu_seconds"): (_is_duration, "seconds"),
    ("sitting", "rows"): (_is_count, "a number of rows"),
    ("sitting", "unlogged"): (_are_measures, "measures"),
    ("sitting", "unlogged_step"): (_is_number, "a number of steps"),
    ("sitting", "measures"): (_are_measures, "measures"),
    ("sitting", "validating"): (_is_bool, "true or false"),
    ("sitting", "should_stop"): (_is_bool, "true or false"),
    ("cct_lightning", "seed"): (_is_count, "a seed"),
    ("cct_lightning", "epoch_loss"): (_is_number, "a loss"),
    ("cct_lightning", "recipe", "trainer"): (_is_text_mapping, "keys"),
    ("cct_lightning", "recipe", "model"): (_is_text_mapping, "keys"),
}  # fmt: skip
ABSENT = object()


def check_states(trainer: Trainer, checkpoint: Mapping[str, Any], path: object) -> None:
    """Refuses states of callbacks that the run does not have, and a lack of those of its loops and callbacks: an early stopping would count anew.

    Args:
        trainer: With the run's callbacks.
        checkpoint: What is about to be taken up.
        path: The checkpoint.

    Raises:
        InputError: Names what is unknown or missing.
    """
    if lacking := _lacking(trainer.fit_loop.state_dict(), checkpoint["loops"]["fit_loop"], "loops.fit_loop"):
        raise InputError(f"{path} can't be gone on from: {lacking} is missing.")
    states = checkpoint["callbacks"]
    bar = ProgressBar.__qualname__  # which may be off in one sitting and on in another
    if not any(isinstance(callback, ProgressBar) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        states.pop(bar, None)
    ours = {callback.state_key for callback in trainer.callbacks if callback.state_dict()}  # type: ignore[attr-defined]
    for name in sorted((states.keys() ^ ours) - {bar}):
        short = name.partition("{")[0]
        what = f"the run has no callback {short}" if name in states else f"it has none of the callback {short}"
        raise InputError(f"{path} can't be gone on from: of the states of callbacks, {what} ({name:.150}).")


def _lacking(wanted: object, found: object, name: str) -> str:
    """Returns the name of what one nested dictionary has and the other one lacks, the empty string where that is nothing."""
    if not isinstance(wanted, Mapping):
        return ""
    if not isinstance(found, Mapping):
        return name
    parts = (_lacking(part, found[key], f"{name}.{key}") if key in found else f"{name}.{key}" for key, part in wanted.items())
    return next(filter(None, parts), "")


def check_resumable(opened: Opened) -> None:
    """Refuses a checkpoint in which something is missing, of another kind than it should be, contradictory, NaN or inf.

    Args:
        opened: A run's last.ckpt.

    Raises:
        InputError: Names the file, what is wrong in it and where.
    """
    content = opened.content
    for names, (fits, wanted) in WANTED.items():
        if not fits(found := _at(content, names)):
            what = "is missing" if found is ABSENT else f"is {_shown(found)}"
            raise _damaged(opened, f"{'.'.join(names)} {what}, and should be {wanted}")
    if bad := not_finite(tensors_in({name: content.get(name) for name in ("state_dict", "ema", "optimizer_states")})):
        raise _damaged(opened, f"{bad[0]} holds NaN or inf")
    _check_counts(opened)
    recipe = content["cct_lightning"]["recipe"]
    if content["global_step"]:
        _check_optimizer(opened, recipe)
    _check_average(opened, recipe)


def _at(content: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        content = content[0] if isinstance(content, list) and content else content
        if not isinstance(content, Mapping) or name not in content:
            return ABSENT
        content = content[name]
    return content


def _shown(value: object) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Mapping | list | Tensor) else f"{value!r:.40}"


def _damaged(opened: Opened, what: str) -> InputError:
    return InputError(f"{opened.path} can't be gone on from: {what}. It was changed, or written by something else.")


def _check_counts(opened: Opened) -> None:
    """Refuses counters that contradict each other: the weights would be of another step than the order of the images."""
    content, loop = opened.content, ("loops", "fit_loop")
    epochs = _at(content, (*loop, "epoch_progress", "current", "processed"))
    steps = _at(content, (*loop, "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed"))
    for where, said, meant in (
        (("epoch",), (epochs, epochs - 1), epochs),  # one less at the end of an epoch
        (("ImageDataModule", "epoch"), (epochs,), epochs),
        (("global_step",), (steps,), steps),
    ):
        if (found := _at(content, where)) not in said:
            raise _damaged(opened, f"{'.'.join(where)} is {found}, and its loops stand at {meant}")
    for key, state in content["optimizer_states"][0]["state"].items():
        if isinstance(step := state.get("step"), Tensor) and not (step.numel() == 1 and 0 <= float(step) <= steps):
            raise _damaged(opened, f"optimizer_states.state.{key}.step is {step.tolist()!r:.40}, of {steps} steps")


def _check_optimizer(opened: Opened, recipe: Mapping[str, Any]) -> None:
    """Refuses an optimizer that begins anew, in whole or in part."""
    state, optim = opened.content["optimizer_states"][0], recipe["model"].get("optim") or {}
    if str(optim.get("name")).lower() in ("sgd", "momentum") and not optim.get("momentum", OptimConfig.momentum):
        return  # which remembers nothing
    parameters = [key for group in state["param_groups"] for key in group.get("params", ())]
    absent = [key for key in parameters if not state["state"].get(key)]
    if not parameters or len(absent) == len(parameters) or (absent and recipe.get("task", DEFAULT) == DEFAULT):  # others may have idle parameters
        which = f"of parameter {absent[0]}" if len(absent) < len(parameters) else "of any parameter"
        raise _damaged(opened, f"optimizer_states.state has no averages {which}, after {opened.content['global_step']} steps")


def _check_average(opened: Opened, recipe: Mapping[str, Any]) -> None:
    """Refuses an average of the weights that is not the callback's."""
    content, callbacks = opened.content, recipe["trainer"].get("callbacks") or []
    named = [one for one in (callbacks if isinstance(callbacks, list) else [callbacks]) if isinstance(one, Mapping)]
    given = [one for one in named if str(one.get("class_path")).rpartition(".")[2] == "EMA"]
    if not given:
        if "ema" in content:
            raise _damaged(opened, "it holds an average of the weights (ema), and the run has no callback EMA")
        return
    options, steps, average = given[0].get("init_args") or {}, content["global_step"], content.get("ema")
    every, start = options.get("every_n_steps", 1), options.get("start_step", 0)
    if average is None:
        if steps >= (start // every + 1) * every:
            raise _damaged(opened, f"ema is missing, which the callback EMA has from step {(start // every + 1) * every} on")
        return
    if not isinstance(average, Mapping) or not _is_tensors(average.get("raw")) or not all(_is_count(average.get(n)) for n in ("updates", "step")):
        raise _damaged(opened, "ema should hold raw, the weights by name, and updates and step, whole numbers")
    if not average["updates"] <= average["step"] <= steps:
        raise _damaged(opened, f"ema has {average['updates']} updates up to step {average['step']}, of {steps} steps")
    weights = content["state_dict"]
    for name, tensor in average["raw"].items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise _damaged(opened, f"ema.raw.{name} is {'unknown' if name not in weights else 'of another shape'} among the weights")
