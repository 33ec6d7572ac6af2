"""Packs what an isolated machine with a GPU lacks, in parts of at most 60 MB: python -m benchmarks.gpu.bundle DIR [--root ROOT]

DIR/packages      wheels for Python 3.12 on x86-64 Linux; wandb is left out (20 MB), so runs there are not tracked
DIR/cifar10-K     CIFAR-10 without loss, as sheets of WebP; ROOT holds its class folders (train/<class>/*.png, test/<class>/*.png)

There, each part is restored by one line, in a checkout of the repository:

    python3 -m benchmarks.gpu.bundle --restore DIR/packages SITE && export PYTHONPATH=SITE:$PWD
    python3 -m benchmarks.gpu.bundle --restore DIR/cifar10-1 ROOT          # likewise -2, -3: afterwards ROOT holds the class folders

This program needs Python's library and Pillow alone.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

PACKAGES = (
    "albumentations==2.0.8", "albucore==0.0.24", "stringzilla", "simsimd", "pydantic", "pydantic-core", "typing-inspection", "annotated-types",
    "jsonargparse", "typeshed-client", "docstring-parser", "vit-pytorch",
)  # fmt: skip
PYTHON, PLATFORM = "3.12", "x86_64-manylinux_2_28"
SIDE, ACROSS = 32, 50  # pixels of an image; images across and down a sheet
PART_BYTES = 60_000_000


def pack_packages(folder: Path, lock: Path) -> None:
    """Fetches the wheels; their versions are those that the resolver picks for all of them together."""
    folder.mkdir(parents=True, exist_ok=True)
    pins = subprocess.run(
        ["uv", "pip", "compile", "-q", "--no-header", "--no-annotate", "--python-version", PYTHON, "--python-platform", PLATFORM, "-"],
        input="\n".join(PACKAGES), capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    names = {package.partition("==")[0] for package in PACKAGES}
    wanted = [pin for pin in pins if pin.partition("==")[0] in names]
    lock.write_text("\n".join(wanted) + "\n")
    tags = [word for minor in (28, 27, 17, 12, 5) for word in ("--platform", f"manylinux_2_{minor}_x86_64")]
    command = ["uv", "tool", "run", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    subprocess.run([*command, *tags, "--platform", "manylinux2014_x86_64", "--dest", str(folder), *wanted], check=True)


def pack_images(root: Path, base: Path) -> Iterator[Path]:
    """Writes the images below train/ and test/ as sheets, with their paths in sheets.json, part after part; yields the parts."""
    paths = [str(path.relative_to(root)) for split in ("train", "test") for path in sorted((root / split).glob("*/*.png"))]
    chunks = [paths[start : start + ACROSS**2] for start in range(0, len(paths), ACROSS**2)]
    with ProcessPoolExecutor() as pool:
        sheets = list(pool.map(_sheet, [root] * len(chunks), chunks))
    part, size, listed = 0, PART_BYTES, {}
    for number, (chunk, sheet) in enumerate(zip(chunks, sheets, strict=True)):
        if size + len(sheet) > PART_BYTES - 2_000_000:  # sheets.json takes some, too
            part, size, listed = part + 1, 0, {}
            (base / f"cifar10-{part}").mkdir(parents=True, exist_ok=True)
            yield base / f"cifar10-{part}"
        name = f"{number:02}.webp"
        (base / f"cifar10-{part}" / name).write_bytes(sheet)
        listed[name] = chunk
        size += len(sheet)
        (base / f"cifar10-{part}" / "sheets.json").write_text(json.dumps(listed))


def _sheet(root: Path, names: list[str]) -> bytes:
    from io import BytesIO

    sheet = Image.new("RGB", (ACROSS * SIDE, ACROSS * SIDE))
    for place, name in enumerate(names):
        with Image.open(root / name) as image:
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                raise SystemExit(f"{root / name}: {image.size}, {image.mode}; CIFAR-10's images are {SIDE} x {SIDE}, RGB.")
            sheet.paste(image, (place % ACROSS * SIDE, place // ACROSS * SIDE))
    file = BytesIO()
    sheet.save(file, "WEBP", lossless=True, quality=50, method=4, exact=True)
    return file.getvalue()


def restore(part: Path, target: Path) -> str:
    """Undoes one part; returns a line of what is there now."""
    if wheels := sorted(map(str, part.glob("*.whl"))):
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-cache-dir", "--upgrade", "--target", str(target)]
        subprocess.run([*command, *wheels], check=True)
        return f"{len(wheels)} packages in {target}"
    listed = json.loads((part / "sheets.json").read_text())
    with ProcessPoolExecutor() as pool:
        count = sum(pool.map(_cut, [part / name for name in listed], listed.values(), [target] * len(listed)))
    return f"{count:,} images below {target}"


def _cut(sheet: Path, names: list[str], target: Path) -> int:
    with Image.open(sheet) as image:
        for folder in {(target / name).parent for name in names}:
            folder.mkdir(parents=True, exist_ok=True)
        for place, name in enumerate(names):
            left, top = place % ACROSS * SIDE, place // ACROSS * SIDE
            image.crop((left, top, left + SIDE, top + SIDE)).save(target / name, compress_level=1)
    return len(names)


def main() -> None:
    """Packs, or restores one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the parts go, or the part to restore")
    parser.add_argument("target", type=Path, nargs="?", help="where a part is restored to")
    parser.add_argument("--restore", action="store_true")
    parser.add_argument("--root", type=Path, help="folder with CIFAR-10's class folders; without it only the packages are packed")
    options = parser.parse_args()
    if options.restore:
        if options.target is None:
            parser.error("--restore PART TARGET")
        print(restore(options.folder, options.target))
        return
    pack_packages(options.folder / "packages", options.folder / "packages.txt")
    parts = [options.folder / "packages", *(pack_images(options.root, options.folder) if options.root else ())]
    for part in parts:
        size = sum(path.stat().st_size for path in part.iterdir())
        print(f"{os.path.relpath(part)}: {size / 1e6:.1f} MB")
        if size > PART_BYTES:
            raise SystemExit(f"{part} is larger than {PART_BYTES / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
