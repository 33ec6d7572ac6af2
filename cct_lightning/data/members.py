"""Images that are no files of their own: a part of a larger file, or what someone's reader gives."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from cct_lightning.data.arrays import Array
from cct_lightning.errors import InputError
from cct_lightning.wording import reason


class Packed(NamedTuple):
    """An image inside of a larger file, which can be read alone.

    Attributes:
        file: It lies in this one.
        start: First byte.
        size: Bytes.
        name: What it is called there.
        of: The file that it is told to be of, where that is another one.
    """

    file: Path
    start: int
    size: int
    name: str
    of: Path | None = None

    def __str__(self) -> str:
        return f"{self.of or self.file}/{self.name}"

    def read(self) -> bytes:
        """Returns its bytes; the file is opened anew each time, so that processes may share it.

        Raises:
            OSError: The file is gone, or ends before them.
        """
        with open(self.file, "rb") as file:
            file.seek(self.start)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("its file ends before it")
        return content


class Own(NamedTuple):
    """An image by a ``readers.Reader``, which gives it when it is asked for: of Pillow, or an array.

    Attributes:
        reader: Its ``__getitem__`` takes the number.
        number: In it.
        of: The reader, in messages.
    """

    reader: Any
    number: int
    of: str

    def __str__(self) -> str:
        return f"{self.of} {self.number}"

    def read(self) -> PIL.Image.Image | Array:
        """Returns it as it is given.

        Raises:
            InputError: The reader fails, or gives something else.
        """
        try:
            image = self.reader[self.number]
            if isinstance(image, PIL.Image.Image):
                image.load()
                return image
            values = np.asarray(image)
            if values.ndim not in (2, 3) or 0 in values.shape:
                raise ValueError(f"an array {values.shape} is no image: (H, W) or (H, W, C) is one")
            return values if values.ndim == 3 else values[..., None]
        except Exception as error:  # of code that nobody here has seen
            raise unreadable(self, error) from error


File = Path | Packed | Own


def unreadable(image: File, error: Exception) -> InputError:
    """Makes the error of an image that can't be read."""
    why = reason(error, 80).partition(" <_io")[0]  # Pillow names the file once more
    return InputError(f"{image} can't be read as an image ({why}): mend it or move it out of the data set.")
