"""Images with several labels, and numbers, for tests."""

import numpy as np
import PIL.Image

NAMES = ["left", "right", "top"]


def write_spots(folder, n=60):
    """Writes dark images with bright spots at the left, the right or the top, a CSV with their names and one with numbers; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(0)
    labels, numbers = ["path,labels"], ["path,light,width"]
    for index in range(n):
        pixels, marks = source.integers(0, 40, (16, 16)), [index & 1, index & 2, index & 4]
        for mark, place in zip(marks, ((slice(5, 11), slice(0, 5)), (slice(5, 11), slice(11, 16)), (slice(0, 5), slice(5, 11))), strict=True):
            pixels[place] += 200 if mark else 0
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03d}.png")
        labels.append(f"{index:03d}.png,{';'.join(name for name, mark in zip(NAMES, marks, strict=True) if mark)}")
        numbers.append(f"{index:03d}.png,{1000 + pixels.mean():.3f},{0.01 * sum(map(bool, marks[:2])):.3f}")
    (folder / "labels.csv").write_text("\n".join(labels))
    (folder / "numbers.csv").write_text("\n".join(numbers))
    return folder


SMALL = (
    "--data.dataset", "csv", "--data.image_size", 16, "--data.in_chans", 1, "--data.batch_size", 16, "--trainer.max_epochs", 2, "--model.arch",
    "cct_2_3x2_32", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false", "--data.augment.flip", 0, "--data.num_workers", 0,
    "--data.val_fraction", 0.3,
)  # fmt: skip
FIT = ("fit", "-c", "image_folder", "--trainer.callbacks", '["BatchPreview", "PoolingMaps", "TestReport", "EMA"]', "--task")
