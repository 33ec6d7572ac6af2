"""Networks as a run and as an export leave them on disk, without a training, for tests."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from cct_lightning import LitClassifier
from cct_lightning.weights.files import KEY
from cct_lightning.weights.schema import FILES
from cct_lightning.weights.trained import read_run

NAMES = ["cat, tabby", 'a "dog"', "two\nlines"]  # what a CSV has to quote


def write_checkpoint(path: Path, recipe: bool = True, data: dict[str, object] | None = None, **changes: object) -> Path:
    """Writes a checkpoint of three classes with random weights, 16 x 16 pixels."""
    torch.manual_seed(0)
    model = {"arch": "cct_2_3x2_32", "num_classes": 3, "class_names": NAMES, "image_size": (16, 16), "mean": [0.4] * 3, "std": [0.2] * 3}
    module = LitClassifier(**(model | changes))
    for parameter in module.model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    last = [*module.model.head.modules()][-1]
    with torch.no_grad():  # so that dark and bright images are not of one class
        greys = torch.tensor([-2.0, 0.0, 2.0]).view(3, 1, 1, 1).expand(3, module.model.encoder.in_chans, *module.model.encoder.image_size)
        last.bias -= module.model.eval()(greys).mean(dim=0)
    about = {
        "format": 1,
        "model": module.model_config,
        "class_names": module.class_names,
        "grid_size": list(module.model.encoder.grid_size),
        "recipe": {"data": {"crop_pct": 1.0, **(data or {})}} if recipe else None,
        "seed": 0,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": module.state_dict(), KEY: about}, path)
    return path


def write_export(folder: Path, checkpoint: Path, **changes: object) -> Path:
    """Writes a checkpoint's network as `cct export --format safetensors` does, under the name of the format that ``changes`` says."""
    saved = read_run(checkpoint)
    folder.mkdir()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = folder / FILES[str(changes.get("format", "safetensors"))]
    save_file({name.removeprefix("model."): tensor.clone() for name, tensor in state.items()}, weights)
    about = {
        "format": "safetensors",
        "weights": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "model": saved.model,
        "class_names": saved.class_names,
        "preprocessing": saved.preprocessing,
        "versions": {},
    }
    (folder / "config.json").write_text(json.dumps({"cct_lightning": about | changes}))
    return folder
