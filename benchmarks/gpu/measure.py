"""Measures on one GPU, row after row: python -m benchmarks.gpu.measure --root DIR --out FILE [--seconds 540] [--dry] [ROW ...]

FILE gets a line of JSON after each row; rows that stand there are not measured again, whatever came of them, so a lease that is cut off goes on with
the next call. No row is begun that would not end within --seconds by its estimate. DIR holds CIFAR-10. --dry runs a few on a CPU, tiny, with noise
for CIFAR-10.

card         the speed of bf16 products of large matrices, and of copies in the card's memory
step         images/s and share of that speed: ours by engine and batch, vit-pytorch and timm compiled under bf16 (benchmarks/step.py's contestants)
ablation     ours, compiled and recorded, channels_last, augmented on the device; then each of these left out alone
loop         `cct fit` against the bare recorded loop (benchmarks/loop.py)
cifar10_*    the recipes by time: last weights, tested once; seconds of the training with and without the first steps, which compile, and from Enter
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml

import cct_lightning
from benchmarks.common import machine
from benchmarks.gpu.harness import again
from benchmarks.step import GPU_ROWS, network
from cct_lightning import AugmentConfig
from cct_lightning.data.augment.per_batch import BatchAugment
from cct_lightning.training.engine import StepGraph
from cct_lightning.training.optimizers import create_optimizer
from cct_lightning.training.options import OptimConfig

FLOPS = {row.arch: row.flops for row in GPU_ROWS}  # of forward and backward of an image
BATCHES = (512, 4096, 128, 2048)
PIECES = ("compile", "graph", "channels_last", "augment")
ENGINES = {
    "compile+graph": PIECES[:3], "compile": ("compile", "channels_last"), "graph": ("graph", "channels_last"), "eager": ("channels_last",),
}  # fmt: skip
CHECKOUT = Path(__file__).parents[2]
STEP_SECONDS = 240  # until a step is taken to hang
RECIPES = ("cifar10_1min", "cifar10_3min", "cifar10_9min")


class Row(NamedTuple):
    """Something to measure.

    Attributes:
        name: By which it is asked for, and known in the file.
        seconds: That it takes by estimate, on an H100.
        measure: Returns the figures.
    """

    name: str
    seconds: float
    measure: Callable[[], dict[str, Any]]


class Step:
    """A training step on random images.

    Args:
        name: ours, vit-pytorch or timm, as in benchmarks/step.py.
        arch: Of ours; the others have as many tokens, layers, heads and channels.
        batch_size: Images of a step.
        pieces: What ours is given, of ``PIECES``; the others are compiled.
        device: cuda, or cpu for a dry run.
    """

    def __init__(self, name: str, arch: str, batch_size: int, pieces: tuple[str, ...], device: str) -> None:
        torch.manual_seed(0)
        self.device, ours = device, name == "ours"
        self.model = network(name, arch).train().to(device)
        optimizer = create_optimizer(self.model, OptimConfig(lr=1e-4)) if ours else torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        images = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8, device=device)
        targets = torch.randint(0, 10, (batch_size,), device=device)
        self.images, self.targets, self.optimizer = images, F.one_hot(targets, 10).float(), optimizer
        self.augment = BatchAugment(AugmentConfig(shift=4, flip=0.5, cutout=8), (32, 32), (0.5,) * 3, (0.25,) * 3, 0) if "augment" in pieces else None
        self.format = torch.channels_last if "channels_last" in pieces else torch.contiguous_format
        if "compile" in pieces:
            self.model.compile(disable=device != "cuda")
        self.epoch = 0
        self.take: Callable[[torch.Tensor, torch.Tensor], object] = self._plain
        if "graph" in pieces:
            self.take = StepGraph(self._loss, optimizer, self._batch(), self.targets, None, *(() if device == "cuda" else (again,)))

    def __call__(self) -> None:
        self.take(self._batch(), self.targets)

    def _batch(self) -> torch.Tensor:
        self.epoch += 1
        images = self.images if self.augment is None else self.augment(self.images, self.epoch, torch.arange(len(self.images)))
        return images.to(torch.float32).to(memory_format=torch.channels_last).div_(255)

    def _loss(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return F.cross_entropy(self.model(images.contiguous(memory_format=self.format)), targets)

    def _plain(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self._loss(images, targets).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()


def timed(call: Callable[[], object], device: str, rounds: int, calls: int) -> list[float]:
    """Returns the seconds of a call in each round, after one round of warming up."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / calls)
    return seconds[1:]


def in_a_process(pipe: Connection, arguments: tuple[Any, ...], device: str, calls: int) -> None:
    """Sends the seconds of a step, of its preparation, and the peak of the memory; or says why there are none."""
    try:
        began = time.perf_counter()
        step = Step(*arguments, device)
        timed(step, device, 0, 3)
        ready = time.perf_counter() - began
        seconds = timed(step, device, 5 if device == "cuda" else 1, calls)
        pipe.send((seconds, ready, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")


def step(name: str, arch: str, batch_size: int, pieces: tuple[str, ...], device: str, apart: bool = True) -> dict[str, Any]:
    """Times a step, in a process of its own, whose memory is its own, or ``apart`` from none."""
    pipe, other = multiprocessing.Pipe()
    arguments = (other, (name, arch, batch_size, pieces), device, 20 if device == "cuda" else 1)
    if apart:
        process = multiprocessing.get_context("spawn").Process(target=in_a_process, args=arguments)
        process.start()
        other.close()
        try:
            found = pipe.recv() if pipe.poll(STEP_SECONDS) else f"more than {STEP_SECONDS} s"
        except EOFError:
            found = "the process died"
        if isinstance(found, str):
            process.kill()
        process.join()
    else:
        in_a_process(*arguments)
        found = pipe.recv()
    if isinstance(found, str):
        return {"error": found}
    seconds, ready, memory = found
    rates = sorted(batch_size / took for took in seconds)
    median = statistics.median(rates)
    figures = {"images_per_second": median, "least": rates[0], "most": rates[-1], "n": len(rates), "seconds_to_first": ready, "GiB": memory}
    return figures | ({} if name == "timm" else {"tflops": median * FLOPS[arch] / 1e12})


def card(device: str) -> dict[str, Any]:
    """Measures bf16 products and copies."""
    side, size = (8192, 2**30) if device == "cuda" else (128, 2**16)
    matrix, block = torch.randn(side, side, device=device, dtype=torch.bfloat16), torch.empty(size, dtype=torch.uint8, device=device)
    out, copy = torch.empty_like(matrix), torch.empty_like(block)
    products = timed(lambda: torch.mm(matrix, matrix, out=out), device, 5, 20)
    copies = timed(lambda: copy.copy_(block), device, 5, 20)
    return {"tflops": 2 * side**3 / statistics.median(products) / 1e12, "GB_per_second": 2 * size / statistics.median(copies) / 1e9, "n": 5}


def loop(root: Path, device: str) -> dict[str, Any]:
    """Runs benchmarks/loop.py; its lines are the figures."""
    words = ["--arch", "cct_7_3x1_32", "--batch", "512"] if device == "cuda" else ["--batch", "4", "-n", "1"]
    done = in_another_process(["-m", "benchmarks.loop", "--device", device, "--root", str(root), *words], 300)
    return {"lines": done.stdout.strip().splitlines()[-5:]} if done.returncode == 0 else {"error": done.stderr[-500:]}


def recipe(name: str, seed: int, device: str, root: Path) -> dict[str, Any]:
    """Runs a recipe as it is, in a process of its own, and reads when what happened; on a CPU two steps of it, in this one."""
    kept = ("test_accuracy", "steps", "seconds", "cpu_seconds", "images_per_second", "device", "seed")
    keys: dict[str, Any] = {"seed_everything": seed, "data.root": str(root), "wandb.mode": "disabled", "trainer.enable_progress_bar": False}
    if device == "cpu":
        keys |= {"model.engine": "eager", "trainer.max_steps": 2, "trainer.accelerator": "cpu", "data.batch_size": 8}
        keys |= {"model.arch": "cct_2_3x2_32", "trainer.precision": "32-true"}
    with tempfile.TemporaryDirectory() as folder:
        keys["trainer.default_root_dir"] = folder
        began = time.perf_counter()
        if device == "cpu":
            cct_lightning.fit(name, keys)
        else:
            words = [word for key, value in keys.items() for word in (f"--{key}", str(value).lower() if isinstance(value, bool) else str(value))]
            done = in_another_process(["cli.py", "fit", "-c", name, *words], 580)
            if done.returncode:
                return {"error": (done.stdout + done.stderr)[-500:]}
        took = time.perf_counter() - began
        (path,) = Path(folder).glob(f"{name}/*/summary.json")
        summary = json.loads(path.read_text())
        batch_size = yaml.safe_load((path.parent / "config.yaml").read_text())["data"]["batch_size"]
    rate = summary["images_per_second"]  # of all steps but the first, in which networks are compiled
    steady = summary["steps"] * batch_size / rate if rate else None
    return {key: summary[key] for key in kept} | {"seconds_of_steps_alone": steady, "seconds_from_enter": took, "n": 1}


def in_another_process(words: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a program of the checkout, which need not be installed, from wherever this one was called."""
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": path}, cwd=CHECKOUT, capture_output=True, text=True, timeout=seconds
    )


def noise(root: Path) -> Path:
    """Writes class folders of noise where CIFAR-10's would lie."""
    from PIL import Image

    for split in ("train", "test"):
        for number in range(40):
            path = root / split / f"class{number % 10}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.frombytes("RGB", (32, 32), os.urandom(3 * 32 * 32)).save(path)
    return root


def steps(device: str, batches: Sequence[int]) -> Iterator[Row]:
    """Yields the steps at these batch sizes; of a dry run those of the small network, one of them in a process of its own."""
    on_gpu = device == "cuda"
    for arch in ("cct_7_3x1_32", "cct_2_3x2_32") if on_gpu else ("cct_2_3x2_32",):
        for batch_size in batches:
            for engine, pieces in ENGINES.items():
                ours = partial(step, "ours", arch, batch_size, pieces, device, on_gpu or engine == "eager")
                yield Row(f"step {arch} {batch_size} ours {engine}", 25, ours)
            for name in ("vit-pytorch", "timm"):
                yield Row(f"step {arch} {batch_size} {name} compile", 30, partial(step, name, arch, batch_size, ("compile",), device, on_gpu))


def rows(device: str, root: Path) -> Iterator[Row]:
    """Yields all rows, the most wanted first; of a dry run those that take other ways through this program."""
    on_gpu = device == "cuda"
    yield Row("card", 10, partial(card, device))
    yield from steps(device, BATCHES[:2] if on_gpu else (4,))
    yield Row("cifar10_1min seed 0", 110, partial(recipe, RECIPES[0], 0, device, root))
    yield Row("loop", 90, partial(loop, root, device))
    arch, batch_size = ("cct_7_3x1_32", 512) if on_gpu else ("cct_2_3x2_32", 4)
    for left_out in (None, *PIECES):
        pieces = tuple(piece for piece in PIECES if piece != left_out)
        name = f"ablation {arch} {batch_size} {'all' if left_out is None else f'without {left_out}'}"
        yield Row(name, 30, partial(step, "ours", arch, batch_size, pieces, device, on_gpu))
    for seed in (0, 1, 2) if on_gpu else (0,):
        for name, seconds in zip(RECIPES, (110, 240, 530), strict=True):
            if seed or name != RECIPES[0]:
                yield Row(f"{name} seed {seed}", seconds, partial(recipe, name, seed, device, root))
        yield from steps(device, BATCHES[2:] if on_gpu and not seed else ())


def main() -> None:
    """Measures what the file lacks, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="beginnings of rows' names; all rows without one")
    parser.add_argument("--root", type=Path, default=Path("~/.cache/cct-lightning").expanduser(), help="folder with CIFAR-10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    began, device = time.perf_counter(), "cpu" if options.dry else "cuda"
    os.environ.setdefault("WANDB_MODE", "disabled")
    about = {"machine": described(device), "command": shlex.join(sys.argv), "date": time.strftime("%Y-%m-%d")}
    print(about["machine"], flush=True)
    done, left = measured(options.out), []
    with tempfile.TemporaryDirectory() if options.dry else nullcontext() as folder:
        for row in rows(device, noise(Path(folder)) if folder else options.root.absolute()):
            if row.name in done or (options.rows and not row.name.startswith(tuple(options.rows))):
                continue
            if time.perf_counter() - began + (0 if options.dry else row.seconds) > options.seconds:
                left.append(row.name)
                continue
            try:
                found = row.measure()
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"[:500]}
            if row.name == "card":
                done["card"] = found
            if "tflops" in found and "tflops" in done.get("card", {}):
                found["share"] = found["tflops"] / done["card"]["tflops"]  # of what large products reach on this card
            with options.out.open("a") as file:
                file.write(json.dumps({"row": row.name, **found, **about}) + "\n")
            said = (f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items())
            print(f"{row.name}: {', '.join(said)}", flush=True)
    print(f"{len(left)} row(s) left, call again: {', '.join(left)}" if left else "all rows stand in the file")


def described(device: str) -> str:
    """Describes hardware and versions in a line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("lightning", "timm", "numpy"))
    return f"{machine(device, torch.get_num_threads())}, {versions}, Python {platform.python_version()}, CUDA {torch.version.cuda}"


def measured(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows that stand in a file by their names; a last line that was cut off counts for none, and is taken out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines := lines[:-1]))
    return {row["row"]: row for row in map(json.loads, lines)}


if __name__ == "__main__":
    main()
