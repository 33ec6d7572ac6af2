"""A teacher's logits, computed once and read by every later run that would compute the same."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from cct_lightning.run_folder import replacing


class TeacherCache:
    """Keeps logits by epoch and batch, a file for each epoch in a folder named after all that they follow from.

    They are computed in the batches of the training, since a network's last bits depend on the batch: equal to the bit to what a run without the
    cache computes on the same kind of machine with as many threads. A file that can't be read is computed anew; a run that is killed leaves out
    the epoch that it was in.

    Args:
        folder: Of all such logits.
        about: Tells all that they follow from, in plain values, once the training has begun.
        device: Where they are wanted.
    """

    def __init__(self, folder: str | Path, about: Callable[[], Mapping[str, Any]], device: torch.device) -> None:
        self.base, self.about, self.device = Path(folder).expanduser(), about, device
        self._folder: Path | None = None
        self._epoch, self._changed = -1, False
        self._rows: dict[int, Tensor] = {}  # of this epoch, by the number of the batch
        self.computed, self.read = 0, 0  # batches

    def __str__(self) -> str:
        return f"{self.computed} batches computed, {self.read} read, in {self._folder or self.base}"

    @staticmethod
    def digest(content: bytes) -> str:
        """Returns a short digest."""
        return hashlib.blake2b(content, digest_size=12).hexdigest()

    @property
    def folder(self) -> Path:
        """The folder of these logits; its about.json says what they are of."""
        if self._folder is None:
            text = json.dumps(self.about(), indent=2, sort_keys=True)
            self._folder = self.base / self.digest(text.encode())
            if not (self._folder / "about.json").is_file():
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    with replacing(self._folder / "about.json") as file:
                        file.write(text.encode())
                except FileNotFoundError:  # a run beside this one was quicker
                    if not (self._folder / "about.json").is_file():
                        raise
        return self._folder

    def get(self, epoch: int, number: int, compute: Callable[[], Tensor]) -> Tensor:
        """Returns the logits of a batch, (B, K) float16 on the device.

        Args:
            epoch: Number of the epoch.
            number: Of the batch in it.
            compute: Makes them where they are not known.
        """
        if epoch != self._epoch:
            self.write()
            self._epoch, self._rows = epoch, self._read(epoch)
        if number in self._rows:
            self.read += 1
        else:
            self._rows[number], self._changed = compute(), True
            self.computed += 1
        return self._rows[number]

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch{epoch:05}.npz"

    def _read(self, epoch: int) -> dict[int, Tensor]:
        path = self._file(epoch)
        if not path.is_file():
            return {}
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:  # which compares checksums
                numbers, logits = found["numbers"], found["logits"]
            if logits.dtype != np.float16 or logits.ndim != 3 or len(numbers) != len(logits):
                raise ValueError("it holds something else")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            rank_zero_info(f"{path} can't be read ({type(error).__name__}): the teacher's logits of epoch {epoch + 1} are computed anew")
            return {}
        return dict(zip(numbers.tolist(), torch.from_numpy(logits).to(self.device).unbind(0), strict=True))

    def write(self) -> None:
        """Writes the epoch at hand where something was computed."""
        if not self._changed:
            return
        numbers = sorted(self._rows)
        logits = torch.stack([self._rows[number] for number in numbers]).cpu().numpy()
        path = self._file(self._epoch)
        mine = path.with_name(f"{path.stem}-{os.getpid()}.npz")  # another run may write the same
        with replacing(mine) as file:
            np.savez(file, numbers=np.array(numbers), logits=logits)
        os.replace(mine, path)
        self._changed = False
