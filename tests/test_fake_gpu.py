"""What stands in for a GPU refuses what a GPU does."""

import pytest
import torch
from fake_gpu import MixedDevicesError, WaitsError


def test_what_waits_is_refused_unless_it_may(gpu):
    there, here = torch.empty(3, device="cuda:0"), torch.ones(3)
    for wait in (
        lambda: there.sum().item(), there.tolist, there.cpu, lambda: here.to("cuda:0"), lambda: torch.tensor(1.0, device="cuda:0"),
        lambda: there[there > 0], lambda: there.copy_(here), lambda: here.copy_(there), there.nonzero, lambda: torch.equal(there, there),
    ):  # fmt: skip
        with pytest.raises(WaitsError):
            wait()
    assert there.copy_(here, non_blocking=True).device == here.to("cuda:0", non_blocking=True).device == gpu.device
    with gpu.waiting():
        assert (there.sum().item(), here.to("cuda:0").device) == (1, gpu.device)
    assert here.sum().item() == 3  # the host's are what they were


def test_tensors_of_both_are_not_mixed(gpu):
    there, here = torch.empty(3, device="cuda:0"), torch.ones(3)
    for mix in (lambda: there + here, lambda: torch._foreach_add_([there], [here]), lambda: torch.cat([there, here]), lambda: there.index_select(
        0, torch.arange(2)), lambda: torch._foreach_mul_([there], torch.ones(()))):  # fmt: skip
        with pytest.raises(MixedDevicesError):
            mix()
    assert (there + torch.ones(())).device == there[torch.arange(2)].device == gpu.device


@pytest.mark.parametrize(("wrong", "error"), [("step", MixedDevicesError), ("lr", TypeError), ("exp_avg", MixedDevicesError)])
def test_a_fused_optimizer_is_given_what_its_kernel_reads(gpu, wrong, error):
    weight = torch.empty(3, device="cuda:0")
    weight.grad = torch.empty_like(weight)
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.param_groups[0].update(lr=torch.zeros((), device="cuda:0"), capturable=True)
    optimizer.step()
    if wrong == "lr":
        optimizer.param_groups[0]["lr"] = torch.zeros((), device="cuda:0", dtype=torch.bfloat16)
    else:
        optimizer.state[weight][wrong] = torch.zeros(optimizer.state[weight][wrong].shape)
    with pytest.raises(error):
        optimizer.step()
