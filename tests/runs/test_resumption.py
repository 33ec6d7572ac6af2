"""Each kind of damage is done to the checkpoint of a run that was stopped inside an epoch, with AdamW and an average."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

FROZEN = Path(__file__).parents[1] / "frozen"
NAN = float("nan")
WEIGHT = "model.encoder.norm.weight"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "digits" / "stopped"
    shutil.copytree(FROZEN / "stopped", folder)
    return folder


def first(content):
    return content["optimizer_states"][0]


def state(content):
    """The averages of a matrix."""
    return next(found for found in first(content)["state"].values() if found["exp_avg"].ndim == 2)


def matrix(content):
    return next(name for name, tensor in content["state_dict"].items() if tensor.ndim == 2)


def best(content):
    return next(name for name in content["callbacks"] if name.startswith("BestCheckpoint"))


def wrong(*names, value=None):
    """Sets what lies there, or takes it away."""

    def damage(content):
        for name in names[:-1]:
            content = content[name]
        if value is None:
            del content[names[-1]]
        else:
            content[names[-1]] = value

    return damage


def transposed(content):
    state(content)["exp_avg"] = state(content)["exp_avg"].T.contiguous()


def exchanged(content):
    """Gives a parameter the averages of another one, larger and smaller."""
    states = first(content)["state"]
    one, two = next(key for key, found in states.items() if found["exp_avg"].ndim == 2), next(iter(states))
    states[one], states[two] = states[two], states[one]


PROGRESS = ("loops", "fit_loop", "epoch_progress", "current", "processed")
KINDS = {
    "no epoch": (wrong("epoch"), "epoch is missing, and should be a number of epochs"),
    "epoch of another kind": (wrong("epoch", value="one"), "epoch is 'one', and should be a number of epochs"),
    "no step": (wrong("global_step"), "global_step is missing"),
    "negative step": (wrong("global_step", value=-1), "global_step is -1, and should be a number of steps"),
    "another step": (wrong("global_step", value=9), "global_step is 9, and its loops stand at 6"),
    "another epoch": (wrong("ImageDataModule", "epoch", value=7), "ImageDataModule.epoch is 7, and its loops stand at 1"),
    "no place in the data": (wrong("ImageDataModule"), "ImageDataModule.epoch is missing"),
    "no loops": (wrong("loops"), "loops.fit_loop.epoch_progress.current.processed is missing"),
    "loops of another kind": (wrong(*PROGRESS, value=2.5), "epoch_progress.current.processed is 2.5, and should be a number of epochs"),
    "no weights": (wrong("state_dict", value={}), "state_dict is a dict, and should be the weights by name"),
    "a weight that is missing": (wrong("state_dict", WEIGHT), "is unknown among the weights"),
    "a weight of another shape": (wrong("state_dict", WEIGHT, value=torch.ones(3)), f"ema.raw.{WEIGHT} is of another shape among the weights"),
    "no optimizer": (wrong("optimizer_states"), "optimizer_states is missing"),
    "an empty list of optimizers": (wrong("optimizer_states", value=[]), "optimizer_states is a list, and should be the state of one optimizer"),
    "an empty optimizer": (lambda content: first(content).update(state={}), "has no averages of any parameter, after 6 steps"),
    "a parameter without averages": (lambda content: first(content)["state"].pop(4), "has no averages of parameter 4, after 6 steps"),
    "averages that are NaN": (lambda content: state(content)["exp_avg_sq"].fill_(NAN), "exp_avg_sq holds NaN or inf"),
    "averages of another shape": (transposed, "of shape (8, 24), and its parameter of (24, 8)"),
    "averages that are too small": (lambda content: state(content).update(exp_avg=torch.zeros(2)), "of shape (2,), and its parameter of (24, 8)"),
    "averages of another parameter": (exchanged, "and its parameter of"),
    "averages of another optimizer": (
        lambda content: [found.update(momentum_buffer=found.pop("exp_avg")) for found in first(content)["state"].values()],
        "should hold exp_avg, exp_avg_sq, step",
    ),
    "averages of an unknown parameter": (
        lambda content: first(content)["state"].update({99: state(content)}), "of a parameter 99, which no group has",
    ),
    "a step of the future": (lambda content: state(content)["step"].fill_(50), "step is 50.0, of 6 steps"),
    "other groups": (lambda content: first(content)["param_groups"].append(first(content)["param_groups"][0]), "parameters, those of the run"),
    "another weight decay": (lambda content: first(content)["param_groups"][0].update(weight_decay=0.5), "weight_decay is 0.5, and the run has"),
    "no schedule": (wrong("lr_schedulers", value=[]), "lr_schedulers is a list, and should be the state of one schedule"),
    "rates that are NaN": (lambda content: content["lr_schedulers"][0].update(base_lrs=[NAN, NAN]), "lr_schedulers.base_lrs is a list"),
    "no average": (wrong("ema"), "ema is missing, which the callback EMA has from step 1 on"),
    "an average that is NaN": (lambda content: content["state_dict"][WEIGHT].fill_(NAN), "holds weights that are not finite numbers"),
    "raw weights that are NaN": (lambda content: content["ema"]["raw"][WEIGHT].fill_(NAN), f"ema.raw.{WEIGHT} holds NaN or inf"),
    "an average of less": (wrong("ema", "raw", WEIGHT), f"none of this network's weights: {WEIGHT} is only in one of the two"),
    "an average of another step": (wrong("ema", "step", value=70), "ema has 5 updates up to step 70, of 6 steps"),
    "an average of another kind": (wrong("ema", value=[1]), "ema should hold raw, the weights by name"),
    "no callbacks": (wrong("callbacks", value={}), "it has none of the callback BestCheckpoint"),
    "an unknown callback": (lambda content: content["callbacks"].update({"Thief{}": {"x": 1}}), "the run has no callback Thief"),
    "a callback that lacks a part": (
        lambda content: content["callbacks"][best(content)].pop("best_k_models"), "state of BestCheckpoint lacks best_k_models",
    ),
    "a callback of another kind": (
        lambda content: content["callbacks"].update({best(content): 3}), "the checkpoint can't be taken up (AttributeError",
    ),
    "no seconds": (wrong("sitting", "seconds"), "sitting.seconds is missing"),
    "seconds that are NaN": (wrong("sitting", "seconds", value=NAN), "sitting.seconds is nan, and should be seconds"),
    "rows of another kind": (wrong("sitting", "rows", value="all"), "sitting.rows is 'all', and should be a number of rows"),
    "no seed": (lambda content: content["cct_lightning"].pop("seed"), "cct_lightning.seed is None, and should be a seed"),
    "a loss that is NaN": (wrong("cct_lightning", "epoch_loss", value=NAN), "epoch_loss is nan, and should be"),
    "no keys of the trainer": (wrong("cct_lightning", "recipe", "trainer"), "cct_lightning.recipe.trainer is missing"),
    "loops without their parts": (
        lambda content: content["loops"]["fit_loop"]["epoch_loop.state_dict"].clear(), "epoch_loop.state_dict._batches_that_stepped is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_r10c_a_checkpoint_that_is_not_what_the_run_left_is_refused_by_name(cct, run, kind):
    damage, message = KINDS[kind]
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    damage(content)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = cct("resume", run)
    assert outcome.code == 2, outcome
    assert message in outcome.err
    assert len(outcome.err.splitlines()) <= 5
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path in before} == before


def test_a_clock_that_was_set_back_between_two_sittings_does_no_harm(cct, run, monkeypatch):
    ahead = time.time() + 10**7
    for path in [run, *run.rglob("*")]:
        os.utime(path, (ahead, ahead))  # as files of before look then
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["sitting"]["seconds"]
    assert cct("resume", run).code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"]
    assert before < summary["seconds"] < before + 300
    assert summary["steps"] == 12
    assert all(path.stat().st_mtime < ahead for path in run.glob("checkpoints/last.ckpt"))
    outcome = cct("predict", run / "checkpoints" / "last.ckpt", "nothing.png")
    assert "No image" in outcome.err


@pytest.mark.parametrize("bar", [False, True])
def test_a_progress_bar_may_be_on_in_one_sitting_and_off_in_another(cct, run, bar):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert "ProgressBar" not in content["callbacks"]
    if not bar:
        content["callbacks"]["ProgressBar"] = {"best": 0.5}
        torch.save(content, run / "checkpoints" / "last.ckpt")
    outcome = cct("resume", run, "--trainer.enable_progress_bar", str(bar).lower())
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "summary.json").read_text())["finished"]
