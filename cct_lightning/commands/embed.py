"""``cct embed``: what the head of a trained network reads of images, as arrays for other programs."""

import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from cct_lightning.commands.predict import check_images, check_place, open_network, parse, print_usage
from cct_lightning.errors import InputError
from cct_lightning.run_folder import replacing
from cct_lightning.weights.sources import find_source

if TYPE_CHECKING:
    from cct_lightning.inference.items import Embedding

OPTIONS = (
    "out", "overwrite", "trainer.accelerator", "trainer.precision", "data.image_size", "data.crop_pct", "data.fit", "data.batch_size",
    "data.max_megapixels",
)  # fmt: skip
HELP = """cct embed SOURCE PATH... --out features.npz [--key value] ...

Writes the features of images: what the head reads of each, the output of the pooling. A hidden tanh layer (model.head_hidden_dim) belongs to the
head, so it is not in them. SOURCE and PATH are as in `cct predict`; a graph (onnx) has no features.

numpy.load("features.npz") holds, in the order of the images, without those that could not be read
  features      (n, D) float32
  paths         (n,)
  predicted     (n,) the most probable class of each, an index into class_names
  probability   (n,) of that class
and class_names (K,), and for the files that could not be read bad_paths (m,) and errors (m,). The file is there once it is whole. Features pass
through a file of their own, so that memory holds two batches of images, and the paths.

  --out FILE.npz               the file
  --overwrite                  replace FILE where it exists
  --data.image_size N          side of the images given to the network (default: as in the training)
  --data.crop_pct X            share of the image that is seen, along each side (default: as in the training)
  --data.fit crop|pad|squash   how an image of other proportions gets into that size (default: as in the training)
  --data.batch_size N          images at a time (default: 256 on a GPU, else 32; halved where they don't fit into memory)
  --data.max_megapixels X      images of more millions of pixels are not read (default: 100)
  --trainer.accelerator auto|cpu|cuda|gpu|mps
                               auto takes a GPU where there is one
  --trainer.precision 32-true|bf16-mixed|16-mixed
                               (default: 32-true, so that every machine gives the same; the others are faster on a GPU)
  --model.KEY VALUE            another network than the checkpoint's, as long as its weights fit; KEY is one of
                               {network}
Dashes may stand for underscores: --data.batch-size 8.

Exit code: 0; 1 where not one image could be read; 2 where the command is wrong."""
ROWS = 10_000  # names that become an array at a time


class Counts(NamedTuple):
    """How many images have features, how many have none, and the width of a feature."""

    good: int
    bad: int
    width: int


def write_features(out: Path, embeddings: Iterable["Embedding"], class_names: Sequence[str]) -> Counts:
    """Writes features as a .npz, whole or not at all.

    Args:
        out: The file; what was there is replaced.
        embeddings: Of all images, taken one by one; features wait in a nameless file beside ``out``, all else in memory.
        class_names: In the order of the logits.

    Raises:
        OSError: The folder can't be written, or the disk is full.
    """
    import numpy as np

    paths: list[str] = []
    bad: list[tuple[str, str]] = []
    labels: list[int] = []
    probabilities: list[float] = []
    width = 0
    with tempfile.TemporaryFile(dir=out.parent) as waiting, replacing(out) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for embedding in embeddings:
            if embedding.feature is None or embedding.label is None or embedding.probability is None:
                bad.append((embedding.path or "", embedding.error or ""))
                continue
            width = len(embedding.feature)
            waiting.write(embedding.feature.astype("<f4").tobytes())
            paths.append(embedding.path or "")
            labels.append(embedding.label)
            probabilities.append(embedding.probability)
        waiting.seek(0)
        with _member(archive, "features", "<f4", (len(paths), width)) as member:
            shutil.copyfileobj(waiting, member)
        _write_names(archive, "paths", paths)
        for name, values in (("predicted", np.array(labels, "<i8")), ("probability", np.array(probabilities, "<f4"))):
            with _member(archive, name, values.dtype.str, values.shape) as member:
                member.write(values.tobytes())
        _write_names(archive, "class_names", class_names)
        _write_names(archive, "bad_paths", [path for path, _ in bad])
        _write_names(archive, "errors", [error for _, error in bad])
    return Counts(len(paths), len(bad), width)


def _member(archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...]) -> IO[bytes]:
    """Opens an array in the archive and writes what ``numpy.load`` reads first; its values follow."""
    import numpy as np

    member = archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
    header: dict[str, Any] = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(member, header)
    return member


def _write_names(archive: zipfile.ZipFile, name: str, names: Sequence[str]) -> None:
    import numpy as np

    kind = f"<U{max(map(len, names), default=1) or 1}"
    with _member(archive, name, kind, (len(names),)) as member:
        for start in range(0, len(names), ROWS):
            member.write(np.array(names[start : start + ROWS], kind).tobytes())


def main(arguments: list[str]) -> None:
    """Runs ``cct embed`` with the words behind it.

    Raises:
        InputError: Anything the user can mend.
    """
    if {"-h", "--help"} & set(arguments):
        print_usage(HELP)
        return
    source, paths, options = parse(arguments, "embed", OPTIONS)
    find_source(source)
    if "out" not in options:
        raise InputError("embed needs a file to write: --out features.npz")
    out = Path(options["out"]).expanduser()
    if out.suffix.lower() != ".npz":
        raise InputError(f"--out {out}: features are written as NumPy's .npz, so the name ends in .npz.")
    check_place(out, "overwrite" in options)
    check_images(paths)

    predictor = open_network(source, options)
    began = time.perf_counter()
    try:
        good, bad, width = write_features(out, predictor.embeddings(paths), predictor.class_names)
    except OSError as error:
        raise InputError(f"--out {out} can't be written: {error.strerror or error}.") from error
    except KeyboardInterrupt:
        print(f"interrupted: {out} was not written")
        sys.exit(130)
    speed = f"{(good + bad) / (time.perf_counter() - began):,.0f} images/s on {predictor.device_name}"
    print(f"{good + bad:,} image(s), {f'{bad:,} of them bad (errors says why)' if bad else 'none bad'}, {speed}; written to {out}: "
          f"features of {width} numbers, paths, predicted, probability, class_names, bad_paths, errors")  # fmt: skip
    print(f"next\n  in Python: import numpy; numpy.load({str(out)!r})['features']")
    if not good:
        sys.exit(1)
