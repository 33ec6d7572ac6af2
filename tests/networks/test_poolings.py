import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cct_lightning import POOLINGS, Tokens
from cct_lightning.networks.poolings import ClassTokenPooling, MeanPooling, SeqPool


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


def test_the_class_token_is_the_first_prefix_token():
    batch = tokens(prefix=4)
    assert torch.equal(ClassTokenPooling(16, 1)(batch), batch.prefix[:, 0])


@pytest.mark.parametrize("name", ["seqpool", "mean"])
def test_linear_poolings_are_their_weights_times_the_tokens(name):
    pool, batch = make(name), tokens()
    read = torch.einsum("bn,bnd->bd", pool.weights(batch), torch.cat(batch, dim=1))
    torch.testing.assert_close(pool(batch), read)


def test_class_attention_equals_timms():
    pool, batch = make("class_attention"), tokens()
    from timm.models.cait import ClassAttn

    attention = pool.blocks[0].attn
    timms = ClassAttn(16, 2)
    timms.load_state_dict(attention.state_dict())
    x = torch.cat(batch, dim=1)
    torch.testing.assert_close(attention(x), timms(x))


def test_map_equals_timms():
    pool, batch = make("map"), tokens()
    torch.testing.assert_close(pool(batch), pool.pool(batch.patches))


@pytest.mark.parametrize("name", POOLINGS)
def test_every_parameter_gets_a_gradient(name):
    pool, batch = make(name), tokens()
    batch = Tokens(*(t.requires_grad_() for t in batch))
    pool(batch).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pool.parameters())
