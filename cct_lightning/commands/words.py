"""What is typed: the one reader of ``--key value``, ``--key=value``, ``-c RECIPE`` and of words that are no keys."""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from cct_lightning.errors import InputError

CONFIG = "config"  # the key of -c
# What a key takes, where that is worth saying to those who gave it without a value.
TAKES = {"model.pretrained": "name a file, an exported folder, hf:OWNER/NAME, timm/NAME or weights by name; null is none"}


class Option(NamedTuple):
    """A key as it was typed.

    Attributes:
        key: Without its dashes; ``config`` for -c.
        value: What was given; None for a flag.
        adds: Whether the value is added to a list (``--key+=value``).
    """

    key: str
    value: str | None
    adds: bool = False

    @property
    def name(self) -> str:
        """The key as it is typed."""
        return "-c" if self.key == CONFIG else f"--{self.key}"

    @property
    def words(self) -> list[str]:
        """What a parser takes for it."""
        return [f"--{self.key}{'+' * self.adds}"] + ([] if self.value is None else [self.value])


class Typed(NamedTuple):
    """The words behind a command: those that stand alone, and the keys in their order."""

    alone: list[str]
    options: list[Option]

    def last(self, key: str) -> str | None:
        """Returns the value of a key, the last one; None where it was not given."""
        return next((option.value for option in reversed(self.options) if option.key == key), None)

    def number(self, key: str, default: int, least: int = 1) -> int:
        """Returns the whole number of a key, the last one; the default where it was not given.

        Raises:
            InputError: It is none, or less than the least.
        """
        if (value := self.last(key)) is None:
            return default
        if not value.isdecimal() or int(value) < least:
            raise InputError(f"--{key} {value}: it takes a whole number, {least} or more.")
        return int(value)


def read_words(arguments: Iterable[str], command: str, flags: Collection[str] = (), check: Callable[[str], str] = str) -> Typed:
    """Reads the words behind a command. What follows ``--`` stands alone, whatever it begins with.

    Args:
        arguments: The words.
        command: For errors.
        flags: Keys without a value, unless one is given with ``=``.
        check: Takes each key as it was typed and returns it as it is meant; raises where the command has none of this name.

    Raises:
        InputError: A key has no value.
    """
    alone: list[str] = []
    options: list[Option] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            alone += words
        elif not word.startswith("-") or word == "-":
            alone.append(word)
        else:
            name, equals, value = word.partition("=")
            key = check(CONFIG if name == "-c" else name.lstrip("-").removesuffix("+"))
            given: str | None = value if equals else None
            if not equals and key not in flags and ((given := next(words, None)) is None or given.startswith("--")):
                name = name if key == CONFIG else f"--{key}"
                lacks = f"is given without a value: {TAKES[key]}." if key in TAKES else f"needs a value. `cct {command} --help` says which."
                raise InputError(f"{name} {lacks}")
            options.append(Option(key, given, name.endswith("+")))
    return Typed(alone, options)
