"""The formats of an export, and how each is written."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cct_lightning
from cct_lightning.data.options import Preprocessing
from cct_lightning.errors import InputError
from cct_lightning.networks.options import RejectBy
from cct_lightning.weights.schema import FILES
from cct_lightning.weights.trained import Saved
from cct_lightning.wording import reason

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cct_lightning.networks.classifier import ImageClassifier
    from cct_lightning.networks.ensemble import Ensemble


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
    "safetensors": Format(FILES["safetensors"], (), "weights, without code; cct-lightning reads them"),
    "onnx": Format(FILES["onnx"], ("onnx", "onnxscript", "onnxruntime"), "a graph for ONNX Runtime and its kin, no Python needed"),
    "torch-export": Format(FILES["torch-export"], (), "a graph for torch.export.load, torch alone"),
    "timm": Format(FILES["timm"], (), "a folder for timm.create_model('local-dir:...', pretrained=True), after import cct_lightning.models"),
}
# How a program that reads the file finds an answer that is none of the classes.
RULES: dict[RejectBy, str] = {
    "energy": "score = log(sum(exp(logits))), of the file's logits; the answer is none where score < threshold",
    "probability": "score = max(softmax(logits / temperature)); the answer is none where score < threshold",
}
MAX_ONNX_BYTES = 2 * 10**9  # one protobuf message holds 2 GiB


def _write(network: ImageClassifier | Ensemble, saved: Saved, preprocessing: Preprocessing, format: str, folder: Path) -> None:
    """Writes the network's file and config.json."""
    import torch

    from cct_lightning.weights.sources import sha256

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
        **({"members": saved.members} if saved.members > 1 else {}),
        **(
            {"output": saved.output.to_json()} if saved.output.kind != "class" else {}
        ),  # labels: sigmoid(logits) >= thresholds; numbers: * std + mean
        "class_names": saved.class_names,
        "preprocessing": preprocessing.to_json(),
        "temperature": saved.temperature,  # the file's logits are not divided by it yet: softmax(logits / temperature)
        **({"reject": {**saved.rejection._asdict(), "rule": RULES[saved.rejection.by]}} if saved.rejection is not None else {}),
        "grid_size": list(network.encoder.grid_size),
        "versions": {"cct_lightning": cct_lightning.__version__, "torch": str(torch.__version__), "timm": version("timm"), **packages},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    # Copies: the sine table's two parts are one tensor, which the format refuses.
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # it is written for its owner alone, and read by whoever serves it


def _save_graph(network: ImageClassifier | Ensemble, format: str, path: Path) -> None:
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
        raise InputError(f"torch can't turn this network into a graph: {reason(first)}\n  --format safetensors writes its weights.") from error


def _in_timms_terms(network: ImageClassifier | Ensemble, saved: Saved) -> Any:
    """Builds the network by ``timm.create_model``, with its weights: one of ours by its name, or timm's own with timm's pooling and head.

    Raises:
        InputError: timm has no words for it.
    """
    import timm
    import torch

    from cct_lightning.models import OPTIONS, TIMM_NAMES
    from cct_lightning.networks.classifier import ImageClassifier
    from cct_lightning.networks.options import NetworkOptions
    from cct_lightning.networks.presets import VARIANTS
    from cct_lightning.networks.timm_encoder import TimmEncoder

    if not isinstance(network, ImageClassifier):
        raise InputError(f"timm has no word for an ensemble of {saved.members} networks: use --format safetensors, or export the run of a fold.")
    arch, encoder = saved.model["arch"], network.encoder
    args: dict[str, Any] = {"num_classes": network.num_classes, "in_chans": encoder.in_chans, "img_size": list(encoder.image_size)}
    if arch in VARIANTS:
        usual = {option.name: option.default for option in fields(NetworkOptions)} | asdict(VARIANTS[arch])
        names = {ours: theirs for theirs, ours in TIMM_NAMES.items()}
        given = {name: saved.model.get(name) for name in OPTIONS}
        args = {names.get(name, name): value for name, value in given.items() if value is not None and value != usual[name]} | args
        target = timm.create_model(arch, **args)
        target.load_state_dict(network.state_dict())
        return target
    pooling, name = saved.model["pooling"] or "mean", arch.removeprefix("timm/")
    assert isinstance(encoder, TimmEncoder)
    if encoder.returns_map:
        del args["img_size"]  # which no network of convolutions takes
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
    """Takes our prefix off; the head, and a last norm that stood behind timm's pool, are put where ``target`` has them."""
    behind = any(name.startswith("fc_norm.") for name in target.state_dict())
    head = f"{target.pretrained_cfg['classifier']}."  # type: ignore[index]
    renamed = {re.sub(r"^head\.", head, name).removeprefix("encoder.model."): tensor for name, tensor in state.items()}
    return {name.replace("encoder.norm.", "fc_norm." if behind else "norm."): tensor for name, tensor in renamed.items()}


# What timm tells of the weights it publishes under a name, which are not these.
PUBLISHED_KEYS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")


def _timm_config(target: Any, saved: Saved, preprocessing: Preprocessing, folder: Path) -> dict[str, Any]:
    """Returns timm's config.json, written by timm. Its resize is Pillow's, and may differ from ours by a grey level."""
    from timm.models._hub import save_config_for_hf

    data: dict[str, Any] = {
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_pct": preprocessing.crop_pct,
        "interpolation": "bilinear",
        "crop_mode": {"crop": "center", "pad": "border", "squash": "squash"}[preprocessing.fit],
    }
    if "img_size" not in target._model_args:  # convolutions take any size, so timm knows the one it trained with
        data["input_size"] = (preprocessing.in_chans, *preprocessing.image_size)
    path = folder / "config.json"
    save_config_for_hf(target, str(path), {"label_names": saved.class_names}, model_args=target._model_args, data_config=data)
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in PUBLISHED_KEYS:
        config["pretrained_cfg"].pop(key, None)
    return config
