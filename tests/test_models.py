import json
import os
import re
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from torch import nn

import cct_lightning.models  # noqa: F401  # registers the names with timm
from cct_lightning import POOLINGS, ImageClassifier, InputError, PatchTokenizer, Pooling, Tokens, ViTEncoder, create_model
from cct_lightning.networks.classifier import count_flops
from cct_lightning.networks.encoder import Encoder
from cct_lightning.networks.poolings import MeanPooling
from cct_lightning.networks.presets import VARIANTS

# Trainable parameters of the published networks, from SHI-Labs/Compact-Transformers (its _sine names with the table fixed).
PARAMETERS = {
    "vit_2_4_32": 214_666, "vit_2_4_32_sine": 206_346, "vit_7_4_32": 3_716_874, "cvt_2_4_32": 214_539, "cvt_2_4_32_sine": 206_347,
    "cvt_7_4_32": 3_716_619, "cct_2_3x2_32": 283_723, "cct_4_3x2_32": 482_123, "cct_6_3x1_32": 3_233_803, "cct_6_3x2_32": 3_326_923,
    "cct_7_3x1_32": 3_760_139, "cct_7_3x1_32_sine": 3_694_603, "cct_7_3x1_32_c100": 3_783_269, "cct_7_3x2_32": 3_853_259,
    "cct_7_7x2_224": 4_573_735, "cct_7_7x2_224_sine": 4_523_559, "cct_14_7x2_224": 22_367_273, "cct_14_7x2_384": 22_513_193,
    "cct_14_7x2_384_fl": 22_167_463,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    assert sum(p.numel() for p in create_model(name).parameters()) == PARAMETERS[name]


@pytest.mark.skipif("CCT_GOLDEN" not in os.environ, reason="CCT_GOLDEN names no folder of golden vectors")
def test_all_presets_are_the_references():
    rows = json.loads(Path(os.environ["CCT_GOLDEN"], "variants.json").read_text())
    assert {row["name"] for row in rows} == set(VARIANTS)
    for row in rows:
        model = create_model(row["name"])
        encoder = model.encoder
        assert sum(p.numel() for p in model.parameters()) == row["params_trainable_if_pe_as_named"]
        assert (len(encoder.blocks), encoder.num_heads, encoder.embed_dim) == (row["depth"], row["heads"], row["dim"])
        assert encoder.grid_size[0] * encoder.grid_size[1] == row["tokens"]
        assert encoder.image_size == (row["img_size"],) * 2
        assert model.num_classes == row["num_classes"]
        assert encoder.position == {"learnable": "learned", "sine": "sine"}[row["pe_named"]]
        assert type(model.pooling) is POOLINGS[row["pool"]]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("arch", ["cct_2_3x2_32", "cvt_2_4_32_sine", "vit_2_4_32"])
def test_every_option_is_honoured(arch, pooling):
    model = create_model(
        arch, num_classes=7, image_size=(16, 24), in_chans=2, pooling=pooling, position="none", class_token_position=False,
        residual_norm=False, drop_path=0.3, attn_drop=0.2, proj_drop=0.1, head_hidden_dim=5,
    )  # fmt: skip
    block = model.encoder.blocks[-1]
    assert model(torch.zeros(2, 2, 16, 24)).shape == (2, 7)
    assert type(model.pooling) is POOLINGS[pooling]
    assert model.encoder.class_token == POOLINGS[pooling].class_token
    assert (model.encoder.position, block.residual_norm) == ("none", False)
    assert (block.drop_path.drop_prob, block.attn.attn_drop.p, block.attn.proj_drop.p) == pytest.approx((0.3, 0.2, 0.1))
    assert model.head.hidden.out_features == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "cct_7_3x1_31"}, r"arch='cct_7_3x1_31' is unknown\. Did you mean cct_7_3x1_32"),
        ({"arch": "resnet"}, r"arch='resnet' is unknown"),
        ({"pooling": "seqpol"}, r"pooling='seqpol' is unknown\. Did you mean seqpool\?"),
        ({"arch": "vit_2_4_32", "image_size": 30}, r"image_size=30 is not a multiple of patch_size=4"),
        ({"arch": "cct_2_3x2_32", "num_queries": 8}, "num_queries=8 can't be chosen for pooling=seqpool: take multi_query, or leave it out"),
        ({"arch": "cct_2_3x2_32", "pooling": "multi_query", "num_queries": 0}, "num_queries=0"),
        ({"arch": "timm/vit_tiny_patch16_224", "position": "sine"}, r"position='sine' can't be chosen for arch=timm/vit_tiny_patch16_224"),
        ({"pretrained": "nowhere.pth"}, r"There is no file nowhere\.pth"),
    ],
)
def test_what_can_not_be_honoured_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**{"arch": "cct_2_3x2_32", **arguments})


@pytest.mark.parametrize(("arguments", "message"), [
    ({"drop_path": 1.0}, "drop_path=1.0 is out of range: it must be at least 0 and less than 1"),
    ({"attn_drop": -0.1}, "attn_drop=-0.1 is out of range"),
    ({"head_hidden_dim": 0}, "head_hidden_dim=0 is out of range: it must be at least 1"),
    ({"arch": "timm/vit_tiny_patch16_224", "image_size": 28}, "image_size=28x28 is not a multiple of patch_size=16"),
    ({"arch": "timm/deit_tiny_distilled_patch16_224"}, "timm/deit_tiny_distilled_patch16_224 can't be built"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        create_model(**{"arch": "cct_2_3x2_32", **arguments})


def test_unknown_arguments_are_not_swallowed():
    with pytest.raises(TypeError, match="poolin"):
        create_model("cct_2_3x2_32", poolin="mean")
    with pytest.raises(InputError, match=r"cct_2_3x2_32 has no option 'poolin'\. Did you mean pooling\?"):
        timm.create_model("cct_2_3x2_32", poolin="mean")


def test_timm_knows_all_names():
    assert set(VARIANTS) <= set(timm.list_models())
    model = timm.create_model("cct_7_3x1_32", num_classes=10, img_size=40, drop_path_rate=0.3)
    assert model.encoder.image_size == (40, 40)
    assert model.encoder.blocks[-1].drop_path.drop_prob == pytest.approx(0.3)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 40, 40)


@pytest.mark.parametrize(
    ("option", "message"), [({"pretrained": True}, "no weights are published"), ({"features_only": True}, "features_only=True is not")]
)
def test_what_timm_offers_and_we_do_not_is_refused(option, message):
    with pytest.raises(InputError, match=message):
        timm.create_model("cct_2_3x2_32", **option)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_contract_of_timm(pooling):
    model = create_model("cct_2_3x2_32", pooling=pooling, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features) == (2, model.head_hidden_size)
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.num_classes == 3
    model.reset_classifier(0)
    assert torch.equal(model(images), model.forward_head(features, pre_logits=True))
    with pytest.raises(InputError, match="global_pool='avg' can't be changed in place"):
        model.reset_classifier(3, "avg")


def test_hidden_layer_of_the_head():
    model = create_model("vit_2_4_32", head_hidden_dim=48).eval()
    features = model.forward_features(torch.randn(2, 3, 32, 32))
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, 48) == (2, model.head_hidden_size)
    assert hidden.abs().max() < 1  # tanh
    torch.testing.assert_close(model.head.out(hidden), model.forward_head(features))


@pytest.mark.parametrize("arch", ["cct_2_3x2_32", "vit_2_4_32", "timm/vit_tiny_patch16_224"])
def test_layer_decay_groups_every_parameter_by_depth(arch):
    model = create_model(arch, num_classes=10, image_size=32, pooling="class_attention" if arch.startswith("cct") else None)
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    by_name = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    first, last = by_name[next(n for n in by_name if "blocks.0." in n)], by_name[[n for n in by_name if "encoder" in n and "blocks." in n][-1]]
    assert by_name["head.weight"] == 1.0
    assert min(by_name.values()) < first < last < 1.0
    assert by_name[next(n for n in by_name if "pos_embed" in n)] == min(by_name.values())


def test_no_weight_decay_is_the_references():
    assert create_model("vit_2_4_32").no_weight_decay() == set()  # positions and class token decay there
    assert "encoder.model.pos_embed" in create_model("timm/vit_tiny_patch16_224", image_size=32, pooling="mean").no_weight_decay()


def test_gradient_checkpointing_is_passed_on():
    model = create_model("cct_2_3x2_32")
    model.set_grad_checkpointing()
    assert model.encoder.grad_checkpointing
    create_model("timm/vit_tiny_patch16_224", image_size=32, pooling="mean").set_grad_checkpointing()


class OwnEncoder(Encoder):
    image_size, in_chans, grid_size, embed_dim, num_heads, num_prefix_tokens, class_token = (8, 8), 3, (1, 1), 4, 1, 0, "none"

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8)

    def forward(self, images):
        patches = self.layer(images).flatten(2).transpose(1, 2)
        return Tokens(patches[:, :0], patches)


def test_an_encoder_and_a_pooling_of_ones_own():
    class First(Pooling):
        def forward(self, tokens):
            return tokens.patches[:, 0]

        def weights(self, tokens):
            return torch.eye(1, tokens.patches.shape[1]).expand(len(tokens.patches), -1)

    model = ImageClassifier(OwnEncoder(), First(4, 1), num_classes=3)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    with pytest.raises(InputError, match="OwnEncoder does not offer gradient checkpointing"):
        model.set_grad_checkpointing()


@pytest.mark.parametrize(("pooling", "class_token", "fits"), [
    ("class_token", "full", True), ("class_token", "none", False), ("class_token", "read_only", False), ("masked_class_token", "read_only", True),
    ("masked_class_token", "full", False), ("seqpool", "none", True), ("seqpool", "full", True), ("mean", "read_only", False),
])  # fmt: skip
def test_the_class_token_of_pooling_and_encoder_must_match(pooling, class_token, fits):
    encoder = ViTEncoder(PatchTokenizer(3, 8, 4), (8, 8), depth=1, num_heads=2, class_token=class_token)
    if fits:
        assert ImageClassifier(encoder, POOLINGS[pooling](8, 2), 2)(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    else:
        with pytest.raises(InputError, match=f"needs class_token='{POOLINGS[pooling].class_token}', the encoder ViTEncoder has '{class_token}'"):
            ImageClassifier(encoder, POOLINGS[pooling](8, 2), 2)


def test_widths_must_match():
    with pytest.raises(InputError, match="embed_dim=9 differs from the encoder's embed_dim=4"):
        ImageClassifier(OwnEncoder(), MeanPooling(9, 1), 2)


def test_flops_of_the_published_network():
    # Two for each multiply-add of the tokenizer, projections, MLPs, attention and head, added up by hand.
    N, D, depth = 256, 256, 7
    tokenizer = 2 * 32 * 32 * 27 * D
    block = 2 * N * D * 3 * D + 2 * N * D * D + 2 * 2 * N * D * 2 * D + 2 * 2 * N * N * D
    assert count_flops(create_model("cct_7_3x1_32")) == tokenizer + depth * block + 2 * N * D + 2 * D * 10


@pytest.mark.parametrize("pooling", POOLINGS)
def test_flops_are_counted_of_every_pooling(pooling):
    N, D = 64, 128  # tokens and their width
    more = {
        "map": 2 * D * D + 2 * N * D * 2 * D + 2 * 2 * N * D + 2 * D * D + 2 * 2 * D * 4 * D,  # query, keys and values, attention, projection, MLP
        "seqpool": 2 * N * D,  # scores; torch counts products of matrices alone, not the weighted sum
        "mean": 0,
    }
    counted = count_flops(create_model("cct_2_3x2_32", pooling=pooling)) - count_flops(create_model("cct_2_3x2_32", pooling="mean"))
    assert counted == more[pooling] if pooling in more else counted > 2 * D * D


FROZEN = Path(__file__).with_name("frozen_logits.json")


@pytest.mark.parametrize("name", ["cct_2_3x2_32", "cct_7_3x1_32_sine", "cvt_2_4_32", "vit_2_4_32", "vit_2_4_32_sine"])
def test_logits_are_those_frozen_when_parity_held(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images)[0], torch.tensor(json.loads(FROZEN.read_text())[name]), atol=1e-5, rtol=1e-4)


def test_names_are_resolved_lazily_and_listed():
    import cct_lightning

    assert {"create_model", "POOLINGS", "LitClassifier", "ImageDataModule"} <= set(dir(cct_lightning))
    assert cct_lightning.create_model is create_model
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        cct_lightning.creat_model  # noqa: B018


# float32 carries 24 bits and bfloat16 8; the error of the whole gradient grows by a few roundings in each of the layers
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("arch", ["cct_2_3x2_32", "cct_7_3x1_32", "vit_2_4_32"])
def test_gradients_against_float64(arch, dtype, tolerance):
    torch.manual_seed(0)
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])

    def gradient(kind):
        torch.manual_seed(0)
        model = create_model(arch, attn_drop=0.0, drop_path=0.0).train().to(torch.float64 if kind == torch.float64 else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images.to(next(model.parameters()).dtype)), targets)
        loss.backward()
        return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])

    exact = gradient(torch.float64)
    assert (gradient(dtype) - exact).norm() < tolerance * exact.norm()
