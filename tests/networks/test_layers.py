import pytest
import timm.layers
import torch
from torch import nn

from cct_lightning.networks.attention import SelfAttention
from cct_lightning.networks.layers import DropPath, Mlp

# Ours, timm's, and the shape of an input.
PAIRS = {
    "mlp": (lambda: Mlp(16, 40), lambda: timm.layers.Mlp(16, 40), (3, 5, 16)),
    "mlp with dropout": (lambda: Mlp(16, 40, drop=0.3), lambda: timm.layers.Mlp(16, 40, drop=0.3), (3, 5, 16)),
    "drop path": (lambda: DropPath(0.4), lambda: timm.layers.DropPath(0.4), (64, 3, 4)),
    "drop path of images": (lambda: DropPath(0.1), lambda: timm.layers.DropPath(0.1), (64, 3, 4, 4)),
    "drop path that drops nothing": (lambda: DropPath(0.0), lambda: timm.layers.DropPath(0.0), (8, 3, 4)),
    "drop path that drops all": (lambda: DropPath(1.0), lambda: timm.layers.DropPath(1.0), (8, 3, 4)),
    "attention": (lambda: SelfAttention(16, 4), lambda: timm.layers.Attention(16, 4), (3, 7, 16)),
    "attention with dropout": (
        lambda: SelfAttention(16, 4, attn_drop=0.2, proj_drop=0.3),
        lambda: timm.layers.Attention(16, 4, attn_drop=0.2, proj_drop=0.3),
        (3, 7, 16),
    ),
}


def seeded(make):
    torch.manual_seed(0)
    return make()


def step(layer, x, dtype):
    """Returns what comes out, all gradients, and what the generator draws next."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = layer(x)
    drawn = torch.rand(4)
    (out.float() * torch.arange(out.numel()).view_as(out)).sum().backward()
    return [out, x.grad, *(parameter.grad for parameter in layer.parameters()), drawn]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # autocast to it
@pytest.mark.parametrize("name", PAIRS)
def test_layers_are_timms_to_the_bit_forward_and_backward(name, dtype, training, monkeypatch):
    # In bfloat16 on a CPU our attention takes a road of its own, which is no copy of timm's: here both take torch's.
    monkeypatch.setattr("cct_lightning.networks.attention.ROADS", (("any", None, None, "sdpa"),))
    ours, theirs, shape = PAIRS[name]
    ours, theirs = seeded(ours).train(training), seeded(theirs).train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for a, b in zip(step(ours, x, dtype), step(theirs, x, dtype), strict=True):
        assert torch.equal(a, b)


def test_drop_path_keeps_or_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(40_000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.mean().item() == pytest.approx(1, abs=0.01)  # more than 3 deviations of 40,000 draws
    assert repr(DropPath(0.25)) == "DropPath(drop_prob=0.250)"


def test_an_mlp_is_two_linear_layers_and_exact_gelu():
    torch.manual_seed(0)
    mlp, x = Mlp(4, 8), torch.randn(2, 3, 4)
    by_hand = nn.functional.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), by_hand)
