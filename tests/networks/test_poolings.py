import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cct_lightning import POOLINGS, Tokens
from cct_lightning.errors import InputError
from cct_lightning.networks.poolings import ClassTokenPooling, MeanPooling, MultiQueryPooling, SeqPool


def tokens(prefix=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randn(2, prefix, 16, generator=generator), torch.randn(2, 9, 16, generator=generator))


def make(name):
    pool = POOLINGS[name](16, 2).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in pool.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return pool


READS_PATCHES = [name for name, pool in POOLINGS.items() if pool.class_token == "none"]


@pytest.mark.parametrize("name", POOLINGS)
def test_one_feature_per_image_and_weights_that_sum_to_one(name):
    pool, batch = make(name), tokens()
    assert pool(batch).shape == (2, 16)
    weights = pool.weights(batch)
    assert weights.shape == (2, 10)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", READS_PATCHES)
def test_pooling_ignores_patch_order(name):
    pool, batch = make(name), tokens()
    shuffled = batch._replace(patches=batch.patches[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(pool(batch), pool(shuffled))


@pytest.mark.parametrize("name", READS_PATCHES)
def test_pooling_of_patches_never_reads_prefix_tokens(name):
    pool, batch = make(name), tokens(prefix=5)
    assert torch.equal(pool(batch), pool(batch._replace(prefix=batch.prefix * 100)))
    assert torch.equal(pool(batch), pool(batch._replace(prefix=batch.prefix[:, :0])))
    assert (pool.weights(batch)[:, :5] == 0).all()


def test_seqpool_is_attention_of_one_query_and_one_head():
    pool, batch = make("seqpool"), tokens()
    query = pool.score.weight.expand(2, 1, 1, 16)
    patches = batch.patches[:, None]
    expected = F.scaled_dot_product_attention(query, patches, patches, scale=1.0)[:, 0, 0]
    torch.testing.assert_close(pool(batch), expected)


def test_seqpool_ignores_its_bias():
    pool, batch = make("seqpool"), tokens()
    before = pool(batch)
    nn.init.constant_(pool.score.bias, 9.0)
    torch.testing.assert_close(pool(batch), before)


def test_seqpool_with_equal_scores_is_the_mean():
    pool, batch = SeqPool(16, 1), tokens()
    nn.init.zeros_(pool.score.weight)
    torch.testing.assert_close(pool(batch), batch.patches.mean(dim=1))


def test_mean_is_the_mean_of_the_patches():
    batch = tokens(prefix=3)
    torch.testing.assert_close(MeanPooling(16, 1)(batch), batch.patches.mean(dim=1))


def test_queries_share_out_the_channels():
    pool, batch = make("multi_query"), tokens()
    assert pool.num_queries == 16  # of 32 as many as divide the width
    values = batch.patches @ pool.v.weight.T
    expected = []
    for number in range(16):  # each its own channel
        scores = (batch.patches @ pool.queries[0, number] / 16**0.5).softmax(dim=1)  # (2, 9)
        expected.append((scores * values[:, :, number]).sum(dim=1))
    torch.testing.assert_close(pool(batch), torch.stack(expected, dim=1))
    assert MultiQueryPooling(48, 3, num_queries=6).num_queries == 6
    with pytest.raises(InputError, match="num_queries=10 does not divide embed_dim=48, of which each reads an equal part: take 8"):
        MultiQueryPooling(48, 3, num_queries=10)


def test_one_query_that_maps_nothing_is_seqpool():
    pool, seqpool, batch = MultiQueryPooling(16, 1, num_queries=1), make("seqpool"), tokens()
    with torch.no_grad():
        pool.v.weight.copy_(torch.eye(16))
        pool.queries.copy_(seqpool.score.weight[None] * 16**0.5)
    torch.testing.assert_close(pool(batch), seqpool(batch))


def test_the_mean_beside_a_class_token_does_not_read_it():
    batch = tokens(prefix=1)
    pool = make("class_token_mean")
    assert pool.class_token == "full"
    torch.testing.assert_close(pool(batch), batch.patches.mean(dim=1))
    assert torch.equal(pool(batch), pool(batch._replace(prefix=batch.prefix + 9)))


def test_the_class_token_is_the_first_prefix_token():
    batch = tokens(prefix=4)
    assert torch.equal(ClassTokenPooling(16, 1)(batch), batch.prefix[:, 0])


@pytest.mark.parametrize("name", ["seqpool", "mean"])
def test_linear_poolings_are_their_weights_times_the_tokens(name):
    pool, batch = make(name), tokens()
    read = torch.einsum("bn,bnd->bd", pool.weights(batch), torch.cat(batch, dim=1))
    torch.testing.assert_close(pool(batch), read)


def timms_class_attention():
    from timm.models.cait import LayerScaleBlockClassAttn

    return LayerScaleBlockClassAttn(16, 2, init_values=0.1)


def timms_probe():
    from timm.layers import AttentionPoolLatent

    return AttentionPoolLatent(16, num_heads=2, norm_layer=nn.LayerNorm)


# Of timm's layers ours have every tensor, in the same order: an optimizer's state counts the parameters.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # autocast to it
@pytest.mark.parametrize("name", ["class_attention", "map"])
def test_poolings_with_layers_are_timms_to_the_bit(name, dtype, monkeypatch):
    monkeypatch.setattr("cct_lightning.networks.attention.ROADS", (("any", None, None, "sdpa"),))  # timm's, also in bfloat16 on a CPU
    pool, batch = make(name).train(), tokens()
    ours, theirs, inputs = {
        "class_attention": lambda: (pool.blocks[0], timms_class_attention(), [batch.patches, batch.prefix]),
        "map": lambda: (pool.pool, timms_probe(), [batch.patches]),
    }[name]()
    fresh = dict(POOLINGS[name](16, 2).named_parameters())
    for at, parameter in theirs.named_parameters():
        if at.startswith("gamma"):
            assert torch.equal(parameter, fresh[f"blocks.0.{at}"])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs.train()):
        given = [part.clone().requires_grad_() for part in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            read = layer(*given)
        read.float().square().sum().backward()
        found.append([read, *(part.grad for part in given), *(parameter.grad for parameter in layer.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_map_is_its_probe():
    pool, batch = make("map"), tokens()
    assert torch.equal(pool(batch), pool.pool(batch.patches))


@pytest.mark.parametrize("name", POOLINGS)
def test_every_parameter_gets_a_gradient(name):
    pool, batch = make(name), tokens()
    batch = Tokens(*(t.requires_grad_() for t in batch))
    pool(batch).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pool.parameters())
