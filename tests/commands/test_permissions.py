import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from readers import CODE

import cct_lightning
from cct_lightning import InputError
from cct_lightning.commands.permissions import Permissions
from cct_lightning.commands.recipes import recipe_paths
from cct_lightning.commands.words import read_words
from cct_lightning.data.imports import allowing, may_import

FROZEN = Path(__file__).parents[1] / "frozen"
CHECKOUT = Path(__file__).parents[2]
EVIL = """
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
Path("sprung").touch()
class X(Callback):
    def __init__(self, text: str = "x"):
        Path("sprung").touch()
class L(CSVLogger):
    pass
def call(*arguments):
    Path("sprung").touch()
"""
SLOTS = {
    "callback": {"trainer": {"callbacks": ["evil.X"]}},
    "callback with arguments": {"trainer": {"callbacks": [{"class_path": "evil.X", "init_args": {"text": "x"}}]}},
    "one callback": {"trainer": {"callbacks": {"class_path": "evil.X"}}},
    "logger": {"trainer": {"logger": {"class_path": "evil.L", "init_args": {"save_dir": "{run}"}}}},
    "logger by name": {"trainer": {"logger": ["evil.L"]}},
    "strategy": {"trainer": {"strategy": {"class_path": "evil.X"}}},
    "strategy by name": {"trainer": {"strategy": "evil.X"}},
    "accelerator": {"trainer": {"accelerator": {"class_path": "evil.X"}}},
    "plugin": {"trainer": {"plugins": [{"class_path": "evil.X"}]}},
    "profiler": {"trainer": {"profiler": {"class_path": "evil.X"}}},
    "hook": {"trainer": {"callbacks": [{"class_path": "LambdaCallback", "init_args": {"on_fit_start": "evil.call"}}]}},
    "os.system": {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.system"}}]}},
    "ours as a hook": {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.lambda_function.LambdaCallback",
                                                  "init_args": {"setup": "cct_lightning.load"}}]}},
    "average": {"trainer": {"callbacks": [{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.1, "avg_fn": "evil.call"}}]}},
    "os behind ours": {"trainer": {"callbacks": [{"class_path": "StochasticWeightAveraging",
                                                  "init_args": {"swa_lrs": 0.1, "avg_fn": "cct_lightning.run_folder.os.system"}}]}},
    "communication": {"trainer": {"strategy": {"class_path": "DDPStrategy", "init_args": {"ddp_comm_hook": "evil.call"}}}},
    "model": {"model": {"class_path": "evil.X"}},
    "optimizer": {"model": {"optim": {"name": "evil.X"}}},
    "network": {"model": {"arch": "evil.X"}},
    "config": {"config": "evil.yaml"},
    "allowed by itself": {"allow-import": "evil", "trainer": {"callbacks": ["evil.X"]}},
}  # fmt: skip
QUICK = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--data.per_class", 4, "--trainer.enable_progress_bar", "false")


@pytest.fixture
def evil(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield tmp_path / "sprung"
    sys.modules.pop("evil", None)


def refused(outcome, evil):
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert len(outcome.err.splitlines()) <= 5
    assert not evil.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("slot", SLOTS)
def test_r11_a_recipe_imports_nothing_of_others(slot, cct, evil, tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(SLOTS[slot]))
    outcome = cct("fit", "-c", "digits", "-c", "own.yaml", draws=True)
    refused(outcome, evil)
    if "callback" in slot:
        assert outcome.err.startswith("error: evil.X is code of neither cct-lightning nor Lightning")
        assert "--allow-import evil" in outcome.err


@pytest.mark.parametrize("slot", ["callback", "logger", "hook", "average"])
def test_r11_neither_does_the_folder_of_a_run(slot, cct, evil, tmp_path):
    run = tmp_path / "runs" / "digits" / "stopped"
    shutil.copytree(FROZEN / "stopped", run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] |= SLOTS[slot]["trainer"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    last["cct_lightning"]["recipe"] = config
    torch.save(last, run / "checkpoints" / "last.ckpt")
    refused(cct("resume", run), evil)
    refused(cct("fit", "-c", run / "config.yaml", draws=True), evil)


@pytest.mark.parametrize("change", [
    {"trainer": {"accelerator": {"class_path": "evil.X"}, "precision": None}}, {"trainer": {"accelerator": "evil.X"}},
    {"data": {"dataset": {"class_path": "evil.X"}}}, {"task": "evil:X"},
])  # fmt: skip
def test_r11_nor_does_a_checkpoint(change, cct, evil, tmp_path):
    content = torch.load(FROZEN / "ema.ckpt", weights_only=True)
    content["cct_lightning"]["recipe"] |= change
    torch.save(content, tmp_path / "best.ckpt")
    for command in ("test", "validate"):
        refused(cct(command, "best.ckpt"), evil)


def test_r11_who_calls_may_allow_it_and_must_again_at_a_resumption(cct, evil, tmp_path):
    words = ("fit", "-c", "digits", *QUICK, "--trainer.callbacks+=evil.X")
    refused(cct(*words), evil)
    refused(cct(*words, "--allow-import", "evi"), evil)
    outcome = cct(*words, "--allow-import", "numpy", "--allow-import=evil.X")
    assert outcome.code == 0, outcome.err
    assert evil.exists()
    (run,) = tmp_path.glob("runs/digits/*")
    evil.unlink()
    del sys.modules["evil"]
    outcome = cct("resume", run, "--extend-to", 2)
    refused(outcome, evil)
    assert "as also for each `cct resume` of the run: --allow-import evil" in outcome.err
    assert cct("resume", run, "--extend-to", 2, "--allow-import", "evil").code == 0
    assert evil.exists()


def test_r11_a_reader_of_images_is_imported_where_who_calls_allows_it_alone(cct, tmp_path, monkeypatch):
    (tmp_path / "scanning.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    place, made = ("--data.dataset", "scanning.Scans", "--data.root", tmp_path), tmp_path / "made"
    words = ("fit", "-c", "finetune", *place, "--data.image_size", 16, "--data.batch_size", 4, "--model.arch", "cct_2_3x2_32",
             "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false", "--data.num_workers", 0, "--wandb.mode", "disabled")  # fmt: skip
    refused(cct(*words), made)
    assert cct(*words, "--allow-import", "scanning").code == 0
    best = next(tmp_path.glob("runs/finetune/*/checkpoints/best.ckpt"))
    made.unlink()
    refused(cct("test", best), made)
    refused(cct("check", *place), made)
    assert "accuracy" in cct("test", best, "--allow-import", "scanning").out
    made.unlink()
    checked = cct("check", *place, "--allow-import", "scanning")
    assert checked.code == 0
    assert "16 images" in checked.out


def test_r11_python_allows_by_a_keyword(evil, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    keys = {"trainer.callbacks": ["evil.X"], "trainer.fast_dev_run": True, "trainer.enable_progress_bar": False}
    with pytest.raises(InputError, match=r"allow_import=\['evil'\]"):
        cct_lightning.fit("digits", keys)
    with pytest.raises(InputError, match=r"allow_import='evil' is one: give a list, such as allow_import=\['evil'\]"):
        cct_lightning.fit("digits", keys, allow_import="evil")
    assert not evil.exists()
    cct_lightning.fit("digits", keys, allow_import=["evil"])
    assert evil.exists()


@pytest.mark.parametrize("name", ["", "*", "jsonargparse", "jsonargparse.set_parsing_settings", "a b", "os;system", "1x", "a..b", "../evil"])
def test_r11_what_is_no_package_is_refused(name, cct):
    outcome = cct("fit", "-c", "digits", f"--allow-import={name}")
    assert outcome.code == 2
    assert f"--allow-import {name}: give the name of a package or module" in outcome.err


def test_r11_what_jsonargparse_allows_is_as_before_afterwards():
    assert may_import("evil.X")
    with allowing(["mine"]):
        assert may_import("mine.X")
        assert may_import("cct_lightning.callbacks.EMA")
        assert may_import("torch.optim.AdamW")
        for path in (
            "evil.X",
            "os.system",
            "jsonargparse.set_parsing_settings",
            "lightning.pytorch.callbacks.LambdaCallback",
            "torch.hub.load",
            "lightning.app.x",
        ):
            assert not may_import(path), path
    assert may_import("evil.X")


PLACES = {
    "an absolute folder": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "/tmp/elsewhere"}}]},
    "home": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "~/x"}}]},
    "a folder here": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "ckpt"}}]},
    "a way out": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "{run}/../.."}}]},
    "a file": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"filename": "../../x"}}]},
    "a logger's folder": {"logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": "/tmp/elsewhere"}}]},
    "a logger's name": {"logger": [{"class_path": "CSVLogger", "init_args": {"name": "a/../../../x"}}]},
    "a logger's version": {"logger": {"class_path": "CSVLogger", "init_args": {"version": "/tmp/elsewhere"}}},
    "a profiler's folder": {"profiler": {"class_path": "SimpleProfiler", "init_args": {"dirpath": "/tmp/elsewhere"}}},
    "a file of settings": {"callbacks": "more.yaml"},
}


@pytest.mark.parametrize("kind", PLACES)
def test_r11_places_in_files_stay_in_the_folder_of_the_run(kind, cct, tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"trainer": PLACES[kind]}))
    before = sorted(tmp_path.rglob("*"))
    outcome = cct("fit", "-c", "digits", "-c", "own.yaml", draws=True)
    assert outcome.code == 2
    assert outcome.err.startswith("error: own.yaml: trainer.")
    assert "leads out of the run's folder, and a file may not say so" in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


def test_r11_places_in_the_folder_and_allowed_ones_are_written(cct, tmp_path):
    keep = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "{run}/kept", "filename": "it-{epoch}"}}
    board = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "boards")}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [keep], "logger": [board]}}))
    words = ("fit", "-c", "digits", "-c", "own.yaml", *QUICK)
    assert f"trainer.logger.save_dir={tmp_path / 'boards'} leads out" in cct(*words, draws=True).err
    assert cct(*words, "--allow-path", "other", draws=True).code == 2
    outcome = cct(*words, "--allow-path", "boards", draws=True)
    assert outcome.code == 0, outcome.err
    (run,) = tmp_path.glob("runs/digits/*")
    assert (run / "kept" / "it-epoch=0.ckpt").is_file()
    assert list(tmp_path.glob("boards/**/metrics.csv"))
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"][0]["init_args"]["dirpath"] == "{run}/kept"
    assert "leads out" in cct("resume", run, "--extend-to", 2).err
    assert cct("resume", run, "--extend-to", 2, "--allow-path", "boards").code == 0


def test_every_recipe_passes(cct):
    for path in recipe_paths().values():
        Permissions().check_places(yaml.safe_load(path.read_text()).get("trainer", {}), str(path))


def test_permissions_are_read_off_the_words():
    typed = read_words(["--allow-import", "a", "--allow-import=b.c", "--allow-path", "x", "--model.arch", "y"], "fit")
    assert Permissions.read(typed) == (("a", "b.c"), (Path("x").absolute(),))


@pytest.mark.parametrize("words", [["fit", "--help"], ["recipes"], ["fit", "-c", "digits", "--model.arch", "x"]])
def test_r11_python_m_takes_no_modules_from_the_folder_it_stands_in(words, tmp_path):
    for name in ("yaml", "wandb", "torch", "lightning", "numpy", "jsonargparse", "timm", "dataclasses", "csv", "json", "ast", "textwrap"):
        (tmp_path / f"{name}.py").write_text("open('sprung', 'w')\nraise SystemExit(7)\n")
    done = subprocess.run([sys.executable, "-m", "cct_lightning", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    assert not (tmp_path / "sprung").exists()
