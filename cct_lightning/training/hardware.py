"""What a run can have of the machine without asking: the precision that it computes fast, and memory that is kept instead of given back."""

import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch.distributed.tensor import DTensor


def default_precision(accelerator: str) -> str:
    """Returns Lightning's name of the precision that a run has where none is given: bf16-mixed where the hardware computes it, else 32-true.

    Told by what the hardware says of itself, never by a timing: the same hardware always has the same, and the run's config.yaml keeps it.

    Args:
        accelerator: As given to Lightning's Trainer; ``auto`` takes a GPU where there is one.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older releases
        return "bf16-mixed" if able.get("avx512_bf16") or able.get("amx_bf16") else "32-true"
    return "32-true"


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Tells whether a tensor lies in parts on several devices (FSDP2). Where its class was never imported, which takes a second, there is none."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def cpu_seconds() -> float:
    """Returns the seconds that this process, all its threads and its finished children have computed so far."""
    return sum(os.times()[:4])


REFERENCE_SPEED = 350.0  # GFLOP/s: what CPU-seconds of different machines are brought to


def product_speed(rounds: int = 4) -> float:
    """Measures how fast a core multiplies now: 1024 x 1024 matrices in bfloat16, the fastest of some, on as many threads as a run has.

    Returns:
        Operations in a second of the processor's time, 1e9.
    """
    a = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    a @ a  # the first one prepares
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        a @ a
        taken.append(time.process_time() - start)
    return 2 * 1024**3 / max(min(taken), 1e-9) / 1e9


# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory for the next step; returns whether there is a glibc that does.

    By default blocks from 32 MiB on go back to the system at once, and come back as pages that it must fill with zeros, every step:
    a quarter of the time of a training step on a CPU at large batches (benchmarks/README.md). The process stays as large as its largest step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    settings = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    return mallopt is not None and sum(mallopt(name, value) for name, value in settings) == len(settings)
