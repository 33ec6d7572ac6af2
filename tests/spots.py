"""Images with several labels, and numbers, for tests."""

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits

NAMES = ["one", "two", "zero"]
PLACES = {"zero": (8, 0), "one": (8, 8), "two": (0, 4)}


def write_spots(folder, n=60):
    """Writes images with up to three digits of people's hands, a CSV with their names and one with numbers; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source, digits = np.random.default_rng(0), load_digits()
    labels, numbers = ["path,labels"], ["path,light,width"]
    for index in range(n):
        pixels, here = np.zeros((16, 16), np.uint8), [name for digit, name in enumerate(PLACES) if index >> digit & 1]
        for name in here:
            down, right = PLACES[name]
            alike = digits.images[digits.target == list(PLACES).index(name)]
            pixels[down : down + 8, right : right + 8] = 15 * alike[source.integers(len(alike))]
        PIL.Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        labels.append(f"{index:03d}.png,{';'.join(here)}")
        numbers.append(f"{index:03d}.png,{1000 + pixels.mean():.3f},{0.01 * len(here):.3f}")
    (folder / "labels.csv").write_text("\n".join(labels))
    (folder / "numbers.csv").write_text("\n".join(numbers))
    return folder


SMALL = (
    "--data.dataset", "csv", "--data.image_size", 16, "--data.in_chans", 1, "--data.batch_size", 16, "--trainer.max_epochs", 2, "--model.arch",
    "cct_2_3x2_32", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false", "--data.augment.flip", 0, "--data.num_workers", 0,
    "--data.val_fraction", 0.3,
)  # fmt: skip
FIT = ("fit", "-c", "image_folder", "--trainer.callbacks", '["BatchPreview", "PoolingMaps", "TestReport", "EMA"]', "--task")
