import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from vit_pytorch.cct import CCT

from cct_lightning import POOLINGS, ConvTokenizer, ImageClassifier, InputError, PatchTokenizer, ViTEncoder, create_model, load_weights
from cct_lightning.encoders import sine_table

# An independent implementation agrees to 4e-6 in float32; a wrong epsilon, the smallest mistake known, costs 2e-4.
TOLERANCE = 3e-5
GOLDEN = Path(os.environ.get("CCT_GOLDEN", "golden-vectors"))


def twin(image_size=32, in_chans=3, num_classes=10, position="learnable", seed=0):
    """vit-pytorch's CCT-2/3x2 with random weights, norms and biases."""
    torch.manual_seed(seed)
    model = CCT(
        img_size=image_size, embedding_dim=128, n_input_channels=in_chans, n_conv_layers=2, kernel_size=3, stride=1, padding=1, num_layers=2,
        num_heads=2, mlp_ratio=1, num_classes=num_classes, positional_embedding=position,
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(twin().state_dict(), path)
    return path


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def check(model, expected, images=IMAGES):
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="CCT_GOLDEN names no folder of golden vectors")
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_golden_vectors(path):
    with safe_open(path, "pt") as tensors:
        config, images, logits = json.loads(tensors.metadata()["config"]), tensors.get_tensor("input"), tensors.get_tensor("logits")
    chans, dim = config.get("in_chans", 3), config["dim"]
    if config["family"] == "cct":
        tokenizer = ConvTokenizer(chans, dim, config["kernel"], config.get("stride"), config.get("padding"), config["conv_layers"])
    else:
        tokenizer = PatchTokenizer(chans, dim, config["kernel"])
    pooling = POOLINGS["class_token" if config["family"] == "vit_lite" else "seqpool"]
    position = config["positional_embedding"].replace("learnable", "learned")
    encoder = ViTEncoder(
        tokenizer, (config["img_size"],) * 2, config["depth"], config["heads"], config["mlp_ratio"], pooling.class_token, position=position
    )
    model = ImageClassifier(encoder, pooling(dim, config["heads"]), config["num_classes"])
    report = load_weights(model, path)
    check(model, logits, images)
    assert report.format == "reference"
    assert not report.new
    assert bool(report.resized) == ("weights_img_size" in config)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="CCT_GOLDEN names no folder of golden vectors")
@pytest.mark.parametrize("name", ["cct_2_3x2_32", "cvt_2_4_32", "vit_lite_2_4_32"])
def test_golden_trace_of_the_layers(name):
    path = GOLDEN / f"{name}.safetensors"
    model = create_model(name.replace("vit_lite", "vit"), pretrained=path).eval()
    with safe_open(path, "pt") as tensors, safe_open(GOLDEN / "trace" / path.name, "pt") as trace, torch.no_grad():
        tokens = model.encoder(tensors.get_tensor("input"))
        torch.testing.assert_close(torch.cat(tokens, 1), trace.get_tensor("normed"), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(model.pooling(tokens), trace.get_tensor("features"), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("position", ["learnable", "sine", "none"])
def test_vit_pytorch_agrees(position, tmp_path):
    theirs = twin(position=position)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = create_model("cct_2_3x2_32", position=position.replace("learnable", "learned"), pretrained=tmp_path / "theirs.pt")
    check(ours, theirs(IMAGES).detach())


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state}, lambda state: {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
    lambda state: {"state_dict_ema": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    lambda state: {f"model.{k}": v for k, v in state.items()},
])  # fmt: skip
def test_containers_and_wrappers_are_opened(wrap, tmp_path):
    torch.save(wrap(twin().state_dict()), tmp_path / "wrapped.pth")
    check(create_model("cct_2_3x2_32", pretrained=tmp_path / "wrapped.pth"), twin()(IMAGES).detach())


def test_another_number_of_classes_starts_the_head_anew(file):
    model = create_model("cct_2_3x2_32", num_classes=4, pretrained=file)
    assert model.load_report.new == ["head.bias", "head.weight"]
    assert set(model.load_report.dropped) == {"head.bias", "head.weight"}
    fresh = create_model("cct_2_3x2_32", num_classes=4)
    assert torch.equal(model.head.weight, fresh.head.weight)


def test_another_pooling_is_reported(file):
    model = create_model("cct_2_3x2_32", pooling="class_token", pretrained=file)
    assert model.load_report.new == ["encoder.cls_pos_embed", "encoder.cls_token"]
    assert "pooling.score.weight" in model.load_report.dropped
    assert "new encoder.cls_pos_embed, encoder.cls_token" in str(model.load_report)


def test_class_token_weights_become_those_of_a_read_only_token(tmp_path):
    source = create_model("vit_2_4_32")
    torch.save(source.state_dict(), tmp_path / "vit.pt")
    masked = create_model("vit_2_4_32", pooling="masked_class_token", pretrained=tmp_path / "vit.pt")
    assert not masked.load_report.new
    dropped = create_model("vit_2_4_32", pooling="mean", pretrained=tmp_path / "vit.pt")
    assert set(dropped.load_report.dropped) == {"encoder.cls_token", "encoder.cls_pos_embed"}
    half = create_model("vit_2_4_32", pooling="map", pretrained=tmp_path / "vit.pt")
    assert set(half.load_report.new) == {name for name in half.state_dict() if name.startswith("pooling.")}


@pytest.mark.parametrize("fold", [False, True])
def test_class_position_is_kept_or_folded(fold, tmp_path):
    source = create_model("vit_2_4_32").eval()
    state = source.state_dict()
    theirs = {"classifier.class_emb": state["encoder.cls_token"] + 0.5}
    theirs["classifier.positional_emb"] = torch.cat((state.pop("encoder.cls_pos_embed"), state.pop("encoder.pos_embed")), dim=1)
    names = {"encoder.tokenizer.proj": "tokenizer.conv_layers.0.0", "encoder.norm": "classifier.norm", "head": "classifier.fc"}
    inner = {"norm1": "pre_norm", "attn": "self_attn", "norm2": "norm1", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}
    for name, tensor in state.items():
        for ours, other in names.items():
            if name.startswith(f"{ours}."):
                theirs[name.replace(ours, other, 1)] = tensor
        if name.startswith("encoder.blocks."):
            number, rest = name.removeprefix("encoder.blocks.").split(".", 1)
            part = next(ours for ours in inner if rest.startswith(ours))
            theirs[f"classifier.blocks.{number}.{rest.replace(part, inner[part], 1)}"] = tensor
    save_file(theirs, tmp_path / "vit_lite.safetensors")
    with torch.no_grad():
        source.encoder.cls_token += 0.5
    model = create_model("vit_2_4_32", class_token_position=not fold, pretrained=tmp_path / "vit_lite.safetensors")
    check(model, source(IMAGES).detach())
    assert any("added to the token" in note for note in model.load_report.notes) == fold


def test_positions_are_resized_as_the_reference_does(file):
    model = create_model("cct_2_3x2_32", image_size=(48, 24), pretrained=file)
    assert model.load_report.resized == {"encoder.pos_embed": ("8x8", "12x6")}
    grid = twin().state_dict()["classifier.positional_emb"].reshape(1, 8, 8, 128).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (12, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.encoder.pos_embed, resized.flatten(2).transpose(1, 2))


def test_a_sine_table_of_another_grid_is_made_anew(tmp_path):
    torch.save(twin(position="sine").state_dict(), tmp_path / "sine.pt")
    model = create_model("cct_2_3x2_32_sine", image_size=48, pretrained=tmp_path / "sine.pt")
    assert "equals the fixed sine table" in model.load_report.dropped["encoder.pos_embed"]
    assert torch.equal(model.encoder.pos_embed, sine_table(144, 128))


def test_trained_positions_under_a_sine_name_stay_trained(file):
    model = create_model("cct_2_3x2_32_sine", pretrained=file)
    check(model, twin()(IMAGES).detach())
    assert "encoder.pos_embed" in dict(model.named_parameters())
    assert any("kept as learned positions" in note for note in model.load_report.notes)


def test_half_precision_is_widened(tmp_path):
    torch.save({name: tensor.half() for name, tensor in twin().state_dict().items()}, tmp_path / "half.pt")
    model = create_model("cct_2_3x2_32", pretrained=tmp_path / "half.pt")
    assert model.head.weight.dtype == torch.float32
    assert "stored in torch.float16; widened" in model.load_report.notes


def test_our_own_weights_come_back(tmp_path):
    source = create_model("cct_2_3x2_32", pooling="map")
    save_file(source.state_dict(), tmp_path / "ours.safetensors")
    model = create_model("cct_2_3x2_32", pooling="map", pretrained=tmp_path / "ours.safetensors")
    assert model.load_report.format == "cct-lightning"
    check(model, source.eval()(IMAGES).detach())


@pytest.mark.parametrize(("options", "message"), [
    ({"arch": "cct_4_3x2_32"}, r"missing in the file: encoder\.blocks\.2\.attn\.proj\.bias"),
    ({"arch": "cct_2_3x2_32", "in_chans": 1}, r"encoder\.tokenizer\.convs\.0\.weight is \(64, 3, 3, 3\) in the file, \(64, 1, 3, 3\) in the network"),
    ({"arch": "cct_2_3x2_32", "position": "none"}, r"not in the network: encoder\.pos_embed"),
    ({"arch": "cct_7_3x1_32"}, r"does not fit this network"),
    ({"arch": "cvt_2_4_32"}, r"does not fit this network"),
])  # fmt: skip
def test_what_does_not_fit_is_an_error_of_five_lines(file, options, message):
    with pytest.raises(InputError, match=message) as caught:
        create_model(**options, pretrained=file)
    assert len(str(caught.value).splitlines()) <= 5


def test_parts_that_were_not_named_must_fit(file, tmp_path):
    state = twin().state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "extra.pth")
    with pytest.raises(InputError, match="not in the network: extra"):
        create_model("cct_2_3x2_32", pretrained=tmp_path / "extra.pth")
    torch.save({name: tensor for name, tensor in state.items() if "attention_pool" not in name}, tmp_path / "missing.pth")
    with pytest.raises(InputError, match=r"missing in the file: pooling\.score\.bias.*\n.*pooling= by name"):
        create_model("cct_2_3x2_32", pretrained=tmp_path / "missing.pth")
    torch.save(twin(num_classes=3).state_dict(), tmp_path / "three.pth")
    with pytest.raises(InputError, match=r"num_classes= by name"):
        create_model("cct_2_3x2_32", pretrained=tmp_path / "three.pth")


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


def test_no_code_of_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    with pytest.raises(InputError, match="was not opened further"):
        create_model("cct_2_3x2_32", pretrained="evil.pth")
    torch.save({"weights": Evil()}, "evil2.pth")
    with pytest.raises(InputError, match="more than tensors and plain values"):
        create_model("cct_2_3x2_32", pretrained="evil2.pth")
    assert not Path("evil").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files_are_refused(file, tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    if suffix == "safetensors":
        save_file(twin().state_dict(), path)
    else:
        path.write_bytes(file.read_bytes())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cut"):
        create_model("cct_2_3x2_32", pretrained=path)
    (tmp_path / "list.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"list\.pt"):
        create_model("cct_2_3x2_32", pretrained=tmp_path / "list.pt")


def test_a_missing_file_names_its_neighbours(file):
    with pytest.raises(InputError, match=r"There is no file .*weigths\.pth\. Beside it: weights\.pth"):
        create_model("cct_2_3x2_32", pretrained=file.with_name("weigths.pth"))


def test_weights_without_positions_do_not_fit_a_network_that_has_some(tmp_path):
    torch.save(twin(position="none").state_dict(), tmp_path / "none.pth")
    for arch in ("cct_2_3x2_32", "cct_2_3x2_32_sine"):
        with pytest.raises(InputError, match="position='none'"):
            create_model(arch, pretrained=tmp_path / "none.pth")
    torch.save(create_model("cct_2_3x2_32_sine").state_dict(), tmp_path / "sine.pt")
    with pytest.raises(InputError, match=r"not in the network: encoder\.pos_embed"):
        create_model("cct_2_3x2_32", position="none", pretrained=tmp_path / "sine.pt")
    learned = create_model("cct_2_3x2_32", pretrained=tmp_path / "sine.pt")  # a table is a good start for trained positions
    assert torch.equal(learned.encoder.pos_embed, sine_table(64, 128))


def test_the_averaged_weights_go_before_the_raw_ones(tmp_path):
    state = twin().state_dict()
    torch.save({"state_dict": {name: torch.zeros_like(t) for name, t in state.items()}, "state_dict_ema": state}, tmp_path / "both.pth")
    check(create_model("cct_2_3x2_32", pretrained=tmp_path / "both.pth"), twin()(IMAGES).detach())
