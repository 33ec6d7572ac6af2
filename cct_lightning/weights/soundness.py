"""Whether a file of weights is whole, and holds numbers: no flipped bit, no NaN."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.wording import reason, some


def check_archive(path: Path) -> None:
    """Compares the parts of a file of ``torch.save`` with their checksums (CRC-32), which torch itself does not: 100 MB take 0.07 s.

    Files of before torch 1.6 have none.

    Raises:
        InputError: A part is damaged, or compressed, which ``torch.save`` never does: a few kilobytes could fill the memory.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    damaged: object = None
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise InputError(f"{path} holds compressed parts, which torch.save never writes: it was not opened further.")
            if part := archive.testzip():
                damaged = f"the checksum of its part {part} is another"
    except InputError:
        raise
    except Exception as error:  # whatever a damaged directory has zipfile raise
        damaged = reason(error)
    if damaged is not None:
        raise InputError(f"{path} can't be read as weights: {damaged}. Is it complete?")


def tensors_in(content: object, name: str = "") -> dict[str, Tensor]:
    """Returns the tensors of nested dictionaries and lists by their dotted names."""
    if isinstance(content, Tensor):
        return {name: content}
    parts = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list | tuple) else ()
    return {at: tensor for key, part in parts for at, tensor in tensors_in(part, f"{name}.{key}" if name else str(key)).items()}


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names the tensors that hold NaN or inf; a mask of 0 and -inf is none of them. Waits for each device once.

    Args:
        tensors: By name, of any type and device.
    """
    plain = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta}
    if not plain:
        return []
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in plain.items():
        by_device.setdefault(tensor.device, {})[name] = tensor
    suspects = []
    for on_one in by_device.values():
        # What is not finite stays in a sum, which takes a tenth of the time of isfinite; that of finite numbers may overflow, too.
        values = [tensor.float() if tensor.itemsize == 1 else tensor for tensor in on_one.values()]
        if values[0].is_cuda:  # one launch for all
            sums = [norm.float() for norm in torch._foreach_norm(values, 1)]
        else:
            sums = [value.sum(dtype=torch.float32) for value in values]
        suspects += [name for name, finite in zip(on_one, torch.stack(sums).isfinite().tolist(), strict=True) if not finite]
    return [name for name in suspects if not _is_finite_or_mask(tensors[name])]


def _is_finite_or_mask(tensor: Tensor) -> bool:
    tensor = tensor.float() if tensor.itemsize == 1 else tensor
    finite = tensor.isfinite()
    return bool(finite.all()) or bool(((tensor == -torch.inf) | (tensor == 0)).all())


def check_finite(tensors: Mapping[str, Any], source: object) -> None:
    """Refuses weights of which one is NaN or inf.

    Args:
        tensors: By name; what is no tensor is passed over.
        source: Where they are from, for the message.

    Raises:
        InputError: Names the source and the tensors.
    """
    if names := not_finite({name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}):
        raise InputError(
            f"{source} holds weights that are not finite numbers: its training diverged.\n"
            f"  NaN or inf in {some([str(name) for name in names])}. Take an earlier file, or train again with a lower rate (model.optim.lr)."
        )
