"""The command line in a bare checkout: ``python cli.py fit -c digits`` is ``cct fit -c digits``."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

from cct_lightning.__main__ import main


class BesideThePackage:
    """Finds ``cct_lightning.callbacks`` and ``.recipes``, which lie inside the package in a wheel and beside it in a checkout.

    An editable install maps them by itself. This is for a checkout that is not installed; workers and launched processes import it, too.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in ("cct_lightning.callbacks", "cct_lightning.recipes"):
            return None
        folder = Path(__file__).resolve().with_name(name.rpartition(".")[2])
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


sys.meta_path.append(BesideThePackage)

if __name__ == "__main__":
    main()
