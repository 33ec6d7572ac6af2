"""``cct export``: what is typed, and what is told."""

from __future__ import annotations

from cct_lightning.commands.words import read_words
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.inference.comparison import NUM_IMAGES, batch_sizes
from cct_lightning.inference.export import TOLERANCE, Exported, export
from cct_lightning.inference.writers import FORMATS
from cct_lightning.run_folder import newest

OPTIONS = ("format", "out", "images", "tolerance", "overwrite")
HELP = f"""\
cct export CHECKPOINT --format {"|".join(FORMATS)} [--out DIR]

Writes the network of a run (its folder, or a .ckpt), config.json with classes, preprocessing and the file's sha256, and a card, README.md: data,
figures, limits, recipe. The file is read back, and its logits are compared with the checkpoint's on real images; where they differ, nothing is kept.

{"".join(f"  {name:14}{about.reader}{chr(10)}" for name, about in FORMATS.items())}
  --format NAME     one of these
  --out DIR         where to  (default: <run>/export/<format>; beside a .ckpt of no run: <name>-<format>)
  --overwrite       replace an export that is there
  --images DIR      images to compare on, up to {NUM_IMAGES}  (default: the training's folder, else photographs that come with scikit-learn)
  --tolerance X     largest difference of a logit that passes, times the largest logit where that is above 1  (default: {TOLERANCE:g})

Graphs take "images", float32, normalised, (batch, C, H, W), a batch of any size, and return "logits" (batch, K). Of task multilabel config.json says
under "output" the thresholds: an image has the labels whose sigmoid(logit) is at least theirs; of task regression mean and std: logit * std + mean.
"""


def main(arguments: list[str]) -> None:
    """Runs ``cct export`` with the words after ``export``.

    Raises:
        InputError: Anything the user can mend.
    """
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    typed = read_words(arguments, "export", ("overwrite",), _meant)
    for word in typed.alone[1:]:
        raise InputError(f"export does not take {word!r}.{did_you_mean(word, map('--{}'.format, OPTIONS))}")
    format = typed.last("format")
    if not typed.alone:
        found = next(iter(newest()), "runs/.../checkpoints/best.ckpt")
        raise InputError(f"export needs a checkpoint: cct export {found} --format {format or 'onnx'}")
    if format is None:
        raise InputError(f"export needs a format: cct export {typed.alone[0]} --format {'|'.join(FORMATS)}")
    tolerance = typed.last("tolerance")
    try:
        allowed = TOLERANCE if tolerance is None else float(tolerance)
    except ValueError:
        raise InputError(f"--tolerance {tolerance}: it takes a number.") from None
    overwrite = any(option.key == "overwrite" for option in typed.options)
    _tell(export(typed.alone[0], format, typed.last("out"), typed.last("images"), allowed, overwrite))


def _meant(key: str) -> str:
    if key not in OPTIONS:
        raise InputError(f"export does not take '--{key}'.{did_you_mean(f'--{key}', map('--{}'.format, OPTIONS))}")
    return key


def _tell(done: Exported) -> None:
    target, name = done.folder, FORMATS[done.format].file
    size = (target / name).stat().st_size
    sizes = ", ".join(map(str, batch_sizes(done.num_images)))
    print(f"written: {target}/{name} ({size / 1e6:.1f} MB), config.json and README.md")
    count = f"{done.agreeing} of {done.num_images}"
    agreeing = {
        "class": f"{count} predicted classes agree",
        "labels": f"{count} images have the same labels",
        "numbers": "in deviations of the numbers",
    }
    print(f"compared on {done.compared_on}, in batches of {sizes}: logits differ by {done.difference:.1e} at most ({done.allowed:.1e} allowed), "
          f"{agreeing[done.kind]}")  # fmt: skip
    print(f"next\n  cct predict {target} PATH...")
    if name.endswith(".safetensors"):
        print(f"  cct push {target} OWNER/NAME --dry-run")
    if done.format == "timm":
        ours = "" if done.arch.startswith("timm/") else ", cct_lightning.models"
        print(f'  in Python: import timm{ours}; timm.create_model("local-dir:{target}", pretrained=True)')
