"""The names of timm's optimizers, read off its source: importing timm takes seconds, and a name typed wrong shall be told at once."""

import re
from collections.abc import Collection
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from cct_lightning.errors import InputError, did_you_mean


@cache
def optimizer_names() -> frozenset[str]:
    """Returns what ``timm.optim.list_optimizers()`` would; nothing where timm's source is laid out otherwise."""
    timm = find_spec("timm")
    factory = Path(timm.origin).parent / "optim" / "_optim_factory.py" if timm is not None and timm.origin else None
    if factory is None or not factory.is_file():
        return frozenset()
    names = re.findall(r"(?:\bOptimInfo\(\s*(?:name=)?|\.register_alias\(\s*)['\"](\w+)['\"]", factory.read_text(encoding="utf-8"))
    return frozenset(name.lower() for name in names)


def check_optimizer(name: str, known: Collection[str]) -> None:
    """Refuses a name that is none of timm's optimizers; case does not matter.

    Raises:
        InputError: Says which names are near, also to torch.optim.RAdam and its like.
    """
    if name.lower() not in known:
        hint = did_you_mean(name.rpartition(".")[2].lower(), known)
        raise InputError(
            f"optim.name={name!r} is no optimizer of timm {version('timm')}.{hint}\n"
            '  One of your own is given in Python: README, "An optimizer of your own".'
        )
