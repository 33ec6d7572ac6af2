"""Numbers out of range, refused with the key's name before anything heavy is imported: of our keys by the classes that hold them, of Lightning's
Trainer by a table, since it finds many of them only in the training, or never."""

import math
from dataclasses import fields, is_dataclass
from functools import cache
from typing import NamedTuple, get_args, get_type_hints

from cct_lightning.data.options import DataOptions
from cct_lightning.errors import InputError, check_range
from cct_lightning.tasks.registry import TASKS, task_options


class Range(NamedTuple):
    """What a number of the Trainer may be.

    Attributes:
        low: Least value.
        others: Values below it that mean something of their own, such as -1 for no limit.
        share: Whether a number that is not whole is a share, more than 0 and at most 1.
        zero: Whether 0 is a share, too.
    """

    low: float
    others: tuple[float, ...] = ()
    share: bool = False
    zero: bool = False


TRAINER = {
    "max_epochs": Range(1, (-1,)), "min_epochs": Range(0), "max_steps": Range(1, (-1,)), "min_steps": Range(0), "num_nodes": Range(1),
    "accumulate_grad_batches": Range(1), "check_val_every_n_epoch": Range(1), "log_every_n_steps": Range(1), "gradient_clip_val": Range(0),
    "num_sanity_val_steps": Range(0, (-1,)), "reload_dataloaders_every_n_epochs": Range(0), "fast_dev_run": Range(0),
    "limit_train_batches": Range(1, share=True), "val_check_interval": Range(1, share=True), "limit_val_batches": Range(0, share=True, zero=True),
    "limit_test_batches": Range(0, share=True, zero=True), "limit_predict_batches": Range(0, share=True, zero=True),
    "overfit_batches": Range(0, share=True, zero=True),
}  # fmt: skip
SEEDS = 2**32 - 1
HUGE = 10**30  # above it a number is as good as none, and may have more digits than Python writes


@cache
def _owners() -> dict[str, tuple[type, str]]:
    """Returns the class and the field behind each of our keys."""
    found: dict[str, tuple[type, str]] = {}

    def expand(prefix: str, options: type) -> None:
        types = get_type_hints(options)
        for option in fields(options):
            if is_dataclass(kind := types[option.name]):
                expand(f"{prefix}.{option.name}", kind)  # type: ignore[arg-type]
            else:
                found.setdefault(f"{prefix}.{option.name}", (options, option.name))

    for task in TASKS:
        expand("model", task_options(task))
    expand("data", DataOptions)
    return found


def check_number(key: str, value: object, where: str) -> None:
    """Refuses a number that is out of the key's range; what is no number is left to the parser.

    Args:
        key: Its dotted name.
        value: As a recipe or the command line has it, there as text.
        where: The file, or the command line.

    Raises:
        InputError: Names key, value and rule.
    """
    number = as_number(value)
    if number is None:
        return
    if key.startswith("trainer."):
        _check_trainers(key, number, where)
    elif key == "seed_everything":
        check_range(f"{where}: {key}", number, 0, SEEDS)
    elif key in _owners():
        _check_ours(key, number, where)


def as_number(value: object) -> int | float | None:
    """Returns a number, also one that is written as text, as YAML does 1e-3 and the command line everything; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        if isinstance(value, str):
            whole = value.strip().lstrip("+-").isdecimal()
            value = int(value) if whole else float(value.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return None
    if isinstance(value, int) and abs(value) > HUGE:
        return math.inf if value > 0 else -math.inf
    return value


def _check_trainers(key: str, number: float, where: str) -> None:
    rule = TRAINER.get(key.removeprefix("trainer."))
    if rule is None or number in rule.others:
        return
    if rule.share and isinstance(number, float):
        check_range(f"{where}: {key}", number, 0, 1, exclusive="" if rule.zero else "low")
    else:
        check_range(f"{where}: {key}", number, rule.low)


def _check_ours(key: str, number: int | float, where: str) -> None:
    kind, name = _owners()[key]
    wanted = get_type_hints(kind)[name]
    try:
        if wanted is float or float in get_args(wanted):
            number = float(number)
        kind(**{name: number})
    except InputError as error:
        rule = str(error).partition(" is out of range: ")[2]
        raise InputError(f"{where}: {key}={number} is out of range: {rule}" if rule else f"{where}: {error}") from None
    except (TypeError, ValueError, OverflowError):
        return  # of another type: the parser says so
