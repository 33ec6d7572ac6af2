"""Faults are injected into whole runs, on all engines: the recorded step runs here without a GPU, see tests/training/test_engine.py."""

import re

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

import cct_lightning
from cct_lightning import AugmentConfig, ImageDataModule, LitClassifier, OptimConfig, ScheduleConfig
from cct_lightning.tasks import task as module
from cct_lightning.tasks.divergence import DivergenceError, MeanLoss
from cct_lightning.training.engine import StepGraph
from cct_lightning.weights.soundness import not_finite, tensors_in

NAN, INF = float("nan"), float("inf")
# 4 steps an epoch; the fault comes in the second.
SMALL = (
    "--data.per_class", 7, "--data.batch_size", 16, "--trainer.max_epochs", 25, "--trainer.precision", "32-true", "--model.schedule.warmup_epochs", 0,
    "--trainer.enable_progress_bar", "false",
)  # fmt: skip


def bad_loss(value, monkeypatch):
    whole = LitClassifier.training_loss
    monkeypatch.setattr(LitClassifier, "training_loss", lambda self, *batch: whole(self, *batch) * (value if self.global_step >= 5 else 1))


def bad_images(value, monkeypatch):
    whole = LitClassifier.training_loss

    def training_loss(self, images, targets):
        images = images.clone()
        if self.global_step == 5:
            images[3, 0, 2, 2] = value
        return whole(self, images, targets)

    monkeypatch.setattr(LitClassifier, "training_loss", training_loss)


def bad_weight(value, monkeypatch, name="head.weight"):
    def on_train_batch_end(self, *_):
        if self.global_step == 6:
            self.model.get_parameter(name).data.view(-1)[0] = value

    monkeypatch.setattr(LitClassifier, "on_train_batch_end", on_train_batch_end, raising=False)


FAULTS = {
    "loss nan": (lambda patch: bad_loss(NAN, patch), ()),
    "loss inf": (lambda patch: bad_loss(INF, patch), ()),
    "images nan": (lambda patch: bad_images(NAN, patch), ()),
    "images inf": (lambda patch: bad_images(INF, patch), ()),
    "weight nan": (lambda patch: bad_weight(NAN, patch), ()),
    "weight inf": (lambda patch: bad_weight(INF, patch), ()),
    # a ReLU hides it: the loss stays as it should be
    "hidden weight": (lambda patch: bad_weight(-INF, patch, "encoder.tokenizer.convs.0.weight"), ()),
    "lr 1e6": (None, ("--model.optim.lr", 1e6)),
    "lr 1e38": (None, ("--model.optim.lr", 1e38)),
    "lr 1e38, average": (None, ("--model.optim.lr", 1e38, "--trainer.callbacks+=EMA")),
    "no validation": (lambda patch: bad_loss(NAN, patch), ("--data.val_fraction", 0)),
    "16 bits overflow": (None, ("--model.optim.lr", 1.0, "--trainer.precision", "16-true")),
    "bf16-true": (None, ("--model.optim.lr", 1e38, "--trainer.precision", "bf16-true")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_r06_a_run_whose_numbers_are_none_stops_and_leaves_whole_files(cct, monkeypatch, tmp_path, fault):
    inject, words = FAULTS[fault]
    if inject:
        inject(monkeypatch)
    outcome = cct("fit", "-c", "digits", *SMALL, *words)
    assert outcome.code == 1, outcome
    lines = outcome.err.splitlines()[-3:]
    found = re.match(
        r"error: the training diverged after step (\d+), found at step (\d+) \(epoch \d+\): .*(not a finite number|NaN or inf)", lines[0]
    )
    assert found, outcome.err
    assert int(found[2]) - int(found[1]) <= 50
    assert "Try a lower rate (--model.optim.lr" in lines[1]
    assert "--model.optim.clip_norm 1" in lines[1]
    assert ("more digits (--trainer.precision 32-true; it was " in lines[1]) == ("16" in fault)
    files = list(tmp_path.glob("runs/*/*/checkpoints/*.ckpt"))
    if not files:
        assert lines[2] == "  No checkpoint was written before."
    for path in files:
        content = torch.load(path, weights_only=True)
        assert not_finite(tensors_in({name: part for name, part in content.items() if name != "callbacks"})) == []
        assert f"{path.name} (step {content['global_step']})" in lines[2]
    assert list(tmp_path.glob("runs/*/*/checkpoints/*.part")) == []
    if inject:
        assert "last.ckpt (step 4)" in lines[2]
        assert int(found[2]) <= 8  # the validation behind the fault, or the end of its epoch


def test_r06_an_epoch_whose_validation_is_no_number_is_not_the_best(cct, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    whole = LitClassifier.evaluate

    def evaluate(self, batch, stage):
        whole(self, batch, stage)
        if self.trainer.state.fn == "fit" and self.current_epoch == 1:
            self.val_loss.update(torch.tensor(NAN))

    monkeypatch.setattr(LitClassifier, "evaluate", evaluate)
    # the second epoch ties with the first, so it would be kept
    outcome = cct("fit", "-c", "digits", *SMALL, "--trainer.max_epochs", 2, "--model.optim.lr", 1e-9)
    assert outcome.code == 0, outcome.err
    assert "val/loss is nan: epoch 2 is not kept as the best" in caplog.text
    (best,) = tmp_path.glob("runs/*/*/checkpoints/best.ckpt")
    assert torch.load(best, weights_only=True)["epoch"] == 0


SPOILED = """
from lightning.pytorch import Callback

class Spoiled(Callback):
    def setup(self, trainer, module, stage):
        whole = module.training_loss
        module.training_loss = lambda *batch: whole(*batch) * (float("nan") if trainer.global_step == 5 and trainer.global_rank == 1 else 1)
"""


@pytest.mark.slow
def test_r06_all_processes_stop_where_one_diverged(forks, tmp_path):
    (tmp_path / "spoiled.py").write_text(SPOILED)
    two = ("--trainer.strategy", "ddp", "--trainer.devices", 2, "--trainer.accelerator", "cpu")
    words = (*SMALL, *two, "--trainer.callbacks", "[spoiled.Spoiled]", "--allow-import", "spoiled")
    ended = forks.start("fit", "-c", "digits", *words, cwd=tmp_path)
    assert ended.wait(100) == 1, ended.out
    assert "the training diverged after step 4, found at step 8 (epoch 2)" in ended.out
    assert "last.ckpt (step 4)" in ended.out
    assert ended.out.count("the training diverged") == 1
    assert "Traceback" not in ended.out
    (last,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_r06_python_gets_it_as_an_error(monkeypatch, tmp_path):
    bad_loss(NAN, monkeypatch)
    monkeypatch.chdir(tmp_path)
    keys = {str(key).removeprefix("--"): value for key, value in zip(SMALL[::2], SMALL[1::2], strict=True)} | {"trainer.callbacks": None}
    with pytest.raises(DivergenceError, match=r"the training loss is not a finite number.*\n.*\n.*last.ckpt \(step 4\)"):
        cct_lightning.fit("digits", keys | {"wandb.mode": "disabled"})


def again(step):
    """Records nothing: a replay runs the step."""
    result = torch.zeros(())

    def replay():
        result.copy_(step())

    return replay, result


def train(monkeypatch, steps=200, log_every=50, engine="eager", callbacks=(), **options):
    monkeypatch.setattr(module, "check_graph", lambda *_: None)
    monkeypatch.setattr(module, "StepGraph", lambda *arguments, **named: StepGraph(*arguments, record=again, **named))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)  # inductor takes half a minute
    torch.manual_seed(0)
    lit = LitClassifier("cct_2_3x2_32", image_size=(16, 16), in_chans=1, mean=[0.3], std=[0.4], engine=engine, embed_dim=8, num_heads=2,
                        mlp_ratio=1.0, optim=OptimConfig(lr=1e-3), schedule=ScheduleConfig(warmup_epochs=0))  # fmt: skip
    data = ImageDataModule("digits", image_size=16, batch_size=4, augment=AugmentConfig(), seed=0)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, max_steps=steps,
        log_every_n_steps=log_every, limit_val_batches=0, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(lit, data)
    return trainer


class Spoil(L.Callback):
    """Makes a weight NaN behind a step."""

    def __init__(self, step, name="head.weight", value=NAN):
        self.step, self.name, self.value = step, name, value

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            pl_module.model.get_parameter(self.name).data.view(-1)[0] = self.value


@pytest.mark.parametrize("engine", ["eager", "compile", "graph"])
@pytest.mark.parametrize("name", ["head.weight", "encoder.tokenizer.convs.0.weight"])
def test_r06_every_engine_stops_within_fifty_steps_inside_an_epoch(monkeypatch, engine, name):
    for log_every in (500, 20):
        with pytest.raises(DivergenceError) as caught:
            train(monkeypatch, engine=engine, log_every=log_every, callbacks=[Spoil(60, name, -INF if "convs" in name else NAN)])
        seen = re.search(r"after step (\d+), found at step (\d+)", str(caught.value))
        assert (int(seen[1]), int(seen[2])) == ((49, 99) if log_every == 500 else (59, 79))


def test_r06_nothing_waits_for_the_device_between_two_looks(monkeypatch):
    looks = []
    monkeypatch.setattr(module, "check_numbers", lambda *arguments: looks.append(arguments[0].global_step))
    train(monkeypatch, steps=120)
    assert looks == [49, 99, 120]  # and at the end


class Scaled(MixedPrecision):
    """16-bit training's scaling of the loss, on a CPU."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu"))

    def forward_context(self):
        return torch.autocast("cpu", dtype=torch.bfloat16)  # float16 takes ten times as long on a CPU


class Overflow(L.Callback):
    """Has the scaled gradients overflow in some steps."""

    def __init__(self, steps):
        self.steps, self.left_out = steps, 0

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps:
            self.left_out += 1
            next(pl_module.parameters()).grad.fill_(INF)


def test_r06_steps_that_the_scaling_of_16_bits_leaves_out_are_no_divergence(monkeypatch):
    overflow = Overflow({1, 2, 3, 40, 99})
    trainer = train(monkeypatch, steps=110, log_every=10, callbacks=[overflow], plugins=[Scaled()])
    assert (overflow.left_out, trainer.global_step) == (5, 110)


def test_r06_16_bits_that_overflow_at_every_scale_are(monkeypatch):
    with pytest.raises(DivergenceError, match=r"after step 29, found at step 39 .* its gradients overflow 16 bits however the loss is scaled"):
        train(monkeypatch, log_every=10, callbacks=[Overflow(range(1, 1000))], plugins=[Scaled()])


def test_the_search_for_a_rate_goes_on_where_a_training_would_not(cct):
    outcome = cct("fit", "-c", "digits", "--find-lr", "--model.optim.weight_decay", 1e30, *SMALL[:4])
    assert "diverged" not in outcome.err


def test_a_mean_loss_counts_in_float32_whatever_the_network_is():
    """In a network of bfloat16 it stopped counting at 256 batches' worth, and val/loss followed from the batch size."""
    network = torch.nn.Module()
    network.loss = MeanLoss()
    network.to(torch.bfloat16)
    network.loss.reset()
    for _ in range(100):
        network.loss.update(torch.full((100,), 0.9))
    assert network.loss.compute() == pytest.approx(0.9, abs=1e-5)
    network.loss.update(torch.tensor([float("nan")]))
    assert network.loss.compute().isnan()
