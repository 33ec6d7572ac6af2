import random

import numpy as np
import pytest
import torch
from torch import nn

from cct_lightning import POOLINGS, create_model
from cct_lightning.randomness import generator, initialise, key, reseed


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
