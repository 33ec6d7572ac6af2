"""The weights in an archive of ``torch.export.save``, read as tensors: neither its graph nor what it pickles is touched.

``torch.export.load`` runs code of an archive: it unpickles sample inputs, constants and weights, and evaluates expressions. A checksum beside the
file proves nothing, since who writes the one writes the other. What is needed is there without: the weights lie in it as plain numbers under the
network's own names, and config.json says which network.
"""

import io
import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# By the numbers of torch._export.serde.schema.ScalarType.
DTYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64,
          12: torch.bool, 13: torch.bfloat16}  # fmt: skip


def read_weights(data: bytes) -> dict[str, Tensor]:
    """Reads the weights of the one program in an archive.

    Args:
        data: The archive.

    Raises:
        ValueError: It is none, damaged, holds several programs, or weights that are pickled.
        zipfile.BadZipFile: Likewise.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch never does")
        (place, known) = _weights_of(archive)
        try:
            if known is None:  # torch before 2.9 put them into one file of torch.save
                found = torch.load(io.BytesIO(archive.read(place)), map_location="cpu", weights_only=True)
                if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
                    raise ValueError("its weights are no dictionary of tensors")
                return found
            return {str(name): _tensor(archive, place, about) for name, about in known.items()}
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"what it says of its weights is damaged ({type(error).__name__})") from None
        except pickle.UnpicklingError:
            raise ValueError("its weights hold more than tensors") from None


def _weights_of(archive: zipfile.ZipFile) -> tuple[str, Mapping[str, Any] | None]:
    """Returns the folder of the weights with what is told of each; of older archives the one file, and None."""
    names = [name for name in archive.namelist() if name.partition("/")[2].startswith("data/weights/")]
    (listed, whole) = ([name for name in names if name.endswith(end)] for end in ("_weights_config.json", ".pt"))
    if len(listed) + len(whole) != 1:
        raise ValueError("it holds no weights of one program")
    if whole:
        return whole[0], None
    try:
        told = json.loads(archive.read(listed[0]))["config"]
    except (RecursionError, KeyError, TypeError):
        told = None
    if not isinstance(told, dict):
        raise ValueError("what it says of its weights is damaged")
    return listed[0].rpartition("/")[0], told


def _tensor(archive: zipfile.ZipFile, folder: str, about: Mapping[str, Any]) -> Tensor:
    if about["use_pickle"]:
        raise ValueError("its weights are pickled")
    meta = about["tensor_meta"]
    dtype, sizes = DTYPES[meta["dtype"]], [int(size["as_int"]) for size in meta["sizes"]]
    strides, offset = [int(stride["as_int"]) for stride in meta["strides"]], int(meta["storage_offset"]["as_int"])
    data = archive.read(f"{folder}/{about['path_name']}")
    # as_strided reads wherever it is told to: what lies outside is refused first.
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    count = math.prod(sizes)
    if min([*sizes, *strides, offset, 0]) < 0 or (count and (max(last + 1, count)) * dtype.itemsize > len(data)):
        raise ValueError("its weights reach beyond their file")
    if not count:
        return torch.empty(sizes, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype, count=len(data) // dtype.itemsize).as_strided(sizes, strides, offset).contiguous()
