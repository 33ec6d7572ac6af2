import random

import numpy as np
import pytest
import torch
from torch import nn

from cct_lightning import POOLINGS, create_model
from cct_lightning.networks.initial_values import _truncated_normal, initialise
from cct_lightning.randomness import bits, generator, key, reseed, uniform


def test_key_is_the_same_on_every_machine():
    assert key(0, "order", 3) == 8244215730568551301
    assert len({key(seed, "order", epoch) for seed in range(20) for epoch in range(20)}) == 400
    assert key(1, "a") != key("1", "a")


def test_a_stream_depends_on_its_name_alone():
    torch.rand(5)
    first = torch.rand(3, generator=generator(0, "x", 1))
    assert torch.equal(first, torch.rand(3, generator=generator(0, "x", 1)))
    assert not torch.equal(first, torch.rand(3, generator=generator(0, "x", 2)))


def test_reseed_sets_torch_numpy_and_python():
    def draws():
        reseed(0, "step", 1)
        return torch.rand(1).item(), np.random.rand(), random.random()

    assert draws() == draws()


def test_networks_that_differ_in_the_pooling_share_every_other_tensor():
    torch.manual_seed(5)
    states = {name: create_model("cct_2_3x2_32", pooling=name).state_dict() for name in POOLINGS}
    shared = {name: tensor for name, tensor in states["seqpool"].items() if not name.startswith("pooling.")}
    for state in states.values():
        for name, tensor in shared.items():
            assert torch.equal(state[name], tensor), name


def test_the_initial_value_follows_the_seed():
    torch.manual_seed(0)
    first = create_model("cct_2_3x2_32").state_dict()
    torch.manual_seed(1)
    other = create_model("cct_2_3x2_32").state_dict()
    assert not torch.equal(first["encoder.pos_embed"], other["encoder.pos_embed"])


def test_initial_values_are_the_references():
    torch.manual_seed(0)
    encoder = create_model("cct_7_3x1_32").encoder
    assert encoder.pos_embed.std().item() == pytest.approx(0.2, rel=0.02)
    assert encoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    weight = encoder.tokenizer.convs[0].weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.05)


def test_a_truncated_normal_is_that_of_torch_2_15_whatever_torch_is_there():
    drawn = torch.empty(12)
    _truncated_normal(drawn, torch.Generator().manual_seed(3), 1.5)  # the sixth was beyond 2
    of_torch = [1.204914, 0.26225, 0.133467, -0.920577, 0.069274, 1.223516, 0.506243, 1.516674, -1.016943, 1.466148, 0.783075, 1.856875]
    assert drawn.tolist() == pytest.approx(of_torch, abs=1e-6)


def test_timm_networks_are_keyed_too():
    torch.manual_seed(3)
    first = create_model("timm/vit_tiny_patch16_224", image_size=32, pooling="mean").encoder.state_dict()
    torch.rand(7)
    second = create_model("timm/vit_tiny_patch16_224", image_size=32, pooling="seqpool").encoder.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_parameter_without_a_rule_is_refused():
    layer = nn.Module()
    layer.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match=r"head\.scale"):
        initialise(layer, "head")


def test_a_draw_depends_neither_on_the_batch_nor_on_its_order():
    indices = torch.randperm(1000, generator=generator("order"))
    whole = uniform(key(0, "x"), 3, indices, 5)
    assert torch.equal(uniform(key(0, "x"), 3, indices[100:130].flip(0), 5), whole[100:130].flip(0))
    assert torch.equal(uniform(key(0, "x"), 3, indices, 2), whole[:, :2])


def test_draws_are_uniform():
    draws = uniform(key(0, "x"), 0, torch.arange(20_000), 10)
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() <= draws.max() < 1
    assert torch.equal(draws * 2**24, (draws * 2**24).round())  # exact
    # Means and variances of 200,000 draws, to 4 standard deviations.
    assert draws.double().mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 200_000) ** 0.5)
    assert draws.double().var().item() == pytest.approx(1 / 12, abs=4 * (1 / 180 / 200_000) ** 0.5)


@pytest.mark.parametrize("shift", range(0, 64, 8))
def test_every_byte_takes_all_values_alike(shift):
    words = bits(key(0, "x"), 1, torch.arange(20_000), 4)
    counts = ((words >> shift) & 255).flatten().bincount(minlength=256).double()
    chi_square = ((counts - 312.5) ** 2 / 312.5).sum().item()
    assert 255 - 4 * 22.6 < chi_square < 255 + 4 * 22.6  # of 255 degrees of freedom: 4 standard deviations


def test_neighbours_are_not_correlated():
    stream, indices = key(0, "x"), torch.arange(50_000)
    first = uniform(stream, 0, indices, 2)
    others = {
        "index": uniform(stream, 0, indices + 1, 1)[:, 0],
        "epoch": uniform(stream, 1, indices, 1)[:, 0],
        "column": first[:, 1],
        "stream": uniform(key(1, "x"), 0, indices, 1)[:, 0],
        "key": uniform(stream + 1, 0, indices, 1)[:, 0],
    }
    for name, other in others.items():
        assert abs(torch.corrcoef(torch.stack([first[:, 0], other]))[0, 1]) < 4 / 50_000**0.5, name


def test_half_of_the_bits_change_with_the_index():
    words = bits(key(0, "x"), 0, torch.arange(20_000), 1)[:, 0]
    changed = words[1:] ^ words[:-1]
    for bit in range(64):
        assert ((changed >> bit) & 1).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 20_000**0.5)


def reference(stream, epoch, index, column):
    """splitmix64 in whole numbers without end."""

    def finalise(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    return finalise((finalise((index * golden + key(stream, epoch)) % 2**64) + (column + 1) * golden) % 2**64)


def test_integers_wrap_around_as_splitmix64_wants():
    stream, indices = key(5, "flip"), torch.tensor([0, 1, 49_999, 2**40])
    words = bits(stream, 7, indices, 3)
    assert [[word % 2**64 for word in row] for row in words.tolist()] == [[reference(stream, 7, i, c) for c in range(3)] for i in indices.tolist()]


def test_draws_are_the_same_in_every_version():
    draws = uniform(key(0, "flip"), 1, torch.tensor([0, 1, 123456]), 2)
    assert draws.tolist() == [
        [0.22670817375183105, 0.23760277032852173],
        [0.18334728479385376, 0.6648791432380676],
        [0.8943216800689697, 0.7235767245292664],
    ]
