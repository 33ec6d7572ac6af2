import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from cct_lightning import (
    POOLINGS,
    AugmentConfig,
    ImageClassifier,
    ImageDataModule,
    InputError,
    LitClassifier,
    OptimConfig,
    ScheduleConfig,
    create_model,
)
from cct_lightning.tasks.classification import metrics
from cct_lightning.weights.files import KEY

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def data(**options):
    return ImageDataModule("digits", **{"image_size": 16, "batch_size": 64, "per_class": 20, "seed": 0, **options})


def digits_module(**options):
    torch.manual_seed(0)
    return LitClassifier("cct_2_3x2_32", **{"image_size": (16, 16), "in_chans": 1, "mean": [0.3], "std": [0.4], **options})


def trained(folder, module=None, epochs=1, **options):
    module = module or digits_module()
    trainer = L.Trainer(max_epochs=epochs, default_root_dir=folder, enable_checkpointing=False, **{**QUIET, **options})
    trainer.fit(module, data(augment=AugmentConfig(shift=1, mixup=0.2)))
    return module, trainer


def test_training_learns():
    _module, trainer = trained(None, digits_module(attn_drop=0.0, schedule=ScheduleConfig(warmup_epochs=1), optim=OptimConfig(lr=3e-3)), epochs=10)
    assert trainer.callback_metrics["val/accuracy"] > 0.6
    assert {"val/loss", "val/top5", "val/f1", "val/calibration_error"} <= set(trainer.callback_metrics)


def test_a_run_can_be_given_in_steps(tmp_path):
    module = digits_module(schedule=ScheduleConfig("linear", warmup_epochs=1, warmup_lr=0.0, min_lr=0.0))
    _, trainer = trained(tmp_path, module, epochs=-1, max_steps=7)  # 3 steps an epoch
    assert trainer.global_step == 7
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0  # the schedule ends with the run


def test_images_without_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"Images without labels .* are for `cct pretrain`"):
        L.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET).fit(digits_module(), data(unlabelled="rest"))


def test_two_runs_are_equal_to_the_bit_whatever_was_drawn_before(tmp_path):
    first, _ = trained(tmp_path)
    torch.rand(100)
    second, _ = trained(tmp_path)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_checkpoint_is_plain_and_builds_the_network_again(tmp_path):
    module, trainer = trained(tmp_path, digits_module(pooling="map", class_names=list("0123456789")))
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)  # refuses anything but tensors and plain values
    about = content[KEY]
    assert about["class_names"] == list("0123456789")
    assert (about["mean"], about["std"], about["grid_size"]) == ([0.3], [0.4], [4, 4])
    assert "hyper_parameters" not in content
    again = LitClassifier.load_from_checkpoint(path)
    assert not again.training
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    assert torch.equal(again(images), module.eval()(images))
    assert again.optim == module.optim
    smaller = LitClassifier.load_from_checkpoint(path, label_smoothing=0.0)
    assert smaller.label_smoothing == 0.0


def test_weights_of_a_run_start_another(tmp_path):
    module, trainer = trained(tmp_path)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    model = create_model("cct_2_3x2_32", image_size=32, in_chans=1, num_classes=3, pretrained=tmp_path / "run.ckpt")
    assert model.load_report.resized == {"encoder.pos_embed": ("4x4", "8x8 (bilinear)")}
    assert torch.equal(model.encoder.norm.weight, module.model.encoder.norm.weight)


def test_checkpoints_of_others_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt is no checkpoint of cct-lightning"):
        LitClassifier.load_from_checkpoint(tmp_path / "other.ckpt")


def test_a_network_of_ones_own(tmp_path):
    model = create_model("vit_2_4_32", image_size=16, in_chans=1, num_classes=10)
    own = ImageClassifier(model.encoder, POOLINGS["class_token"](128, 2), 10)
    _module, trainer = trained(tmp_path, LitClassifier(model=own))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(InputError, match=r"own\.ckpt was trained with a network of its own: build it and pass it as model="):
        LitClassifier.load_from_checkpoint(tmp_path / "own.ckpt")
    assert LitClassifier.load_from_checkpoint(tmp_path / "own.ckpt", model=own).model is own


def test_a_network_that_is_none_of_ours_is_told_what_it_lacks():
    with pytest.raises(InputError, match=r"model=Linear\(\.\.\.\) is no ImageClassifier: (.|\n)*grid_size, (.|\n)*A network of your own"):
        LitClassifier(model=nn.Linear(2, 2))


def test_an_image_size_is_a_number_or_both_sides():
    assert digits_module(image_size=16).model_config == digits_module(image_size=(16, 16)).model_config


def test_an_unknown_argument_is_told_with_a_suggestion():
    with pytest.raises(TypeError, match=r"^LitClassifier has no argument 'poling'\. Did you mean pooling\?"):
        LitClassifier("cct_2_3x2_32", poling="map")


def test_what_came_of_each_image_is_kept_where_asked_alone(tmp_path):
    module, trainer = trained(tmp_path)
    assert module.outcomes is None
    module.collect = True
    ours = data()
    measured = trainer.test(module, ours, verbose=False)[0]
    split, chosen = ours.splits["test"]
    assert np.array_equal(module.outcomes.indices, chosen)
    assert np.array_equal(module.outcomes.targets, split.targets[chosen])
    assert float((module.outcomes.predicted == module.outcomes.targets).float().mean()) == pytest.approx(measured["test/accuracy"])
    trainer.validate(module, ours, verbose=False)
    assert np.array_equal(module.outcomes.indices, ours.splits["val"][1])  # the last evaluation's alone


def test_uint8_images_are_normalised_and_floats_are_not():
    module = digits_module().eval()
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(module(images), module((images / 255 - 0.3) / 0.4), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="uint8 images given to a LitClassifier without mean and std"):
        digits_module(mean=None)(images)


def test_a_frozen_backbone_stays_as_it_is(tmp_path):
    module = digits_module(freeze="backbone", drop_path=0.5)
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    trained(tmp_path, module)
    assert not module.train().model.encoder.training
    for name, tensor in module.model.state_dict().items():
        if name != "pooling.score.bias":  # its gradient is rounding noise: the softmax cancels it
            assert torch.equal(tensor, before[name]) == name.startswith("encoder."), name


def test_the_schedule_is_stepped_as_it_says(tmp_path):
    for per, expected in (("step", 12), ("epoch", 4)):
        _module, trainer = trained(tmp_path, digits_module(schedule=ScheduleConfig(per=per, warmup_epochs=1)), epochs=4)
        assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == expected
        assert trainer.global_step == 12


def test_a_run_without_an_end_is_refused(tmp_path):
    with pytest.raises(InputError, match="The length of the run is unknown"):
        trained(tmp_path, epochs=-1, limit_train_batches=1)


@pytest.mark.parametrize("clip", [{"optim": OptimConfig(clip_norm=1e-3)}, {}])
def test_gradients_are_clipped_where_asked(tmp_path, clip):
    norms = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item())

    module = digits_module(**clip)
    seen = []
    original = module.configure_gradient_clipping

    def spy(*arguments, **options):
        original(*arguments, **options)
        seen.append(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item())

    module.configure_gradient_clipping = spy
    trained(tmp_path, module, callbacks=[Look()])
    assert all(norm <= 1.01e-3 for norm in seen) == bool(clip)


def test_label_smoothing_and_soft_targets_enter_the_loss():
    module, images = digits_module(label_smoothing=0.3).eval(), torch.randn(4, 1, 16, 16)
    module.trainer = L.Trainer(**QUIET, enable_checkpointing=False)
    module.log = lambda *_, **__: None
    module.on_train_epoch_start()
    module.optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)
    hard = torch.tensor([1, 2, 3, 4])
    soft = nn.functional.one_hot(hard, 10).float()
    assert module.training_step((images, hard), 0).item() == pytest.approx(module.training_step((images, soft), 0).item(), rel=1e-5)
    expected = nn.functional.cross_entropy(module(images), 0.7 * soft + 0.03)
    assert module.training_step((images, hard), 0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_metrics_are_those_of_the_predictions():
    logits = torch.tensor([[9.0, 0, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0], [0, 0, 9, 0, 0, 0], [9, 0, 0, 0, 0, -1]])
    measures = metrics(6, "test/")
    measures.update(logits, torch.tensor([0, 1, 2, 5]))
    values = measures.compute()
    assert values["test/accuracy"] == 0.75
    assert values["test/top5"] == 0.75
    assert values["test/calibration_error"].item() == pytest.approx(0.25, abs=0.01)
    assert "test/top5" not in metrics(5, "test/").compute_groups
    assert "test/top5" not in metrics(5, "test/")


def test_the_calibration_error_is_that_of_logits_wherever_they_lie():
    logits = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))  # torchmetrics takes a batch in 0..1 for probabilities
    targets = logits.argmax(1)
    near, far = metrics(4, ""), metrics(4, "")
    near.update(logits, targets)
    far.update(logits + 10, targets)  # the same probabilities
    expected = float((1 - logits.softmax(1).amax(1)).mean())  # all are right
    assert float(near.compute()["calibration_error"]) == pytest.approx(expected, abs=1e-5)
    assert float(far.compute()["calibration_error"]) == pytest.approx(expected, abs=1e-5)


def test_r06_a_loss_that_is_no_number_shows_in_the_loss_of_the_validation(tmp_path):
    module, trainer = trained(tmp_path)
    images = torch.rand(8, 1, 16, 16)
    images[3] = torch.nan  # one of eight
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(8)), batch_size=4)
    (found,) = trainer.validate(module, batches, verbose=False)
    assert np.isnan(found["val/loss"])


def test_compiling_keeps_the_names_of_the_weights():
    assert set(digits_module(engine="compile").state_dict()) == set(digits_module().state_dict())


def test_predictions_are_probabilities():
    torch.testing.assert_close(digits_module().eval().predict_step((torch.randn(2, 1, 16, 16),), 0).sum(dim=1), torch.ones(2))


def test_the_schedule_ends_with_the_run_when_gradients_are_accumulated(tmp_path):
    rates = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    schedule = ScheduleConfig("linear", warmup_epochs=0, min_lr=0.0)
    trained(tmp_path, digits_module(schedule=schedule, optim=OptimConfig(lr=1.0)), 4, accumulate_grad_batches=2, callbacks=[Look()])
    assert rates == pytest.approx([1 - step / 8 for step in range(8)])  # 3 batches an epoch: 2 and then 1 for a step


def test_the_seed_of_the_run_is_that_of_what_is_built_next(tmp_path):
    before = digits_module().state_dict()
    trained(tmp_path, digits_module())
    after = LitClassifier("cct_2_3x2_32", image_size=(16, 16), in_chans=1).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_trained_positions_under_a_sine_name_come_back(tmp_path):
    torch.manual_seed(0)
    torch.save(create_model("cct_2_3x2_32", image_size=16, in_chans=1).state_dict(), tmp_path / "learned.pt")
    module = LitClassifier("cct_2_3x2_32_sine", image_size=(16, 16), in_chans=1, pretrained=str(tmp_path / "learned.pt"))
    trained(tmp_path, module)[1].save_checkpoint(tmp_path / "run.ckpt")
    again = LitClassifier.load_from_checkpoint(tmp_path / "run.ckpt")
    assert torch.equal(again.model.encoder.pos_embed, module.model.encoder.pos_embed)


def test_blocks_of_the_other_form_are_refused(tmp_path):
    trained(tmp_path, digits_module(residual_norm=False))[1].save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(InputError, match="was trained with residual_norm=False; the network has residual_norm=True"):
        create_model("cct_2_3x2_32", image_size=16, in_chans=1, num_classes=10, pretrained=tmp_path / "run.ckpt")


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_runs(tmp_path, precision):
    _, trainer = trained(tmp_path, precision=precision)
    assert 0 <= trainer.callback_metrics["val/accuracy"] <= 1


def test_accumulated_loss_of_an_epoch_is_the_mean_of_its_steps(tmp_path):
    losses = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            losses.append(outputs["loss"].item())

    _, trainer = trained(tmp_path, callbacks=[Look()])
    assert trainer.callback_metrics["train/loss_epoch"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def curve(precision, steps=50):
    """Losses of the first steps on digits, with all that a step of a run has but dropout, whose draws depend on the precision."""
    losses = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            losses.append(outputs["loss"].item())

    torch.manual_seed(0)
    options = {"attn_drop": 0.0, "drop_path": 0.0, "optim": OptimConfig(lr=1e-3), "schedule": ScheduleConfig(warmup_epochs=1)}
    module = LitClassifier("cct_2_3x2_32", image_size=(16, 16), in_chans=1, mean=[0.3], std=[0.4], **options)
    trainer = L.Trainer(max_epochs=-1, max_steps=steps, callbacks=[Note()], enable_checkpointing=False, precision=precision, **QUIET)
    trainer.fit(module, data(augment=AugmentConfig(shift=1)))
    return torch.tensor(losses)


def test_fifty_steps_in_bf16_follow_those_in_float32():
    exact, fast = curve("32-true"), curve("bf16-mixed")
    assert exact[-5:].mean() < exact[:5].mean() - 0.8  # it learns, so there is something to follow
    # bfloat16 rounds to 2^-9; over 50 steps the curves part by less than 2 % of where they begin, 2.3
    assert (exact - fast).abs().max() < 0.05
    assert (exact - fast).abs().mean() < 0.01


def test_a_test_sees_the_views_that_it_is_told_and_a_training_does_not(tmp_path):
    """The validations of a training see each image as it is, those of `cct validate` do not; a checkpoint does not ask for views."""
    seen = []

    class Counting(LitClassifier):
        def forward(self, images):
            seen.append((self.trainer.state.fn.value, len(images)))
            return super().forward(images)

    source = data()
    options = {"image_size": (16, 16), "in_chans": 1, "mean": source.mean, "std": source.std, "embed_dim": 32, "tta": "mirror"}
    module, fresh = (Counting("cct_2_3x2_32", **options) for _ in range(2))
    trainer = L.Trainer(max_epochs=1, enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, source)
    images = {name: len(source.splits[name][1]) for name in ("train", "val", "test")}
    passed = sum(count for state, count in seen if state == "fit")
    assert passed <= images["train"] + images["val"]
    trainer.validate(module, source, verbose=False)
    assert sum(count for state, count in seen if state == "validate") == images["val"]
    fresh.collect = True
    seen.clear()
    runner = L.Trainer(default_root_dir=tmp_path, **QUIET)
    (measured,) = runner.validate(fresh, source, verbose=False)
    assert sum(count for _, count in seen) == 2 * images["val"]
    (measured,) = runner.test(fresh, source, verbose=False)
    predicted = torch.cat(runner.predict(fresh, source.test_dataloader()))
    by_hand = (predicted.argmax(1) == fresh.outcomes.targets).float().mean()  # in the order of the data set
    assert measured["test/accuracy"] == pytest.approx(float(by_hand))
    torch.testing.assert_close(predicted.max(1).values, fresh.outcomes.probability)
    assert "tta" not in module.model_config
    with pytest.raises(InputError, match=r"model\.tta=mirror needs images, and features of them are given"):
        fresh._logits_of_views(torch.zeros(2, 8), "mirror")
