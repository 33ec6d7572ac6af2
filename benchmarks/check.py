"""Measures `cct check DIR` against reading and decoding alone, on the same cores: python -m benchmarks.check [--rounds 3] [--root DIR]

`cct check` is a process from its start to its end: it lists, reads and decodes every image, takes its digest and its look, finds duplicates
and near duplicates and writes its report. The others are pools of as many processes, already there, that read the bytes, or decode them by
Pillow or OpenCV, and do nothing else. They take turns; files are read once before, so that no disk is measured. Without --root the images are
JPEGs of 500 x 375 pixels that this program writes, with shapes of all sizes and some noise.
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL
import PIL.Image

from benchmarks.common import processor, spread
from cct_lightning.data.check import cores
from cct_lightning.data.findings import list_images

ROOT = Path(__file__).parents[1]


def read(path: str) -> int:
    """Reads a file."""
    return len(Path(path).read_bytes())


def by_pillow(path: str) -> int:
    """Decodes a file with Pillow."""
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB")).nbytes


def by_cv2(path: str) -> int:
    """Decodes a file with OpenCV."""
    cv2.setNumThreads(1)
    return cv2.imread(path).nbytes


CONTESTANTS: dict[str, Callable[[str], int]] = {"reading alone": read, "Pillow": by_pillow, "OpenCV": by_cv2}


def write_photos(folder: Path, count: int) -> None:
    """Writes two classes of JPEGs with shapes of all sizes and some noise."""
    source = np.random.default_rng(0)
    for number in range(count):
        parts = [source.integers(0, 256, (3 * 2**level, 4 * 2**level, 3)).astype(np.float32) / (level + 1) for level in range(6)]
        image = sum(cv2.resize(part, (500, 375), interpolation=cv2.INTER_CUBIC) for part in parts) / 2.45 + source.normal(0, 4, (375, 500, 3))
        place = folder / f"class{number % 2}"
        place.mkdir(exist_ok=True)
        PIL.Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)).save(place / f"{number}.jpg", quality=90)


def check(root: Path, out: str) -> float:
    """Runs the command; returns its seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cct_lightning", "check", str(root), "--out", out], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def main() -> None:
    """Prints a line for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, multiprocessing.Pool(cores()) as pool:
        root, out = options.root, str(Path(place) / "out")
        if root is None:
            root = Path(place) / "photos"
            root.mkdir()
            write_photos(root, options.images)
        paths = [str(path) for path in list_images("image_folder", root).images]
        kilobytes = sum(pool.map(read, paths, 64)) / len(paths) / 1e3
        print(f"{processor()}, {cores()} processes; pillow {PIL.__version__}, cv2 {cv2.__version__}; n = {options.rounds} rounds; "
              f"{len(paths):,} images of {kilobytes:.0f} kB", flush=True)  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in ("cct check", *CONTESTANTS)}
        for _ in range(options.rounds):
            taken["cct check"].append(len(paths) / check(root, out))
            for name, work in CONTESTANTS.items():
                began = time.perf_counter()
                pool.map(work, paths, 64)
                taken[name].append(len(paths) / (time.perf_counter() - began))
    for name, rates in taken.items():
        shares = [ours / theirs for ours, theirs in zip(taken["cct check"], rates, strict=True)]
        print(f"{name:15}{spread(rates, '8,.0f'):>32} images/s   cct check reaches {spread(shares)} of it", flush=True)


if __name__ == "__main__":
    main()
