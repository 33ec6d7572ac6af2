"""Whether what a checkpoint holds of an optimizer is that optimizer's: torch looks at the number of parameters alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.training.hardware import is_sharded
from cct_lightning.training.muon import Muon

ADAM = {"step", "exp_avg", "exp_avg_sq"}
SETTINGS = ("betas", "eps", "weight_decay", "momentum", "initial_lr", "nesterov", "amsgrad", "maximize", "muon", "parts")
FACTORS = ("_row", "_col", "_r", "_c")  # of timm's Adafactors, which keep a matrix's averages as those of its rows and columns


def check_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Refuses a state that is none of this optimizer's: other groups, settings or averages, or averages of another shape.

    A hook of ``Optimizer.load_state_dict``. Weights that are sharded over devices are passed over: there torch compares the shapes.

    Args:
        optimizer: Newly made, of the run's configuration.
        state: What is about to be loaded, as ``Optimizer.state_dict`` makes it.

    Raises:
        InputError: Names what differs.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    if any(is_sharded(parameter) for group in groups for parameter in group["params"]):
        return
    ours, theirs = ([len(group["params"]) for group in some] for some in (groups, saved))
    if ours != theirs:
        raise _refused(optimizer, f"its groups have {', '.join(map(str, theirs))} parameters, those of the run {', '.join(map(str, ours))}")
    known: set[Any] = set()
    for group, other in zip(groups, saved, strict=True):
        for name in SETTINGS:
            if name in group and group[name] != other.get(name):
                raise _refused(optimizer, f"{name} is {other.get(name)!r}, and the run has {group[name]!r}")
        for key, parameter in zip(other["params"], group["params"], strict=True):
            known.add(key)
            if key in state["state"]:
                _check(optimizer, group, parameter, key, state["state"])
    if unknown := state["state"].keys() - known:
        raise _refused(optimizer, f"it holds averages of a parameter {unknown.pop()!r}, which no group has")


def _check(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: Tensor, key: object, states: Mapping[Any, Any]) -> None:
    found, where = states[key], f"state.{key}"
    wanted = _names(optimizer, group)
    if wanted and found.keys() != wanted:
        raise _refused(optimizer, f"{where} holds {', '.join(sorted(found)) or 'nothing'}, and should hold {', '.join(sorted(wanted))}")
    for name, value in found.items():
        if isinstance(value, Tensor) and value.numel() != 1 and value.shape != parameter.shape and not name.endswith(FACTORS):
            raise _refused(optimizer, f"{where}.{name} is of shape {tuple(value.shape)}, and its parameter of {tuple(parameter.shape)}")
        if wanted >= ADAM and (not isinstance(value, Tensor) or (name != "step" and value.shape != parameter.shape)):
            raise _refused(optimizer, f"{where}.{name} is none of {'the steps' if name == 'step' else 'its averages'}")


def _names(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> set[str]:
    """Returns what a parameter's state holds; nothing where that is not known."""
    match optimizer:
        case Muon():
            return {"momentum_buffer"} if group["muon"] else ADAM
        case torch.optim.Adam():  # AdamW is one
            return ADAM | ({"max_exp_avg_sq"} if group["amsgrad"] else set())
        case torch.optim.SGD():
            return {"momentum_buffer"}
    return set()


def _refused(optimizer: torch.optim.Optimizer, what: str) -> InputError:
    return InputError(f"the checkpoint's optimizer state is none of this run's {type(optimizer).__name__}: {what}.")
