"""Measures how a training step scales: python -m benchmarks.scaling [--device cuda] [-n N] [--threads T]

Images/s and peak memory of CCT-7/3x1 and CCT-2/3x2 at 32 pixels over the batch size, and of CCT-7/7x2 over the image size, under the default
precision. Every row is measured in a process of its own, so that its memory is its own; one that does not fit stays in the table.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

from benchmarks.common import machine
from cct_lightning.training.hardware import default_precision, keep_freed_memory
from cct_lightning.training.optimizers import create_optimizer
from cct_lightning.training.options import OptimConfig
from cct_lightning.weights.loading import create_model

BATCHES = [("cct_2_3x2_32", size, 32) for size in (32, 128, 512, 2048, 4096)] + [("cct_7_3x1_32", size, 32) for size in (32, 128, 512, 4096)]
SIZES = [("cct_7_7x2_224", 32, pixels) for pixels in (32, 64, 96, 128, 224)]
LIMIT_SECONDS = 240  # of a row


def measure(pipe: Connection, arch: str, batch_size: int, pixels: int, device: str, threads: int, n: int) -> None:
    """Sends the median seconds of a step and the peak memory, bytes."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    model = create_model(arch, image_size=pixels, attn_drop=0.0).train().to(device)
    optimizer = create_optimizer(model, OptimConfig(lr=1e-4))
    images = torch.randn(batch_size, 3, pixels, pixels, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (batch_size,), device=device)
    if device == "cuda":
        model.compile()
    seconds = []
    for number in range(n + 2):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=default_precision(device) == "bf16-mixed"):
            loss = F.cross_entropy(model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((statistics.median(seconds), peak))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-n", type=int, default=3, help="steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    print(machine(options.device, options.threads) + f"; n = {options.n} steps, memory of the whole process on a CPU, of tensors on a GPU")
    print(f"{'network':16}{'batch':>6}{'pixels':>8}{'images/s':>11}{'ms':>10}{'GiB':>8}")
    context = multiprocessing.get_context("spawn")
    for arch, batch_size, pixels in BATCHES + SIZES:
        pipe, other = context.Pipe()
        process = context.Process(target=measure, args=(other, arch, batch_size, pixels, options.device, options.threads, options.n))
        process.start()
        other.close()
        try:
            seconds, peak = pipe.recv() if pipe.poll(LIMIT_SECONDS) else (None, f"more than {LIMIT_SECONDS} s")
        except EOFError:
            seconds, peak = None, "out of memory"
        if process.is_alive() and seconds is None:
            process.kill()
        process.join()
        row = f"{batch_size / seconds:11,.0f}{1e3 * seconds:10.1f}{peak / 2**30:8.2f}" if seconds else f"  {peak}"
        print(f"{arch:16}{batch_size:6}{pixels:8}{row}", flush=True)


if __name__ == "__main__":
    main()
