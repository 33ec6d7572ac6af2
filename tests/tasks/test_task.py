"""What is the same for every task, tried on toy tasks of a few lines and on all that have a name."""

from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cct_lightning.callbacks import EMA, BatchPreview, PoolingMaps, TestReport
from fake_gpu import MixedDevicesError
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import nn

from cct_lightning import AugmentConfig, ImageDataModule, InputError, LitClassifier, OptimConfig, ScheduleConfig, create_model
from cct_lightning.data.preparation import _scale_and_offset, normalize
from cct_lightning.networks import initial_values
from cct_lightning.tasks.registry import TASKS, task_class
from cct_lightning.tasks.task import Task
from cct_lightning.training.losses import class_weights
from cct_lightning.training.options import LossConfig
from cct_lightning.weights.files import KEY

# It is ImageDataModule that says where an epoch goes on, not its loader.
pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")

NETWORK = {"image_size": (16, 16), "in_chans": 1, "attn_drop": 0.1, "drop_path": 0.1, "proj_drop": 0.1}
IMAGES = {"mean": [0.3], "std": [0.4]}


class Rotation(Task):
    """Tells by how many quarters an image was turned."""

    def __init__(self, **options):
        super().__init__(**IMAGES, **options)
        self.model = create_model("cct_2_3x2_32", num_classes=4, **NETWORK)

    def turned(self, images, quarters):
        turned = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])[quarters, torch.arange(len(images))]
        return F.cross_entropy(self(turned), quarters)

    def training_loss(self, images, targets):
        return self.turned(images, torch.randint(4, (len(images),)))

    def evaluate(self, batch, stage):
        self.log(f"{stage}/loss", self.turned(batch[0], torch.arange(len(batch[0])) % 4), batch_size=len(batch[0]))


class HalfSeen(nn.Module):
    """Reads half of the patches, drawn anew each time."""

    def __init__(self):
        super().__init__()
        self.encoder = create_model("vit_2_4_32", pooling="class_token", num_classes=0, **NETWORK).encoder
        self.head = nn.Linear(self.encoder.embed_dim, 1)

    def forward(self, images):
        x = self.encoder.embed(images)
        kept = 1 + torch.randperm(x.shape[1] - 1)[:8]
        return self.head(self.encoder.encode(torch.cat((x[:, :1], x[:, kept]), dim=1)).prefix[:, 0])


class MeanPixel(Task):
    """Guesses the brightness of an image of which half the patches are seen."""

    def __init__(self, **options):
        super().__init__(**IMAGES, **options)
        self.model = HalfSeen()

    def training_loss(self, images, targets):
        return F.mse_loss(self(images)[:, 0], images.mean(dim=(1, 2, 3)))

    def evaluate(self, batch, stage):
        self.log(f"{stage}/loss", self.training_loss(*self.step_inputs(batch)), batch_size=len(batch[0]))


TOYS = {"rotation": Rotation, "mean_pixel": MeanPixel}


def named(name):
    classes = {"multilabel": {"num_classes": 4}, "regression": {"num_classes": 2}}.get(name, {})
    return lambda **options: task_class(name)("cct_2_3x2_32", **NETWORK, **IMAGES, **classes, **options)


class Stopped(BaseException):
    """What a kill leaves behind."""


class Stop(L.Callback):
    """Stops a run before a batch of an epoch."""

    def __init__(self, epoch, batch):
        self.at = epoch, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise Stopped


def told_by(data, kind):
    """Has digits be told by labels or numbers: the bits of their class, which zero has none of, or the class and its square."""
    read, targets = data.source.read(), np.arange(10)
    values = targets[:, None] >> np.arange(4) & 1 == 1 if kind == "labels" else np.stack((targets, targets**2), axis=1).astype(np.float32)
    parts = {name: part and replace(part, values=values[part.targets]) for name, part in read.items()}
    data.source.read, data.kind = lambda: parts, kind
    data.class_names = [f"target {number}" for number in range(values.shape[1])]
    data.num_classes = len(data.class_names)


def fit(make, folder, *callbacks, epochs=2, ckpt_path=None, sizes=None, **options):
    """Trains on 60 digits, 6 steps an epoch, with dropout and augmentation."""
    torch.manual_seed(0)
    options = {"optim": OptimConfig(lr=1e-3, clip_norm=0.5), "schedule": ScheduleConfig(warmup_epochs=1), **options}
    task = make(**options)
    augment = AugmentConfig(shift=1, mixup=0.5)
    data = ImageDataModule("digits", image_size=16, image_size_schedule=sizes, batch_size=10, per_class=6, augment=augment, seed=0)
    if task.kind in ("labels", "numbers"):
        told_by(data, task.kind)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, max_epochs=epochs,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks), callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return task, trainer


def stopped_and_resumed(make, folder, epoch, batch, averages, **options):
    """Trains, once to the end and once stopped there and resumed; returns both networks and trainers."""

    def callbacks():
        return [ModelCheckpoint(folder, every_n_train_steps=1, save_on_train_epoch_end=False), *[EMA(0.9)] * averages]

    whole = fit(make, folder / "whole", *[EMA(0.9)] * averages, **options)
    with pytest.raises(Stopped):
        fit(make, folder, *callbacks(), Stop(epoch, batch), **options)
    (path,) = folder.glob("*.ckpt")
    return whole, fit(make, folder, *callbacks(), ckpt_path=path, **options)


def assert_same_to_the_bit(one, two):
    (task, trainer), (other, resumed) = one, two
    assert resumed.global_step == trainer.global_step
    weights, again = task.state_dict(), other.state_dict()
    assert weights.keys() == again.keys()
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []
    assert {name: float(value) for name, value in resumed.callback_metrics.items()} == {
        name: float(value) for name, value in trainer.callback_metrics.items()
    }


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("averages", [False, True])
def test_a_toy_task_that_is_stopped_inside_an_epoch_goes_on_to_the_bit(tmp_path, toy, averages):
    runs = stopped_and_resumed(TOYS[toy], tmp_path, 1, 2, averages)
    assert_same_to_the_bit(*runs)
    assert {"train/loss_epoch", "val/loss"} <= set(runs[0][1].callback_metrics)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_that_is_stopped_goes_on_to_the_bit(tmp_path, name):
    assert_same_to_the_bit(*stopped_and_resumed(named(name), tmp_path, 0, 2, averages=False))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_loaded_from_its_checkpoint(tmp_path, name):
    task, trainer = fit(named(name), tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = task_class(name).load_from_checkpoint(tmp_path / "run.ckpt", drop_path=0.2)
    assert (again.seed, again.training, again.model_config) == (task.seed, False, {**task.model_config, "drop_path": 0.2})
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in task.state_dict().items())


def test_a_run_with_smaller_images_first_that_is_stopped_goes_on_to_the_bit(tmp_path):
    seen = []

    class Sizes(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[0].shape[2])

    # Stopped at step 4 of 12, the last with images of 8 pixels
    sizes = [(8, 0.4), (12, 0.8)]
    assert_same_to_the_bit(*stopped_and_resumed(named("classification"), tmp_path, 0, 4, averages=True, sizes=sizes))
    fit(named("classification"), tmp_path, Sizes(), sizes=sizes)
    assert seen == [8] * 5 + [12] * 5 + [16] * 2


def test_a_network_with_batch_norms_that_is_stopped_goes_on_to_the_bit_and_is_trained_on_one_device(tmp_path):
    def resnet(**options):
        return LitClassifier("timm/test_resnet", image_size=16, in_chans=1, **IMAGES, **options)

    assert_same_to_the_bit(*stopped_and_resumed(resnet, tmp_path, 0, 2, averages=True))
    task = resnet()
    task._trainer = SimpleNamespace(world_size=2, datamodule=None)
    with pytest.raises(InputError, match="timm's ResNet has batch norms, for which each of 2 devices"):
        task.on_fit_start()
    with pytest.raises(InputError, match="whiten=start is for a CCT's convolutions"):
        fit(lambda **options: resnet(whiten="start", **options), tmp_path)


@pytest.mark.parametrize("whiten", ["start", "frozen"])
def test_a_run_with_a_whitened_start_that_is_stopped_goes_on_to_the_bit(tmp_path, whiten):
    whole, again = stopped_and_resumed(named("classification"), tmp_path, 0, 2, averages=False, whiten=whiten)
    assert_same_to_the_bit(whole, again)
    first = whole[0].encoder.tokenizer.convs[0].weight
    torch.manual_seed(0)
    start = nn.Conv2d(1, 64, 3, bias=False)
    data = ImageDataModule("digits", image_size=16, per_class=6, seed=0)
    data.setup("fit")
    initial_values.whiten(start, normalize(data.sample_images(10**6), **IMAGES))
    assert torch.equal(first[:18], start.weight[:18]) == (whiten == "frozen")
    assert first.requires_grad == (whiten == "start")
    torch.testing.assert_close(first[:18], start.weight[:18], atol=0.5, rtol=0)


def test_weights_that_are_there_are_not_whitened_again(tmp_path):
    task, trainer = fit(named("classification"), tmp_path, epochs=1, whiten="start")
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    trained = task.state_dict()["model.encoder.tokenizer.convs.0.weight"].clone()
    again = LitClassifier.load_from_checkpoint(tmp_path / "run.ckpt", optim=OptimConfig(lr=1e-9))
    fit(lambda **_: again.train(), tmp_path, epochs=1)
    torch.testing.assert_close(again.encoder.tokenizer.convs[0].weight, trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("make", "message"), [
    (lambda **_: LitClassifier("vit_2_4_32", **NETWORK, **IMAGES, whiten="start"), "whiten=start is for a CCT's convolutions"),
    (lambda **_: LitClassifier("cct_2_3x2_32", **NETWORK, whiten="frozen"), "and mean and std"),
    (lambda **_: LitClassifier("cct_2_3x2_32", **NETWORK, pretrained="x.pt", whiten="frozen"), "x.pt"),
])  # fmt: skip
def test_what_can_not_be_whitened_is_refused(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        fit(make, tmp_path)


def test_a_toy_task_learns(tmp_path):
    options = {"optim": OptimConfig(lr=3e-3), "schedule": ScheduleConfig(warmup_epochs=1)}
    _, first = fit(Rotation, tmp_path, epochs=1, **options)
    _, last = fit(Rotation, tmp_path, epochs=12, **options)
    assert last.callback_metrics["train/loss_epoch"] < 0.8 * first.callback_metrics["train/loss_epoch"]


def test_gradients_are_clipped_where_asked(tmp_path):
    norms = []

    class Look(L.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            if gradients := [p.grad for p in module.parameters() if p.grad is not None]:
                norms.append(nn.utils.get_total_norm(gradients).item())

    fit(Rotation, tmp_path, Look(), epochs=1, optim=OptimConfig(clip_norm=1e-3))
    assert norms == pytest.approx([1e-3] * len(norms), rel=0.01)
    assert len(norms) > 3


def test_what_a_step_draws_follows_from_the_seed_and_its_number_alone(tmp_path):
    first, _ = fit(Rotation, tmp_path, epochs=1)

    class Draw(L.Callback):
        def on_train_batch_end(self, *_):
            torch.rand(7)

    second, _ = fit(Rotation, tmp_path, Draw(), epochs=1)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))


def test_a_checkpoint_says_what_every_task_says_and_its_weights_start_a_classifier(tmp_path):
    task, trainer = fit(Rotation, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "toy.ckpt")
    about = torch.load(tmp_path / "toy.ckpt", weights_only=True)[KEY]
    assert (about["format"], about["model"], about["mean"], about["grid_size"], about["seed"]) == (1, None, [0.3], [4, 4], task.seed)
    assert about["epoch_loss"] / 6 == pytest.approx(float(trainer.callback_metrics["train/loss_epoch"]), rel=1e-5)
    model = create_model("cct_2_3x2_32", num_classes=10, pretrained=tmp_path / "toy.ckpt", **NETWORK)
    assert torch.equal(model.encoder.norm.weight, task.model.encoder.norm.weight)
    assert model.num_classes == 10


def test_the_network_is_run_as_the_run_says():
    task = Rotation().eval()
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(task(images), task((images / 255 - 0.3) / 0.4), atol=1e-5, rtol=1e-5)
    task.mean = None
    with pytest.raises(InputError, match="uint8 images given to a Rotation without mean and std"):
        task(images)


def test_a_task_without_a_loss_is_none():
    class Nothing(Task):
        def evaluate(self, batch, stage):
            pass

    with pytest.raises(TypeError, match="training_loss"):
        Nothing()


def test_callbacks_draw_what_a_toy_task_has(tmp_path, caplog):
    caplog.set_level("INFO")
    fit(Rotation, tmp_path, BatchPreview(4), PoolingMaps(1, 2), epochs=1)
    assert {"batch.png", "pooling-epoch001.png"} <= {path.name for path in (tmp_path / "pictures").iterdir()}
    fit(MeanPixel, tmp_path / "other", BatchPreview(4), PoolingMaps(1, 2), epochs=1)
    assert "PoolingMaps draws nothing: MeanPixel has no ImageClassifier as its model." in caplog.text
    assert [path.name for path in (tmp_path / "other" / "pictures").iterdir()] == ["batch.png"]
    with pytest.raises(InputError, match="TestReport draws what came of each image, which Rotation does not keep: leave it out"):
        fit(Rotation, tmp_path, TestReport())


@pytest.mark.parametrize("records", [False, True])
def test_a_step_on_a_gpu_mixes_no_devices_and_waits_for_nothing(gpu, records):
    module = LitClassifier("cct_2_3x2_32", image_size=(16, 16), in_chans=1, mean=[0.3], std=[0.4], loss=LossConfig("balanced"))
    gpu.takes(module)
    module._device = gpu.device  # Lightning's own to() sets it, by a test of its type
    trainer = SimpleNamespace(global_step=0, global_rank=0, current_epoch=0, log_every_n_steps=1000, training=True)
    module._trainer = trainer
    with gpu.waiting():
        module._class_weights = class_weights([3, 4, 5, 6, 7, 8, 9, 8, 7, 6]).to(gpu.device)
        module.on_train_start()
        normalize(torch.zeros(4, 1, 16, 16, dtype=torch.uint8, device=gpu.device), [0.3], [0.4])
    module._records, module._graph = records, Replay(module)
    module.on_train_epoch_start()
    for trainer.global_step, dtype in enumerate((torch.uint8, torch.float32)):
        batch = torch.zeros(4, 1, 16, 16, dtype=dtype, device=gpu.device), torch.zeros(4, dtype=torch.int64, device=gpu.device)
        module.on_train_batch_start(batch, 0)
        with torch.autocast("cuda", torch.bfloat16):
            assert module.training_step(batch, 0).device == gpu.device
    assert module._epoch_loss.device == gpu.device
    with pytest.raises(MixedDevicesError):
        module.training_loss(torch.zeros(4, 1, 16, 16, device=gpu.device), torch.zeros(4, dtype=torch.int64))
    _scale_and_offset.cache_clear()  # fakes


class Replay:
    """Stands in for a recorded step."""

    def __init__(self, module):
        self.module, self.images = module, torch.zeros(4, 1, 16, 16)

    def __call__(self, images, targets):
        assert targets.shape == (4, 10)
        return self.module.training_loss(images, targets)


def test_a_schedule_that_would_not_end_is_refused(tmp_path):
    """The rates were those of a run of four times as many steps, and ended near the highest."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=[GradientAccumulationScheduler({0: 4})], **quiet)
    module = LitClassifier("cct_2_3x2_32", num_classes=10, **NETWORK, **IMAGES)
    with pytest.raises(InputError, match="GradientAccumulationScheduler changes how many steps there are"):
        trainer.fit(module, ImageDataModule("digits", batch_size=64, image_size=16))
