"""How a training step runs: eager, compiled, or recorded once as a CUDA graph of forward, backward and optimizer, and replayed."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.training.options import Engine

COMPILE_FROM_STEPS = 5_000  # auto compiles from here on: compiling takes a minute or two, and what it saves is a few milliseconds a step
GRAPH_OPTIMIZERS = ("adamw", "muon")


def choose_engine(engine: Engine, device: torch.device, steps: float) -> Literal["eager", "compile", "graph"]:
    """Decides what ``auto`` means: compile on a GPU that can, in a run long enough to pay for it; eager elsewhere.

    Args:
        engine: As given.
        device: Where the run trains.
        steps: Optimizer steps of the run; the same for a resumed one, so that it chooses the same.
    """
    if engine != "auto":
        return engine
    return "compile" if device.type == "cuda" and steps >= COMPILE_FROM_STEPS and can_compile() else "eager"


def can_compile() -> bool:
    """Tells whether triton can compile kernels for a GPU here: it builds its launcher with a C compiler and Python's headers, which images
    without development packages lack."""
    compiler = any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]))
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's own; as triton 3.6 does
    headers = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    return importlib.util.find_spec("triton") is not None and compiler and headers.is_file()


def check_graph(device: torch.device, world_size: int, precision: str, optimizer: str, trainer_keys: dict[str, Any]) -> None:
    """Refuses what a recorded step can't honour.

    Args:
        device: Where the run trains.
        world_size: Number of devices.
        precision: Lightning's name.
        optimizer: The name of ``optim.name``.
        trainer_keys: Keys of the Trainer that would act inside the step, each with its value and the value that leaves the step alone.

    Raises:
        InputError: Names the key.
    """
    if device.type != "cuda":
        raise InputError(f"model.engine=graph records a CUDA graph, and the run is on {device.type}: choose eager, or auto.")
    if world_size > 1:
        raise InputError(f"model.engine=graph takes one device, and there are {world_size}: choose compile.")
    if precision.startswith("16"):
        raise InputError(f"model.engine=graph can't scale the loss, as trainer.precision={precision} needs: choose bf16-mixed.")
    if optimizer.lower() not in GRAPH_OPTIMIZERS:
        raise InputError(f"model.engine=graph records optim.name={' or '.join(GRAPH_OPTIMIZERS)}, not {optimizer}: choose one of them, or compile.")
    for key, (value, neutral) in trainer_keys.items():
        if value not in (None, neutral):
            hint = "set model.optim.clip_norm" if "clip" in key else "leave it out, or choose compile"
            raise InputError(f"model.engine=graph can't honour trainer.{key}={value}: {hint}.")


def record_cuda_graph(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Records what a step does; returns what does it again, and the tensor that then holds its result. It must have run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # threads of a DataLoader may pin memory meanwhile
        result = step()
    return graph.replay, result


class StepGraph:
    """A whole training step as one launch: thousands of kernels of a small network take longer to launch one by one than to run.

    The step is run a few times first, as CUDA graphs ask for; weights, buffers, optimizer state and random generator are put back.

    Args:
        loss: Maps images (B, C, H, W) and targets to the loss; called under the run's autocast.
        optimizer: AdamW or our Muon; its learning rates become tensors, which schedules fill.
        images: A batch; all others must have its shape and dtype.
        targets: Its targets, of one shape and dtype as well: probabilities (B, K), or what else a task makes of a batch.
        clip_norm: Largest norm of the gradient; None: not clipped.
        record: Records a step; ``record_cuda_graph`` but in tests.
        buffers: What a step changes beside the weights, such as BatchNorm's statistics.
    """

    WARMUPS = 3

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        targets: Tensor,
        clip_norm: float | None,
        record: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]] = record_cuda_graph,
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self.loss, self.optimizer, self.clip_norm = loss, optimizer, clip_norm
        # Laid out alike whatever batch comes first, as a resumed run has another one: kernels are chosen by it, and round differently.
        layout = torch.channels_last if images.ndim == 4 else torch.preserve_format
        self.images, self.targets = images.clone(memory_format=layout), targets.clone()
        for group in optimizer.param_groups:
            # float32 whatever the default is, which precision bf16-true changes: fused kernels read rates as float
            group["lr"], group["capturable"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=images.device), True
        optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # of the runs before the capture
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.buffers = list(buffers)
        self._warm_up()
        self.replay, self.result = record(self._step)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Takes a step; returns the loss, (), before it.

        Raises:
            InputError: The batch has another shape than the recorded one.
        """
        if images.shape != self.images.shape:
            raise InputError(f"model.engine=graph recorded batches of {tuple(self.images.shape)} and got {tuple(images.shape)}: choose compile.")
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.replay()
        return self.result.clone()

    def _step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        # Inside an autocast that keeps what it casts (Lightning's does not), the step would use weights that were cast before it changed them.
        torch.clear_autocast_cache()
        loss = self.loss(self.images, self.targets)
        with torch.autocast(self.images.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
            self.optimizer.step()
        return loss.detach()

    def _warm_up(self) -> None:
        """Runs the step on a stream of its own, then puts back weights, optimizer state and random generator."""
        on_gpu = self.images.device.type == "cuda"
        changed = [parameter.detach() for parameter in self.parameters] + self.buffers
        before_it = [tensor.clone() for tensor in changed]
        states = {p: {name: value.clone() for name, value in self.optimizer.state[p].items()} for p in self.parameters}
        generator = torch.cuda.get_rng_state() if on_gpu else torch.get_rng_state()
        if on_gpu:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self.WARMUPS):
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            for _ in range(self.WARMUPS):
                self._step()
        with torch.no_grad():
            torch._foreach_copy_(changed, before_it)
            for parameter in self.parameters:
                for name, value in self.optimizer.state[parameter].items():
                    before = states[parameter].get(name)
                    value.zero_() if before is None else value.copy_(before)  # averages, momenta and step counters all begin at 0
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.set_rng_state(generator) if on_gpu else torch.set_rng_state(generator)


def make_plain(checkpoint: dict[str, Any]) -> None:
    """Turns what a recorded step left in the states of optimizers and schedules into the plain values of every other run, in place."""
    for state in checkpoint.get("optimizer_states", ()):
        for group in state["param_groups"]:
            group["lr"], group["capturable"] = float(group["lr"]), False
    for state in checkpoint.get("lr_schedulers", ()):
        state["_last_lr"] = [float(rate) for rate in state["_last_lr"]]
