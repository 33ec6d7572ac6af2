import json
import os
from pathlib import Path

import pytest
import timm.optim
import torch

from cct_lightning import InputError, OptimConfig, ScheduleConfig, create_model
from cct_lightning.training.muon import Muon, orthogonalise
from cct_lightning.training.optimizers import create_optimizer, shown_rate
from cct_lightning.training.schedules import create_scheduler, fit_schedule, learning_rate

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


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_no_rate_is_above_the_highest(name):
    config = ScheduleConfig(name, warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-5, cooldown_epochs=1)
    assert [learning_rate(at, 10, 5e-6, config) for at in range(12)] == pytest.approx([5e-6] * 12)


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


def test_a_short_run_with_a_rate_for_each_epoch_does_not_spend_one_at_the_lowest():
    config = ScheduleConfig(per="epoch", warmup_epochs=10, warmup_lr=1e-6)
    for epochs in (1, 5):
        fitted, told = fit_schedule(config, epochs)
        assert told.endswith("warmup_epochs=10: no warm-up")
        assert learning_rate(0, epochs, 1.0, fitted) == 1.0


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


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_takes_the_matrices_of_the_layers_and_the_inner_convolutions():
    model = create_model("cct_2_3x2_32")
    optimizer = create_optimizer(model, OptimConfig("muon", lr=1e-3, muon_lr=0.02))
    names = {parameter: name for name, parameter in model.named_parameters()}
    kinds = {
        names[p].removeprefix("encoder."): (g["muon"], g["parts"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert len(kinds) == len(names)
    matrices = {name for name, kind in kinds.items() if kind[0]}
    assert matrices == {"tokenizer.convs.1.weight"} | {
        f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert kinds["blocks.0.attn.qkv.weight"] == (True, 3, 0.02, 0.06)
    assert kinds["tokenizer.convs.1.weight"] == (True, 1, 0.02, 0.06)
    assert kinds["pos_embed"] == (False, 1, 1e-3, 0.06)
    assert kinds["norm.weight"] == kinds["blocks.0.mlp.fc1.bias"] == (False, 1, 1e-3, 0.0)


@pytest.mark.parametrize(
    ("pooling", "matrices"),
    [
        ("class_token", {}),
        ("seqpool", {}),
        ("mean", {}),
        ("multi_query", {"v": 1}),
        ("map", {"pool.q": 1, "pool.kv": 2, "pool.proj": 1, "pool.mlp.fc1": 1, "pool.mlp.fc2": 1}),
        ("class_attention", {f"blocks.{i}.{part}": 1 for i in (0, 1) for part in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")}),
    ],
)
def test_muon_takes_the_matrices_of_every_pooling(pooling, matrices):
    model = create_model("cct_2_3x2_32", pooling=pooling)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = create_optimizer(model, OptimConfig("muon")).param_groups
    found = {names[p]: g["parts"] for g in groups if g["muon"] for p in g["params"] if names[p].startswith("pooling.")}
    assert found == {f"pooling.{name}.weight": parts for name, parts in matrices.items()}


def test_muon_takes_the_inner_convolutions_of_timms_networks():
    model = create_model("timm/test_resnet", num_classes=2, image_size=32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices = {names[p] for g in create_optimizer(model, OptimConfig("muon")).param_groups if g["muon"] for p in g["params"]}
    assert matrices == {name for name, p in model.named_parameters() if p.ndim == 4 and ".layer" in name}
    assert len(matrices) > 8


def test_muons_update_of_every_matrix_has_singular_values_near_one():
    model = create_model("cct_2_3x2_32")
    optimizer = create_optimizer(model, OptimConfig("muon", muon_lr=1.0, weight_decay=0.0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients(model, 0)
    optimizer.step()
    for part in (model.encoder.blocks[0].attn.qkv.weight - before["encoder.blocks.0.attn.qkv.weight"]).chunk(3):
        values = torch.linalg.svdvals(part)
        # the iteration takes singular values to 0.7 .. 1.2, not to one, and a square random matrix has a few too near to zero for it
        assert 0.6 < values.quantile(0.05) < values.max() < 1.3
    convolution = (model.encoder.tokenizer.convs[1].weight - before["encoder.tokenizer.convs.1.weight"]).flatten(1)  # (128, 576): wide
    assert 0.6 < torch.linalg.svdvals(convolution).min() < torch.linalg.svdvals(convolution).max() < 1.3


def test_muon_equals_timms_but_for_its_rounding_and_torchs_adamw():
    from timm.optim.muon import Muon as TimmMuon

    tall, vector = torch.randn(64, 32), torch.randn(32)
    ours = [tall.clone().requires_grad_(), vector.clone().requires_grad_()]
    theirs = [tall.clone().requires_grad_(), vector.clone().requires_grad_()]
    groups = [{"params": [ours[0]], "muon": True, "lr": 0.02}, {"params": [ours[1]], "lr": 1e-2}]
    optimizers = [
        Muon(groups, lr=1e-2, momentum=0.9, betas=(0.9, 0.99), weight_decay=0.1),
        TimmMuon([theirs[0]], 0.02, 0.1, 0.9, nesterov=True, ns_coefficients="original", adjust_lr_fn="original"),
        torch.optim.AdamW([theirs[1]], 1e-2, (0.9, 0.99), weight_decay=0.1),
    ]
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours[1], theirs[1])
    # products in bfloat16, one at a time there and in a batch here: 2^-8 of an update of 0.03
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(3, 64, 32), (2, 32, 64), (1, 128, 128), (2, 128, 576), (1, 3, 5)])
@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_the_iteration_of_muon_is_timms_to_the_bit(shape, size):
    from timm.optim.muon import zeropower_via_newtonschulz

    matrices = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = matrices.clone()
    assert torch.equal(orthogonalise(matrices), zeropower_via_newtonschulz(matrices, 5, [(3.4445, -4.7750, 2.0315)]))
    assert torch.equal(orthogonalise(matrices.bfloat16()), orthogonalise(matrices))
    assert torch.equal(matrices, before)


def test_muon_resumes_to_the_bit():
    def run(steps, state=None):
        model = create_model("cct_2_3x2_32")
        optimizer = create_optimizer(model, OptimConfig("muon"))
        if state:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        for step in steps:
            gradients(model, step)
            optimizer.step()
        return {name: value.clone() for name, value in model.state_dict().items()}, optimizer.state_dict()

    whole, resumed = run(range(4)), run(range(2, 4), run(range(2)))
    assert all(torch.equal(whole[0][name], resumed[0][name]) for name in whole[0])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_loaded_state_is_where_the_weights_are(name):
    def optimizer(device):
        return create_optimizer(create_model("cct_2_3x2_32").to(device), OptimConfig(name))

    first, resumed = optimizer("cpu"), optimizer("meta")  # a stand-in for a GPU: checkpoints are read on the host
    for group in first.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    first.step()
    resumed.load_state_dict(first.state_dict())
    assert {value.device.type for state in resumed.state.values() for value in state.values()} == {"meta"}


def test_muon_refuses_sharded_weights():
    class Sharded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            mesh = torch.distributed.device_mesh.DeviceMesh("cpu", [0])
            self.weight = torch.nn.Parameter(torch.distributed.tensor.distribute_tensor(torch.ones(4, 4), mesh))

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match=r"optim\.name=muon takes whole matrices, and the weights are sharded"):
            create_optimizer(Sharded(), OptimConfig("muon"))
    finally:
        torch.distributed.destroy_process_group()


def test_the_rate_that_is_told_is_the_one_that_was_asked_for():
    """It was that of the first group: with layer_decay the stem's, a sixth of it in CCT-7."""
    model = create_model("cct_2_3x2_32")
    for config in (OptimConfig("adamw", lr=1e-3, layer_decay=0.5), OptimConfig("muon", lr=1e-3, muon_lr=0.02), OptimConfig("adamw", lr=1e-3)):
        assert shown_rate(create_optimizer(model, config)) == 1e-3


def test_muon_takes_two_matrices_in_one_as_one():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"qkv": torch.nn.Linear(8, 16)})])  # of queries from elsewhere

    model = Two()
    optimizer = create_optimizer(model, OptimConfig("muon"))
    model.blocks[0]["qkv"](torch.ones(1, 8)).sum().backward()
    weight = model.blocks[0]["qkv"].weight
    assert [group["parts"] for group in optimizer.param_groups if any(p is weight for p in group["params"])] == [1]
    before = weight.detach().clone()
    optimizer.step()  # a third of 16 rows could not be cut
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(("config", "message"), [
    (OptimConfig("muon", layer_decay=0.7), "layer_decay=0.7 can't be had with optim.name=muon"),
    (OptimConfig("sgd", betas=(0.9, 0.99)), r"betas=\(0.9, 0.99\) given to optim.name=sgd, which has none"),
    (OptimConfig("adahessian"), "adahessian needs gradients of gradients"),
    (OptimConfig("bnbadamw8bit"), "optim.name=bnbadamw8bit can't be had here: "),
    (OptimConfig("sgd", momentum=0.0), r"sgd can't be had with momentum=0, .*Nesterov momentum requires.* optim.name=momentum is sgd"),
])  # fmt: skip
def test_what_an_optimizer_cannot_honour_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        create_optimizer(create_model("cct_2_3x2_32"), config)


@pytest.mark.parametrize("weight_decay", [0.06, 0.0])
@pytest.mark.parametrize("name", ["adam", "AdamW"])
def test_adams_made_without_timm_are_timms(name, weight_decay):
    model = create_model("vit_2_4_32", pooling="class_token")
    model.encoder.blocks[0].requires_grad_(False)
    config = OptimConfig(name, lr=1e-3, weight_decay=weight_decay, betas=(0.8, 0.99))
    ours = create_optimizer(model, config)
    timms = timm.optim.create_optimizer_v2(model, name, lr=1e-3, weight_decay=weight_decay, betas=(0.8, 0.99), fused=True)
    assert type(ours) is type(timms)
    assert ours.defaults == timms.defaults
    without = [{name: value for name, value in group.items() if name != "params"} for group in ours.param_groups]
    assert without == [{name: value for name, value in group.items() if name != "params"} for group in timms.param_groups]
    parameters = [[list(map(id, group["params"])) for group in optimizer.param_groups] for optimizer in (ours, timms)]
    assert parameters[0] == parameters[1]
