import sys

import pytest

import cct_lightning
from cct_lightning import InputError
from cct_lightning.commands.keys import check_value, known_keys
from cct_lightning.commands.main import prepare
from cct_lightning.commands.ranges import SEEDS, TRAINER, as_number, check_number

TRAINERS = {
    "accumulate_grad_batches": (0, -1, 0.0, "nan", "inf"),
    "check_val_every_n_epoch": (0, -1),
    "log_every_n_steps": (0, -1),
    "limit_train_batches": (0, -1, 0.0, -0.5, 1.5, ".inf"),
    "limit_val_batches": (-1, -0.5, 1.5),
    "limit_test_batches": (-1,),
    "max_epochs": (0, -2),
    "max_steps": (0, -2),
    "min_epochs": (-1,),
    "min_steps": (-1,),
    "val_check_interval": (0, -1, 0.0, 1.5),
    "num_nodes": (0, -1),
    "gradient_clip_val": (-1, "inf", "nan"),
    "overfit_batches": (-1, 1.5),
    "num_sanity_val_steps": (-2,),
    "fast_dev_run": (-1,),
    "reload_dataloaders_every_n_epochs": (-1,),
    "limit_predict_batches": (-1,),
}
OURS = {
    "model.optim.lr": (0, -1e-3, "inf", ".inf", "nan", "-inf", "1e999"),
    "model.optim.muon_lr": (0, "inf"),
    "model.optim.weight_decay": (-1, "inf"),
    "model.optim.clip_norm": (0, -1, "inf", "nan"),
    "model.optim.momentum": (1, -0.1),
    "model.optim.layer_decay": (0, 1.5),
    "model.schedule.warmup_epochs": (-1, "inf"),
    "model.schedule.min_lr": (-1, "inf"),
    "model.schedule.cooldown_epochs": (-1, "inf", "nan"),
    "model.drop_path": (1, -0.1, "nan"),
    "model.label_smoothing": (1.1, -1),
    "model.depth": (0, -3),
    "model.embed_dim": (0,),
    "model.mlp_ratio": (0, "inf"),
    "data.batch_size": (0, -8),
    "data.image_size": (0, -16),
    "data.val_fraction": (1, -0.1, "nan"),
    "data.fraction": (0, 2),
    "data.per_class": (0, -1),
    "data.num_workers": (-1,),
    "data.crop_pct": (0, 1.5),
    "data.augment.mixup": (-1, "inf"),
    "data.augment.magnitude": (-1, 11),
    "data.augment.flip": (1.5,),
    "seed_everything": (-1, SEEDS + 1),
}
ALL = {**{f"trainer.{name}": values for name, values in TRAINERS.items()}, **OURS}


@pytest.mark.parametrize("key", ALL)
def test_r20_a_number_out_of_range_is_refused_by_the_keys_name(key, cct, tmp_path):
    for value in ALL[key]:
        outcome = cct("fit", "-c", "digits", f"--{key}={value}")
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: command line: {key}="), outcome.err
        assert " is out of range: it must be " in outcome.err
        assert len(outcome.err.splitlines()) == 1
        *groups, name = key.split(".")
        recipe = "".join(f"{group}: {{" for group in groups) + f"{name}: {value}" + "}" * len(groups)
        (tmp_path / "own.yaml").write_text(recipe)
        outcome = cct("fit", "-c", "digits", "-c", "own.yaml")
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: own.yaml: {key}="), (recipe, outcome.err)


def test_r20_python_refuses_the_same():
    for key, values in ALL.items():
        with pytest.raises(InputError, match=rf"^command line: {key}=.* is out of range"):
            cct_lightning.fit("digits", {key: values[0]})
    with pytest.raises(InputError, match=r"optim\.lr=inf is out of range: it must be more than 0, and finite"):
        cct_lightning.OptimConfig(lr=float("inf"))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("trainer.max_epochs", (-1, 1, None, "null", "3")),
        ("trainer.max_steps", (-1, 10)),
        ("trainer.limit_val_batches", (0, 0.0, 0.5, 1.0, 7)),
        ("trainer.limit_train_batches", (1, 0.1, 1.0, 3)),
        ("trainer.val_check_interval", (1, 0.25, 1.0, 100, "00:10:00")),
        ("trainer.fast_dev_run", (True, False, 3, 0)),
        ("trainer.num_sanity_val_steps", (-1, 0, 2)),
        ("trainer.gradient_clip_val", (0, None, 1.0)),
        ("trainer.devices", (-1, "auto", 0)),
        ("seed_everything", (0, SEEDS, True)),
        ("model.optim.lr", ("1e-3", 1, "5.5e-4")),
        ("model.optim.clip_norm", (None, 1)),
        ("data.image_size", (32, [32, 48], "[32, 48]")),
        ("wandb.tags", ("0", ["-1"])),
        ("data.batch_size", ("64", "many")),
        ("model.optim.betas", ([0.9, 0.99], None)),
        ("model.pretrained", ("0", "-1.ckpt")),
    ],
)
def test_what_means_something_passes(key, values):
    for value in values:
        check_number(key, value, "here")


def test_defaults_and_the_table_are_of_keys_that_are_there():
    assert {f"trainer.{name}" for name in TRAINER} <= known_keys().keys()
    for key in known_keys().values():
        if key.default:
            check_value(key.name, eval(key.default, {"datetime": None}), "default")


def test_numbers_in_text():
    for many in ("9" * 400, 10**5000, -(10**5000)):
        with pytest.raises(InputError, match=r"^here: model\.optim\.lr=-?inf is out of range"):
            check_number("model.optim.lr", many, "here")
    assert [as_number(text) for text in ("3", "-3", "1e-3", ".5", "x", "[1]", None, True, [1], ".inf")] == [
        3,
        -3,
        1e-3,
        0.5,
        None,
        None,
        None,
        None,
        None,
        float("inf"),
    ]


def test_r20_nothing_heavy_is_imported_for_it(monkeypatch):
    for name in ("torch", "lightning", "numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"trainer\.accumulate_grad_batches=0 is out of range: it must be at least 1\."):
        prepare(["fit", "-c", "digits", "--trainer.accumulate_grad_batches", "0"])
