"""What version 0.1.0 wrote (tests/frozen/make.py tells how) is read by later ones, and means the same to them.

Public names alone are used here, so that these tests outlive every move of the modules behind them.
"""

import csv
import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

import cct_lightning
from cct_lightning import LitClassifier

FROZEN = Path(__file__).with_name("frozen")
KEYS = json.loads((FROZEN / "keys.json").read_text())
# float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# What six more steps make of that: at most 8e-5 in a weight and 5e-7 in a loss, with one and two threads, ATEN_CPU_CAPABILITY=default and avx2,
# ONEDNN_MAX_CPU_ISA=AVX2 and MKL_CBWR=COMPATIBLE.
ALIKE_WEIGHTS = {"rtol": 0, "atol": 1e-3}
ALIKE_LOSSES = {"rtol": 0, "atol": 1e-4}
# Accuracies and their like count 143 images of the validation, of which one or two may change sides.
ALIKE_SHARES = {"rtol": 0, "atol": 0.02}
# Of the network these flow from the data, so the help of the command line leaves them out.
FROM_DATA = ("num_classes", "image_size", "in_chans", "class_names", "mean", "std")


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(FROZEN / "images.npz"))


def as_batch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_a_checkpoint_gives_the_same_logits(expected):
    module = LitClassifier.load_from_checkpoint(FROZEN / "ema.ckpt")
    with torch.inference_mode():
        logits = module(as_batch(expected["images"]))
    np.testing.assert_allclose(logits.numpy(), expected["logits"], **CLOSE)
    assert expected["logits"].std() > 1


@pytest.mark.parametrize("source", ["ema.ckpt", "exports/safetensors", "exports/onnx", "exports/torch-export", "exports/timm"])
def test_a_checkpoint_and_its_exports_give_the_same_probabilities(expected, source):
    if source == "exports/onnx":
        pytest.importorskip("onnxruntime")
    network = cct_lightning.load(FROZEN / source, accelerator="cpu")
    assert network.class_names == [str(digit) for digit in range(10)]
    np.testing.assert_allclose(network.probabilities(expected["images"]), expected["probabilities"], **CLOSE)


def test_timm_opens_its_export_itself(expected):
    import cct_lightning.models  # noqa: F401

    model = timm.create_model(f"local-dir:{FROZEN / 'exports' / 'timm'}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        logits = model((as_batch(expected["images"]) / 255 - mean) / std)
    np.testing.assert_allclose(logits.numpy(), expected["logits"], **CLOSE)


def test_the_folder_of_a_stopped_run_is_a_network(expected):
    last = LitClassifier.load_from_checkpoint(FROZEN / "stopped" / "checkpoints" / "last.ckpt")
    assert last.recipe == yaml.safe_load((FROZEN / "stopped" / "config.yaml").read_text())
    best = LitClassifier.load_from_checkpoint(FROZEN / "stopped" / "checkpoints" / "best.ckpt")
    with torch.inference_mode():
        probabilities = best(as_batch(expected["images"])).softmax(dim=1)
    network = cct_lightning.load(FROZEN / "stopped", accelerator="cpu")  # its best
    np.testing.assert_allclose(network.probabilities(expected["images"]), probabilities.numpy(), **CLOSE)


@pytest.fixture
def resumed(cct, tmp_path):
    """Resumes a copy of the stopped run, in one thread as it began; returns its folder."""
    run = tmp_path / "runs" / "digits" / "stopped"
    shutil.copytree(FROZEN / "stopped", run)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = cct("resume", run)
    finally:
        torch.set_num_threads(threads)
    assert outcome.code == 0, outcome.err
    assert "in 2 sittings" in outcome.out
    return run


def is_the_machine_of_the_fixtures():
    """Tells whether the same program computes the same bits here: the same torch with the same instructions of the same processor."""
    try:
        about = torch.cpu.get_capabilities()  # not in older releases
    except AttributeError:
        return False
    here = {
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "cpu": {name: value for name, value in about.items() if not name.startswith("num_")},
    }
    return here == json.loads((FROZEN / "stopped_end" / "machine.json").read_text())


def measured(run):
    """Returns the rows of metrics.csv as they are written, but for clocks."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in csv.DictReader(file)]


def test_a_stopped_run_ends_as_it_would_have(resumed):
    last = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    weights = last["state_dict"] | {f"raw.{name}": weight for name, weight in last["ema"]["raw"].items()}
    rows, end = measured(resumed), measured(FROZEN / "stopped_end")
    wanted = load_file(FROZEN / "stopped_end" / "weights.safetensors")
    assert weights.keys() == wanted.keys()
    if is_the_machine_of_the_fixtures():
        assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []
        assert rows == end
        return
    if not torch.backends.mkl.is_available():
        pytest.skip("without MKL torch draws other dropout")
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], **ALIKE_WEIGHTS)
    assert [list(row) for row in rows] == [list(row) for row in end]
    for row, wanted_row in zip(rows, end, strict=True):
        assert {name for name in row if row[name]} == {name for name in wanted_row if wanted_row[name]}
        for name, cell in wanted_row.items():
            exact = "loss" in name or name in ("epoch", "step", "train/lr")
            if cell:
                np.testing.assert_allclose(float(row[name]), float(cell), **(ALIKE_LOSSES if exact else ALIKE_SHARES), err_msg=name)


def test_a_checkpoint_of_today_has_the_same_names_in_it(resumed):
    last = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    assert sorted(last) == KEYS["checkpoint"]
    assert list(last["state_dict"]) == KEYS["state_dict"]
    assert last["callbacks"].keys() == KEYS["callbacks"].keys()
    for name, keys in KEYS["callbacks"].items():
        assert last["callbacks"][name].keys() >= set(keys), name
    for name in ("cct_lightning", "sitting", "ema"):
        assert last[name].keys() >= set(KEYS[name]), name
    assert last["cct_lightning"]["format"] == 1


def leaves(tree, prefix=""):
    """Returns the values of a nested dictionary by their dotted names."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {name: value for key, branch in tree.items() for name, value in leaves(branch, f"{prefix}.{key}" if prefix else key).items()}


def test_the_whole_configuration_of_a_recipe_only_grows(cct):
    outcome = cct("fit", "-c", "digits", "--print_config", draws=True)
    assert outcome.code == 0, outcome.err
    printed = leaves(yaml.safe_load(outcome.out))
    wanted = leaves(yaml.safe_load((FROZEN / "print_config.yaml").read_text()))
    wanted["trainer.devices"] = 1  # was auto: all GPUs, also for recipes that do not run on several
    wanted["checkpoint.mode"] = None  # was max, also of losses; follows from the measure
    assert {name: printed.get(name, "is not there") for name in wanted} == wanted


def test_the_keys_of_a_recipe_only_grow(cct):
    out = cct("fit", "--help").out
    told = set(re.findall(r"^  --([\w.]+) ", out, re.M))
    (trainer,) = re.findall(r"^  --trainer\.KEY .*\n((?:[\w, ]+\n)+)", out, re.M)
    told |= {f"trainer.{name}" for name in re.findall(r"\w+", trainer)}
    told |= {f"model.{name}" for name in FROM_DATA if name in inspect.signature(LitClassifier).parameters}
    assert set(KEYS["recipe"]) - told == set()
