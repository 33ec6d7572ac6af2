"""``cct similar``: the images that a trained network finds most like another one."""

import csv
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cct_lightning.commands.predict import check_images, check_out, check_place, open_network, parse, print_usage
from cct_lightning.commands.rows import opened_for_rows
from cct_lightning.data.files import find_images
from cct_lightning.errors import InputError, check_range
from cct_lightning.weights.sources import find_source
from cct_lightning.wording import as_cells, some

if TYPE_CHECKING:
    from cct_lightning.inference.similar import Similar

MOST_DRAWN = 120
OPTIONS = (
    "n", "out", "overwrite", "format", "picture", "trainer.accelerator", "trainer.precision", "data.image_size", "data.crop_pct", "data.fit",
    "data.batch_size", "data.max_megapixels",
)  # fmt: skip
HELP = """cct similar SOURCE IMAGE PATH... [-n 9] [--key value] ...

Finds the images below PATH that are most like IMAGE to a trained network: by the cosine of the angle between their features, which `cct embed`
writes. 1 is alike; copies have it, and images of one class are near each other. SOURCE and PATH are as in `cct predict`; a graph (onnx) and an
ensemble have no features of their own. IMAGE itself is passed over where it lies below PATH.

  -n N                         how many (default: 9)
  --out FILE                   .csv or .jsonl, one row for each: path, cosine, class and its probability. Left out: CSV to the screen.
  --overwrite                  replace FILE and PICTURE where they exist
  --format csv|jsonl           of what goes to the screen (default: csv)
  --picture FILE.png           IMAGE and the others side by side
  --data.image_size N, --data.crop_pct X, --data.fit crop|pad|squash, --data.batch_size N, --data.max_megapixels X, --trainer.accelerator NAME,
  --trainer.precision NAME     as in `cct predict`
  --model.KEY VALUE            another network than the checkpoint's, as long as its weights fit; KEY is one of
                               {network}

Exit code: 0; 1 where not one image could be read; 2 where the command is wrong."""


def main(arguments: list[str]) -> None:
    """Runs ``cct similar`` with the words behind it.

    Raises:
        InputError: Anything the user can mend.
    """
    if {"-h", "--help"} & set(arguments):
        print_usage(HELP)
        return
    source, paths, options = parse(arguments, "similar", OPTIONS)
    find_source(source)
    image, *others = paths
    if not others:
        raise InputError(f"similar needs an image and where to look: cct similar {shlex.quote(source)} {shlex.quote(image)} photos/")
    if not Path(image).expanduser().is_file():
        raise InputError(f"There is no image {image}: similar looks for those that are like one file.")
    out = Path(options["out"]).expanduser() if "out" in options else None
    kind = check_out(out, "overwrite" in options, options.get("format")) if out else options.get("format", "csv")
    n = options.get("n", 9)
    check_range("-n", n, 1)
    picture = _check_picture(options.get("picture"), n, "overwrite" in options)
    check_images(others)
    (file,) = find_images([image])

    predictor = open_network(source, options)
    from cct_lightning.inference.similar import find_similar, write_picture

    found = find_similar(predictor, file.path, others, n)
    if not found.looked_at:
        why = found.errors[0].error if found.errors else "there is no other image"
        print(f"none of {len(found.errors)} image(s) could be looked at: {why}", file=sys.stderr)
        sys.exit(1)
    with opened_for_rows(out) as stream:
        write = _writer(stream, kind)
        for one in found.nearest:
            write(one)
    if picture is not None:
        write_picture(picture, predictor, file.path, others, found.nearest)
    written = "".join(f"; written to {path}" for path in (out, picture) if path is not None)
    bad = f", {len(found.errors):,} more could not be read: {some([one.path or '' for one in found.errors])}" if found.errors else ""
    print(f"{len(found.nearest):,} of {found.looked_at:,} image(s){bad}{written}", file=sys.stdout if out else sys.stderr)


def _check_picture(given: str | None, n: int, overwrite: bool) -> Path | None:
    if given is None:
        return None
    path = Path(given).expanduser()
    if path.suffix.lower() != ".png":
        raise InputError(f"--picture {given}: it is written as PNG, so the name ends in .png.")
    check_place(path, overwrite, "picture")
    check_range("-n of a picture", n, 1, MOST_DRAWN)
    return path


def _writer(file: IO[str], kind: str) -> "Callable[[Similar], None]":
    """Returns what writes a row of CSV, whose header it writes at once, or a line of JSON."""
    if kind == "jsonl":
        return lambda one: print(json.dumps({"path": one.path, "cosine": _short(one.cosine), "class": one.class_name,
                                             "probability": None if one.probability is None else _short(one.probability)}), file=file)  # fmt: skip
    columns = ("path", "cosine", "class", "probability")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(columns)

    def write(one: "Similar") -> None:
        probability = "" if one.probability is None else f"{one.probability:.6g}"
        rows.writerow(as_cells(columns, [one.path or "", f"{one.cosine:.6g}", one.class_name or "", probability]))

    return write


def _short(value: float) -> float:
    return float(f"{value:.6g}")
