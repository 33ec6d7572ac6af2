"""``cct export``: writes a trained network for other programs, reads the file back and compares it with the original. Plain torch."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from safetensors import SafetensorError

import cct_lightning
from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.listing import find_images
from cct_lightning.saved import Preprocessing, Saved, build, find_source, read_saved

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cct_lightning.images import Array
    from cct_lightning.models import ImageClassifier


class Format(NamedTuple):
    """What an export writes.

    Attributes:
        file: Name of the network's file.
        needs: Packages beyond those that cct-lightning always has.
        reader: Who reads it, for the help.
    """

    file: str
    needs: tuple[str, ...]
    reader: str


FORMATS = {
    "safetensors": Format("model.safetensors", (), "weights, without code; cct-lightning reads them"),
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), "a graph for ONNX Runtime and its kin, no Python needed"),
    "torch-export": Format("model.pt2", (), "a graph for torch.export.load, torch alone"),
    "timm": Format("model.safetensors", (), "a folder for timm.create_model('local-dir:...', pretrained=True), after import cct_lightning.models"),
}
NUM_IMAGES = 16  # on which the file is compared with the original
LOOKED_AT = 1000  # files of a folder that these are chosen from, evenly
TOLERANCE = 1e-4  # float32 rounds a network's sums by 1e-6 or so, whatever their order; a graph that computes something else is far off
MAX_ONNX_BYTES = 2 * 10**9  # one protobuf message holds 2 GiB

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
    export(given.checkpoint, given.format, given.out, given.images, given.tolerance, given.overwrite)


def export(
    checkpoint: str | Path,
    format: str,
    out: str | Path | None = None,
    images: str | Path | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> Path:
    """Writes a trained network for other programs, and prints what was written and how it compares.

    Args:
        checkpoint: A run's checkpoint or folder.
        format: A name of ``FORMATS``.
        out: Folder; None: ``export/<format>`` in the run's folder.
        images: Folder of images to compare on.
        tolerance: Largest difference of a logit that passes, times the largest logit where that is above 1.
        overwrite: Replace an export that is there.

    Returns:
        The folder, which holds the network's file and config.json.

    Raises:
        InputError: Anything the user can mend. Nothing is left then, and what was there before is as it was.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format} is unknown.{did_you_mean(format, FORMATS)}")
    check_range("--tolerance", tolerance, 0)
    if absent := [package for package in FORMATS[format].needs if find_spec(package) is None]:
        raise InputError(f'--format {format} needs {", ".join(absent)}, not installed here: pip install "cct-lightning[{format}]"')
    source = find_source(checkpoint)
    if source.name == "config.json" or source.suffix in {Path(about.file).suffix for about in FORMATS.values()}:
        raise InputError(f"{checkpoint} is an export, or weights alone: give a run's folder or its best.ckpt.")
    target = Path(out).expanduser() if out is not None else _beside(source, format)
    _check_target(target, overwrite)
    if images is not None and not Path(images).expanduser().is_dir():
        raise InputError(f"--images {images} is no folder.")

    saved = read_saved(source)
    if saved.preprocessing["mean"] is None or saved.preprocessing["std"] is None:
        raise InputError(f"{source} does not say how its images are normalised: train with LitClassifier(..., mean=[...], std=[...]).")
    preprocessing = Preprocessing.from_json(saved.preprocessing)
    network = _original(saved)
    pictures, where = _pictures(source, preprocessing, Path(images).expanduser() if images is not None else None)

    # In the nearest folder that is there, so on the same disk, and renamed when all is well.
    place = target.resolve()
    work = next(folder for folder in (place, *place.parents) if folder.is_dir()) / f".{place.name}-{os.getpid()}"
    try:
        work.mkdir()
        _write(network, saved, preprocessing, format, work)
        difference, allowed, agree = _compare(network, work, format, preprocessing, pictures, tolerance)
        _put_in_place(work, place)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} can't be written: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)

    _tell(target, format, saved, where, len(pictures), difference, allowed, agree)
    return target


def _tell(target: Path, format: str, saved: Saved, where: str, count: int, difference: float, allowed: float, agree: int) -> None:
    size = (target / FORMATS[format].file).stat().st_size
    sizes = ", ".join(map(str, _batch_sizes(count)))
    print(f"written: {target}/{FORMATS[format].file} ({size / 1e6:.1f} MB) and config.json")
    print(f"compared on {where}, in batches of {sizes}: logits differ by {difference:.1e} at most ({allowed:.1e} allowed), "
          f"{agree} of {count} predicted classes agree")  # fmt: skip
    print(f"next\n  cct predict {target} PATH...")
    if format == "timm":
        ours = "" if saved.model["arch"].startswith("timm/") else ", cct_lightning.models"
        print(f'  in Python: import timm{ours}; timm.create_model("local-dir:{target}", pretrained=True)')


def _beside(source: Path, format: str) -> Path:
    """Returns the default folder: in the run's, or beside a checkpoint of no run."""
    if source.parent.name == "checkpoints":
        return source.parent.parent / "export" / format
    return source.with_name(f"{source.stem}-{format}")


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuses a folder that holds something, unless it is an export alone and shall be replaced."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a folder with --out.")
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    ours = {"config.json", *(about.file for about in FORMATS.values())} if _is_export(target) else set()
    if others := sorted(names - ours):
        raise InputError(f"{target} holds {others[0]}, which no export wrote: name another folder with --out.")
    if names and not overwrite:
        raise InputError(f"{target} is not empty: --overwrite replaces what is in it, --out DIR writes elsewhere.")


def _is_export(folder: Path) -> bool:
    try:
        return "cct_lightning" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _put_in_place(work: Path, place: Path) -> None:
    """Renames a finished folder, or its files where the folder is there; config.json, which has the other's sha256, comes last."""
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        work.rename(place)
        return
    new = sorted(work.iterdir(), reverse=True)
    for path in new:
        path.replace(place / path.name)
    for name in {about.file for about in FORMATS.values()} - {path.name for path in new}:
        (place / name).unlink(missing_ok=True)


def _original(saved: Saved) -> ImageClassifier:
    """Builds the network with its weights, float32 on the CPU in eval mode."""
    import torch

    from cct_lightning.checkpoints import load_weights

    network = build(saved.model)
    load_weights(network, saved.weights)
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise InputError(f"{saved.weights} holds weights that are not finite numbers: its training diverged.")
    return network.float().eval()


def _pictures(source: Path, preprocessing: Preprocessing, folder: Path | None) -> tuple[Array, str]:
    """Returns real images of the network's size, uint8 (B, H, W, C), and where they are from."""
    import numpy as np
    import PIL.Image

    from cct_lightning.augment.sample import fit
    from cct_lightning.checkpoints import KEY, read_checkpoint
    from cct_lightning.images import decode

    recipe = read_checkpoint(source)[KEY]["recipe"]
    root = Path(recipe["data"]["root"]).expanduser() if recipe and recipe["data"]["dataset"] == "image_folder" else None
    chosen = folder or root
    files = [found.path for found in islice(find_images([chosen]), LOOKED_AT) if not found.error] if chosen is not None else []
    if folder is not None and not files:
        raise InputError(f"--images {folder} holds no image.")
    if files:
        files = files[:: -(-len(files) // NUM_IMAGES)]
        pixels, where = [decode(Path(file), preprocessing.in_chans) for file in files], f"{len(files)} image{'s' * (len(files) > 1)} of {chosen}"
    else:
        from sklearn.datasets import load_sample_images

        mode = "L" if preprocessing.in_chans == 1 else "RGB"
        photographs = [np.asarray(PIL.Image.fromarray(photograph).convert(mode)) for photograph in load_sample_images().images]
        rows = [row for photograph in photographs for row in np.array_split(photograph, 2)]
        pixels = [np.atleast_3d(piece) for row in rows for piece in np.array_split(row, NUM_IMAGES // len(rows), axis=1)]
        where = f"{len(pixels)} pieces of scikit-learn's photographs"
    # Of more channels than files have, the colours are repeated.
    fitted = [fit(p, preprocessing.image_size, preprocessing.crop_pct)[..., np.arange(preprocessing.in_chans) % p.shape[-1]] for p in pixels]
    return np.stack(fitted), where


def _write(network: ImageClassifier, saved: Saved, preprocessing: Preprocessing, format: str, folder: Path) -> None:
    """Writes the network's file and config.json."""
    import timm
    import torch

    from cct_lightning.sources import sha256

    path = folder / FORMATS[format].file
    config: dict[str, Any] = {}
    if format == "safetensors":
        _save_tensors(network.state_dict(), path)
    elif format == "timm":
        target = _in_timms_terms(network, saved)
        _save_tensors(target.state_dict(), path)
        config = _timm_config(target, saved, preprocessing, folder)
    else:
        _save_graph(network, format, path)
    packages = {package: version(package) for package in FORMATS[format].needs}
    config["cct_lightning"] = {
        "format": format,
        "weights": path.name,
        "sha256": sha256(path),
        "model": saved.model,
        "class_names": saved.class_names,
        "preprocessing": preprocessing.to_json(),
        "grid_size": list(network.encoder.grid_size),
        "versions": {"cct_lightning": cct_lightning.__version__, "torch": str(torch.__version__), "timm": timm.__version__, **packages},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    # Copies: the sine table's two parts are one tensor, which the format refuses.
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # it is written for its owner alone, and read by whoever serves it


def _save_graph(network: ImageClassifier, format: str, path: Path) -> None:
    """Traces the network with a batch of any size, and writes the graph without the places in files where its operations came from."""
    import torch

    num_bytes = sum(tensor.numel() * 4 for tensor in network.state_dict().values())
    if format == "onnx" and num_bytes > MAX_ONNX_BYTES:
        raise InputError(f"{num_bytes / 1e9:.1f} GB of weights are more than one ONNX file holds (2 GB): use --format torch-export.")
    images = torch.zeros(2, network.encoder.in_chans, *network.encoder.image_size)
    shapes = ({0: torch.export.Dim("batch")},)
    for buffer in network.buffers():
        buffer.data = buffer.clone()  # the sine table's two parts are one tensor, at which torch.export.save warns
    logging.getLogger("onnxscript.optimizer._constant_folding").addFilter(lambda record: "with multiple outputs" not in record.getMessage())
    try:
        with torch.no_grad():
            program = torch.export.export(network, (images,), dynamic_shapes=shapes)
            for module in program.graph_module.modules():
                if isinstance(module, torch.fx.GraphModule):
                    for node in module.graph.nodes:
                        node.meta.pop("stack_trace", None)
            if format == "torch-export":
                torch.export.save(program, path)
                return
            graph = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], dynamic_shapes=shapes, verbose=False)
            assert graph is not None
            for node in graph.model.graph.all_nodes():
                node.metadata_props.clear()
            graph.save(path, external_data=False)
    except OSError:
        raise
    except ImportError as error:
        raise InputError(f'torch {torch.__version__} misses a part of its ONNX exporter ({error}): pip install -U "cct-lightning[onnx]"') from error
    except Exception as error:  # torch's exporters raise what their parts raise; the first cause says most
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = (str(first).strip().splitlines() or [type(first).__name__])[0][:200]
        raise InputError(f"torch can't turn this network into a graph: {reason}\n  --format safetensors writes its weights.") from error


def _in_timms_terms(network: ImageClassifier, saved: Saved) -> Any:
    """Builds the network by ``timm.create_model``, with its weights: one of ours by its name, or timm's own with timm's pooling and head.

    Raises:
        InputError: timm has no words for it.
    """
    import timm
    import torch

    from cct_lightning.models import OPTIONS, TIMM_NAMES, VARIANTS, create_model

    arch, encoder = saved.model["arch"], network.encoder
    args: dict[str, Any] = {"num_classes": network.num_classes, "in_chans": encoder.in_chans, "img_size": list(encoder.image_size)}
    if arch in VARIANTS:
        usual = {name: parameter.default for name, parameter in inspect.signature(create_model).parameters.items()} | asdict(VARIANTS[arch])
        names = {ours: theirs for theirs, ours in TIMM_NAMES.items()}
        given = {name: saved.model.get(name) for name in OPTIONS}
        args = {names.get(name, name): value for name, value in given.items() if value is not None and value != usual[name]} | args
        target = timm.create_model(arch, **args)
        target.load_state_dict(network.state_dict())
        return target
    pooling, name = saved.model["pooling"] or "mean", arch.removeprefix("timm/")
    # Ours reads normed tokens. With average pooling timm norms behind the pool where it is not told otherwise; not all networks can be told.
    ways: dict[str, list[dict[str, Any]]] = {
        "class_token": [{"global_pool": "token"}],
        "mean": [{"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg"}],
    }
    images = torch.randn(2, encoder.in_chans, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    for way in ways.get(pooling, ()) if network.head_hidden_dim is None else ():
        try:
            target = timm.create_model(name, **args, **way).eval()
            target.load_state_dict(_timms_names(network.state_dict(), target))
        except (TypeError, RuntimeError):
            continue
        with torch.no_grad():
            if torch.allclose(target(images), network(images), atol=1e-3, rtol=1e-3):
                return target
    what = f"pooling={pooling}" if network.head_hidden_dim is None else f"head_hidden_dim={network.head_hidden_dim}"
    raise InputError(f"timm's own {name} has nothing that computes {what} as ours does: use --format safetensors.")


def _timms_names(state: Mapping[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
    """Takes our prefix off; a last norm that stood behind timm's pool is put where ``target`` has it."""
    behind = any(name.startswith("fc_norm.") for name in target.state_dict())
    renamed = {name.removeprefix("encoder.model."): tensor for name, tensor in state.items()}
    return {name.replace("encoder.norm.", "fc_norm." if behind else "norm."): tensor for name, tensor in renamed.items()}


# What timm tells of the weights it publishes under a name, which are not these.
PUBLISHED_KEYS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")


def _timm_config(target: Any, saved: Saved, preprocessing: Preprocessing, folder: Path) -> dict[str, Any]:
    """Returns timm's config.json, written by timm. Its resize is Pillow's, and may differ from ours by a grey level."""
    from timm.models._hub import save_config_for_hf

    data = {
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_pct": preprocessing.crop_pct,
        "interpolation": "bilinear",
        "crop_mode": "center",
    }
    path = folder / "config.json"
    save_config_for_hf(target, str(path), {"label_names": saved.class_names}, model_args=target._model_args, data_config=data)
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in PUBLISHED_KEYS:
        config["pretrained_cfg"].pop(key, None)
    return config


def _batch_sizes(count: int) -> list[int]:
    return sorted({1, min(3, count), count})


def _compare(
    network: ImageClassifier, folder: Path, format: str, preprocessing: Preprocessing, pictures: Array, tolerance: float
) -> tuple[float, float, int]:
    """Reads an export back and runs it beside the original.

    Returns:
        The largest difference of a logit, what is allowed, and how many of the images' classes agree.

    Raises:
        InputError: The difference is more than that.
    """
    import timm
    import torch

    from cct_lightning.augment.batch import normalize
    from cct_lightning.predictor import load

    readers: list[Callable[[Tensor], Tensor]] = [load(folder, accelerator="cpu").logits]
    if format == "timm":
        readers.append(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
    images = normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), preprocessing.mean, preprocessing.std)
    with torch.inference_mode():
        wanted = network(images)
        runs = [(read(images[:size]), wanted[:size]) for read in readers for size in _batch_sizes(len(images))]
    difference = max(float((given - expected).abs().max()) for given, expected in runs)
    agree = min(int((given.argmax(1) == expected.argmax(1)).sum()) for given, expected in runs if len(given) == len(images))
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    if not difference <= allowed:  # also where it is not a number
        raise InputError(
            f"the {format} file does not compute what the checkpoint does: logits differ by up to {difference:.1e}, {allowed:.1e} is allowed.\n"
            f"  {agree} of {len(images)} predicted classes agree. Nothing was kept; where that will do, give a larger --tolerance."
        )
    return difference, allowed, agree
