"""What only who calls may allow, never a file: code of others to be imported, and places outside the run's folder to be written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cct_lightning.commands.words import Typed
from cct_lightning.errors import InputError

IMPORT, PATH = "allow-import", "allow-path"
FLAGS = (IMPORT, PATH)
RUN = "{run}"  # stands for the run's folder in a file
# Arguments of callbacks, loggers and profilers that name a folder or a file.
PLACES = ("dirpath", "save_dir", "log_dir", "root_dir", "dir", "path", "folder", "offline_directory", "artifact_location")
FILES = (".yaml", ".yml", ".json")


class Permissions(NamedTuple):
    """What is allowed besides: packages to be imported, and folders to be written."""

    imports: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()

    @classmethod
    def read(cls, typed: Typed) -> "Permissions":
        """Reads ``--allow-import PACKAGE`` and ``--allow-path DIR``, each as often as it was given.

        Raises:
            InputError: A package's name is none.
        """
        given = {flag: [option.value or "" for option in typed.options if option.key == flag] for flag in FLAGS}
        for name in given[IMPORT]:
            if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) or name.partition(".")[0] == "jsonargparse":
                raise InputError(f"--{IMPORT} {name}: give the name of a package or module, such as mycode or mycode.callbacks.")
        return cls(tuple(given[IMPORT]), tuple(Path(os.path.abspath(Path(path).expanduser())) for path in given[PATH]))

    @property
    def words(self) -> list[str]:
        """What allows the same when it is typed."""
        return [*(f"--{IMPORT}={name}" for name in self.imports), *(f"--{PATH}={path}" for path in self.paths)]

    def check_places(self, keys: Mapping[str, Any], where: str) -> None:
        """Refuses places outside the run's folder in what a file says of callbacks, loggers and other parts of the trainer.

        Args:
            keys: Of a recipe, by their dotted names.
            where: The file.

        Raises:
            InputError: Names the key and the way out.
        """
        for key, value in keys.items():
            if key.startswith("trainer.") and key != "trainer.default_root_dir":
                self._check(value, key, where)

    def _check(self, value: Any, key: str, where: str) -> None:
        if isinstance(value, Mapping):
            for name, one in value.items():
                self._check(one, f"{key}.{name}".replace(".init_args.", "."), where)
        elif isinstance(value, list):
            for one in value:
                self._check(one, key, where)
        elif isinstance(value, str) and not self._allows(value, key.rpartition(".")[2] in PLACES):
            raise InputError(
                f"{where}: {key}={value[:200]} leads out of the run's folder, and a file may not say so.\n"
                f"  Write {RUN}/NAME there, which stands for the run's folder, or allow the place for this call: --{PATH} DIR"
            )

    def _allows(self, value: str, is_place: bool) -> bool:
        parts = re.split(r"[/\\]", value)
        if parts[0] == RUN:
            return ".." not in parts
        leads_out = ".." in parts or value.startswith(("/", "\\", "~", "$", "file:")) or re.match(r"[A-Za-z]:[/\\]", value) is not None
        if not (is_place or leads_out or value.lower().endswith(FILES)):
            return True
        place = Path(os.path.abspath(Path(value).expanduser()))
        return any(place.is_relative_to(path) for path in self.paths)
