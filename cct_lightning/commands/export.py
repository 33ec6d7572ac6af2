"""``cct export``: what is typed, and what is told."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.inference.comparison import NUM_IMAGES, batch_sizes
from cct_lightning.inference.export import TOLERANCE, Exported, export
from cct_lightning.inference.writers import FORMATS

HELP = f"""\
cct export CHECKPOINT --format {"|".join(FORMATS)} [--out DIR]

Writes the network of a run (its folder, or a .ckpt) and config.json with classes, preprocessing and the file's sha256. The file is read back,
and its logits are compared with the checkpoint's on real images; where they differ, nothing is kept.

{"".join(f"  {name:14}{about.reader}{chr(10)}" for name, about in FORMATS.items())}
  --format NAME     one of these
  --out DIR         where to  (default: <run>/export/<format>; beside a .ckpt of no run: <name>-<format>)
  --overwrite       replace an export that is there
  --images DIR      images to compare on, up to {NUM_IMAGES}  (default: the training's folder, else photographs that come with scikit-learn)
  --tolerance X     largest difference of a logit that passes, times the largest logit where that is above 1  (default: {TOLERANCE:g})

Graphs take "images", float32, normalised, (batch, C, H, W), a batch of any size, and return "logits" (batch, K).
"""


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"export: {message}. `cct export --help` lists what it takes.")


def main(arguments: list[str]) -> None:
    """Runs ``cct export`` with the words after ``export``.

    Raises:
        InputError: Anything the user can mend.
    """
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    parser = _Arguments("export", add_help=False, allow_abbrev=False)
    parser.add_argument("checkpoint", nargs="?")
    options = [parser.add_argument(name).option_strings[0] for name in ("--format", "--out", "--images")]
    options.append(parser.add_argument("--tolerance", type=float, default=TOLERANCE).option_strings[0])
    options.append(parser.add_argument("--overwrite", action="store_true").option_strings[0])
    given, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        raise InputError(f"export does not take {word!r}.{did_you_mean(word, options)}")
    if given.checkpoint is None:
        found = max(Path("runs").glob("*/*/checkpoints/best.ckpt"), key=os.path.getmtime, default="runs/.../checkpoints/best.ckpt")
        raise InputError(f"export needs a checkpoint: cct export {found} --format {given.format or 'onnx'}")
    if given.format is None:
        raise InputError(f"export needs a format: cct export {given.checkpoint} --format {'|'.join(FORMATS)}")
    _tell(export(given.checkpoint, given.format, given.out, given.images, given.tolerance, given.overwrite))


def _tell(done: Exported) -> None:
    target, name = done.folder, FORMATS[done.format].file
    size = (target / name).stat().st_size
    sizes = ", ".join(map(str, batch_sizes(done.num_images)))
    print(f"written: {target}/{name} ({size / 1e6:.1f} MB) and config.json")
    print(f"compared on {done.compared_on}, in batches of {sizes}: logits differ by {done.difference:.1e} at most ({done.allowed:.1e} allowed), "
          f"{done.agreeing} of {done.num_images} predicted classes agree")  # fmt: skip
    print(f"next\n  cct predict {target} PATH...")
    if done.format == "timm":
        ours = "" if done.arch.startswith("timm/") else ", cct_lightning.models"
        print(f'  in Python: import timm{ours}; timm.create_model("local-dir:{target}", pretrained=True)')
