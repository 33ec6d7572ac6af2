import inspect
import itertools

import pytest
import timm
import timm.data
import torch
from fake_gpu import MixedDevicesError
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cct_lightning import POOLINGS, Encoder, ImageClassifier, InputError, TimmEncoder, Tokens, create_model
from cct_lightning.networks.poolings import MeanPooling
from cct_lightning.networks.presets import VARIANTS

OURS = ["cct_2_3x2_32", "vit_2_4_32"]


def small(arch, **options):
    torch.manual_seed(0)
    options = {"image_size": (16, 24), "num_classes": 5, "depth": 4, "embed_dim": 16, "num_heads": 2} | options
    return create_model(arch, **options).eval(), torch.randn(2, 3, *options["image_size"])


def on_timm():
    torch.manual_seed(0)
    shape = {"img_size": (32, 48), "depth": 3, "embed_dim": 24, "num_heads": 3}
    inner = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", **shape)
    return ImageClassifier(TimmEncoder(inner), MeanPooling(24, 3), 5).eval(), torch.randn(2, 3, 32, 48)


def flat(out):
    """Lists the tensors of what forward_intermediates returns."""
    return [out] if isinstance(out, torch.Tensor) else [tensor for part in out for tensor in flat(part)]


def test_the_words_of_forward_intermediates_are_timms():
    ours = inspect.signature(ImageClassifier.forward_intermediates).parameters
    theirs = inspect.signature(VisionTransformer.forward_intermediates).parameters
    assert list(ours) == list(theirs)[: len(ours)]
    assert {name: p.default for name, p in ours.items()} == {name: theirs[name].default for name in ours}


WAYS = list(itertools.product([None, 2, [0, -1], (1,)], [True, False], [True, False], [True, False], ["NCHW", "NLC"], [True, False]))


def test_a_timm_encoder_returns_what_timm_does():
    model, images = on_timm()
    for way in WAYS:
        ours, theirs = model.forward_intermediates(images, *way), model.encoder.model.forward_intermediates(images, *way)
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for a, b in zip(flat(ours), flat(theirs), strict=True):
            assert torch.equal(a, b), way


def test_our_block_without_residual_norm_gives_timms_intermediates():
    model, images = small("vit_2_4_32", residual_norm=False, mlp_ratio=2.0, image_size=(16, 16))
    shape = {"img_size": 16, "patch_size": 4, "depth": 4, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0}
    twin = VisionTransformer(**shape, qkv_bias=False, num_classes=0, global_pool="", norm_layer=nn.LayerNorm).eval()
    own = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
    own["pos_embed"] = torch.cat((own.pop("cls_pos_embed"), own["pos_embed"]), dim=1)
    twin.load_state_dict({name.replace("tokenizer.", "patch_embed."): tensor for name, tensor in own.items()})
    for way in WAYS:
        ours, theirs = flat(model.forward_intermediates(images, *way)), flat(twin.forward_intermediates(images, *way))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, msg=str(way))


@pytest.mark.parametrize("pooling", ["seqpool", "class_token", "masked_class_token"])
@pytest.mark.parametrize("arch", OURS)
def test_the_last_intermediate_is_what_forward_features_returns(arch, pooling):
    model, images = small(arch, pooling=pooling)
    P, (h, w) = model.encoder.num_prefix_tokens, model.encoder.grid_size
    features = model.forward_features(images)
    last, kept = model.forward_intermediates(images, norm=True)
    assert torch.equal(last, features)
    assert [grid.shape for grid in kept] == [(2, 16, h, w)] * 4
    assert torch.equal(kept[-1].flatten(2).transpose(1, 2), features[:, P:])
    (raw,) = model.forward_intermediates(images, 1, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=bool(P))
    tokens = torch.cat((raw[1], raw[0]), dim=1) if P else raw
    assert torch.equal(model.encoder.norm(tokens), features)


def test_stopping_early_computes_no_later_layer(monkeypatch):
    model, images = small("cct_2_3x2_32")
    model.encoder.blocks[2].forward = None  # can't be called
    last, kept = model.forward_intermediates(images, [1], stop_early=True, output_fmt="NLC")
    assert torch.equal(last, model.encoder.norm(kept[0]))
    with pytest.raises(TypeError):
        model.forward_intermediates(images, [1])


@pytest.mark.parametrize("indices", [0, 5, -1, [4], [-5], []])
def test_layers_that_are_not_there_are_refused(indices):
    model, images = small("cct_2_3x2_32")
    with pytest.raises(InputError, match=r"indices=.* names no layers: ViTEncoder has 4"):
        model.forward_intermediates(images, indices)


class OwnEncoder(Encoder):
    image_size, in_chans, grid_size, embed_dim, num_heads, num_prefix_tokens, class_token = (8, 8), 3, (1, 1), 4, 1, 0, "none"

    def __init__(self):
        super().__init__()
        self.name, self.layer = "mine", nn.Conv2d(3, 4, 8)

    def layers(self):
        return [self.layer]

    def forward(self, images):
        patches = self.layer(images).flatten(2).transpose(1, 2)
        return Tokens(patches[:, :0], patches)


def test_what_is_not_offered_is_refused():
    model, images = small("cct_2_3x2_32")
    with pytest.raises(InputError, match=r"output_fmt='NHWC' is unknown\. Known: NCHW, NLC"):
        model.forward_intermediates(images, output_fmt="NHWC")
    with pytest.raises(InputError, match="OwnEncoder does not offer the tokens of its layers"):
        ImageClassifier(OwnEncoder(), MeanPooling(4, 1), 2).forward_intermediates(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["cct_7_3x1_32", "cvt_2_4_32", "vit_2_4_32_sine"])
def test_networks_tell_timm_what_they_take(name):
    import cct_lightning.models

    model = create_model(name)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["crop_pct"]) == ((3, 32, 32), 1.0)
    assert model.default_cfg is model.pretrained_cfg
    told = cct_lightning.models.default_cfgs[name]
    assert {key: model.pretrained_cfg[key] for key in told} == told == {**told, "num_classes": VARIANTS[name].num_classes}
    assert model.get_submodule(told["first_conv"]).in_channels == 3
    other = create_model(name, image_size=(40, 48), in_chans=1, num_classes=7).pretrained_cfg
    assert (other["input_size"], other["num_classes"]) == ((1, 40, 48), 7)


def test_a_timm_encoder_tells_timms_normalisation_and_its_own_size():
    model, images = on_timm()
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == tuple(images.shape[1:])
    assert data["mean"] == (0.5, 0.5, 0.5)  # of vit_tiny_patch16_224; ImageNet's would be 0.485, 0.456, 0.406
    assert model.pretrained_cfg["num_classes"] == 5


class Nameless(Encoder):
    """Tells everything but its grid and its class token."""

    def __init__(self):
        super().__init__()
        self.image_size, self.in_chans, self.embed_dim, self.num_heads, self.num_prefix_tokens = (8, 8), 1, 8, 2, 0

    def forward(self, images):
        return Tokens(torch.zeros(len(images), 0, 8), torch.zeros(len(images), 4, 8))


def test_an_encoder_tells_what_it_is():
    with pytest.raises(InputError, match=r"Nameless is no Encoder, .* lacks grid_size, class_token\.\n.*return Tokens\(prefix, patches\)"):
        ImageClassifier(Nameless(), POOLINGS["mean"](8, 2), 10)


def test_a_module_is_no_encoder():
    with pytest.raises(InputError, match=r"Linear is no Encoder, .* lacks image_size, in_chans, grid_size, embed_dim, num_heads"):
        ImageClassifier(nn.Linear(2, 2), POOLINGS["mean"](8, 2), 10)


@pytest.mark.parametrize("arch", ["cct_2_3x2_32", "cvt_7_4_32", "vit_7_4_32", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_network_on_a_gpu_mixes_no_devices_and_waits_for_nothing(gpu, arch, pooling):
    if arch != "cct_2_3x2_32" and pooling not in ("seqpool", "class_token"):
        pytest.skip("poolings are the same on every encoder")
    network = create_model(arch, pooling=pooling, image_size=32, drop_path=0.1)
    gpu.takes(network)
    for training in (True, False):
        with torch.autocast("cuda", torch.bfloat16):
            logits = network.train(training)(torch.empty(4, 3, 32, 32, device=gpu.device))
        assert (logits.shape, logits.device, logits.dtype) == ((4, network.num_classes), gpu.device, torch.bfloat16)
    with pytest.raises(MixedDevicesError):
        network(torch.zeros(4, 3, 32, 32))
