"""What a search varies: keys, and the values that each may take, as they are typed. Importing this needs no torch."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cct_lightning.errors import InputError
from cct_lightning.plain_yaml import read_yaml

DIGITS = 4  # of a number that is tried: what is printed is what was trained
EDGE = 0.02  # of a range, from its ends
HOW = "LOW..HIGH, LOW..HIGH:log or A,B,C"
# Trials are held against each other on the same validation images.
JUDGES = ("data.dataset", "data.root", "data.unlabelled", "data.val_fraction", "data.test_fraction", "data.split_seed", "data.fold",
          "trainer.limit_val_batches")  # fmt: skip
# Not what is trained but where, and how it is watched.
ELSEWHERE = ("task", "seed_everything", "trainer.default_root_dir", "trainer.callbacks", "trainer.logger", "trainer.limit_test_batches",
             "trainer.devices", "trainer.num_nodes", "data.num_workers", "data.cache")  # fmt: skip


@dataclass(frozen=True)
class Numbers:
    """All numbers between two, these included.

    Attributes:
        low: Least.
        high: Largest.
        log: Whether their logarithm is drawn evenly: as many between 1e-4 and 1e-3 as between 1e-3 and 1e-2.
        whole: Whether only whole ones are.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' * self.log}"

    def holds(self, value: object) -> bool:
        """Tells whether a value is one of them."""
        return not isinstance(value, bool) and isinstance(value, (int, float)) and self.low <= value <= self.high

    def rounded(self, value: float) -> int | float:
        """Returns a number of few digits beside one that was drawn."""
        return int(value) if self.whole else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def is_edge(self, value: float) -> bool:
        """Tells whether a number lies so close to an end that better ones may lie behind it."""
        low, high, at = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        margin = 0 if self.whole else EDGE * (high - low)
        return at <= low + margin or at >= high - margin


@dataclass(frozen=True)
class Choices:
    """A few values without an order.

    Attributes:
        values: Them.
    """

    values: Sequence[Any]

    def __str__(self) -> str:
        return ", ".join(map(plain, self.values))

    def holds(self, value: object) -> bool:
        """Tells whether a value is one of them."""
        return plain(value) in map(plain, self.values)


Space = Mapping[str, Numbers | Choices]


def plain(value: object) -> str:
    """Writes a value as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {plain(one)}' for name, one in value.items())}}}"
    return f"[{', '.join(map(plain, value))}]" if isinstance(value, list | tuple) else f"{value}"


def read_values(key: str, text: str, kind: str) -> Numbers | Choices:
    """Reads what a key may take.

    Args:
        key: Its name, for errors.
        text: ``1e-4..1e-2:log``, ``2..8`` or ``2,3,4``; values are written as on the command line.
        kind: The key's type, as Python writes it, such as ``int | None``.

    Raises:
        InputError: It is no range and no list of two values or more, or of another type than the key's.
    """
    if key in JUDGES:
        raise InputError(f"--key {key}: trials that differ in it would be judged by other images. Set it for all: --{key} VALUE.")
    if key in ELSEWHERE or key.startswith(("wandb.", "checkpoint.")):
        raise InputError(f"--key {key}: it does not say what is trained, or is the same for all trials. Set it for all: --{key} VALUE.")
    names = set(re.findall(r"\w+", kind.partition("Literal")[0]))
    takes = {name for name in ("int", "float", "bool", "str", "list", "tuple") if name in names}
    low, dots, rest = text.partition("..")
    high, colon, scale = rest.partition(":")
    ends = [_number(low), _number(high)]
    if dots and None not in ends:
        return _numbers(key, text, takes, (float(low), float(high)), (colon, scale), all(isinstance(end, int) for end in ends))
    if dots and takes <= {"int", "float"} and takes:
        raise InputError(f"--key {key}={text}: the ends of a range are numbers, such as {key}=1e-4..1e-2:log.")
    return _choices(key, text, takes)


def _numbers(key: str, text: str, takes: set[str], ends: tuple[float, float], scale: tuple[str, str], whole: bool) -> Numbers:
    low, high = ends
    if not takes & {"int", "float"}:
        raise InputError(f"--key {key}={text}: it takes no numbers, so name its values: {key}=A,B.")
    if scale not in (("", ""), (":", "log")):
        raise InputError(f"--key {key}={text}: behind a range stands :log or nothing, not {''.join(scale)!r}.")
    if not low < high:
        raise InputError(f"--key {key}={text}: a range goes from less to more, and {low:g} is not below {high:g}.")
    if scale[0] and low <= 0:
        raise InputError(f"--key {key}={text}: a range in logarithms lies above 0.")
    if "float" not in takes and not whole:
        raise InputError(f"--key {key}={text}: it takes whole numbers.")
    return Numbers(low, high, bool(scale[0]), "float" not in takes or (whole and "int" in takes))


def _choices(key: str, text: str, takes: set[str]) -> Choices:
    found = read_yaml(f"[{text}]", f"--key {key}")
    values = []
    for value in found:
        if takes & {"int", "float"} and isinstance(value, str) and (number := _number(value)) is not None:
            value = number  # YAML takes 1e-3 for text
        if value is not None and takes and not _fits(value, takes):
            kinds = {"int": "whole numbers", "float": "numbers", "bool": "true or false", "str": "text", "list": "lists", "tuple": "lists"}
            wanted = " or ".join(dict.fromkeys(kinds[name] for name in sorted(takes - ({"int"} if "float" in takes else set()))))
            raise InputError(f"--key {key}={text}: {plain(value)} is of another type: {key} takes {wanted}.")
        values.append(value)
    if len(values) < 2 or len(set(map(plain, values))) < len(values):
        raise InputError(f"--key {key}={text}: it takes {HOW}, two values or more that differ. One for all trials is set by --{key} {text}.")
    return Choices(tuple(values))


def _fits(value: object, takes: set[str]) -> bool:
    if isinstance(value, bool):
        return "bool" in takes
    if isinstance(value, int | float):
        return "float" in takes or ("int" in takes and float(value).is_integer()) or takes == {"str"}
    return bool(takes & ({"list", "tuple"} if isinstance(value, list) else {"str"}))


def _number(text: str) -> int | float | None:
    """Reads a number as it is typed; None where it is none, or not finite."""
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text):
        value = float(text)
        return value if abs(value) != float("inf") else None
    return None
