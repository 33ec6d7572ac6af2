"""Times a training step, ours and others, side by side: python -m benchmarks.step [--device cuda] [-n N] [--row R]

Forward, loss, backward and optimizer on one batch of random images of 32 pixels. Every contestant lives in a process of its own, because
the settings of the allocator hold for a whole process; one computes at a time, in turns, and the ratio of a round is theirs over ours.

vit-pytorch    its CCT as it comes: float32, eager, torch.optim.AdamW; on a GPU compiled, under bf16 autocast.
timm           its VisionTransformer with as many tokens, layers, heads and channels, mean pooling, likewise.
ours           create_model under the default precision, channels_last, fused AdamW; on a GPU compiled and recorded as a graph.
kept           with attention dropout 0.1, as published and as vit-pytorch's default; without the word it is 0.
share          of the speed of bf16 products of large matrices, which take turns with the steps.
kept memory    the process keeps freed memory (cct_lightning.hardware), as `cct` does.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import machine, ratios, spread
from cct_lightning.training.engine import StepGraph
from cct_lightning.training.hardware import default_precision, keep_freed_memory
from cct_lightning.training.optimizers import create_optimizer
from cct_lightning.training.options import OptimConfig
from cct_lightning.weights.loading import create_model


class Row(NamedTuple):
    """A network, images in a batch, threads, and floating-point operations of forward and backward of one image."""

    arch: str
    batch_size: int
    threads: int
    flops: float


ROWS = [
    Row("cct_7_3x1_32", 64, 2, 7.08e9),
    Row("cct_7_3x1_32", 32, 1, 7.08e9),
    Row("cct_2_3x2_32", 128, 2, 0.2085e9),
    Row("cct_2_3x2_32", 128, 1, 0.2085e9),
]
GPU_ROWS = [Row("cct_7_3x1_32", 512, 1, 7.08e9), Row("cct_2_3x2_32", 4096, 1, 0.2085e9)]
CONTESTANTS = ("ours, kept memory", "ours kept, kept memory", "vit-pytorch", "vit-pytorch, kept memory", "timm", "timm, kept memory")
GPU_CONTESTANTS = ("ours", "ours kept", "vit-pytorch", "timm")
PRODUCT, SIDE = "bf16 product", 4096  # a large product of matrices takes its turn, too: what the machine can do at that moment
SHAPES = {"cct_7_3x1_32": (256, 7, 4, 2.0, 1, 2), "cct_2_3x2_32": (128, 2, 2, 1.0, 2, 4)}  # width, layers, heads, MLP, convolutions, timm's patch


def network(name: str, arch: str) -> nn.Module:
    """Builds a contestant's network."""
    width, depth, heads, ratio, convs, patch = SHAPES[arch]
    if name.startswith("vit-pytorch"):
        from vit_pytorch.cct import CCT

        return CCT(
            img_size=32, embedding_dim=width, n_conv_layers=convs, kernel_size=3, stride=1, padding=1, num_layers=depth, num_heads=heads,
            mlp_ratio=ratio, num_classes=10, positional_embedding="learnable",
        )  # fmt: skip
    if name.startswith("timm"):
        from timm.models import VisionTransformer

        return VisionTransformer(
            img_size=32, patch_size=patch, num_classes=10, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=ratio, class_token=False,
            global_pool="avg", attn_drop_rate=0.1, drop_path_rate=0.1,
        )  # fmt: skip
    return create_model(arch, attn_drop=0.1 if name.startswith("ours kept") else 0.0)


def make_step(name: str, row: Row, device: str) -> Callable[[], object]:
    """Returns a call that takes one training step."""
    torch.manual_seed(0)
    if name == PRODUCT:
        matrix = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device=device)
        return lambda: matrix @ matrix
    images, targets = torch.randn(row.batch_size, 3, 32, 32, device=device), torch.randint(0, 10, (row.batch_size,), device=device)
    model, is_ours = network(name, row.arch).train().to(device), name.startswith("ours")
    half = device == "cuda" or (is_ours and default_precision(device) == "bf16-mixed")
    if is_ours:
        images = images.to(memory_format=torch.channels_last)
    optimizer = create_optimizer(model, OptimConfig(lr=1e-4)) if is_ours else torch.optim.AdamW(model.parameters(), lr=1e-4)
    if device == "cuda":
        model.compile()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return F.cross_entropy(model(x), y, label_smoothing=0.1)

    def step() -> None:
        loss(images, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    if device == "cuda" and is_ours:
        probabilities = F.one_hot(targets, 10).float()
        return partial(StepGraph(loss, optimizer, images, probabilities, None), images, probabilities)
    return step


def contestant(pipe: Connection, name: str, row: Row, device: str) -> None:
    """Serves a process: takes a step for every message, and sends the seconds back."""
    if name.endswith("kept memory"):
        keep_freed_memory()
    torch.set_num_threads(row.threads)
    step = make_step(name, row, device)
    while pipe.recv():
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - began)


def measure(row: Row, names: tuple[str, ...], device: str, n: int) -> dict[str, list[float]]:
    """Returns the seconds of every contestant in every round, after three rounds of warming up."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name in names:
        pipes[name], other = context.Pipe()
        processes.append(context.Process(target=contestant, args=(other, name, row, device), daemon=True))
        processes[-1].start()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(n + 3):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            pipes[name].send(True)
            took = pipes[name].recv()
            if number >= 3:
                seconds[name].append(took)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return seconds


def main() -> None:
    """Prints a table for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-n", type=int, default=9, help="rounds")
    parser.add_argument("--row", type=int, default=None, help="number of the only row, from 0")
    options = parser.parse_args()
    import timm

    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as `cct` does; idle threads of one contestant would slow down the next
    rows = GPU_ROWS if options.device == "cuda" else ROWS
    names = GPU_CONTESTANTS if options.device == "cuda" else CONTESTANTS
    print(machine(options.device, torch.get_num_threads(), timm) + f"; n = {options.n} rounds")
    for row in rows if options.row is None else [rows[options.row]]:
        seconds = measure(row, (PRODUCT, *names), options.device, options.n)
        product = seconds.pop(PRODUCT)
        highest = 2 * SIDE**3 / statistics.median(product)
        threads = "" if options.device == "cuda" else f", {row.threads} thread(s)"
        print(f"\n{row.arch}, batch {row.batch_size}{threads}; bf16 products of {SIDE} x {SIDE} reach {highest / 1e9:,.0f} GFLOP/s")
        print(f"{'':26}{'ms':>9}{'images/s':>11}{'GFLOP/s':>10}{'share':>8}")
        for name, took in seconds.items():
            rate = row.batch_size / statistics.median(took)
            speed = f"{rate * row.flops / 1e9:10,.0f}{rate * row.flops / highest:8.0%}" if not name.startswith("timm") else ""  # other operations
            print(f"{name:26}{1e3 * statistics.median(took):9.1f}{rate:11,.0f}{speed}")
        for mine in [name for name in names if name.startswith("ours")]:
            for theirs in [name for name in names if not name.startswith("ours")]:
                print(f"  {theirs} / {mine}: {spread(ratios(seconds[mine], seconds[theirs]))}")


if __name__ == "__main__":
    main()
