"""Image files: which there are, and how one becomes pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from cct_lightning.errors import InputError

Array = np.ndarray[Any, Any]
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def decode(image: Array | Path, in_chans: int) -> Array:
    """Reads a file as uint8 (H, W, C), turned upright as its EXIF tag says; an array is returned as it is.

    Raises:
        InputError: The file is no image, or damaged.
    """
    if isinstance(image, np.ndarray):
        return image
    try:
        with PIL.Image.open(image) as file:
            file.load()
            # exif_transpose takes as long as decoding a small image, so only where there is something to read the orientation from
            turned = file.format == "TIFF" or any("exif" in str(name).lower() or "xmp" in str(name).lower() for name in file.info)
            upright = PIL.ImageOps.exif_transpose(file) if turned else file
            if upright.mode in ("I", "F", "I;16", "I;16B", "I;16L"):  # 16 bits: Pillow would cut them off at 255
                deep = np.asarray(upright, dtype=np.float64)
                upright = PIL.Image.fromarray((deep / (257 if deep.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
            pixels = np.asarray(upright.convert("L" if in_chans == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"{image} can't be read as an image ({str(error).splitlines()[0][:80]}): mend it or move it out of the data set.") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels
