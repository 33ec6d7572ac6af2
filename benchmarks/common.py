"""What every benchmark prints about the machine, and how ratios are taken: per round, side by side, as a median with least and most."""

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch


def processor() -> str:
    """Names the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine(device: str, threads: int, *packages: ModuleType) -> str:
    """Describes hardware and versions in a line."""
    where = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else f"{processor()}, {threads} thread(s)"
    return f"{where}; " + ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, *packages))


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Writes a median with least and most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Returns how many times faster we were in each round, from seconds: theirs over ours. (With rates, give theirs first.)"""
    return [b / a for a, b in zip(ours, theirs, strict=True)]
