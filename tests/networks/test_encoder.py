import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from cct_lightning import ConvTokenizer, InputError, PatchTokenizer, TimmEncoder, ViTEncoder, create_model
from cct_lightning.networks.encoder import sine_table
from cct_lightning.weights.loading import load_weights


def encoder(**options):
    defaults = {"image_size": (16, 24), "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    return ViTEncoder(PatchTokenizer(3, 16, 4), **{**defaults, **options}).eval()


def randomise(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("class_token", ["none", "full", "read_only"])
@pytest.mark.parametrize("position", ["learned", "sine", "none"])
def test_tokens_of_non_square_images(class_token, position):
    net = encoder(class_token=class_token, position=position)
    tokens = net(IMAGES)
    assert net.grid_size == (4, 6)
    assert tokens.patches.shape == (2, 24, 16)
    assert tokens.prefix.shape == (2, net.num_prefix_tokens, 16)


def test_read_only_class_token_leaves_the_patches_bit_equal():
    net = randomise(encoder(class_token="read_only", depth=3))
    before = net(IMAGES)
    with torch.no_grad():
        net.cls_token.mul_(-7).add_(3)
    after = net(IMAGES)
    assert torch.equal(before.patches, after.patches)
    assert not torch.allclose(before.prefix, after.prefix)


def test_full_class_token_changes_the_patches():
    net = randomise(encoder(class_token="full"))
    before = net(IMAGES).patches
    with torch.no_grad():
        net.cls_token[..., 0] += 3  # not all the same: the norm would take it away
    assert not torch.allclose(before, net(IMAGES).patches)


FORMS = [("none", "learned"), ("full", "learned"), ("read_only", "sine"), ("full", "none")]


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize(("class_token", "position"), FORMS)
def test_embed_and_then_encode_is_forward_to_the_bit(class_token, position, is_training):
    net = randomise(encoder(class_token=class_token, position=position, drop_path=0.3, attn_drop=0.2, proj_drop=0.1)).train(is_training)
    results = []
    for run in (net, lambda images: net.encode(net.embed(images))):
        torch.manual_seed(5)
        tokens = run(IMAGES)
        gradients = torch.autograd.grad(torch.cat(tokens, dim=1).square().sum(), list(net.parameters()))
        results.append((*tokens, *gradients))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize(("class_token", "position"), FORMS)
def test_patches_can_be_left_out_between_embed_and_encode(class_token, position):
    net = randomise(encoder(class_token=class_token, position=position))
    P = net.num_prefix_tokens
    x = net.embed(IMAGES)
    kept = torch.tensor([17, 2, 5, 23, 0])
    chosen = torch.cat((x[:, :P], x[:, P:][:, kept]), dim=1)
    tokens = net.encode(chosen)
    assert tokens.prefix.shape == (2, P, 16)
    assert tokens.patches.shape == (2, 5, 16)
    # The tokens know their places: in another order they are the same, to rounding.
    order = torch.tensor([3, 0, 4, 1, 2])
    again = net.encode(torch.cat((x[:, :P], x[:, P:][:, kept[order]]), dim=1))
    torch.testing.assert_close(again.patches, tokens.patches[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.prefix, tokens.prefix, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("class_token", ["none", "full", "read_only"])
def test_patches_that_are_left_out_are_not_seen(class_token):
    net = randomise(encoder(class_token=class_token))
    P, other = net.num_prefix_tokens, IMAGES.clone()
    other[:, :, 8:] += torch.randn(2, 3, 8, 24)  # the two lower rows of patches, each 4 x 4 pixels
    one, two = (net.encode(net.embed(images)[:, : P + 12]) for images in (IMAGES, other))
    assert torch.equal(one.prefix, two.prefix)
    assert torch.equal(one.patches, two.patches)
    assert not torch.equal(net(IMAGES).patches[:, :12], net(other).patches[:, :12])


def test_all_patches_may_be_left_out_but_the_class_token():
    net = randomise(encoder(class_token="full"))
    tokens = net.encode(net.embed(IMAGES)[:, :1])
    assert (tokens.prefix.shape, tokens.patches.shape) == ((2, 1, 16), (2, 0, 16))


def test_the_encoder_is_one_graph():
    net = encoder(class_token="read_only", drop_path=0.1, attn_drop=0.1, proj_drop=0.1).train()
    torch._dynamo.reset()
    told = torch._dynamo.explain(net)(IMAGES)
    assert (told.graph_count, told.graph_break_count) == (1, 0)


def test_the_place_of_the_class_token_does_not_matter():
    net = randomise(encoder(class_token="full"))
    x = torch.randn(2, 25, 16)
    first, last = x, x.roll(-1, dims=1)
    for block in net.blocks:
        first, last = block(first), block(last)
    torch.testing.assert_close(first, last.roll(1, dims=1), atol=1e-5, rtol=1e-5)


def test_a_position_folded_into_the_class_token_changes_nothing():
    apart = randomise(encoder(class_token="full"))
    folded = encoder(class_token="full", class_token_position=False)
    state = apart.state_dict()
    state["cls_token"] = state["cls_token"] + state.pop("cls_pos_embed")
    folded.load_state_dict(state)
    torch.testing.assert_close(apart(IMAGES), folded(IMAGES), atol=1e-6, rtol=1e-6)


def test_sine_table_is_interleaved_and_fixed():
    table = sine_table(50, 8)[0]
    assert torch.equal(table[0], torch.tensor([0.0, 1.0] * 4))
    torch.testing.assert_close(table[7, 2], torch.sin(torch.tensor(7 / 10000 ** (2 / 8))))
    torch.testing.assert_close(table[7, 3], torch.cos(torch.tensor(7 / 10000 ** (2 / 8))))
    net = encoder(position="sine", class_token="full")
    assert torch.equal(net.pos_embed[0], sine_table(25, 16)[0, 1:])  # the class token is position 0
    assert "pos_embed" not in dict(net.named_parameters())
    assert "pos_embed" in net.state_dict()  # so that weights say what they were trained with


def test_standard_pre_norm_is_the_other_block_form():
    published, standard = randomise(encoder()), encoder(residual_norm=False)
    standard.load_state_dict(published.state_dict())
    block, x = standard.blocks[0], torch.randn(2, 5, 16)
    y = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))
    assert not torch.allclose(published(IMAGES).patches, standard(IMAGES).patches, atol=1e-2)


def test_drop_path_rises_linearly_and_dropouts_arrive():
    net = encoder(depth=3, drop_path=0.2, attn_drop=0.3, proj_drop=0.4)
    assert [block.drop_path.drop_prob for block in net.blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert net.blocks[1].attn.attn_drop.p == 0.3
    assert net.blocks[1].attn.proj_drop.p == net.pos_drop.p == net.blocks[1].mlp.drop1.p == 0.4
    torch.manual_seed(0)
    assert not torch.equal(net.train()(IMAGES).patches, net(IMAGES).patches)


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(1, 3, 16, 16\) given to a network built for \(B, 3, 16, 24\)"):
        encoder()(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="in_chans=1"):
        encoder()(torch.zeros(1, 1, 16, 24))


@pytest.mark.parametrize(("class_token", "position"), FORMS)
def test_images_of_further_sizes_are_taken_where_asked(class_token, position):
    net = randomise(encoder(class_token=class_token, position=position))
    before, names = net(IMAGES), set(net.state_dict())
    net.take_sizes([(8, 12), (16, 24)])
    assert set(net.state_dict()) == names
    assert all(map(torch.equal, net(IMAGES), before))
    small = IMAGES[:, :, ::2, ::2]
    assert net(small).patches.shape == (2, 6, 16)
    if position != "none":
        table = net.pos_embed.transpose(1, 2).unflatten(2, (4, 6))
        expected = F.interpolate(table, (2, 3), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
        added = net.embed(small)[:, net.num_prefix_tokens :] - net.tokenizer(small).flatten(2).transpose(1, 2)
        torch.testing.assert_close(added, expected.expand(2, -1, -1))
    with pytest.raises(InputError, match=r"\(2, 3, 12, 12\)"):
        net(IMAGES[:, :, :12, :12])
    with pytest.raises(InputError, match="image_size=10 is not a multiple of patch_size=4"):
        net.take_sizes([(10, 12)])


def test_a_network_of_timm_takes_one_size():
    with pytest.raises(InputError, match="takes images of one size: leave it out"):
        TimmEncoder.create("vit_tiny_patch16_224", "none").take_sizes([(112, 112)])


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="num_heads=3 does not divide embed_dim=16"):
        encoder(num_heads=3)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        net = randomise(encoder(class_token="read_only")).train()
        net.grad_checkpointing = enable
        net(IMAGES).prefix.square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "deit_tiny_patch16_224", "vit_base_patch32_clip_224", "eva02_tiny_patch14_224"]
)
def test_timm_encoder_returns_the_tokens_of_timm(name):
    net = TimmEncoder.create(name, "none", img_size=56 if "eva" in name else 64).eval()
    images = torch.randn(1, 3, *net.image_size)
    with torch.no_grad():
        tokens = net(images)
        timms = net.model.forward_features(images)
    assert tokens.patches.shape[1] == net.grid_size[0] * net.grid_size[1]
    torch.testing.assert_close(torch.cat(tokens, dim=1), net.norm(timms))


def test_timm_norm_behind_the_pool_is_applied_to_the_tokens():
    import timm

    net = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, global_pool="", fc_norm=True)
    nn.init.constant_(net.fc_norm.bias, 5.0)
    tokens = TimmEncoder(net).eval()(torch.randn(1, 3, 32, 32))
    assert tokens.patches.mean().item() == pytest.approx(5.0, abs=1e-4)


@pytest.mark.parametrize(("name", "grid", "has_plain_head"), [
    ("test_resnet", (2, 3), True), ("regnetx_002", (2, 3), True), ("test_efficientnet", (2, 3), True), ("test_convnext", (2, 3), False),
    ("mobilenetv3_small_050", (2, 3), False),
])  # fmt: skip
def test_a_map_of_timms_is_the_grid_of_tokens_and_mean_the_usual_head(tmp_path, name, grid, has_plain_head):
    import timm

    torch.manual_seed(1)
    theirs = timm.create_model(name, num_classes=7).train()
    theirs(torch.randn(8, 3, 64, 96))  # so that the statistics of batch norms are no initial values
    save_file({key: tensor.contiguous() for key, tensor in theirs.eval().state_dict().items()}, tmp_path / "model.safetensors")
    ours = create_model(f"timm/{name}", num_classes=7, image_size=(64, 96), pretrained=tmp_path / "model.safetensors").eval()
    assert (ours.load_report.new, ours.load_report.dropped) == ([], {})
    assert ours.encoder.grid_size == grid
    assert ours.encoder.is_grid_known
    images = torch.randn(4, 3, 64, 96)
    with torch.no_grad():
        tokens = ours.encoder(images)
        assert tokens.patches.shape == (4, grid[0] * grid[1], ours.num_features)
        assert tokens.prefix.shape == (4, 0, ours.num_features)
        if has_plain_head:  # an average and a linear layer
            torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
            seqpool = create_model(f"timm/{name}", pooling="seqpool", num_classes=7, image_size=(64, 96))
            nn.init.zeros_(seqpool.pooling.score.weight)
            seqpool.load_state_dict(ours.state_dict(), strict=False)
            torch.testing.assert_close(seqpool.eval()(images), ours(images), atol=1e-5, rtol=1e-5)


def test_a_map_with_channels_last_is_read_row_by_row():
    net = create_model("timm/swin_tiny_patch4_window7_224", num_classes=2, image_size=(64, 96), proj_drop=0.0, drop_path=0.0).encoder.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(net(images).patches, net.model(images).flatten(1, 2))
    assert net.grid_size == (2, 3)


def test_a_network_of_maps_takes_the_sizes_it_was_told_and_no_other():
    net = create_model("timm/test_resnet", num_classes=2, image_size=64).encoder
    with pytest.raises(InputError, match="images of 32x32 pixels given to a network built for 64x64"):
        net(torch.zeros(1, 3, 32, 32))
    net.take_sizes([(32, 32), (64, 64)])
    assert net(torch.zeros(2, 3, 32, 32)).patches.shape[1] == 1
    with pytest.raises(InputError, match="does not offer the tokens of its layers"):
        net.intermediates(torch.zeros(1, 3, 64, 64), [0], norm=False, stop_early=False)


def test_layer_decay_knows_the_depths_of_a_network_of_maps():
    import timm.optim

    net = create_model("timm/test_resnet", num_classes=2, image_size=32)
    optimizer = timm.optim.create_optimizer_v2(net, opt="sgd", lr=1.0, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    names = ("encoder.model.conv1.0.weight", "encoder.model.layer1.0.conv1.weight", "encoder.model.layer4.0.conv1.weight", "head.weight")
    of_names = [scales[id(net.get_parameter(name))] for name in names]
    assert of_names == sorted(set(of_names))
    assert of_names[-1] == 1


def test_a_first_convolution_of_timms_is_fitted_to_grey_images(tmp_path):
    colour, grey = (create_model("timm/test_resnet", num_classes=2, image_size=32, in_chans=chans).eval() for chans in (3, 1))
    torch.save(colour.state_dict(), tmp_path / "colour.pt")
    load_weights(grey, tmp_path / "colour.pt")
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


def test_timm_networks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="class_token=full asked of timm's ResNet, which has none"):
        create_model("timm/test_resnet", pooling="class_token", image_size=32)
    with pytest.raises(InputError, match="image_size=1x1 is none that timm's VGG takes"):
        create_model("timm/vgg11", image_size=1, num_classes=2, drop_path=0.0)
    with pytest.raises(InputError, match=r"drop_path=0\.1 can't be had of arch=timm/vgg11, which has none: give drop_path=0"):
        create_model("timm/vgg11", image_size=32)
    with pytest.raises(InputError, match="class_token=full asked of timm's VisionTransformerRelPos, which has none"):
        TimmEncoder.create("vit_relpos_small_patch16_224", "full")
    with pytest.raises(InputError, match="class_token=read_only"):
        create_model("timm/vit_tiny_patch16_224", pooling="masked_class_token", image_size=32)
    with pytest.raises(InputError, match="timm/vit_tinny"):
        create_model("timm/vit_tinny")


def test_channels_and_tokenizers_combine():
    net = ViTEncoder(ConvTokenizer(5, 12, 3), (9, 13), depth=1, num_heads=3)
    assert net(torch.zeros(1, 5, 9, 13)).patches.shape == (1, net.grid_size[0] * net.grid_size[1], 12)


def test_a_position_of_the_class_token_folds_into_the_token():
    both, one = (create_model("cct_2_3x2_32", pooling="class_token", class_token_position=flag).eval() for flag in (True, False))
    state = both.state_dict()
    state["encoder.cls_token"] = state["encoder.cls_token"] + state.pop("encoder.cls_pos_embed")
    assert state["encoder.cls_token"].norm() > 1
    one.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(both(images), one(images))
