"""Times the roads of ``attend``, forward and backward, side by side: python -m benchmarks.attention [--device cuda]

Prints a row for each dtype and shape with the median of both roads; the table ``ROADS`` of cct_lightning/attention.py follows from them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.common import machine
from cct_lightning.networks import attention
from cct_lightning.training.hardware import keep_freed_memory

SHAPES = ((64, 2, 64, 64), (64, 4, 256, 64), (8, 4, 576, 64), (4, 6, 1024, 64), (2, 6, 2048, 64))  # B, heads, tokens, width of a head


def seconds(call: Callable[[], object], device: str, n: int) -> float:
    """Returns the median time of a call."""
    times = []
    for i in range(n + 3):
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-n", type=int, default=20)
    options = parser.parse_args()
    keep_freed_memory()
    print(f"{machine(options.device, torch.get_num_threads())}; n = {options.n}, median of forward and backward")
    print("dtype      batch heads tokens   sdpa ms  matmul ms  sdpa / matmul")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            query, key, value = (torch.randn(shape, dtype=dtype, device=options.device, requires_grad=True) for _ in range(3))
            found = {}
            for road in ("sdpa", "matmul"):
                attention.ROADS = (("any", None, None, road),)  # type: ignore[assignment]
                found[road] = seconds(lambda: attention.attend(query, key, value).sum().backward(), options.device, options.n)  # noqa: B023
            sdpa, matmul = 1e3 * found["sdpa"], 1e3 * found["matmul"]
            print(f"{str(dtype)[6:]:9}{shape[0]:7}{shape[1]:6}{shape[2]:7}{sdpa:10.1f}{matmul:11.1f}{sdpa / matmul:15.2f}")


if __name__ == "__main__":
    main()
