"""What check looks for in processes of their own: the tests for a GPU, two processes on one, and NCCL."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.harness import Told, equal_or

CHECKOUT = Path(__file__).parents[2]
SECONDS = 150  # until a process is taken to hang


def environment() -> dict[str, str]:
    """Has a process in another folder find the checkout."""
    return {**os.environ, "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "PYTHONUNBUFFERED": "1"}


def tests(device: str, told: Told) -> None:
    """Runs the tests marked gpu; on a CPU collects those of one file."""
    # their files alone: others import packages that an isolated machine lacks
    files = [str(path) for path in sorted((CHECKOUT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]
    words = ["-q", "-n0", "-p", "no:cacheprovider", "-p", "cli", "-m", "gpu", *(files if device == "cuda" else ["--collect-only", files[0]])]
    done = _wait([_start([sys.executable, "-m", "pytest", *words], CHECKOUT)])[0]
    passed = done.returncode == 0 and "skipped" not in done.stdout
    told(passed, "tests marked gpu", done.stdout.strip().splitlines()[-1] if passed else (done.stdout + done.stderr).strip()[-900:])


def share(device: str, told: Told, folder: Path) -> None:
    """Tells whether one run takes one GPU for two, and whether two runs at once on one do what each does alone."""
    refused = _cct(device, folder, [["fit", "-c", "digits", "-c", "ddp", "--trainer.devices", "2" if device == "cuda" else "99"]])[0]
    lines = refused.stderr.strip().splitlines()
    told(refused.returncode != 0 and len(lines) <= 12 and "Traceback" not in refused.stderr, "more processes than GPUs are refused", lines[-1:])
    words = ["fit", "-c", "digits", "--trainer.callbacks", "null", "--trainer.max_epochs", "3", "--trainer.deterministic", "true"]
    words += [] if device == "cuda" else ["--data.per_class", "10"]
    places = [folder / f"share{number}" for number in range(2 if device == "cuda" else 1)]
    both = _cct(device, folder, [[*words, "--trainer.default_root_dir", str(place)] for place in places])
    if any(run.returncode for run in both):
        told(False, "two runs at once on one device", [(run.stdout + run.stderr)[-600:] for run in both if run.returncode])
        return
    found = [torch.load(next(place.rglob("last.ckpt")), map_location="cpu", weights_only=True)["state_dict"] for place in places]
    one, other = found[0], found[-1]
    far = max(float((value.float() - other[name].float()).abs().max()) for name, value in one.items())
    told(far == 0, "two runs at once on one device, deterministic: weights", equal_or(far))


def nccl(device: str, told: Told, folder: Path) -> None:
    """Trains by DDP and FSDP2 over NCCL with one process; on a CPU by DDP over gloo."""
    for overlay, engine in (("ddp", "compile"), ("fsdp", "eager")) if device == "cuda" else (("ddp", "eager"),):
        words = ["fit", "-c", "digits", "-c", overlay, "--trainer.max_epochs", "2", "--trainer.callbacks", "null", "--model.engine", engine]
        words += [
            "--trainer.devices",
            "1",
            "--trainer.default_root_dir",
            str(folder / overlay),
            *([] if device == "cuda" else ["--data.per_class", "10"]),
        ]
        done = _cct(device, folder, [words], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"])[0]
        line = next((line.strip() for line in done.stdout.splitlines() if "test accuracy" in line), "")
        told(done.returncode == 0 and bool(line), f"{overlay}, {engine}", line or (done.stdout + done.stderr)[-600:])


def _cct(device: str, folder: Path, commands: Sequence[list[str]], launcher: Sequence[str] = ()) -> list[subprocess.CompletedProcess[str]]:
    """Runs commands of ours side by side."""
    named = ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu", "--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]
    return _wait([_start([sys.executable, *launcher, str(CHECKOUT / "cli.py"), *words, *named], folder) for words in commands])


def _start(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _wait(processes: Sequence[Any]) -> list[subprocess.CompletedProcess[str]]:
    done = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with those that it started
            out, err = process.communicate()
            err += f"\nhangs: over {SECONDS} s"
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done
