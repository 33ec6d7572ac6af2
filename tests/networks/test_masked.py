"""What is masked, that none of it is seen, and what is said of it."""

import pytest
import torch
from torch import nn
from vit_pytorch import ViT
from vit_pytorch.mae import MAE
from vit_pytorch.simmim import SimMIM

from cct_lightning import InputError, create_model
from cct_lightning.networks.masked import MaskedAutoencoder
from cct_lightning.networks.masks import draw_order, put, take, to_blocks, to_images
from cct_lightning.randomness import key

# One and two convolutions, whose fields overlap; patches; with a class token, without, and one that is only read
ARCHS = {
    "cct_2_3x2_32": {}, "cct_7_3x1_32": {"embed_dim": 32, "depth": 2, "num_heads": 2}, "vit_2_4_32": {}, "cvt_2_4_32": {},
    "vit_4_4_32": {"pooling": "masked_class_token"},
}  # fmt: skip
TARGETS = ("mae", "simmim", "mpp")
COLOURS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def network(arch="cct_2_3x2_32", target="mae", image_size=(16, 24), **options):
    torch.manual_seed(0)
    encoder = create_model(arch, num_classes=0, image_size=image_size, **ARCHS[arch]).encoder
    return MaskedAutoencoder(encoder, target, decoder_dim=16, **COLOURS, **options).eval()


def inputs(model, number=3, seed=0, epoch=0):
    torch.manual_seed(seed)
    images = torch.randn(number, 3, *model.encoder.image_size)
    return images, draw_order(key(seed, "mask"), epoch, torch.arange(number), model.encoder.grid_size, model.mask_block)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_prediction_depends_on_a_masked_pixel(arch, target):
    model = network(arch, target)
    images, order = inputs(model)
    images.requires_grad_()
    model.predict(images, order).square().sum().backward()
    seen = to_blocks(images.grad, model.encoder.grid_size).abs().sum(dim=2)
    masked = model.num_masked(order.shape[1])
    hidden = masked if target != "mpp" else round(0.9 * masked)  # mpp leaves a tenth as it is
    assert not take(seen[:, :, None], order[:, :hidden]).any()
    assert take(seen[:, :, None], order[:, masked:]).all()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_parameter_is_trained(arch, target):
    """Several devices wait for the gradients of all."""
    model = network(arch, target)
    model(*inputs(model)).mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None] == []
    kept = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    unread = arch == "vit_4_4_32" and target != "mae"  # a token that only reads, and no decoder reads
    assert kept == ({"encoder.cls_token", "encoder.cls_pos_embed"} if unread else set())


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_asks_for_masked_patches_alone(target):
    model = network("vit_2_4_32", target)
    images, order = inputs(model)
    predicted = model.predict(images, order)
    assert predicted.shape == (3, model.num_masked(24), 4**3 - 16 if target != "mpp" else 512)
    noise = to_blocks(torch.randn_like(images), (4, 6))
    changed = to_images(put(to_blocks(images, (4, 6)), order[:, model.num_masked(24) :], noise[:, model.num_masked(24) :]), (4, 6), (16, 24))
    assert not torch.equal(changed, images)
    assert torch.equal(model.losses(predicted, changed, order), model.losses(predicted, images, order))
    losses = model(images, order)
    assert losses.shape == (3,)
    torch.testing.assert_close(losses[1:2], model(images[1:2], order[1:2]))  # of each image alone


@pytest.mark.parametrize(("target", "ratio", "block", "masked"), [
    ("mae", None, 1, 18), ("simmim", None, 1, 14), ("mpp", None, 1, 12), ("mae", 0.5, 1, 12), ("mae", 0.99, 1, 23), ("mae", 0.01, 1, 1),
    ("mae", None, 2, 16),
])  # fmt: skip
def test_the_share_that_is_masked(target, ratio, block, masked):
    assert network("vit_2_4_32", target, mask_ratio=ratio, mask_block=block).num_masked(24) == masked


def test_mae_predicts_blocks_less_their_mean_and_over_their_deviation():
    model = network("vit_2_4_32", "mae")
    images, order = inputs(model)
    predicted = model.predict(images, order)
    blocks = take(to_blocks(images, (4, 6)), order[:, :18])
    torch.testing.assert_close(model.losses(predicted, 3 * images + 1, order), model.losses(predicted, images, order), atol=1e-4, rtol=1e-4)
    normalised = (blocks - blocks.mean(dim=2, keepdim=True)) / blocks.std(dim=2, keepdim=True)
    torch.testing.assert_close(model.losses(normalised, images, order), torch.zeros(3), atol=1e-9, rtol=0)


def test_mpp_masks_swaps_and_keeps():
    model = network("vit_2_4_32", "mpp", image_size=(32, 40), mask_ratio=0.5)  # 80 patches: 40 are asked for, 32 masked, 4 others, 4 kept
    images, order = inputs(model)
    before, after = to_blocks(images, (8, 10)), to_blocks(model.mask(images, order), (8, 10))
    assert not take(after, order[:, :32]).any()
    assert torch.equal(take(after, order[:, 32:36]), take(before, order[:, 40:44]))
    assert torch.equal(take(after, order[:, 36:]), take(before, order[:, 36:]))
    # Few are left to be put in their place: they are taken again
    few = network("vit_2_4_32", "mpp", mask_ratio=0.95)
    images, order = inputs(few)
    assert torch.equal(take(to_blocks(few.mask(images, order), (4, 6)), order[:, 18:20]), take(to_blocks(images, (4, 6)), order[:, [23, 23]]))


@pytest.mark.parametrize("channels", [1, 3])
def test_mpp_tells_colours_in_three_bits(channels):
    torch.manual_seed(0)
    encoder = create_model("vit_2_4_32", num_classes=0, image_size=8, in_chans=channels).encoder
    mean, std = [0.5, 0.4, 0.3][:channels], [0.2, 0.25, 0.3][:channels]
    model = MaskedAutoencoder(encoder, "mpp", 0.5, mean=mean, std=std)
    assert model.decoder.head.out_features == 8**channels
    colours = torch.tensor([[0.0, 0.99, 0.5], [0.126, 0.874, 0.3], [1.0, 0.0, 0.124], [0.7, 0.6, 0.5]])[:, :channels]
    pixels = to_images(colours.repeat(1, 16)[None], (2, 2), (8, 8))
    images = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    bins = torch.tensor([[0, 7, 4], [1, 6, 2], [7, 0, 0], [5, 4, 4]])[:, :channels]
    classes = (bins * torch.tensor([1, 8, 64])[:channels]).sum(dim=1)
    certain = 50 * torch.nn.functional.one_hot(classes[:2], 8**channels).float()[None]
    order = torch.arange(4)[None]
    assert model.losses(certain, images, order) < 1e-6
    assert model.losses(certain.flip(1), images, order) > 10
    model.predict = lambda *_: certain
    filled = model.fill_in(images, order) * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    assert (filled - pixels).abs().max() < 1 / 16 + 1e-4  # half a bin


@pytest.mark.parametrize(("target", "normalize"), [("mae", True), ("mae", False), ("simmim", True)])
def test_what_is_filled_in_is_what_was_predicted(target, normalize):
    model = network("vit_2_4_32", target, normalize_target=normalize)
    images, order = inputs(model)
    blocks, masked = take(to_blocks(images, (4, 6)), order[:, : model.num_masked(24)]), model.num_masked(24)
    exact = (blocks - blocks.mean(dim=2, keepdim=True)) / blocks.std(dim=2, keepdim=True) if target == "mae" and normalize else blocks
    model.predict = lambda *_: exact
    torch.testing.assert_close(model.fill_in(images, order), images, atol=1e-4, rtol=0)
    model.predict = lambda *_: 0 * exact
    other = to_blocks(model.fill_in(images, order), (4, 6)) != to_blocks(images, (4, 6))
    assert take(other, order[:, :masked]).all()
    assert not take(other, order[:, masked:]).any()


def test_smaller_images_are_masked_in_the_same_blocks():
    model = network(image_size=(32, 32))
    model.encoder.take_sizes([(16, 24)])
    model.take_sizes([(16, 24)])
    images = torch.randn(3, 3, 16, 24)
    assert model.grid(images) == (4, 6)
    order = draw_order(7, 0, torch.arange(3), (4, 6))
    assert model.predict(images, order).shape == (3, 18, 48)
    assert "positions" not in "".join(model.state_dict())
    with pytest.raises(InputError, match=r"image_size=30x30 makes a grid of 8x8 patches, .* take 28 or 32"):
        model.take_sizes([(30, 30)])
    with pytest.raises(InputError, match="images of 8x8 pixels given to a network built for 32x32, 16x24"):
        model.grid(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("options", "message"), [
    ({"image_size": (30, 30)}, r"image_size=30x30 makes a grid of 8x8 patches, which does not divide it, .*: take 28 or 32"),
    ({"mask_block": 3}, "mask_block=3 does not divide it: take 1"),
    ({"image_size": (4, 4)}, "image_size=4x4 makes a grid of 1x1 patches, and there must be two blocks of 1x1 or more"),
    ({"mask_ratio": 1.0}, r"mask_ratio=1\.0 is out of range"),
    ({"decoder_heads": 3}, "decoder_heads=3 does not divide decoder_dim=16"),
])  # fmt: skip
def test_what_can_not_be_masked_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        network(**options)


def test_colours_need_mean_and_std_and_few_channels():
    encoder = create_model("vit_2_4_32", num_classes=0, image_size=8, in_chans=5).encoder
    with pytest.raises(InputError, match="8\\^C classes, and 5 channels are too many for it"):
        MaskedAutoencoder(encoder, "mpp", mean=[0.5] * 5, std=[0.5] * 5)
    with pytest.raises(InputError, match="it needs mean and std of the images"):
        MaskedAutoencoder(network().encoder, "mpp")


@pytest.mark.parametrize(("arch", "size", "target"), [
    ("vit_tiny_patch16_224", 32, "simmim"), ("vit_tiny_patch16_224", 32, "mpp"), ("resnet18", 64, "simmim"),
])  # fmt: skip
def test_an_encoder_whose_embeddings_can_not_be_replaced_sees_masked_pixels(arch, size, target):
    torch.manual_seed(0)
    encoder = create_model(f"timm/{arch}", num_classes=0, pooling="mean", image_size=size, attn_drop=0.0, drop_path=0.0).encoder
    model = MaskedAutoencoder(encoder, target, **COLOURS)
    kind = encoder.title()
    images, order = inputs(model)
    images.requires_grad_()
    model(images, order).mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    images.grad = None
    model.predict(images, order).square().sum().backward()
    assert not take(to_blocks(images.grad, (2, 2)), order[:, :1]).any()
    with pytest.raises(InputError, match=f"target=mae has the encoder see some patches alone, which {kind} does not offer: take simmim"):
        MaskedAutoencoder(encoder)
    encoder.is_grid_known = False
    with pytest.raises(InputError, match=f"{kind} does not tell the grid of its patches"):
        MaskedAutoencoder(encoder, target, **COLOURS)


def vit_pytorchs(encoder):
    """A ViT of vit-pytorch with an encoder's weights, less the two norms of its patches, which ours has not."""
    depth, D = len(encoder.blocks), encoder.embed_dim
    theirs = ViT(image_size=(16, 24), patch_size=4, num_classes=0, dim=D, depth=depth, heads=2, dim_head=D // 2, mlp_dim=D, pool="mean")
    linear = theirs.to_patch_embedding[2]
    linear.weight.data, linear.bias.data = encoder.tokenizer.proj.weight.permute(0, 2, 3, 1).reshape(D, -1), encoder.tokenizer.proj.bias
    theirs.to_patch_embedding[1] = theirs.to_patch_embedding[3] = nn.Identity()
    theirs.pos_embedding = nn.Parameter(encoder.pos_embed.detach())
    copy_layers(encoder, theirs.transformer)
    return theirs


def copy_layers(ours, theirs):
    theirs.norm.load_state_dict(ours.norm.state_dict())
    for block, (attention, mlp) in zip(ours.blocks, theirs.layers, strict=True):
        attention.norm.load_state_dict(block.norm1.state_dict())
        attention.to_qkv.load_state_dict(block.attn.qkv.state_dict())
        attention.to_out[0].load_state_dict(block.attn.proj.state_dict())
        for number, layer in ((0, block.norm2), (1, block.mlp.fc1), (4, block.mlp.fc2)):
            mlp.net[number].load_state_dict(layer.state_dict())


@pytest.fixture
def ours():
    torch.manual_seed(0)
    encoder = create_model("vit_2_4_32", num_classes=0, image_size=(16, 24), pooling="mean", residual_norm=False).encoder

    def make(target):
        model = MaskedAutoencoder(encoder, target, decoder_dim=16, decoder_heads=2, normalize_target=False).eval()
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # none of them at an initial 0 or 1
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model

    return make


def test_mae_is_vit_pytorchs(ours, monkeypatch):
    model = ours("mae")
    images, order = inputs(model)
    theirs = MAE(encoder=vit_pytorchs(model.encoder), decoder_dim=16, decoder_depth=1, decoder_heads=2, decoder_dim_head=8)
    theirs.enc_to_dec.load_state_dict(model.decoder.embed.state_dict())
    theirs.mask_token.data = model.decoder.mask_token.data.flatten()
    theirs.decoder_pos_emb.weight.data = model.decoder.get_buffer("positions_4x6")[0]
    theirs.to_pixels.load_state_dict(model.decoder.head.state_dict())
    copy_layers(model.decoder, theirs.decoder)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: order.argsort(dim=1).float())  # which they sort
    loss, expected = model(images, order).mean(), theirs(images)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward(), expected.backward()
    torch.testing.assert_close(model.encoder.pos_embed.grad, theirs.encoder.pos_embedding.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(model.decoder.mask_token.grad.flatten(), theirs.mask_token.grad, atol=1e-6, rtol=1e-4)


def test_simmim_is_vit_pytorchs(ours, monkeypatch):
    model = ours("simmim")
    images, order = inputs(model)
    theirs = SimMIM(encoder=vit_pytorchs(model.encoder), masking_ratio=0.6)
    theirs.encoder.pos_embedding = nn.Parameter(torch.cat((torch.zeros(1, 1, 128), model.encoder.pos_embed.detach()), dim=1))  # a class token's first
    theirs.mask_token.data = model.decoder.mask_token.data.flatten()
    theirs.to_pixels.load_state_dict(model.decoder.head.state_dict())
    monkeypatch.setattr(torch, "rand", lambda *_, **__: -order.argsort(dim=1).float())  # whose largest they take
    # They divide the mean over patches by their number once more, which the paper does not.
    loss, expected = model(images, order).mean(), theirs(images) * model.num_masked(24)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward(), expected.backward()
    torch.testing.assert_close(model.encoder.pos_embed.grad, theirs.encoder.pos_embedding.grad[:, 1:], atol=1e-6, rtol=1e-4)
