"""Runs from Python are those of the shell, to the bit, and leave nothing behind in the process."""

import os
import signal
import sys

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from pictures import write_images

import cct_lightning
from cct_lightning import InputError
from cct_lightning.runs.stopping import Stopping

KEYS = {
    "model.arch": "cct_2_3x2_32", "model.embed_dim": 32, "data.per_class": 12, "data.batch_size": 20, "trainer.max_epochs": 2,
    "trainer.callbacks": None, "trainer.enable_progress_bar": False, "trainer.log_every_n_steps": 2,
}  # fmt: skip
WORDS = [word for key, value in KEYS.items() for word in (f"--{key}", {None: "null", False: "false"}.get(value, value))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Makes an empty working directory and command line that no run may heed or change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "argv", ["a script", "--model.pooling", "nonsense"])
    before = dict(os.environ)
    yield tmp_path
    assert sys.argv == ["a script", "--model.pooling", "nonsense"]
    assert {name: value for name, value in os.environ.items() if name.startswith("CCT")} == {n: v for n, v in before.items() if n.startswith("CCT")}


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def rows(folder):
    return [line for line in (folder / "metrics.csv").read_text().splitlines() if "perf" not in line]


def test_runs_of_one_process_are_those_of_the_shell(here, cct):
    first = cct_lightning.fit("digits", KEYS)
    pooled = cct_lightning.fit(["digits"], {**KEYS, "model": {"pooling": "map", "optim": {"betas": (0.9, 0.98)}}})
    again = cct_lightning.fit("digits", KEYS)
    assert cct("fit", "-c", "digits", *WORDS).code == 0
    assert cct("fit", "-c", "digits", *WORDS, "--model.pooling", "map", "--model.optim.betas", "[0.9, 0.98]").code == 0
    sys.argv = ["a script", "--model.pooling", "nonsense"]  # the fixture cct has its own
    *_, shell, shell_pooled = sorted((here / "runs" / "digits").iterdir(), key=lambda path: path.stat().st_ctime)
    for run, folder in ((first, shell), (again, shell), (pooled, shell_pooled)):
        ours, theirs = weights(run.last), weights(folder / "checkpoints" / "last.ckpt")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert rows(run.folder)[-1] == rows(folder)[-1]
        assert run.folder.joinpath("config.yaml").read_text() == (folder / "config.yaml").read_text()
    assert pooled.summary.pooling == "MapPooling"


def test_a_run_tells_what_came_of_it_and_predicts(here):
    run = cct_lightning.fit("digits", KEYS)
    assert run.summary.finished
    assert 0 <= run.summary.test_accuracy <= 1
    assert (run.best.name, run.last.name) == ("best.ckpt", "last.ckpt")
    assert run.folder.is_dir()
    assert f"test accuracy {100 * run.summary.test_accuracy:.2f} %" in repr(run)
    prediction = run.predict(np.zeros((16, 16, 1), np.uint8))
    assert prediction.class_name in run.predictor.class_names


def test_a_run_is_extended_and_fine_tuned(here):
    run = cct_lightning.fit("digits", KEYS)
    assert cct_lightning.resume(run.folder).summary == run.summary  # has ended, and is left as it is
    longer = cct_lightning.resume(run, extend_to=3)
    assert (longer.folder, longer.summary.epochs, longer.summary.resumed) == (run.folder, 3, 1)
    write_images(here / "photos", 4, 16)
    tuned = cct_lightning.finetune("photos", {"trainer.max_epochs": 1, "trainer.callbacks": None, "data.batch_size": 4}, pretrained=longer)
    assert tuned.folder.parent.name == "finetune"
    assert tuned.summary.load_report["source"] == str(longer.folder)


def test_ctrl_c_leaves_what_resume_goes_on_from(here, monkeypatch):
    def stop(self, trainer, *_):
        if trainer.global_step == 3:
            self._receive(signal.SIGINT, None)

    with monkeypatch.context() as patched:
        patched.setattr(Stopping, "on_train_batch_start", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            cct_lightning.fit("digits", KEYS)
    (folder,) = (here / "runs" / "digits").iterdir()
    resumed, whole = cct_lightning.resume(folder), cct_lightning.fit("digits", KEYS)
    assert (resumed.summary.resumed, resumed.summary.steps) == (1, whole.summary.steps)
    ours, theirs = weights(resumed.last), weights(whole.last)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: cct_lightning.fit("digit"), "-c digit: neither a file nor a recipe. Did you mean digits?"),
    (lambda: cct_lightning.fit("digits", {"model.poling": "map"}), "there is no key 'model.poling'. Did you mean model.pooling?"),
    (lambda: cct_lightning.fit("digits", {"model.optim.lr": "fast"}), "model.optim.lr=fast: the value does not fit"),
    (lambda: cct_lightning.fit("digits", {"trainer.callbacks": [object()]}), "a key's value is a plain one, such as a number"),
    (lambda: cct_lightning.finetune("nowhere"), "There is no folder or file nowhere."),
    (lambda: cct_lightning.resume("nowhere"), "There is no run nowhere."),
])  # fmt: skip
def test_errors_are_those_of_the_shell(here, call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert not (here / "runs").exists() or not list((here / "runs").glob("*/*"))


@pytest.mark.slow
def test_a_notebook_trains_and_shows_how_far_it_is(tmp_path):
    keys = {name: value for name, value in KEYS.items() if name != "trainer.enable_progress_bar"}
    cells = [
        "import os; os.environ |= {'WANDB_MODE': 'disabled'}",
        f"import cct_lightning; run = cct_lightning.fit('digits', {keys!r})",
        "run.summary.epochs, run.best.name",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    written = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert "epoch 2/2  step " in written
    assert "test accuracy" in written
    assert "\x1b" not in written  # a notebook shows what moves a terminal's cursor
    assert notebook.cells[2].outputs[0]["data"]["text/plain"] == "(2, 'best.ckpt')"
