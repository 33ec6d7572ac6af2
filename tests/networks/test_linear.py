import pytest
import torch
from torch import nn

from cct_lightning.networks import linear
from cct_lightning.networks.encoder import Block
from cct_lightning.networks.linear import Linear, LinearRows


@pytest.mark.parametrize("shapes", [((2, 3, 4), (6, 4), (6,)), ((2, 3, 6), (4, 6), (4,)), ((5, 3), (2, 3))])
def test_gradients_are_exact(shapes):
    source = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda x, weight, bias=None: LinearRows.apply(x, weight, bias, torch.float64), tensors)
    out = LinearRows.apply(*tensors, *[None] * (3 - len(tensors)), torch.float64)
    torch.testing.assert_close(out, nn.functional.linear(*tensors))


def gradients(block, x, half):
    """Returns the output and all gradients of one backward pass."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = block(x)
    block.zero_grad()
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_under_autocast_is_as_near_to_float32_as_with_torchs_linear(fused, monkeypatch):
    torch.manual_seed(0)
    block, x = Block(64, 2, 2.0), torch.randn(16, 33, 64)
    exact = gradients(block, x, False)

    def errors(smallest):
        monkeypatch.setattr(linear, "SMALLEST", smallest)
        return [(value - other).norm().item() / other.norm().item() for value, other in zip(gradients(block, x, True), exact, strict=True)]

    plain = errors(2**40)
    monkeypatch.setattr(linear, "FUSED_BIAS", fused and linear.FUSED_BIAS)
    for ours, theirs in zip(errors(1), plain, strict=True):
        assert ours <= 1.02 * theirs < 0.02  # the order of sums differs


def test_only_large_inputs_under_bf16_autocast_leave_torchs_road(monkeypatch):
    called, layer = [], Linear(4, 3)
    monkeypatch.setattr(LinearRows, "apply", lambda x, *others: called.append(tuple(x.shape)) or x.new_zeros(3))
    monkeypatch.setattr(linear, "SMALLEST", 8)
    layer(torch.ones(2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(1, 4))
        layer(torch.ones(5, 4))
    with torch.autocast("cpu", torch.float16):
        layer(torch.ones(6, 4))
    assert called == [(5, 4)]


def test_a_frozen_layer_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(linear, "SMALLEST", 1)
    layer, x = Linear(4, 3).requires_grad_(False), torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is layer.bias.grad is None
