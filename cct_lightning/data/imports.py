"""What a recipe, a key, a checkpoint or a run's config.yaml may have imported: our code and Lightning's. More is allowed by name, by who calls."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cct_lightning.errors import InputError

ALLOWED = ("cct_lightning", "lightning.Callback", "lightning.pytorch", "lightning.fabric", "torch.optim", "torch.nn")
# It calls whatever it is given, at whatever moment it is told.
DENIED = ("*", "lightning.pytorch.callbacks.LambdaCallback", "lightning.pytorch.callbacks.lambda_function")
SETTINGS = ("import_path_verdicts", "import_paths_enforced")


@contextmanager
def allowing(packages: Iterable[str]) -> Iterator[None]:
    """Has jsonargparse import nothing but what is allowed by its name and by the name of where it is defined; else all as it was.

    Args:
        packages: What is allowed besides: packages, modules or single names.
    """
    from jsonargparse import _common, set_parsing_settings

    before = {name: _common.parsing_settings[name] for name in SETTINGS}  # jsonargparse 4.53 has no way to take settings back
    _common.parsing_settings["import_path_verdicts"] = {}
    try:
        set_parsing_settings(import_path_denylist=list(DENIED), import_path_allowlist=[*ALLOWED, *packages])
        yield
    finally:
        _common.parsing_settings.update(before)


def may_import(path: str) -> bool:
    """Tells whether a dotted path may be imported: inside of ``allowing`` what that allows, else everything."""
    if "jsonargparse" not in sys.modules:
        return True
    from jsonargparse import _common

    return not _common.parsing_settings["import_paths_enforced"] or _common.denying_import_path_entry(path) is None


def not_allowed(path: str) -> InputError:
    """Makes the error of a class or function that may not be imported."""
    package = path.partition(".")[0]
    return InputError(
        f"{path} is code of neither cct-lightning nor Lightning, or runs whatever it is given: it was not imported.\n"
        f"  Where you know it, allow it for this call, as also for each `cct resume` of the run: --allow-import {package}\n"
        f"  (in Python allow_import=[{package!r}]). A recipe, checkpoint or config.yaml can't allow it by itself. It then runs with all your rights."
    )
