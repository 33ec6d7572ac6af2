import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from cct_lightning.callbacks import EMA, Throughput
from fake_gpu import MixedDevicesError
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from cct_lightning import ImageDataModule, InputError, LitClassifier


def fit(callbacks, epochs=2, ckpt_path=None, network=None, **options):
    """Trains a small network on 60 digits, 6 steps an epoch."""
    torch.manual_seed(0)
    module = LitClassifier(**{"arch": "cct_2_3x2_32", "image_size": (16, 16), **(network or {})}, in_chans=1, mean=[0.3], std=[0.4])
    data = ImageDataModule("digits", image_size=16, batch_size=10, per_class=6, seed=0)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, max_epochs=epochs,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return module, trainer, data


class Watch(L.Callback):
    """Notes the head's weights after every step, and while validating."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append(pl_module.model.head.weight.detach().clone())

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append(pl_module.model.head.weight.detach().clone())


def averaged(steps, decay, first):
    average = steps[first].clone()
    for n, weight in enumerate(steps[first + 1 :], 1):
        average.lerp_(weight, 1 - min(decay, (1 + n) / (10 + n)))
    return average


def test_ema_validates_and_ends_with_the_average():
    watch = Watch()
    module, *_ = fit([EMA(0.5), watch])
    expected = averaged(watch.steps, 0.5, 0)
    torch.testing.assert_close(module.model.head.weight, expected)
    torch.testing.assert_close(watch.validated[-1], expected)
    assert not torch.allclose(watch.steps[-1], expected)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
def test_ema_moves_however_few_bits_the_weights_have_and_resumes_to_the_bit(tmp_path, precision):
    class Still(L.Callback):
        """Keeps the head's bias 1.5 from the second step on: nothing but the average moves."""

        def on_train_batch_end(self, trainer, pl_module, *_):
            pl_module.model.head.bias.data.fill_(1.0 if trainer.global_step == 1 else 1.5)

    average = EMA(0.999)
    files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module, *_ = fit([Still(), average, files], epochs=3, precision=precision)
    expected = 1.0
    for n in range(1, 18):
        expected += (1.5 - expected) * (1 - min(0.999, (1 + n) / (10 + n)))
    kept = average.average["model.head.bias"]
    torch.testing.assert_close(kept, torch.full((10,), expected))
    torch.testing.assert_close(module.model.head.bias.float(), kept, rtol=2**-8, atol=0)  # in the network's own precision
    resumed = EMA(0.999)
    fit([Still(), resumed], epochs=3, precision=precision, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert all(torch.equal(resumed.average[name], kept) for name, kept in average.average.items())


def test_ema_leaves_the_training_as_it_is():
    plain, averaging = Watch(), Watch()
    fit([plain])
    fit([EMA(0.9), averaging])
    assert all(torch.equal(a, b) for a, b in zip(plain.steps, averaging.steps, strict=True))


def test_ema_shows_the_raw_weights_until_there_is_an_average(tmp_path):
    watch = Watch()
    fit([EMA(0.5, start_step=8), watch, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False)])
    early, late = (torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True) for epoch in (0, 1))
    assert torch.equal(early["state_dict"]["model.head.weight"], watch.steps[5])
    assert "ema" not in early
    torch.testing.assert_close(late["state_dict"]["model.head.weight"], averaged(watch.steps, 0.5, 8))
    assert torch.equal(late["ema"]["raw"]["model.head.weight"], watch.steps[-1])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")  # the one that wrote the file need not be there
@pytest.mark.parametrize("on_epoch_end", [True, False])
def test_ema_resumes_to_the_bit(tmp_path, on_epoch_end):
    whole = Watch()
    files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=on_epoch_end)
    expected, *_ = fit([EMA(0.9, every_n_steps=2), whole, files], epochs=3)
    part = Watch()
    module, *_ = fit([EMA(0.9, every_n_steps=2), part], epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert len(part.steps) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.steps[12:], part.steps, strict=True))
    assert torch.equal(module.model.head.weight, expected.model.head.weight)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_ema_averages_the_statistics_of_batch_norms_and_resumes_to_the_bit(tmp_path):
    name, seen = "model.encoder.model.bn1.running_var", []

    class Statistics(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(pl_module.get_buffer(name).clone())

    network = {"arch": "timm/test_resnet", "image_size": 16}
    expected, *_ = fit([EMA(0.5), Statistics(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)], network=network)
    torch.testing.assert_close(expected.get_buffer(name), averaged(seen, 0.5, 0))
    module, *_ = fit([EMA(0.5), Statistics()], ckpt_path=tmp_path / "epoch=0.ckpt", network=network)
    assert all(torch.equal(one, two) for one, two in zip(seen[6:12], seen[12:], strict=True))
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in expected.state_dict().items())


def test_a_test_of_a_checkpoint_sees_its_average_whatever_was_trained_since(tmp_path):
    watch = Watch()
    module, trainer, data = fit([EMA(0.9), watch, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)])
    trainer.test(module, data, ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False, weights_only=True)
    torch.testing.assert_close(module.model.head.weight, averaged(watch.steps[:6], 0.9, 0))


def test_the_accuracy_without_ema_is_that_of_the_raw_weights(cct, tmp_path):
    options = ("--data.per_class", 20, "--trainer.max_epochs", 4, "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false")
    outcome = cct("fit", "-c", "digits", *options, "--trainer.callbacks+=EMA", "--trainer.callbacks.decay", 0.9)
    assert outcome.code == 0, outcome.err
    assert cct("fit", "-c", "digits", *options).code == 0
    averaged, plain = (json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/digits/*/summary.json")))
    assert plain["val_accuracy_raw"] is None
    assert averaged["val_accuracy_raw"] == pytest.approx(plain["val_accuracy_last"])  # averaging changes no step
    assert f"; last without EMA {100 * plain['val_accuracy_last']:.2f} %" in outcome.out
    (first, _) = sorted(tmp_path.glob("runs/digits/*/metrics.csv"))
    rows = list(csv.DictReader(first.read_text().splitlines()))
    assert [float(row["val/accuracy_raw"]) for row in rows if row["val/accuracy_raw"]] == [pytest.approx(averaged["val_accuracy_raw"])]
    assert len([row for row in rows if row["val/accuracy"]]) == 4
    assert averaged["test_accuracy"] is not None


def test_ema_refuses_what_it_cannot_honour(tmp_path):
    with pytest.raises(InputError, match=r"EMA.decay=1.0 is out of range"):
        EMA(1.0)
    with pytest.raises(InputError, match="leave save_weights_only out"):
        fit([EMA(), ModelCheckpoint(tmp_path, save_weights_only=True)])


def test_throughput_counts_training_alone(monkeypatch):
    clock, logged = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    callback, trainer, batch = Throughput(warmup_steps=2), SimpleNamespace(global_step=0, world_size=2, log_every_n_steps=3), (None, torch.zeros(8))
    module = SimpleNamespace(log_dict=logged.append, device=torch.device("cpu"))
    assert callback.images_per_second is None
    for _ in range(2):
        callback.on_train_epoch_start(trainer, module)
        for _ in range(4):
            clock[0] += 0.125  # waits for the batch
            callback.on_train_batch_start(trainer, module, batch, 0)
            clock[0] += 0.375
            trainer.global_step += 1
            callback.on_train_batch_end(trainer, module, None, batch, 0)
        clock[0] += 100  # validation
        callback.on_validation_end(trainer, module)
    assert callback.images_per_second == pytest.approx(2 * 8 / 0.5)
    assert callback.images == 6 * 16
    assert logged == [{"perf/images_per_s": 32, "perf/step_ms": 375, "perf/data_ms": 125}] * 2


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Mine", None)])
def test_the_share_of_a_gpus_operations_follows_from_counted_ones(monkeypatch, name, peak):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 3 * 2**30)
    callback = Throughput()
    callback.flops_per_image, callback._steps, callback._images, callback._stepped = 10**9, 10, 20_000, 2.0
    found = callback._measures(torch.device("cuda"), 2)
    assert found["perf/gpu_mem"] == 3
    assert found.get("perf/mfu") == (pytest.approx(3e9 * 10_000 / (2 * peak)) if peak else None)
    callback._others = True  # images of another size than the counted operations are for
    assert "perf/mfu" not in callback._measures(torch.device("cuda"), 2)


def test_the_folder_is_no_package_of_its_own():
    done = subprocess.run([sys.executable, "-c", "import callbacks"], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "import cct_lightning.callbacks" in done.stderr


def test_an_average_on_a_gpu_mixes_no_devices_and_waits_for_nothing(gpu):
    module = LitClassifier("cct_2_3x2_32", image_size=(16, 16), in_chans=1)
    weights = {name: torch.zeros(parameter.shape) for name, parameter in module.named_parameters()}
    gpu.takes(module)
    average, trainer = EMA(0.9), SimpleNamespace(global_step=0, state=SimpleNamespace(fn=TrainerFn.FITTING))
    average.average = weights  # of a checkpoint, read before the GPU was in use
    with gpu.waiting():
        average.on_train_start(trainer, module)
    for trainer.global_step in (1, 2):
        average.on_train_batch_end(trainer, module, None, None, 0)
        average.on_validation_start(trainer, module)
        average.on_validation_end(trainer, module)
    assert {tensor.device for tensor in average.average.values()} == {gpu.device}
    average.average = weights
    trainer.global_step = 3
    with pytest.raises(MixedDevicesError):
        average.on_train_batch_end(trainer, module, None, None, 0)
