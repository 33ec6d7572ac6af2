"""Looks for defects on a GPU, in about six minutes on an H100: python -m benchmarks.gpu.check [PART ...] [--dry] [--out FILE] [--seconds 540]

parts: augment graph checkpoints rates compile sync resume memory tests share nccl; all of them where none is named. A line that begins with FAIL is
a defect, one with info a measurement. No part is begun after --seconds, nor hangs longer: what is left is named at the end. --dry runs every part
on a CPU, tiny and with stand-ins for what needs CUDA, and finds what is wrong in this program.

augment      the augmentation on the device is the one on the CPU, within a grey level; nothing in it waits for the device
graph        the recorded step takes eager's steps: schedule, clipping, MixUp that ends, EMA, validation, dropout, another batch size
checkpoints  those of the recorded step go on in eager and back; its memory is let go
rates        a replay takes the rate of the moment, which schedules and --find-lr set
compile      the compiled step takes eager's, too; no compilation more for batches of evaluation; names of the state dict; EMA and maps on it
sync         twenty steps of each engine in which nothing waits for the device
resume       with deterministic kernels the same run twice is equal to the bit, also when it was stopped; without them this is only told
memory       peak of a step by engine at 512 and 4,096 images
tests        those marked gpu
share        one run is refused a GPU twice; two runs at once on one are each what one alone is
nccl         DDP and FSDP2 over NCCL with one process
"""

import argparse
import faulthandler
import logging
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import chdir, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from cct_lightning.callbacks import EMA, PoolingMaps

from benchmarks.common import machine
from benchmarks.gpu import processes
from benchmarks.gpu.harness import ADAMW, MUON, Told, again, apart, compiled_with, equal_or, fit, furthest, stand_ins
from cct_lightning import AugmentConfig, InputError, create_model
from cct_lightning.data.augment.per_batch import BatchAugment
from cct_lightning.runs.search import RateRamp
from cct_lightning.training.engine import StepGraph, can_compile
from cct_lightning.training.optimizers import create_optimizer
from cct_lightning.training.options import OptimConfig


class Checks:
    """The parts, each of which tells what it found.

    Args:
        device: cuda, or cpu for a dry run.
        told: Hears it.
        folder: For what they write.
    """

    def __init__(self, device: str, told: Told, folder: Path) -> None:
        self.device, self.told, self.folder, self.on_gpu = device, told, folder, device == "cuda"
        self.fit = partial(fit, device)

    def augment(self) -> None:
        configs = {
            "randaugment": AugmentConfig(crop_scale=(0.6, 1.0), shift=2, flip=0.5, policy="randaugment", cutout=8, erase=0.5),
            "trivialaugment": AugmentConfig(crop_scale=(0.5, 1.0), policy="trivialaugment"),
        }
        count = 1024 if self.on_gpu else 32
        for name, config in configs.items():
            for channels in (1, 3):
                self._augment(f"augment {name}, {channels} channel(s)", config, channels, count)

    def _augment(self, name: str, config: AugmentConfig, channels: int, count: int) -> None:
        augmented = BatchAugment(config, (32, 32), (0.5,) * channels, (0.25,) * channels, 0)
        images = torch.randint(0, 256, (count, 32, 32, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
        there = images.to(self.device)
        off = (augmented(there, 3, torch.arange(count)).cpu().int() - augmented(images, 3, torch.arange(count)).int()).abs()
        share = float((off > 1).float().mean())
        self.told(share < 1e-4, f"{name}: device against CPU", f"{share:.1e} of the values differ by more than a grey level, most {int(off.max())}")
        with self._no_waiting(f"{name}: waits for the device"):
            augmented(there, 4, torch.arange(count))
        began = time.perf_counter()
        for epoch in range(20 if self.on_gpu else 1):
            augmented(there, epoch, torch.arange(count))
        self._finish()
        self.told(None, name, f"{(20 if self.on_gpu else 1) * count / (time.perf_counter() - began):,.0f} images/s")

    def graph(self) -> None:
        for optim, precision, least in ((ADAMW, "32-true", 0.02), (ADAMW, "bf16-mixed", 0.15), (MUON, "bf16-mixed", 0.15), (ADAMW, "bf16-true", 0.3)):
            name = f"graph, {optim.name}, {precision}"
            eager, replayed = (self.fit(engine, optim, precision=precision) for engine in ("eager", "graph"))
            far = apart(eager.losses, replayed.losses)
            self.told(far < least, f"{name}: losses of {len(replayed.losses)} steps as eager's", equal_or(far))
            measures = [float(run.trainer.callback_metrics["val/loss"]) for run in (eager, replayed)]
            self.told(abs(measures[0] - measures[1]) < least, f"{name}: validation as eager's", f"{measures[0]:.4f}, {measures[1]:.4f}")
            self.told(replayed.module._graph is None, f"{name}: the graph's memory is let go after the fit")
        dropout: dict[str, Any] = {"drop_path": 0.2, "attn_drop": 0.1, "precision": "bf16-mixed"}
        twice = [self.fit("graph", probe=probe, **dropout).losses for probe in (self._follows_the_seed, None)]
        self.told(None, "graph with dropout, twice: losses", equal_or(apart(*twice)))
        averages = [float(self.fit(engine, callbacks=[EMA(0.9)]).trainer.callback_metrics["val/accuracy"]) for engine in ("eager", "graph")]
        self.told(abs(averages[0] - averages[1]) < 0.03, "graph with EMA: validation accuracy as eager's", f"{averages[0]:.4f}, {averages[1]:.4f}")

    def _follows_the_seed(self, module: Any) -> None:
        step = module._graph
        images, targets, weights = step.images.clone(), step.targets.clone(), [p.detach().clone() for p in step.parameters]

        def loss(seed: int) -> float:
            with torch.no_grad():
                torch._foreach_copy_(step.parameters, weights)
            torch.manual_seed(seed)
            return float(step(images, targets))

        found = loss(1), loss(1), loss(2)
        self.told(found[0] == found[1] != found[2], "graph: dropout follows the generator's seed at each replay", found)
        try:
            step(images[:-1], targets[:-1])
            said = ""
        except InputError as error:
            said = str(error)
        self.told(f"recorded batches of {tuple(images.shape)}" in said, "graph: a smaller batch is refused", said)

    def checkpoints(self) -> None:
        for first, others in (("graph", ("graph", "eager")), ("eager", ("graph",))):
            path = self.folder / f"{first}.ckpt"
            whole = self.fit(first, keep=path)
            for then in others:
                far = apart(whole.losses, self.fit(then, start=path).losses)
                self.told(far < 0.05, f"a checkpoint of {first} goes on in {then}: losses", equal_or(far))
        if self.on_gpu:
            self._finish()
            self.told(None, "memory still allocated after these runs", f"{torch.cuda.memory_allocated() / 2**20:.0f} MiB")

    def rates(self) -> None:
        """A step with a rate of zero, which --find-lr and schedules set, changes nothing; one with a large rate much."""
        for name, optim in (("adamw", ADAMW), ("muon", MUON)):
            model = create_model("cct_2_3x2_32", image_size=16, in_chans=1).to(self.device).train()
            optimizer = create_optimizer(model, OptimConfig(optim.name, lr=1e-3, weight_decay=0.0))
            images, targets = torch.randn(8, 1, 16, 16, device=self.device), torch.eye(10, device=self.device)[:8]

            def loss(x: torch.Tensor, y: torch.Tensor, model: Any = model) -> torch.Tensor:
                return F.cross_entropy(model(x), y)

            step = self._step_graph(loss, optimizer, images, targets)
            weight = next(model.parameters())
            before = weight.detach().clone()
            changes = []
            for rate in (0.0, 0.1):
                for group in optimizer.param_groups:
                    group["lr"].fill_(rate)
                step(images, targets)
                changes.append(float((weight - before).abs().max()))
            self.told(changes[0] == 0 < changes[1], f"graph, {name}: a replay takes the rate of the moment", changes)
        eager, replayed = (self.fit(engine, callbacks=[RateRamp()]) for engine in ("eager", "graph"))
        far = apart(eager.losses, replayed.losses)
        self.told(far < 0.02, "graph under the rates of --find-lr: losses as eager's", equal_or(far))

    def _step_graph(self, *arguments: Any) -> StepGraph:
        return StepGraph(*arguments, None) if self.on_gpu else StepGraph(*arguments, None, again)

    def compile(self) -> None:
        import torch._dynamo.utils as dynamo

        for pooling in ("seqpool", "masked_class_token") if self.on_gpu else ("seqpool",):
            eager = self.fit("eager", precision="bf16-mixed", pooling=pooling)
            torch._dynamo.reset()
            dynamo.counters.clear()
            began = time.perf_counter()
            with nullcontext() if self.on_gpu else compiled_with(backend="eager", disable=False):  # traced, that is
                fast = self.fit("compile", precision="bf16-mixed", pooling=pooling)
            took, far = time.perf_counter() - began, apart(eager.losses, fast.losses)
            self.told(far < 0.15, f"compile, {pooling}: losses as eager's", f"{equal_or(far)}, {took:.0f} s")
            graphs, breaks = dynamo.counters["stats"]["unique_graphs"], dict(dynamo.counters["graph_break"])
            self.told(graphs <= 2 and not breaks, f"compile, {pooling}: graphs and breaks, evaluation between", f"{graphs}, {breaks}")
            self.told(not any("_orig_mod" in name for name in fast.module.state_dict()), f"compile, {pooling}: names of the state dict")
        average = self.fit("compile", callbacks=[EMA(0.9), PoolingMaps(every_n_epochs=1, num_images=2)])
        self.told(float(average.trainer.callback_metrics["val/accuracy"]) > (0.2 if self.on_gpu else 0), "compile with EMA and PoolingMaps: learns")

    def sync(self) -> None:
        for engine in ("eager", "compile", "graph"):
            counted = NoWaiting()
            try:
                self.fit(engine, precision="bf16-mixed", callbacks=[counted])
                waited = ""
            except RuntimeError as error:
                own = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
                waited = f"{str(error)[:120]} at {' < '.join(own[:-6:-1])}"
            finally:
                if self.on_gpu:
                    torch.cuda.set_sync_debug_mode("default")
            self.told(not waited and counted.steps >= (20 if self.on_gpu else 1), f"{engine}: {counted.steps} steps without waiting", waited)

    def resume(self) -> None:
        for engine, deterministic in (("eager", True), ("graph", False)):
            words = {"deterministic": deterministic, "drop_path": 0.2, "attn_drop": 0.1, "precision": "bf16-mixed"}
            path = self.folder / "resume.ckpt"
            first, second, resumed = self.fit(engine, keep=path, **words), self.fit(engine, **words), self.fit(engine, start=path, **words)
            for name, other in (("twice", second), ("resumed after an epoch", resumed)):
                far = furthest(first, other)
                right = far == 0 if deterministic or not self.on_gpu else None
                self.told(right, f"{engine}{', deterministic' * deterministic}: {name}, weights", equal_or(far))

    def memory(self) -> None:
        for arch in ("cct_2_3x2_32", "cct_7_3x1_32") if self.on_gpu else ("cct_2_3x2_32",):
            for count in (512, 4096) if self.on_gpu else (4,):
                for engine in ("eager", "graph"):
                    self.told(None, f"memory: {arch}, {count} images, {engine}", self._peak(arch, count, engine))

    def _peak(self, arch: str, count: int, engine: str) -> str:
        images, targets = torch.randn(count, 3, 32, 32, device=self.device), torch.zeros(count, 10, device=self.device)
        targets[:, 0] = 1
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = create_model(arch).to(self.device).train()
        optimizer = create_optimizer(model, OptimConfig(lr=1e-4))

        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device, torch.bfloat16):
                return F.cross_entropy(model(x), y)

        try:
            if engine == "graph":
                self._step_graph(loss, optimizer, images, targets)(images, targets)
            else:
                loss(images, targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        except torch.OutOfMemoryError:
            return "out of memory"
        self._finish()
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if self.on_gpu else "a step"

    def tests(self) -> None:
        processes.tests(self.device, self.told)

    def share(self) -> None:
        processes.share(self.device, self.told, self.folder)

    def nccl(self) -> None:
        processes.nccl(self.device, self.told, self.folder)

    def _no_waiting(self, what: str) -> Any:
        """A block in which a call that waits for the device is told as a defect."""
        return NoWait(self, what) if self.on_gpu else nullcontext()

    def _finish(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


class NoWait:
    """A block in which torch raises where it would wait for the device.

    Args:
        checks: Hears of it.
        what: How it is told.
    """

    def __init__(self, checks: Checks, what: str) -> None:
        self.checks, self.what = checks, what

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        torch.cuda.set_sync_debug_mode("default")
        if isinstance(error, RuntimeError):
            self.checks.told(False, self.what, f"{str(error)[:150]} at {traceback.extract_tb(trace)[-1]}")
            return True
        return False


class NoWaiting(L.Callback):
    """Has torch raise where it waits for the device, from the third batch of every epoch but the first to its last.

    Attributes:
        steps: That were taken so.
    """

    steps = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= 2 and trainer.current_epoch > 0:
            self.steps += 1
            if self.steps == 1 or batch_idx == 2:
                self._mode(pl_module, "error")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self._mode(pl_module, "default")

    def _mode(self, pl_module: Any, mode: str) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)


PARTS = ("augment", "graph", "checkpoints", "rates", "compile", "sync", "resume", "memory", "tests", "share", "nccl")


def main() -> None:
    """Runs the parts; exits with 1 where one found a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), metavar="PART")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with stand-ins")
    parser.add_argument("--out", type=Path, help="a file that gets a line of JSON for each finding")
    parser.add_argument("--seconds", type=float, default=540, help="after which no part is begun; a little later a part that hangs is ended")
    options = parser.parse_args()
    _quiet()
    # torch looks once, when it first multiplies, long before a part asks for deterministic kernels
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    began, out, device = time.perf_counter(), options.out.absolute() if options.out else None, "cpu" if options.dry else "cuda"
    told, left = Told(out), []
    told(None, "machine", f"{machine(device, torch.get_num_threads(), L)}; Python {platform.python_version()}, CUDA {torch.version.cuda}")
    told(None, "command", shlex.join(sys.argv))
    told(can_compile() or options.dry, "triton finds a compiler and Python's headers")
    with tempfile.TemporaryDirectory() as folder, chdir(folder), stand_ins() if options.dry else nullcontext():
        checks = Checks(device, told, Path(folder))
        for name in options.parts or PARTS:
            if time.perf_counter() - began > options.seconds:
                left.append(name)
                continue
            # says where a part hangs, and ends it, while its lines can still be fetched
            faulthandler.dump_traceback_later(max(options.seconds + 30 - (time.perf_counter() - began), 30), exit=True, file=sys.__stderr__)
            start = time.perf_counter()
            try:
                getattr(checks, name)()
            except Exception as error:
                told(False, name, "".join(traceback.format_exception(error))[-1500:])
            faulthandler.cancel_dump_traceback_later()
            told(None, name, f"{time.perf_counter() - start:.0f} s")
    print(f"{len(told.failed)} defect(s)" + "".join(f"\n  {what}" for what in told.failed) + (f"\nleft: {' '.join(left)}" if left else ""))
    sys.exit(bool(told.failed))


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    os.environ.setdefault("WANDB_MODE", "disabled")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
