import copy

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn

from cct_lightning import ImageClassifier, InputError, TimmEncoder, ViTEncoder, create_model
from cct_lightning.networks.attention import SelfAttention
from cct_lightning.networks.attention_maps import (
    attention,
    attention_layers,
    check_grid,
    contributions,
    entropy,
    follow,
    inputs_of,
    look,
    mean_attention,
    position_similarity,
    top_share,
)
from cct_lightning.networks.poolings import POOLINGS, ClassTokenPooling, MeanPooling
from cct_lightning.networks.tokenizers import PatchTokenizer

CLASS_TOKENS = [name for name, kind in POOLINGS.items() if issubclass(kind, ClassTokenPooling)]  # that read it
MEANS = [name for name, kind in POOLINGS.items() if issubclass(kind, MeanPooling)]


def network(pooling, image_size=(16, 24), arch="vit_2_4_32", **options):
    """Builds a network with weights large enough that attention is far from even, in eval mode."""
    torch.manual_seed(0)
    model = create_model(arch, pooling=pooling, image_size=image_size, num_classes=5, **options)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def pictures(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read(layer, weights, x):
    """What a layer makes of its values with these attention weights."""
    B, T, _ = x.shape
    value = layer.qkv(x).reshape(B, T, 3, layer.num_heads, layer.head_dim)[:, :, 2].transpose(1, 2)
    return layer.proj((weights @ value).transpose(1, 2).reshape(B, T, -1))


@pytest.mark.parametrize("read_only", [0, 1, 3])
def test_attention_of_ours_times_values_is_what_the_layer_gives(read_only):
    torch.manual_seed(0)
    layer, x = SelfAttention(16, 4), 3 * torch.randn(2, 7, 16)
    weights = attention(layer, x, read_only)
    torch.testing.assert_close(read(layer, weights, x), layer(x, read_only))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 7))
    assert torch.equal(attention(layer, x, read_only, queries=1), weights[:, :, :1])
    assert (weights[:, :, read_only:, :read_only] == 0).all()


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"qk_norm": True, "norm_layer": nn.LayerNorm}, {"attn_head_dim": 8}])
def test_attention_of_timm_times_values_is_what_the_layer_gives(options):
    torch.manual_seed(0)
    layer, x = Attention(16, 4, **options), 3 * torch.randn(2, 7, 16)
    torch.testing.assert_close(read(layer, attention(layer, x), x), layer(x))


def test_a_row_of_attention_is_the_softmax_of_scaled_products():
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2), torch.randn(1, 5, 8)
    layer.qkv = nn.Linear(8, 24)  # with a bias
    query, key = (layer.qkv.weight[part] @ x[0].T + layer.qkv.bias[part, None] for part in (slice(4, 8), slice(12, 16)))  # of the second head
    scores = [float((query[:, 2] @ key[:, other]).detach()) / 2 for other in range(5)]
    torch.testing.assert_close(attention(layer, x)[0, 1, 2], torch.tensor(scores).softmax(dim=0))


@pytest.mark.parametrize("arch", ["vit_2_4_32", "cct_2_3x2_32"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_look_gives_the_logits_and_what_each_patch_counts(pooling, arch):
    model, images = network(pooling, arch=arch), pictures(3, 3, 16, 24)
    before = copy.deepcopy(model.state_dict())
    seen = look(model, images, rollout=True)
    P, (h, w) = model.encoder.num_prefix_tokens, model.encoder.grid_size
    with torch.no_grad():
        tokens = model.encoder(images)
        torch.testing.assert_close(seen.logits, model(images))
    assert seen.weights.shape == seen.rollout.shape == (3, h * w)
    assert seen.is_signed == (pooling in MEANS)
    assert (seen.heads is not None) == (pooling == "map")
    if not seen.is_signed:
        torch.testing.assert_close(seen.weights.sum(dim=1), torch.ones(3))
    if pooling not in (*CLASS_TOKENS, *MEANS):
        torch.testing.assert_close(seen.weights, model.pooling.weights(tokens)[:, P:])
    torch.testing.assert_close(seen.rollout.sum(dim=1), torch.ones(3))
    assert (seen.rollout >= 0).all()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_heads_of_map_have_the_pooling_s_weights_as_their_mean():
    model, images = network("map"), pictures(3, 3, 16, 24)
    seen = look(model, images)
    torch.testing.assert_close(seen.heads.sum(dim=2), torch.ones(3, 2))
    torch.testing.assert_close(seen.heads.mean(dim=1), seen.weights)
    assert (seen.heads[:, 0] - seen.heads[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize("pooling", CLASS_TOKENS)
def test_class_token_weights_are_its_row_of_the_last_layer_over_the_patches(pooling):
    model, images = network(pooling), pictures(3, 3, 16, 24)
    given = []
    hook = model.encoder.blocks[-1].attn.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    row = attention(model.encoder.blocks[-1].attn, given[0], int(pooling == "masked_class_token")).mean(dim=1)[:, 0, 1:]
    torch.testing.assert_close(look(model, images).weights, row / row.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("pooling", CLASS_TOKENS)
def test_a_class_token_that_attends_to_the_bright_patch_shows_it_at_its_place(pooling):
    encoder = ViTEncoder(PatchTokenizer(1, 8, 4), (12, 20), depth=1, num_heads=2, class_token=POOLINGS[pooling].class_token, position="none")
    model = ImageClassifier(encoder, POOLINGS[pooling](8, 2), 3).eval()
    with torch.no_grad():
        for parameter in [*encoder.tokenizer.parameters(), *encoder.blocks[0].attn.qkv.parameters()]:
            parameter.zero_()
        encoder.tokenizer.proj.weight[0] = 1.0  # the first channel is the brightness
        for head in (0, 4):  # every query asks for it, and a bright patch's key answers
            encoder.cls_token[..., 1] = 1.0
            encoder.blocks[0].attn.qkv.weight[head, 1] = 10.0
            encoder.blocks[0].attn.qkv.weight[8 + head, 0] = 10.0
    images = torch.zeros(2, 1, 12, 20)
    images[0, :, 4:8, 12:16] = 1.0  # row 1, column 3 of 3 x 5
    images[1, :, 8:12, 0:4] = 1.0  # row 2, column 0
    maps = look(model, images).weights.unflatten(1, encoder.grid_size)
    assert encoder.grid_size == (3, 5)
    assert maps[0, 1, 3] > 0.99
    assert maps[1, 2, 0] > 0.99


@pytest.mark.parametrize("hidden", [None, 7])
def test_contributions_of_mean_add_up(hidden):
    model, images = network("mean", head_hidden_dim=hidden), pictures(4, 3, 16, 24)
    weights, logits = look(model, images)[1::-1]
    with torch.no_grad():
        feature = model.pooling(model.encoder(images))
    if hidden is None:
        torch.testing.assert_close(weights.sum(dim=1), logits.max(dim=1).values - model.head.bias[logits.argmax(dim=1)])
    else:
        jacobians = [torch.autograd.functional.jacobian(model.head, one) for one in feature]
        jacobian = torch.stack([rows[k] for rows, k in zip(jacobians, logits.argmax(dim=1).tolist(), strict=True)])
        torch.testing.assert_close(weights.sum(dim=1), (jacobian * feature).sum(dim=1))


def test_a_contribution_is_the_loss_of_the_logit_without_the_patch():
    model, images = network("mean"), pictures(1, 3, 16, 24)
    tokens = model.encoder(images)
    without = tokens._replace(patches=tokens.patches.clone())
    without.patches[:, 5] = 0
    with torch.no_grad():
        logits, less = (model.head(model.pooling(given)) for given in (tokens, without))
        k = int(logits.argmax())
        torch.testing.assert_close(contributions(model, tokens)[0, 5], (logits - less)[0, k])


def test_roll_out_through_layers_that_attend_to_themselves_alone_changes_nothing():
    weights = torch.rand(2, 6).softmax(dim=1)
    torch.testing.assert_close(follow(weights, [torch.eye(6).expand(2, 6, 6)] * 3), weights)


@pytest.mark.parametrize("pooling", ["class_token", "masked_class_token", "seqpool"])
def test_roll_out_is_the_product_of_the_layers(pooling):
    model, images = network(pooling, depth=3), pictures(2, 3, 16, 24)
    layers, P = attention_layers(model.encoder), model.encoder.num_prefix_tokens
    with torch.no_grad(), inputs_of(layers) as inputs:
        tokens = model.encoder(images)
    product = torch.eye(P + 24)
    for layer in layers:
        mean = mean_attention(layer, inputs[layer], int(pooling == "masked_class_token"))
        product = 0.5 * (mean + torch.eye(P + 24)) @ product
    torch.testing.assert_close(product.sum(dim=-1), torch.ones(2, P + 24))
    row = (model.pooling.weights(tokens)[:, None] @ product)[:, 0, P:]  # of a class token its row
    torch.testing.assert_close(look(model, images, rollout=True).rollout, row / row.sum(dim=1, keepdim=True))


def test_hooks_are_gone_after_a_failure():
    model = network("class_token")
    with pytest.raises(InputError, match=r"\(1, 3, 8, 8\)"):
        look(model, torch.zeros(1, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_compiled_network_is_not_compiled_anew():
    model, images = network("class_token"), pictures(2, 3, 16, 24)
    model.compile(backend="eager")
    expected = model(images)
    look(model, images, rollout=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize(("pooling", "name"), [(pooling, name) for name in ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2") for pooling in
                                               POOLINGS if POOLINGS[pooling].class_token != "read_only"])  # fmt: skip
def test_timm_networks_are_looked_into(pooling, name):
    patch = 14 if "14" in name else 16
    model, images = network(pooling, (2 * patch, 3 * patch), f"timm/{name}"), pictures(2, 3, 2 * patch, 3 * patch)
    seen = look(model, images, rollout=True)
    assert seen.weights.shape == seen.rollout.shape == (2, 6)
    with torch.no_grad():
        torch.testing.assert_close(seen.logits, model(images))
    if not seen.is_signed:
        torch.testing.assert_close(seen.weights.sum(dim=1), torch.ones(2))
    assert seen.rollout.std(dim=1).min() > 0


@pytest.mark.parametrize(("name", "kind"), [("eva02_tiny_patch14_224", "EvaAttention"), ("vit_small_patch16_rope_ape_224", "AttentionRope")])
def test_attention_with_rotary_positions_is_not_shown(name, kind):
    size = 28 if "14" in name else 32
    model, images = network("seqpool", (size, size), f"timm/{name}"), pictures(2, 3, size, size)
    with pytest.raises(InputError, match=f"timm's Eva can't be shown: {kind} computes it in a way of its own"):
        look(model, images, rollout=True)
    torch.testing.assert_close(look(model, images).weights.sum(dim=1), torch.ones(2))


def test_an_encoder_that_tells_no_layers_is_not_shown():
    encoder = TimmEncoder(timm.create_model("mixer_s32_224", num_classes=0, global_pool=""))
    with pytest.raises(InputError, match="timm's MlpMixer can't be shown: MixerBlock computes it"):
        attention_layers(encoder)
    encoder.model.blocks = nn.Sequential()
    with pytest.raises(InputError, match="MlpMixer can't be shown: it does not tell its layers"):
        attention_layers(encoder)


def test_patches_without_a_grid_are_refused():
    with pytest.raises(InputError, match="timm's MlpMixer does not tell the grid of its patches"):
        check_grid(TimmEncoder(timm.create_model("mixer_s32_224", num_classes=0, global_pool="")))
    check_grid(network("seqpool", (32, 48), "timm/vit_tiny_patch16_224").encoder)
    check_grid(network("seqpool").encoder)


def test_entropy_and_top_share_know_even_and_pointed_weights():
    even, pointed = torch.full((1, 20), 0.05), torch.eye(20)[3:4]
    torch.testing.assert_close(entropy(torch.cat((even, pointed))), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(top_share(torch.cat((even, pointed))), torch.tensor([0.1, 1.0]))
    halves = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(entropy(halves), torch.tensor([0.5]))
    torch.testing.assert_close(top_share(halves), torch.tensor([0.5]))  # the one patch that is nearest to a tenth of four
    assert entropy(torch.ones(1, 1)) == 0


def cosine(table):
    table = table.detach() / table.detach().norm(dim=1, keepdim=True)
    return table @ table.T


def test_position_similarity_leaves_the_class_token_out():
    encoder = network("class_token").encoder
    similarity = position_similarity(encoder)
    torch.testing.assert_close(similarity, cosine(encoder.pos_embed[0]))
    torch.testing.assert_close(similarity.diagonal(), torch.ones(24))


@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, {"reg_tokens": 2}])
def test_position_similarity_of_timm_leaves_prefix_tokens_out(options):
    encoder = TimmEncoder.create("vit_tiny_patch16_224", img_size=(32, 48), **options)
    torch.testing.assert_close(position_similarity(encoder), cosine(encoder.model.pos_embed[0, -6:]))


def test_position_similarity_is_for_learned_grids():
    assert position_similarity(network("seqpool", position="sine").encoder) is None
    assert position_similarity(network("seqpool", position="none").encoder) is None
    assert position_similarity(network("seqpool", image_size=(4, 32)).encoder) is None
    assert position_similarity(TimmEncoder.create("beit_base_patch16_224", img_size=32)) is None
