"""The light front: everything here must be answered without importing torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cct_lightning.commands import main
from cct_lightning.commands.help import COMMANDS
from cct_lightning.commands.main import prepare
from cct_lightning.commands.recipes import header, recipe_paths

CHECKOUT = Path(__file__).parents[2]


def test_help_names_commands_and_recipes(cct):
    for words in ((), ("--help",), ("help",)):
        outcome = cct(*words)
        assert outcome.code == 0
        assert all(name in outcome.out for name in (*COMMANDS, *recipe_paths()))


def test_recipes_are_listed_and_printed(cct):
    assert all(name in cct("recipes").out for name in recipe_paths())
    assert cct("recipes", "digits").out == recipe_paths()["digits"].read_text()


def test_help_of_fit_names_every_key(cct):
    out = cct("fit", "--help").out
    for text in ("--model.pooling", "--data.augment.mixup", "--wandb.mode auto|online|offline|disabled", "max_epochs", "--checkpoint.monitor"):
        assert text in out
    assert "--model.num_classes" not in out  # flows from the data


def test_help_of_test_says_what_differs(cct):
    assert "the checkpoint knows" in cct("test", "--help").out


def test_the_front_imports_neither_torch_nor_lightning():
    code = "import sys; sys.argv = ['cct', 'fit', '--help']; from cct_lightning.commands.main import main; main()"
    code += "; print(sorted({m.split('.')[0] for m in sys.modules}))"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert os.times().children_user - before.children_user < 2  # 0.1 s on a quiet machine
    modules = done.stdout.splitlines()[-1]
    assert not any(f"'{name}'" in modules for name in ("torch", "lightning", "numpy", "timm"))


@pytest.mark.parametrize(("words", "message"), [
    (("fti",), "There is no command 'fti'. Did you mean fit?"),
    (("fit",), "fit needs a recipe: cct fit -c digits."),
    (("fit", "-c", "digit"), "-c digit: neither a file nor a recipe. Did you mean digits?"),
    (("recipes", "cifra10"), "-c cifra10: neither a file nor a recipe. Did you mean cifar10"),
    (("fit", "-c", "digits", "--model.poling", "mean"), "command line: there is no key 'model.poling'. Did you mean model.pooling?"),
    (("fit", "-c", "digits", "--model.optim.lrr=1"), "there is no key 'model.optim.lrr'. Did you mean model.optim.lr?"),
    (("fit", "-c", "digits", "--trainer.max_epoch", "1"), "there is no key 'trainer.max_epoch'. Did you mean trainer.max_epochs"),
    (("fit", "-c", "digits", "--model.optim", "adamw"), "--model.optim is a group of keys: give one of them, as in model.optim.name."),
    (("fit", "-c", "digits", "--model.num_classes", "3"), "model.num_classes flows from the data to the model"),
    (("fit", "-c", "digits", "--ckpt_path", "x"), "fit does not take --ckpt_path: --model.pretrained FILE starts a new run"),
    (("fit", "-c", "digits", "--model.pooling", "seqpol"), "command line: model.pooling=seqpol is unknown. Did you mean seqpool?"),
    (("fit", "-c", "digits", "--model.arch=cct_7_3x1_23"), "model.arch=cct_7_3x1_23 is unknown. Did you mean cct_7_3x1_32"),
    (("fit", "-c", "digits", "--data.dataset", "digit"), "data.dataset=digit is unknown. Did you mean digits?"),
    (("fit", "-c", "digits", "--model.freeze", "head"), "model.freeze=head is unknown. Known: backbone, none."),
    (("fit", "-c", "smoke"), "no recipe says which data: the overlays smoke, ddp and fsdp are laid over one"),
    (("test",), "test needs a checkpoint, a file that ends in .ckpt: cct test runs/.../checkpoints/best.ckpt"),
    (("test", "-c", "digits"), "test needs a checkpoint"),
    (("test", "nowhere.ckpt"), "There is no file or folder nowhere.ckpt."),
])  # fmt: skip
def test_errors_are_short_and_say_the_way_out(cct, words, message):
    outcome = cct(*words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) <= 5
    assert not outcome.out


@pytest.mark.parametrize(("text", "message"), [
    ("model: {archh: cct_2_3x2_32}", "own.yaml: there is no key 'model.archh'. Did you mean model.arch?"),
    ("model: 3", "own.yaml: model is a group of keys"),
    ("- 1\n- 2", "own.yaml is no recipe: it should hold keys such as model and data, and holds a list."),
    ("model: {arch: [", "own.yaml, line 1 is no YAML"),
    ("modle:\n  arch: x", "there is no key 'modle.arch'. Did you mean model.arch?"),
    ("model: {num_classes: 3}", "own.yaml: model.num_classes flows from the data to the model"),
    ("model: {pooling: seqpol}", "own.yaml: model.pooling=seqpol is unknown. Did you mean seqpool?"),
    ("", "own.yaml is no recipe: it should hold keys such as model and data, and is empty."),
])  # fmt: skip
def test_errors_in_recipes_name_the_file(cct, tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    outcome = cct("fit", "-c", "own.yaml")
    assert outcome.code == 2
    assert message in outcome.err


def test_names_of_recipes_become_paths_and_files_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = str(recipe_paths()["digits"])
    request = prepare(["fit", "-c", "digits", "--config=smoke", "--model.pooling", "mean"])
    assert list(request.words) == ["--config", digits, "--config", str(recipe_paths()["smoke"]), "--model.pooling", "mean"]
    assert (request.keys["model.pooling"], request.keys["trainer.max_epochs"], request.keys["data.dataset"]) == ("mean", 1, "digits")
    (tmp_path / "digits").write_text("data: {dataset: digits}")
    assert prepare(["fit", "-c", "digits"]).words == ("--config", "digits")


def test_debug_shows_where_an_error_came_from():
    done = subprocess.run([sys.executable, CHECKOUT / "cli.py", "fit", "--debug"], capture_output=True, text=True)
    assert "Traceback" in done.stderr


def test_headers_are_the_comments_at_the_top():
    assert header(recipe_paths()["digits"])[1] == "cct fit -c digits"


def test_a_path_that_is_not_to_be_opened_is_told_without_a_traceback(cct):
    outcome = cct("check", "~no-such-user/photos")
    assert (outcome.code, outcome.err) == (
        2,
        "error: a path begins with ~ and a name that no user of this machine has: write ./~ where a file's name begins so.\n",
    )
    told = main.in_words(PermissionError(13, "Permission denied", "theirs/photos"))
    assert str(told) == "theirs/photos can't be opened (Permission denied): it is not yours to read or write."
    assert main.in_words(RuntimeError("anything else")) is None
    assert main.in_words(OSError(28, "No space left on device", "x")) is None
