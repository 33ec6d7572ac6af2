"""The recorded step is tested here without a GPU: the recorder is replaced by one that runs the step again, all around it is the real thing."""

from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from fake_gpu import MixedDevicesError

from cct_lightning import AugmentConfig, ImageDataModule, InputError, LitClassifier, OptimConfig, ScheduleConfig, create_model
from cct_lightning.runs.search import RateRamp
from cct_lightning.tasks import task as module
from cct_lightning.training import engine
from cct_lightning.training.engine import StepGraph, check_graph, choose_engine
from cct_lightning.training.optimizers import create_optimizer
from cct_lightning.training.schedules import create_scheduler

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("given", "device", "steps", "able", "chosen"), [
    ("auto", GPU, 100_000, True, "compile"),
    ("auto", GPU, 100_000, False, "eager"),
    ("auto", GPU, 500, True, "eager"),
    ("auto", CPU, 100_000, True, "eager"),
    ("compile", CPU, 1, False, "compile"),
    ("eager", GPU, 100_000, True, "eager"),
])  # fmt: skip
def test_auto_compiles_long_runs_on_a_gpu_that_can(monkeypatch, given, device, steps, able, chosen):
    monkeypatch.setattr(engine, "can_compile", lambda: able)
    assert choose_engine(given, device, steps) == chosen


@pytest.mark.parametrize(("lacking", "able"), [(None, True), ("triton", False), ("compiler", False), ("headers", False)])
def test_what_triton_needs_is_looked_for(monkeypatch, tmp_path, lacking, able):
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if lacking == "triton" else object())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name.endswith("gcc") and lacking != "compiler" else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path / "none" if lacking == "headers" else tmp_path)})
    assert engine.can_compile() is able
    monkeypatch.setenv("CC", "nvc")
    assert not engine.can_compile()  # triton takes what CC names, or fails


@pytest.mark.parametrize(("changes", "message"), [
    ({"device": CPU}, "the run is on cpu: choose eager"),
    ({"world_size": 2}, "takes one device, and there are 2"),
    ({"precision": "16-mixed"}, "as trainer.precision=16-mixed needs: choose bf16-mixed"),
    ({"optimizer": "sgd"}, "optim.name=adamw or muon, not sgd"),
    ({"trainer_keys": {"gradient_clip_val": (1.0, 0)}}, "can't honour trainer.gradient_clip_val=1.0: set model.optim.clip_norm"),
    ({"trainer_keys": {"accumulate_grad_batches": (4, 1)}}, "can't honour trainer.accumulate_grad_batches=4: leave it out"),
])  # fmt: skip
def test_what_a_recorded_step_cannot_honour_is_refused_by_name(changes, message):
    fine = {"device": GPU, "world_size": 1, "precision": "bf16-mixed", "optimizer": "adamw", "trainer_keys": {"gradient_clip_val": (None, 0)}}
    check_graph(**fine)
    with pytest.raises(InputError, match=message):
        check_graph(**{**fine, **changes})


def again(step):
    """Records nothing: a replay runs the step."""
    result = torch.zeros(())

    def replay():
        result.copy_(step())

    return replay, result


def trained(monkeypatch, chosen, epochs=2, ckpt_path=None, callbacks=(), sizes=None, **options):
    monkeypatch.setattr(module, "check_graph", lambda *_: None)
    monkeypatch.setattr(module, "StepGraph", lambda *arguments, **named: StepGraph(*arguments, record=again, **named))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)  # inductor takes half a minute, and changes the last digits
    torch.manual_seed(0)
    options = {"pooling": "mean", "drop_path": 0.2, "attn_drop": 0.1, "schedule": ScheduleConfig("linear", warmup_epochs=1), **options}
    lit = LitClassifier("cct_2_3x2_32", image_size=(16, 16), in_chans=1, mean=[0.3], std=[0.4], engine=chosen, **options)
    augment = AugmentConfig(shift=1, mixup=0.5, mix_off_epoch=1)
    data = ImageDataModule("digits", image_size=16, image_size_schedule=sizes, batch_size=20, per_class=10, augment=augment, seed=0)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, max_epochs=epochs,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(lit, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return lit, trainer


def test_a_recorded_step_is_let_go_with_the_run_and_takes_the_rates_of_the_search(monkeypatch):
    eager, _ = trained(monkeypatch, "eager", callbacks=[RateRamp()])
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module._graph is not None:
                recorded = pl_module._graph.optimizer.param_groups[0]["lr"]
                rates.append((recorded, float(recorded)))

    graph, _ = trained(monkeypatch, "graph", callbacks=[ramp := RateRamp(), Rates()])
    assert graph._graph is None
    assert len({id(tensor) for tensor, _ in rates}) == 1  # what the graph reads
    assert [rate for _, rate in rates] == pytest.approx(ramp.rates[1:10])
    torch.testing.assert_close(graph.model.state_dict(), eager.model.state_dict(), atol=2e-5, rtol=1e-4)


def test_the_rates_of_a_recorded_step_are_float32_whatever_the_default_is():
    weight = torch.ones(3, requires_grad=True)
    torch.set_default_dtype(torch.bfloat16)  # as precision bf16-true does around a step
    try:
        optimizer, ones = torch.optim.AdamW([weight], 1e-3, fused=True), torch.ones(2, 3)
        step = StepGraph(lambda x, y: (x * weight - y).square().mean(), optimizer, ones, ones, None, again)
    finally:
        torch.set_default_dtype(torch.float32)
    assert step.optimizer.param_groups[0]["lr"].dtype == torch.float32
    assert all(state["step"].dtype == torch.float32 for state in step.optimizer.state.values())


@pytest.mark.parametrize("optim", [OptimConfig(lr=1e-3, clip_norm=0.5), OptimConfig("muon", lr=1e-3, betas=(0.9, 0.99))])
def test_a_recorded_step_is_the_step(monkeypatch, optim):
    eager, trainer = trained(monkeypatch, "eager", optim=optim)
    graph, other = trained(monkeypatch, "graph", optim=optim)
    assert other.global_step == trainer.global_step == 10
    if optim.name == "adamw":  # Muon rounds its products to bfloat16, so the weights differ where the loss does not
        # learning rates are float32 on the device, Python's doubles on the host
        torch.testing.assert_close(graph.model.state_dict(), eager.model.state_dict(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(other.callback_metrics["train/loss_epoch"], trainer.callback_metrics["train/loss_epoch"], atol=2e-3, rtol=0)


def test_a_step_is_recorded_anew_for_every_size_of_the_images(monkeypatch):
    recorded = []

    class Sizes(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if pl_module._graph is not None and (not recorded or recorded[-1][0] is not pl_module._graph):
                recorded.append((pl_module._graph, tuple(pl_module._graph.images.shape[2:])))

    sizes = [(8, 0.3), (12, 0.6)]
    eager, _ = trained(monkeypatch, "eager", sizes=sizes)
    graph, trainer = trained(monkeypatch, "graph", sizes=sizes, callbacks=[Sizes()])
    assert [size for _, size in recorded] == [(8, 8), (12, 12), (16, 16)]
    assert trainer.global_step == 10
    torch.testing.assert_close(graph.model.state_dict(), eager.model.state_dict(), atol=2e-5, rtol=1e-4)


def test_a_checkpoint_of_a_recorded_run_is_one_of_every_run(monkeypatch, tmp_path):
    class Save(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    whole, _ = trained(monkeypatch, "graph", callbacks=[Save()])
    checkpoint = torch.load(tmp_path / "0.ckpt", weights_only=True)
    assert all(isinstance(rate, float) for rate in checkpoint["lr_schedulers"][0]["_last_lr"])
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        assert isinstance(group["lr"], float)
        assert group["capturable"] is False
    resumed, trainer = trained(monkeypatch, "eager", ckpt_path=tmp_path / "0.ckpt")
    assert trainer.global_step == 10
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=2e-5, rtol=1e-4)


def test_a_batch_of_another_shape_is_refused():
    weight = torch.ones(3, requires_grad=True)
    step = StepGraph(
        lambda x, y: (x * weight - y).square().mean(), torch.optim.AdamW([weight], fused=True), torch.ones(2, 3), torch.ones(2, 3), None, again
    )
    assert torch.equal(weight, torch.ones(3))  # what the first runs changed is put back
    step(torch.ones(2, 3), torch.zeros(2, 3))
    assert not torch.equal(weight, torch.ones(3))
    with pytest.raises(InputError, match=r"recorded batches of \(2, 3\) and got \(1, 3\)"):
        step(torch.ones(1, 3), torch.ones(1, 3))


def test_a_recorded_step_is_the_same_whatever_batch_it_was_made_of():
    # A resumed run begins with another batch, which MixUp may lay out otherwise; kernels are chosen by that, and round differently.
    net, targets = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 4), torch.nn.Flatten()), torch.eye(2)
    for images in (torch.rand(2, 1, 4, 4), torch.rand(2, 4, 4, 1).permute(0, 3, 1, 2)):
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        step = StepGraph(lambda x, y: torch.nn.functional.cross_entropy(net(x), y), optimizer, images, targets, None, again)
        assert step.images.stride() == (16, 1, 4, 1)


def test_a_recorded_step_puts_the_statistics_of_batch_norms_back():
    net, images, targets = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4)), torch.rand(3, 1, 2, 2), torch.eye(4)[:3]
    optimizer, before = torch.optim.AdamW(net.parameters(), fused=True), {name: buffer.clone() for name, buffer in net.named_buffers()}
    step = StepGraph(lambda x, y: torch.nn.functional.cross_entropy(net(x), y), optimizer, images, targets, None, again, list(net.buffers()))
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    step(images, targets)
    assert net[1].num_batches_tracked == 1


def test_a_step_inside_autocast_casts_the_weights_that_it_changed():
    net, images, targets = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.eye(2).repeat(4, 1)
    with torch.autocast("cpu", torch.bfloat16):  # one that keeps what it casts, around all steps
        optimizer = torch.optim.AdamW(net.parameters(), 0.1, fused=True)
        step = StepGraph(lambda x, y: torch.nn.functional.cross_entropy(net(x), y), optimizer, images, targets, None, again)
        losses = [step(images, targets).item() for _ in range(4)]
    assert len(set(losses)) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_does_what_the_step_does():
    def run(record):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).cuda()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2, fused=True)
        batches = [(torch.randn(32, 8).cuda(), torch.randn(32, 4).softmax(1).cuda()) for _ in range(5)]
        step = StepGraph(lambda x, y: torch.nn.functional.cross_entropy(net(x), y), optimizer, *batches[0], 1.0, record)
        return [step(*batch).item() for batch in batches]

    def again_on_gpu(step):
        result = torch.zeros((), device="cuda")
        return lambda: result.copy_(step()), result

    assert run(engine.record_cuda_graph) == pytest.approx(run(again_on_gpu), rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_recorded_step_on_a_gpu_mixes_no_devices_and_waits_for_nothing(gpu, monkeypatch, name):
    net = create_model("cct_2_3x2_32", image_size=16, drop_path=0.1, attn_drop=0.1).train()
    gpu.takes(net)
    optimizer = create_optimizer(net.requires_grad_(True), OptimConfig(name, lr=1e-3))
    net.requires_grad_(False)
    scheduler = create_scheduler(optimizer, ScheduleConfig(warmup_epochs=1), 1e-3, 4, 3)

    def backward(loss):
        assert (loss.device, loss.dtype) == (gpu.device, torch.float32)
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)

    def loss(images, targets):
        with torch.autocast("cuda", torch.bfloat16):
            logits = net(images)
            assert logits.dtype == torch.bfloat16
            return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)

    class Graph:
        def replay(self):
            step._step()

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: nullcontext())
    images, targets = torch.empty(4, 3, 16, 16, device=gpu.device), torch.empty(4, 10, device=gpu.device)
    with gpu.waiting():
        step = StepGraph(loss, optimizer, images, targets, 1.0)
    for _ in range(2):
        assert step(images, targets).device == gpu.device
        scheduler.step()
    assert {"_fused_adamw_", "_foreach_norm", "native_dropout", "convolution"} < gpu.seen
    assert all(group["lr"].device == gpu.device for group in optimizer.param_groups)
    assert all(state.device == gpu.device for states in optimizer.state.values() for state in states.values())
    checkpoint = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()]}
    with gpu.waiting():
        engine.make_plain(checkpoint)
    with pytest.raises(MixedDevicesError):
        step._step.__func__(SimpleNamespace(**{**vars(step), "targets": torch.zeros(4, 10)}))
