"""What predictions, exports, the checks of the front and a training must not import: what takes longer than torch itself."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

FROZEN = Path(__file__).with_name("frozen")
HEAVY = {
    "albumentations", "huggingface_hub", "lightning", "matplotlib", "pandas", "pytorch_lightning", "scipy", "sklearn", "timm", "torchmetrics",
    "torchvision", "wandb", "torch._dynamo", "torch._inductor",
}  # fmt: skip
# More of torch than a training on one device needs, and what that and torchmetrics bring.
UNUSED = HEAVY - {"lightning", "matplotlib", "torchmetrics", "torch._dynamo"} | {
    "sympy", "torch._dynamo.utils", "torch.distributed.fsdp", "torch.distributed.tensor", "torchmetrics.functional.image",
    "torchmetrics.functional.text",
}  # fmt: skip
# Each step is written down with what it has imported by then.
STEPS = """
import json, sys
def tell(step):
    print(json.dumps({step: sorted(sys.modules)}))

from cct_lightning.commands.checks import check_given
check_given("fit", {"data.dataset": "image_folder", "data.root": sys.argv[1], "model.optim.name": "adamw", "model.arch": "timm/vit_tiny_patch16_224"})
tell("checks")
from cct_lightning.commands.main import main
given = sys.argv
sys.argv = ["cct", "predict", given[2], given[3], "--trainer.accelerator", "cpu"]
main()
tell("predict")
import cct_lightning
from cct_lightning import POOLINGS, create_model
network = cct_lightning.load(given[2], accelerator="cpu")
assert network.predict(given[3]).class_name
for pooling in POOLINGS:
    create_model("cct_2_3x2_32", pooling=pooling, pretrained=None)
import cct_lightning.training.muon, cct_lightning.training.optimizers, cct_lightning.networks.attention_maps
tell("networks")
sys.argv = ["cct", "fit", "-c", "digits", "--trainer.max_steps", "1", "--wandb.mode", "disabled", "--trainer.default_root_dir", given[4]]
main()
tell("fit")
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    photos, runs = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("runs")
    for name in ("cat", "dog"):
        (photos / name).mkdir()
    picture = photos / "cat" / "1.png"
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    words = [sys.executable, "-c", STEPS, photos, FROZEN / "ema.ckpt", picture, runs]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            told |= {step: set(modules) for step, modules in json.loads(line).items()}
    return told


@pytest.mark.parametrize("step", ["checks", "predict", "networks"])
def test_nothing_heavy_is_imported(imported, step):
    assert imported[step] & HEAVY == set()


def test_a_training_imports_nothing_that_it_does_not_use(imported):
    assert imported["fit"] & UNUSED == set()
    assert {"lightning", "matplotlib", "torch._dynamo", "torchmetrics.functional.classification"} <= imported["fit"]  # names as they are today


def test_the_checks_of_the_front_need_no_torch(imported):
    assert "torch" not in imported["checks"]
    assert "torch" in imported["predict"]
