"""The command line, run in this process; and how many processes share the tests."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from forked import Server

from cct_lightning.__main__ import main
from cct_lightning.runs.postponed import postpone

if TYPE_CHECKING:
    from fake_gpu import FakeGPU
    from hub import Hub

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former only on Linux
# Where Python is told to keep no compiled modules, as in many containers, each of the interpreters compiles torch and Lightning: 8 s each.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    # Before torch is imported: threads that wait for cores of another worker spin, and steal the time of those that work.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(CORES // workers, 1)))
postpone()  # as ``cct`` does
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup hands down that it be ignored, and so a run would


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker for each core, but no more than four, each of which takes 2 GB; none for one file, which each would import Lightning for."""
    files = {name.partition("::")[0] for name in config.args}
    return 0 if len(files) == 1 and files.pop().endswith(".py") else min(CORES, 4)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow tests first for each worker, file by file; each gets an equal stretch of the list. At its end one would run while all wait."""
    quick = [item for item in items if item.get_closest_marker("slow") is None]
    slow = [item for item in items if item.get_closest_marker("slow") is not None]
    files, length = list(dict.fromkeys(item.path for item in slow)), -(-len(quick) // workers)
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        ordered += [item for item in slow if files.index(item.path) % workers == worker]
        ordered += quick[worker * length : (worker + 1) * length]
    items[:] = ordered


def pytest_collection_finish() -> None:
    """Has the collector of garbage leave alone what was imported, half a million objects: Lightning's search for a batch size calls it often."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``cct WORDS`` in this process and in an empty folder: importing Lightning for each command would take minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("CCT_RUN_DIR", raising=False)  # of a test that made a folder itself

    def run(*words: object, draws: bool = False, program: Path | str = "cct") -> Outcome:
        words = tuple(map(str, words))
        if words[:1] in (("fit",), ("finetune",), ("pretrain",)) and "-c" in words and not draws:
            # The recipes' pictures take seconds to draw; test_recipes draws them. What a test names itself is added behind.
            behind = len(words) - words[::-1].index("-c") + 1
            words = (*words[:behind], "--trainer.callbacks", "null", *words[behind:])
        elif words[:1] in (("finetune",), ("pretrain",)) and len(words) > 2 and not draws:
            words = (*words[:2], "--trainer.callbacks", "null", *words[2:])
        monkeypatch.setattr(sys, "argv", [str(program), *words])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def forks() -> Iterator[Server]:
    """Starts ``cct WORDS`` as processes of their own, without the seconds of an import: for those that are killed, stopped, or several."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> "Iterator[FakeGPU]":
    """A GPU that is none, see ``FakeGPU``, for what no test machine has; gradients are not computed."""
    import torch
    from fake_gpu import FakeGPU, Stream

    if torch.cuda.is_available():
        pytest.skip("there is a real one")
    torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does where there is none: torch then looks for no driver
    for name, value in {
        "_lazy_init": lambda: None, "is_bf16_supported": lambda **_: True,
        "synchronize": lambda: None, "Stream": Stream, "current_stream": Stream, "stream": lambda stream: stream,
        "get_rng_state": torch.get_rng_state, "set_rng_state": torch.set_rng_state,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for name in ("tensor", "as_tensor"):  # which copy numbers where no mode of torch sees it

        def make(
            data: object, dtype: torch.dtype | None = None, device: object = None, here: Callable[..., torch.Tensor] = getattr(torch, name)
        ) -> Any:
            made = here(data, dtype=dtype)
            return made if device is None else made.to(device)

        monkeypatch.setattr(torch, name, make)
    in_place = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter can't become a fake one in place
    with torch.no_grad(), FakeGPU() as mode:
        yield mode
    torch.__future__.set_overwrite_module_params_on_conversion(in_place)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Hub]":
    """A hub on loopback in the place of Hugging Face's, and an empty cache."""
    from hub import standing_in
    from huggingface_hub import constants

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with standing_in() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
        for name, value in {"ENDPOINT": server.address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path / "hub"),
                            "HF_TOKEN_PATH": str(tmp_path / "no-token"), "HF_HUB_OFFLINE": False}.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        yield server
