"""The names of timm's networks, read off its source: importing timm takes seconds, and a name typed wrong shall be told at once."""

import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from cct_lightning.errors import InputError, did_you_mean


@cache
def timm_names() -> frozenset[str]:
    """Returns the networks that timm has, those of old names, too; nothing where timm's source is laid out otherwise."""
    timm = find_spec("timm")
    if timm is None or not timm.origin:
        return frozenset()
    names: set[str] = set()
    for file in (Path(timm.origin).parent / "models").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        names.update(re.findall(r"^@register_model\ndef (\w+)\(", text, re.M))
        for old in re.findall(r"^register_model_deprecations\((.*?)^\}", text, re.M | re.S):
            names.update(re.findall(r"^ +['\"](\w+)['\"] *:", old, re.M))
    return frozenset(names)


def check_timm_name(key: str, value: str) -> None:
    """Refuses timm/NAME where timm has no network of this name; a tag behind a dot is timm's to know.

    Args:
        key: Where it was given, for the message.
        value: timm/NAME.

    Raises:
        InputError: Says which names are near.
    """
    name, known = value.removeprefix("timm/"), timm_names()
    if known and name.partition(".")[0] not in known:
        raise InputError(f"{key}={value}: timm {version('timm')} has no network {name!r}.{did_you_mean(name, known)}")
