import hashlib
import json
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from cct_lightning.callbacks import EMA
from lightning.pytorch.callbacks import ModelCheckpoint
from trained import write_checkpoint

from cct_lightning import AugmentConfig, ImageDataModule, InputError, LitClassifier, OptimConfig, ScheduleConfig, create_model, load
from cct_lightning.tasks import task as module
from cct_lightning.tasks.teaching import Guide, Map, hard_loss, soft_loss
from cct_lightning.training.engine import StepGraph
from cct_lightning.training.options import DistillConfig
from cct_lightning.weights.teacher import Teacher

DIGITS = [str(digit) for digit in range(10)]
IMAGES = {"in_chans": 1, "mean": [0.3], "std": [0.4]}
KINDS = {
    "soft": DistillConfig(temperature=2.0),
    "hard": DistillConfig("hard", share=0.3),
    "features": DistillConfig("features", weight=2.0),
}
# It is ImageDataModule that says where an epoch goes on, not its loader.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
]


def write_teacher(folder, **changes):
    """Writes a checkpoint of ten digits, whose images are normalised and sized otherwise than the student's."""
    options = {"num_classes": 10, "class_names": DIGITS[::-1], "in_chans": 1, "mean": [0.2], "std": [0.5], "image_size": (20, 20)}
    write_checkpoint(folder / "teacher.ckpt", **{**options, **changes})
    return folder / "teacher.ckpt"


class Stopped(BaseException):
    """What a kill leaves behind."""


class Stop(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            raise Stopped


def fit(source, distill, *callbacks, ckpt_path=None, seed=0, augment=None, precision="32-true", **options):
    """Trains on 60 digits, two epochs of 3 steps, with dropout, augmentation and MixUp."""
    torch.manual_seed(0)
    options = {"optim": OptimConfig(lr=1e-3), "schedule": ScheduleConfig(warmup_epochs=1), "attn_drop": 0.1, **options}
    source = None if source is None else str(source)
    lit = LitClassifier("cct_2_3x2_32", image_size=16, class_names=DIGITS, teacher=source, distill=distill, **IMAGES, **options)
    data = ImageDataModule("digits", image_size=16, batch_size=20, per_class=6, augment=augment or AugmentConfig(shift=1, mixup=0.5), seed=seed)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), max_epochs=2,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks), precision=precision, limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(lit, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return lit, trainer


def assert_same(one, two):
    assert one.state_dict().keys() == two.state_dict().keys()
    assert [name for name, tensor in one.state_dict().items() if not torch.equal(tensor, two.state_dict()[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_a_teacher_that_is_stopped_goes_on_to_the_bit_and_keeps_none_of_it(tmp_path, kind):
    source, distill = write_teacher(tmp_path), KINDS[kind]
    whole, trainer = fit(source, distill, EMA(0.9))
    each_step = ModelCheckpoint(tmp_path, "run", every_n_train_steps=1, save_on_train_epoch_end=False, enable_version_counter=False)
    with pytest.raises(Stopped):
        fit(source, distill, EMA(0.9), each_step, Stop())
    again, _ = fit(source, distill, EMA(0.9), ckpt_path=tmp_path / "run.ckpt")
    assert_same(whole, again)
    plain, _ = fit(None, distill, EMA(0.9))
    assert not torch.equal(plain.model.head.weight, whole.model.head.weight)
    further = {name for name in whole.state_dict() if name not in plain.state_dict()}
    assert further == ({f"guide.projections.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")} if kind == "features" else set())
    assert len(trainer.optimizers[0].param_groups) == 2 + (kind == "features")
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in plain.parameters()) == (2 * 129 * 128 if kind == "features" else 0)
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert checkpoint["cct_lightning"]["teacher"] == {"source": str(source), "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert checkpoint["state_dict"].keys() == whole.state_dict().keys()

    # Whatever reads the checkpoint needs no teacher, and takes nothing over of what was trained beside the network.
    source.unlink()
    average = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith("model.")}
    started = create_model("cct_2_3x2_32", image_size=16, in_chans=1, num_classes=10, pretrained=tmp_path / "run.ckpt")
    opened = LitClassifier.load_from_checkpoint(tmp_path / "run.ckpt")
    for network in (started, opened.model, load(tmp_path / "run.ckpt", accelerator="cpu").network):
        assert {name: tensor.tolist() for name, tensor in network.state_dict().items()} == {n: t.tolist() for n, t in average.items()}
    data = ImageDataModule("digits", image_size=16, seed=0)
    L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=[EMA(0.9)]).validate(
        opened, data, ckpt_path=tmp_path / "run.ckpt", verbose=False, weights_only=True
    )
    with pytest.raises(InputError, match=r"model.teacher=.*teacher.ckpt can't be learned from: There is no file"):
        fit(source, distill, ckpt_path=tmp_path / "run.ckpt")


def test_a_run_goes_on_with_the_teacher_it_had_and_no_other(tmp_path):
    source = write_teacher(tmp_path)
    _, trainer = fit(source, KINDS["soft"])
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    _, trainer = fit(None, KINDS["soft"])
    trainer.save_checkpoint(tmp_path / "alone.ckpt")
    with pytest.raises(InputError, match=r"the run learned from .*teacher.ckpt, and would go on without a teacher"):
        fit(None, KINDS["soft"], ckpt_path=tmp_path / "run.ckpt")
    with pytest.raises(InputError, match="the run learned from no teacher, and would go on with one"):
        fit(source, KINDS["soft"], ckpt_path=tmp_path / "alone.ckpt")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    write_teacher(tmp_path, mean=[0.21])
    with pytest.raises(InputError, match=rf"is not what the run learned from: its sha256 is \w{{12}}\.\.\., that of .* was {digest[:12]}"):
        fit(source, KINDS["soft"], ckpt_path=tmp_path / "run.ckpt")


def test_a_cache_is_equal_to_the_bit_and_spares_all_that_follows_from_the_same(tmp_path, monkeypatch):
    source, counted = write_teacher(tmp_path), []
    logits = Teacher.logits
    monkeypatch.setattr(Teacher, "logits", lambda self, images: counted.append(len(images)) or logits(self, images))
    distill = DistillConfig(cache=str(tmp_path / "kept"))
    plain, _ = fit(source, KINDS["soft"])
    counted.clear()
    soft = {"temperature": 2.0}
    first, _ = fit(source, DistillConfig(cache=str(tmp_path / "kept"), **soft), optim=OptimConfig(lr=1e-3))
    assert_same(first, plain)
    assert counted == [20] * 6
    second, _ = fit(source, DistillConfig(cache=str(tmp_path / "kept"), **soft))
    assert_same(second, plain)
    fit(source, distill, optim=OptimConfig(lr=5e-3))  # whatever the student makes of them
    assert counted == [20] * 6
    for changed in ({"seed": 1}, {"augment": AugmentConfig(shift=1, cutmix=0.5)}):
        counted.clear()
        fit(source, distill, **changed)
        assert counted == [20] * 6, changed
    counted.clear()
    write_teacher(tmp_path, mean=[0.21])
    fit(source, distill)
    assert counted == [20] * 6
    lit = LitClassifier("cct_2_3x2_32", image_size=16, class_names=DIGITS, teacher=str(source), distill=distill, **IMAGES)
    lit.setup("fit")
    with pytest.raises(InputError, match=r"model\.distill\.cache needs ImageDataModule"):
        lit._teaching.begin(SimpleNamespace(datamodule=None), torch.device("cpu"))


def test_a_checkpoint_whose_weights_the_strategy_reads_itself_is_left_alone():
    lit = LitClassifier("cct_2_3x2_32", image_size=16, **IMAGES)
    lit._trainer = SimpleNamespace(state=SimpleNamespace(fn="test"))
    lit.on_load_checkpoint(checkpoint := {"cct_lightning": {}})  # of FSDP2
    assert "state_dict" not in checkpoint


def again(step):
    """Records nothing: a replay runs the step."""
    result = torch.zeros(())
    return lambda: result.copy_(step()), result


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_learns_from_a_teacher_as_any_other(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "check_graph", lambda *_: None)
    monkeypatch.setattr(module, "StepGraph", lambda *arguments, **named: StepGraph(*arguments, record=again, **named))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)
    source = write_teacher(tmp_path)
    eager, graph = (fit(source, KINDS[kind], engine=engine, pooling="mean", attn_drop=0.0, drop_path=0.0)[0] for engine in ("eager", "graph"))
    torch.testing.assert_close(graph.state_dict(), eager.state_dict(), atol=2e-5, rtol=1e-4)


def test_the_loss_of_a_teacher_is_that_of_its_equations():
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 4), torch.randn(6, 4)
    p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
    torch.testing.assert_close(soft_loss(ours, theirs, 3.0), 9 * (p * (p / q).log()).sum(1).mean())
    assert soft_loss(ours, ours + 5, 3.0).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(hard_loss(ours, theirs), F.cross_entropy(ours, theirs.argmax(1)))


def test_the_share_is_the_teachers_and_labels_keep_their_smoothing(tmp_path):
    source = write_teacher(tmp_path)
    images = torch.rand(4, 1, 16, 16)
    for kind in ("soft", "hard"):
        distill = DistillConfig(kind, share=0.25)
        still = {"drop_path": 0.0, "attn_drop": 0.0, **IMAGES}
        lit = LitClassifier("cct_2_3x2_32", image_size=16, class_names=DIGITS, teacher=str(source), distill=distill, **still)
        lit._trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=1, datamodule=None)
        lit.setup("fit")
        lit._teaching.begin(lit._trainer, torch.device("cpu"))
        inputs, targets = lit.step_inputs((images, torch.arange(4)))
        assert targets.shape == (4, 20)
        theirs = targets[:, 10:]
        raw = F.interpolate((images * 0.4 + 0.3 - 0.2) / 0.5, (20, 20), mode="bilinear", antialias=True)
        teacher = LitClassifier.load_from_checkpoint(source)
        torch.testing.assert_close(theirs, teacher(raw).flip(1), atol=1e-2, rtol=1e-3)  # by the names of the classes; rounded to float16
        assert torch.equal(theirs, theirs.half().float())
        of_teacher = soft_loss(lit(images), theirs, 3.0) if kind == "soft" else hard_loss(lit(images), theirs)
        expected = 0.75 * F.cross_entropy(lit(images), torch.arange(4), label_smoothing=0.1) + 0.25 * of_teacher
        torch.testing.assert_close(lit.training_loss(inputs, targets), expected)


def test_features_are_learned_in_16_bits(tmp_path):
    lit, trainer = fit(write_teacher(tmp_path, image_size=(40, 40)), KINDS["features"], precision="bf16-true")  # a finer grid than the student's
    assert trainer.global_step == 6
    guide = [p for name, p in lit.named_parameters() if name.startswith("guide.")]
    assert guide
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in guide)


@pytest.mark.parametrize(("grid", "theirs"), [((16, 16), Map(5, 2, 2)), ((16, 16), Map(5, 8, 8)), ((16, 16), Map(5, 4, 4))])
def test_a_guide_finds_the_map_that_it_was_shown(grid, theirs):
    student = create_model("cct_2_3x2_32", image_size=grid, num_classes=0)  # 4 x 4 tokens
    guide = Guide(student, [1], theirs)
    torch.manual_seed(0)
    patches = torch.randn(3, 16, 128)
    torch.nn.init.zeros_(guide.projections[0].weight)
    maps = torch.randn(3, *theirs)
    seen = F.interpolate(maps, (4, 4), mode="bilinear") if theirs.height < 8 else maps
    assert guide([patches], maps).item() == pytest.approx(1)  # a guess of zero
    torch.nn.init.normal_(guide.projections[0].weight)
    guess = F.interpolate(guide.projections[0](patches).transpose(1, 2).unflatten(2, (4, 4)), tuple(seen.shape[2:]), mode="bilinear")
    torch.testing.assert_close(guide([patches], maps), (guess - seen).square().mean() / seen.square().mean())
    for other in (guide([patches], maps), guide([patches], 7 * maps)):
        assert other.requires_grad


def test_the_weight_of_features_fades_out_over_the_run(tmp_path):
    seen = []

    class Weights(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(pl_module._teaching._weight.item())

    fit(write_teacher(tmp_path), KINDS["features"], Weights())
    assert seen == pytest.approx([2 * (1 - step / 6) for step in range(6)])


@pytest.mark.parametrize(("network", "distill", "message"), [
    ({"arch": "timm/test_resnet", "attn_drop": 0.0}, KINDS["features"], "guides the tokens of transformer layers, and timm's ResNet tells of none"),
    ({}, DistillConfig("features", layers=[2]), r"model.distill.layers=\[2\] should be some of the layers 0 to 1 of ViTEncoder"),
    ({}, DistillConfig("features", cache="kept"), "model.distill.cache=kept keeps logits, and model.distill.kind=features learns maps"),
    ({"freeze": "backbone"}, KINDS["soft"], "leave it out with freeze=backbone"),
])  # fmt: skip
def test_what_can_not_be_learned_is_refused(tmp_path, network, distill, message):
    source = write_teacher(tmp_path)
    options = {"arch": "cct_2_3x2_32", **network}
    with pytest.raises(InputError, match=message):
        LitClassifier(image_size=16, class_names=DIGITS, teacher=str(source), distill=distill, **IMAGES, **options).setup("fit")


def test_a_teacher_is_a_key_of_the_command_line(cct, tmp_path, caplog):
    caplog.set_level("INFO")
    source = write_teacher(tmp_path, image_size=(28, 28))
    short = ("--data.per_class", 7, "--data.batch_size", 16, "--trainer.max_epochs", 2, "--trainer.precision", "32-true", "--model.attn_drop", 0.1)
    short += ("--trainer.enable_progress_bar", "false")
    taught = ("--model.teacher", source, "--model.distill.kind", "features", "--trainer.callbacks+=EMA", "--trainer.callbacks.decay", 0.9)
    outcome = cct("fit", "-c", "digits", *short, *taught)
    assert outcome.code == 0, outcome.err
    assert f"learning from {source}: features, 0.28 M parameters, at 28x28 px" in caplog.text
    (run,) = tmp_path.glob("runs/digits/*")
    summary = json.loads((run / "summary.json").read_text())
    network = LitClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt").model
    assert summary["num_parameters"] == sum(parameter.numel() for parameter in network.parameters())
    moved = source.rename(tmp_path / "moved.ckpt")
    outcome = cct("test", run)
    assert outcome.code == 0, outcome.err
    outcome = cct("fit", "-c", "digits", "--model.teacher", source)
    assert (outcome.code, outcome.err.count("\n")) == (2, 3)
    assert f"There is no file {source}. Beside it: moved.ckpt." in outcome.err
    outcome = cct("resume", run, "--extend-to", 3)
    assert outcome.code == 2
    assert f"model.teacher={source} can't be learned from: There is no file {source}. Beside it: moved.ckpt." in outcome.err
    outcome = cct("resume", run, "--extend-to", 3, "--model.teacher", moved)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(("keys", "message"), [
    (("--model.teacher", "timm/resnett18@x"), "model.teacher=timm/resnett18: timm .* has no network 'resnett18'. Did you mean resnet18"),
    (("--model.teacher", "timm/resnet18@nowhere.pt"), "model.teacher=timm/resnet18@nowhere.pt: there is no file nowhere.pt"),
    (("--model.distill.share", "1.5"), "model.distill.share=1.5 is out of range"),
    (("--model.distill.kind", "softly"), "model.distill.kind=softly is unknown. Did you mean soft"),
])  # fmt: skip
def test_a_teacher_that_is_none_is_refused_before_torch_is_imported(cct, keys, message):
    outcome = cct("fit", "-c", "digits", *keys)
    assert outcome.code == 2
    assert re.search(message, outcome.err)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_a_teacher_mixes_no_devices_and_waits_for_nothing(gpu, tmp_path, kind):
    source = write_teacher(tmp_path)
    lit = LitClassifier("cct_2_3x2_32", image_size=16, class_names=DIGITS, teacher=str(source), distill=KINDS[kind], **IMAGES)
    lit._trainer = SimpleNamespace(
        global_step=0, global_rank=0, current_epoch=0, log_every_n_steps=1000, training=True, estimated_stepping_batches=10, datamodule=None
    )
    lit.setup("fit")
    gpu.takes(lit)
    lit._device = gpu.device  # Lightning's own to() sets it, by a test of its type
    with gpu.waiting():
        lit._teaching.begin(lit._trainer, gpu.device)
        lit.on_train_start()
        batch = torch.zeros(4, 1, 16, 16, device=gpu.device), torch.zeros(4, dtype=torch.int64, device=gpu.device)
    lit.on_train_epoch_start()
    for lit._trainer.global_step in (0, 1):
        lit.on_train_batch_start(batch, 0)
        with torch.autocast("cuda", torch.bfloat16):
            assert lit.training_step(batch, 0).device == gpu.device


def test_a_teacher_of_other_channels_is_refused_before_the_first_step(tmp_path):
    teacher = Teacher(create_model("cct_2_3x2_32", image_size=16, num_classes=10), "best.ckpt", "", None, 10, (16, 16), [0.5] * 3, [0.2] * 3)
    teacher.expect([0.5], [0.2])  # grey ones are made coloured
    with pytest.raises(InputError, match=r"model\.teacher=best\.ckpt was trained on images of 3 channels, and these have 5 \(data\.in_chans\)"):
        teacher.expect([0.5] * 5, [0.2] * 5)
