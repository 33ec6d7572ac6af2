"""The task of masked patches: which are masked when, what a run keeps, and what starts from it."""

import lightning as L
import pytest
import torch

from cct_lightning import AugmentConfig, ImageDataModule, InputError, LitClassifier, OptimConfig, ScheduleConfig, create_model
from cct_lightning.data.loaders import Batch
from cct_lightning.tasks.masked import MaskedPatches
from cct_lightning.training.engine import StepGraph
from cct_lightning.weights.files import KEY

SMALL = {"image_size": 16, "in_chans": 1, "mean": [0.3], "std": [0.4]}
TARGETS = ("mae", "simmim", "mpp")


def task(target="mae", arch="cct_2_3x2_32", **options):
    torch.manual_seed(0)
    return MaskedPatches(arch, target=target, **{**SMALL, **options})


def batch(indices, epoch=0):
    images = torch.randn(100, 1, 16, 16, generator=torch.Generator().manual_seed(0))[indices]
    return Batch(images, torch.zeros(len(indices), dtype=torch.int64), torch.tensor(indices), epoch, 0)


def fit(module, folder, epochs=1, sizes=None, **trainer):
    data = ImageDataModule("digits", image_size=16, image_size_schedule=sizes, batch_size=10, per_class=6, augment=AugmentConfig(shift=1), seed=0)
    made = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        max_epochs=epochs, **trainer,
    )  # fmt: skip
    made.fit(module, data)
    return made


def test_masks_follow_from_seed_epoch_and_index_alone():
    module = task()
    order = module.order(batch([5, 9, 2]))
    assert torch.equal(module.order(batch([2, 5])), order[[2, 0]])  # another batch, another place in it
    assert not torch.equal(module.order(batch([5, 9, 2], epoch=1)), order)
    module.seed = 1
    assert not torch.equal(module.order(batch([5, 9, 2])), order)


def test_a_validation_masks_the_same_in_every_epoch():
    module = task().eval()
    losses = []
    for epoch in (0, 3):
        with torch.no_grad():
            module.evaluate(batch([5, 9, 2], epoch), "val")
        losses.append(module.val_loss.compute())
        module.val_loss.reset()
    assert losses[0] == losses[1]
    assert not torch.equal(module.order(batch([5]), "mask val"), module.order(batch([5])))


def test_the_validation_s_loss_is_the_mean_over_images_however_they_are_batched():
    module = task().eval()
    with torch.no_grad():
        for part in ([1, 2, 3, 4], [5], [6, 7]):
            module.evaluate(batch(part), "val")
        parts, _ = module.val_loss.compute(), module.val_loss.reset()
        module.evaluate(batch([1, 2, 3, 4, 5, 6, 7]), "val")
    torch.testing.assert_close(parts, module.val_loss.compute())


def test_a_batch_must_say_which_images_it_holds():
    with pytest.raises(InputError, match="Masked patches follow from each image's index, which a list lacks: take an ImageDataModule"):
        task().step_inputs([torch.zeros(2, 1, 16, 16), torch.zeros(2)])


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_falls(tmp_path, target):
    module = task(target, optim=OptimConfig(lr=3e-3), schedule=ScheduleConfig(warmup_epochs=0), decoder_dim=32)
    losses = []

    class Look(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            losses.append(float(trainer.callback_metrics["val/loss"]))

    fit(module, tmp_path, epochs=5, callbacks=[Look()], num_sanity_val_steps=0)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("target", TARGETS)
def test_a_recorded_step_is_the_same_step(target):
    """The order of the patches stands in the place of the targets, of one shape and dtype: what is recorded copies it in."""
    steps = []
    for records in (False, True):
        module = task(target)
        optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-3, fused=True)
        first = module.step_inputs(batch([1, 2, 3]))
        graph = StepGraph(module.training_loss, optimizer, *first, None, record=replaying) if records else None
        for images, targets in (first, module.step_inputs(batch([7, 2, 9], epoch=1))):
            if graph is None:
                optimizer.zero_grad()
                module.training_loss(images, targets).backward()
                optimizer.step()
            else:
                graph(images, targets)
        steps.append(module.state_dict())
    for name, tensor in steps[0].items():
        torch.testing.assert_close(tensor, steps[1][name], atol=1e-6, rtol=1e-5)


def replaying(step):
    result = torch.zeros(())
    return lambda: result.copy_(step()), result


def test_smaller_images_come_first(tmp_path):
    seen = []

    class Sizes(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append((batch.images.shape[2], pl_module.step_inputs(batch)[1].shape[1]))

    fit(task(), tmp_path, sizes=[(8, 0.5)], callbacks=[Sizes()])
    assert set(seen) == {(8, 4), (16, 16)}
    with pytest.raises(InputError, match=r"data\.image_size_schedule: image_size=10x10 makes a grid of 3x3 patches, which does not divide it"):
        fit(task(), tmp_path, sizes=[(10, 0.5)])


@pytest.mark.parametrize("arch", ["cct_2_3x2_32", "vit_2_4_32"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_classifier_starts_from_every_tensor_of_the_encoder(tmp_path, arch, target):
    module = task(target, arch)
    fit(module, tmp_path, limit_train_batches=2).save_checkpoint(tmp_path / "masked.ckpt")
    checkpoint = torch.load(tmp_path / "masked.ckpt", weights_only=True)
    assert {name.split(".")[1] for name in checkpoint["state_dict"]} == {"encoder", "decoder"}
    about = checkpoint[KEY]
    assert (about["class_names"], about["model"]["num_classes"], about["model"]["class_names"]) == (None, 0, None)
    classifier = LitClassifier(
        arch, num_classes=3, class_names=["a", "b", "c"], pretrained=str(tmp_path / "masked.ckpt"), **{**SMALL, "image_size": 24}
    )
    report = classifier.model.load_report
    assert set(report.loaded) == {f"encoder.{name}" for name in module.encoder.state_dict()}
    assert report.resized == {"encoder.pos_embed": ("4x4", "6x6 (bilinear)")}
    assert set(report.new) == {name for name in classifier.model.state_dict() if not name.startswith("encoder.")}
    assert list(report.dropped) == [f"decoder ({len(module.model.decoder.state_dict())} tensors)"]
    assert report.notes == []
    for name, tensor in module.encoder.blocks.state_dict().items():
        assert torch.equal(classifier.encoder.blocks.state_dict()[name], tensor)


@pytest.mark.parametrize(("theirs", "ours"), [("mean", "class_token"), ("class_token", "seqpool")])
def test_any_pooling_may_read_the_encoder(tmp_path, theirs, ours):
    module = task(arch="cct_2_3x2_32", pooling=theirs)
    fit(module, tmp_path, limit_train_batches=1).save_checkpoint(tmp_path / "masked.ckpt")
    report = create_model("cct_2_3x2_32", pooling=ours, image_size=16, in_chans=1, pretrained=tmp_path / "masked.ckpt").load_report
    token = {"encoder.cls_token", "encoder.cls_pos_embed"}
    assert set(report.loaded) == {f"encoder.{name}" for name in module.encoder.state_dict()} - token
    assert token & {*report.new, *report.dropped} == token


@pytest.mark.parametrize(("options", "message"), [
    ({"optim": OptimConfig(layer_decay=0.7)}, r"optim\.layer_decay=0\.7 is for weights that are trained already"),
    ({"head_hidden_dim": 8}, "head_hidden_dim=8: masked patches are learned without a head"),
    ({"mask_ratio": 1.5}, r"mask_ratio=1\.5 is out of range"),
    ({"decoder_depth": 0}, "decoder_depth=0 is out of range"),
    ({"arch": "timm/vit_tiny_patch16_224", "image_size": 32}, "target=mae has the encoder see some patches alone"),
    ({"target": "mpp", "mean": None}, "target=mpp predicts colours"),
])  # fmt: skip
def test_what_does_not_suit_masked_patches_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        task(**options)


@pytest.mark.parametrize("target", TARGETS)
def test_a_step_on_a_gpu_mixes_no_devices_and_waits_for_nothing(gpu, target):
    module = task(target)
    gpu.takes(module)
    module._device = gpu.device  # Lightning's own to() sets it, by a test of its type
    images = torch.zeros(4, 1, 16, 16, device=gpu.device)
    given = Batch(images, torch.zeros(4, dtype=torch.int64, device=gpu.device), torch.arange(4, device=gpu.device), 0, 0)
    with torch.autocast("cuda", torch.bfloat16):
        assert module.training_loss(*module.step_inputs(given)).device == gpu.device


def test_a_step_compiles_as_one_graph():
    module = task().eval()
    compiled = torch.compile(module.model, fullgraph=True, backend="eager")
    given = module.step_inputs(batch([1, 2]))
    torch.testing.assert_close(compiled(*given), module.model(*given))


def test_images_are_not_drawn_by_labels_that_shall_not_be_seen(tmp_path):
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    with pytest.raises(InputError, match=r"data\.sampler=balanced draws images by their labels, which task=masked shall not see"):
        trainer.fit(task(), ImageDataModule("digits", image_size=16, batch_size=32, sampler="balanced"))
