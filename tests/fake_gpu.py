"""A GPU that is none: its tensors hold no values, and are neither mixed with the host's nor waited for.

What autograd does can't be traced so: it asks for a driver.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

COPIES = ("_to_copy", "copy_")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


class MixedDevicesError(Exception):
    """An operation was given tensors of the GPU and of the host."""


class WaitsError(Exception):
    """An operation waits for the GPU: it reads a value, or copies without saying that it need not wait."""


class FakeGPU(TorchDispatchMode):
    """Inside, ``cuda:0`` is a device whose tensors are fake, while those of the host are real.

    What a GPU would refuse is refused: an operation on tensors of both, but for copies, indices, and single numbers of the host, which operations on
    lists of tensors don't take. So is what would wait for it, outside of ``waiting``.

    Attributes:
        device: It.
        seen: Names of the operations that ran on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cuda", 0)
        self.seen: set[str] = set()
        self._fake, self._may_wait = FakeTensorMode(allow_non_fake_inputs=True), False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Allows what waits for it, as what happens once a run, or once in many steps, may; a value that is read is 1."""
        self._may_wait = True
        try:
            yield
        finally:
            self._may_wait = False

    def takes(self, module: nn.Module) -> None:
        """Moves a module there; to be trained by hand: autograd would ask for a driver."""
        with self.waiting():
            module.to(self.device)
        module.requires_grad_(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = kwargs.get("device")
        made_there = device is not None and torch.device(device).type == "cuda"
        if not made_there and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        self.seen.add(name)
        self._check(name, tensors, args, kwargs)
        if name == "_local_scalar_dense":
            return 1
        if name.startswith("_fused"):
            return None  # in place, and torch has no fake of it
        with self._fake:
            return func(*tree_map(_forget, args), **tree_map(_forget, kwargs))

    def _check(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        if name in COPIES:
            to = kwargs.get("device") or args[0].device
            source = args[COPIES.index(name)].device
            hurried = kwargs.get("non_blocking") or (name == "copy_" and True in args[2:3])
            if torch.device(to).type != source.type and not hurried and not self._may_wait:
                raise WaitsError(f"{name} from {source} to {to}")
            return
        indexes = name in ("index", "index_put", "index_put_")
        if not self._may_wait and (name in READS or (indexes and any(tensor.dtype == torch.bool for tensor in tensors[1:]))):
            raise WaitsError(name)
        strict = name.startswith(("_foreach", "_fused"))
        if len({tensor.device.type for tensor in tensors if tensor.ndim or strict}) > 1 and not indexes:
            raise MixedDevicesError(name)
        if name.startswith("_fused") and any(tensor.dtype != torch.float32 for tensor in tensors if not tensor.ndim):
            raise TypeError(f"{name} reads rates and counters as float32.")


def _forget(value: Any) -> Any:
    """Puts a fake into the place of a tensor of the host."""
    if isinstance(value, FakeTensor) or not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


class Stream:
    """Of commands to it."""

    def wait_stream(self, other: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
