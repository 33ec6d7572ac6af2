import json
import os
from pathlib import Path

import pytest
import torch

from cct_lightning import InputError, OptimConfig, ScheduleConfig, create_model
from cct_lightning.optim import create_optimizer, create_scheduler, fit_schedule, learning_rate

PUBLISHED = {
    "cct_7-3x1_cifar10_300epochs": (5.5e-4, 310, ScheduleConfig("cosine", "epoch", 10, 1e-5, 1e-5, 10)),
    "cct_7-3x1_cifar100_300epochs": (6e-4, 310, ScheduleConfig("cosine", "epoch", 10, 1e-6, 1e-5, 10)),
    "cct_14-7x2_imagenet": (5e-4, 310, ScheduleConfig("cosine", "epoch", 10, 1e-6, 1e-5, 10)),
    "cct_14-7x2_imagenet384": (1e-5, 40, ScheduleConfig("cosine", "epoch", 0, 1e-6, 0.0, 10)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules_per_epoch(name):
    from timm.scheduler import CosineLRScheduler

    lr, total, config = PUBLISHED[name]
    timms = CosineLRScheduler(
        torch.optim.SGD([torch.zeros(1)], lr), t_initial=total - 10, lr_min=config.min_lr, warmup_t=int(config.warmup_epochs),
        warmup_lr_init=config.warmup_lr, cycle_limit=1,
    )  # fmt: skip
    ours = [learning_rate(epoch, total, lr, config) for epoch in range(total)]
    assert ours == pytest.approx([timms._get_lr(epoch)[0] for epoch in range(total)], rel=1e-12)
    if "CCT_GOLDEN" in os.environ:
        golden = json.loads(Path(os.environ["CCT_GOLDEN"], "lr_schedules.json").read_text())[name]
        assert ours == pytest.approx(golden[: len(ours)], rel=1e-12)
        assert len(golden) - len(ours) in (0, 1)


@pytest.mark.parametrize("form", ["cosine", "linear", "constant"])
def test_warm_up_decay_and_cool_down(form):
    config = ScheduleConfig(form, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01, cooldown_epochs=1)
    rates = [learning_rate(step, 100, 1.0, config, unit=10) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[10] == pytest.approx(0.55)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[90:] == [0.01] * 10
    assert rates[89] == pytest.approx({"cosine": 0.01, "linear": 0.024, "constant": 1.0}[form], abs=2e-3)


def test_the_scheduler_steps_through_the_run_and_keeps_each_groups_share():
    model = create_model("cct_2_3x2_32")
    optimizer = create_optimizer(model, OptimConfig(lr=1.0, layer_decay=0.5))
    scheduler = create_scheduler(optimizer, ScheduleConfig(warmup_epochs=1, warmup_lr=0.0, min_lr=0.0), 1.0, epochs=4, steps_per_epoch=5)
    highest = [group["initial_lr"] for group in optimizer.param_groups]
    assert len(set(highest)) == 4  # stem, two blocks, and the norm, pooling and head behind them
    for step in range(20):
        expected = learning_rate(step, 20, 1.0, ScheduleConfig(warmup_epochs=1, warmup_lr=0.0, min_lr=0.0), unit=5)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected * lr for lr in highest])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("epochs", "changes"), [(310, False), (21, False), (20, True), (5, True)])
def test_short_runs_warm_up_for_a_tenth_and_say_so(epochs, changes):
    config = ScheduleConfig(warmup_epochs=10, cooldown_epochs=10)
    fitted, told = fit_schedule(config, epochs)
    assert (told is not None) == changes
    assert (fitted.warmup_epochs, fitted.cooldown_epochs) == ((epochs / 10, 0) if changes else (10, 10))
    if told:
        assert f"{epochs} epochs has no room for warmup_epochs=10" in told


def test_norms_and_biases_never_decay():
    model = create_model("vit_2_4_32", pooling="class_token")
    optimizer = create_optimizer(model, OptimConfig(weight_decay=0.06))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.06), name
    assert type(optimizer) is torch.optim.AdamW


def test_what_is_frozen_is_left_out():
    model = create_model("cct_2_3x2_32")
    model.encoder.requires_grad_(False)
    optimizer = create_optimizer(model, OptimConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    with pytest.raises(InputError, match="No parameter is trainable"):
        create_optimizer(model.requires_grad_(False), OptimConfig())


def test_unknown_optimizers_are_refused():
    with pytest.raises(InputError, match=r"optim\.name='adamx' is no optimizer of timm .* Did you mean"):
        create_optimizer(create_model("cct_2_3x2_32"), OptimConfig("adamx"))
