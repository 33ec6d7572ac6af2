"""YAML that may come from anyone: recipes, config.yaml, values of keys. Read with limits, so that a hostile one costs a line and no time."""

from pathlib import Path
from typing import Any

import yaml

from cct_lightning.errors import InputError

MAX_BYTES = 10**6  # our largest recipe has 3,000
MAX_ITEMS = 20_000  # keys, values and items of lists, those that an alias repeats included
MAX_DEPTH = 50
# libyaml's reader is ten times faster, and not there on every machine.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml_file(path: Path) -> Any:
    """Reads a YAML file of plain values.

    Raises:
        InputError: It can't be read, is no YAML, or beyond the limits: 1 MB, 20,000 items, 50 levels.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES / 1e6:g} MB: that is no recipe.")
        return read_yaml(data.decode("utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no YAML: it is no text in UTF-8.") from None


def read_yaml(text: str, where: str) -> Any:
    """Reads YAML of plain values.

    Args:
        text: The YAML.
        where: Where it stands, for the message.

    Raises:
        InputError: It is no YAML, or beyond the limits: 20,000 items, 50 levels, an alias inside of what it stands for.
    """
    try:
        _check(text, where)
        return yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or error).splitlines()[0][:200]
        raise InputError(f"{where}{f', line {min(mark.line, text.count(chr(10))) + 1}' if mark else ''} is no YAML: {problem}.") from None
    except (ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is no YAML: {str(error).splitlines()[0][:200]}.") from None


def _check(text: str, where: str) -> None:
    """Walks through the parser's events, which needs no stack, and stops where a limit is passed."""
    sizes: dict[str, int] = {}  # items that an anchor stands for
    opened: list[tuple[str | None, int]] = []  # anchors around what is read, and the count of items when each began
    count = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise InputError(f"{where}, line {_line(event)}: *{event.anchor} stands inside of what it names.")
            count += sizes[event.anchor]
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, count))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = count - before + 1
        if len(opened) > MAX_DEPTH:
            raise InputError(f"{where}, line {_line(event)}: it is nested deeper than {MAX_DEPTH} levels.")
        if count > MAX_ITEMS:
            raise InputError(f"{where} holds more than {MAX_ITEMS:,} items: that is no recipe.")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1
