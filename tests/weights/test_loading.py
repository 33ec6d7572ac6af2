import json
import os
import pickle
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from vit_pytorch.cct import CCT

from cct_lightning import POOLINGS, ConvTokenizer, ImageClassifier, InputError, PatchTokenizer, TimmEncoder, ViTEncoder, create_model, load_weights
from cct_lightning.networks.encoder import sine_table
from cct_lightning.weights.files import KEY
from cct_lightning.weights.sources import sha256

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
    assert not model.head.weight.any()
    assert not model.head.bias.any()


def test_a_head_that_fits_may_start_anew(file):
    kept = create_model("cct_2_3x2_32", num_classes=10, pretrained=file)
    assert "head.weight" in kept.load_report.loaded
    anew = create_model("cct_2_3x2_32", num_classes=10, pretrained=file, new_head=True)
    assert not anew.head.weight.any()
    assert anew.load_report.new == ["head.bias", "head.weight"]
    assert "(the head at zero)" in str(anew.load_report)


def test_a_hidden_layer_of_a_new_head_does_not_start_at_zero(file):
    model = create_model("cct_2_3x2_32", num_classes=4, head_hidden_dim=8, pretrained=file)
    assert model.head.hidden.weight.any()
    assert not model.head.out.weight.any()


@pytest.mark.parametrize(("names", "kept"), [(["a", "b"], True), (["b", "a"], False), (["a", "c"], False), (None, True)])
def test_a_head_is_kept_for_the_same_classes_alone(tmp_path, names, kept):
    source = create_model("cct_2_3x2_32", num_classes=2)
    torch.save({"state_dict": source.state_dict(), KEY: {"class_names": ["a", "b"]}}, tmp_path / "run.ckpt")
    model = create_model("cct_2_3x2_32", num_classes=2, class_names=names, pretrained=tmp_path / "run.ckpt")
    assert torch.equal(model.head.weight, source.head.weight) == kept
    assert ("the weights know other classes (a, b) than these" in str(model.load_report)) == (not kept)


@pytest.mark.parametrize("arch", ["cct_2_3x2_32", "cvt_2_4_32"])
def test_the_first_convolution_is_fitted_to_the_channels(tmp_path, arch):
    source = create_model(arch, num_classes=3).eval()
    torch.save(source.state_dict(), tmp_path / "colour.pth")
    grey = create_model(arch, num_classes=3, in_chans=1, pretrained=tmp_path / "colour.pth").eval()
    (name,) = grey.load_report.resized
    assert grey.load_report.resized[name] == ("3 channel(s)", "1 (summed or spread)")
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    colour = create_model(arch, num_classes=3, pretrained=tmp_path / "grey.pth").eval()
    images = IMAGES[:, :1]
    with torch.no_grad():  # a grey image means the same to all three
        torch.testing.assert_close(grey(images), source(images.expand(-1, 3, -1, -1)), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(colour(images.expand(-1, 3, -1, -1)), grey(images), atol=TOLERANCE, rtol=0)


TIMM = "vit_tiny_patch16_224"


def small_timm(name=TIMM, **options):
    """A network of timm's with random weights, norms and biases, small enough for a test."""
    torch.manual_seed(1)
    model = timm.create_model(name, img_size=48, num_classes=6, depth=2, embed_dim=24, num_heads=3, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def on_timm(model, pooling="class_token", classes=6):
    """Ours around the same network as yet untrained."""
    inner = timm.create_model(TIMM, img_size=model.patch_embed.img_size, num_classes=0, global_pool="", depth=2, embed_dim=24, num_heads=3)
    encoder = TimmEncoder(inner, POOLINGS[pooling].class_token)
    return ImageClassifier(encoder, POOLINGS[pooling](24, 3), classes)


def test_timms_weights_give_timms_logits(tmp_path):
    source = small_timm()
    save_file(source.state_dict(), tmp_path / "timm.safetensors")
    model = on_timm(source)
    report = load_weights(model, tmp_path / "timm.safetensors")
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), source(images), atol=1e-5, rtol=0)
    assert report.format == "timm"
    assert not report.new
    assert not report.dropped


def test_the_last_norm_of_timm_is_found_behind_its_pool(tmp_path):
    source = small_timm(global_pool="avg")
    assert "fc_norm.weight" in source.state_dict()
    save_file(source.state_dict(), tmp_path / "timm.safetensors")
    model = on_timm(source, "mean")
    assert not load_weights(model, tmp_path / "timm.safetensors").new
    assert torch.equal(model.encoder.model.norm.weight, source.fc_norm.weight)


@pytest.mark.parametrize("pooling", sorted(set(POOLINGS) - {"masked_class_token"}))
def test_timms_weights_serve_any_pooling_and_number_of_classes(tmp_path, pooling):
    source = small_timm()
    torch.save({"model": source.state_dict()}, tmp_path / "timm.pth")
    model = on_timm(source, pooling, classes=2)
    report = load_weights(model, tmp_path / "timm.pth", allow=("head", "pooling"))
    assert torch.equal(model.encoder.model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
    assert {"head.weight", "head.bias"} == {name for name in report.new if name.startswith("head.")}


def test_timms_positions_are_resized_by_timm(tmp_path, monkeypatch):
    source = small_timm()
    save_file(source.state_dict(), tmp_path / "timm.safetensors")
    model = on_timm(timm.create_model(TIMM, img_size=64, num_classes=0, depth=2, embed_dim=24, num_heads=3))
    report = load_weights(model, tmp_path / "timm.safetensors")
    assert report.resized == {"encoder.model.pos_embed": ("10 positions", "17 (bicubic)")}


@pytest.mark.parametrize("grid", [True, False])
def test_the_positions_of_a_run_of_timm_s_network_are_resized_by_timm_too(tmp_path, grid):
    source, larger = on_timm(small_timm()), timm.create_model(TIMM, img_size=64, num_classes=0, depth=2, embed_dim=24, num_heads=3)
    about = {KEY: {"grid_size": list(source.encoder.grid_size)}} if grid else {}
    torch.save({"state_dict": source.state_dict(), **about}, tmp_path / "run.ckpt")
    model = on_timm(larger)
    report = load_weights(model, tmp_path / "run.ckpt")
    assert report.resized == {"encoder.model.pos_embed": ("3x3", "4x4 (bicubic)")}
    inner = {name.removeprefix("encoder.model."): tensor for name, tensor in source.state_dict().items() if name.startswith("encoder.model.")}
    expected = timm.models.vision_transformer.checkpoint_filter_fn(inner, larger)["pos_embed"]
    torch.testing.assert_close(model.state_dict()["encoder.model.pos_embed"], expected, atol=1e-6, rtol=0)


def test_timms_weights_by_name_need_a_network_or_a_file(monkeypatch):
    def no_network(*args, **options):
        raise RuntimeError("no address for huggingface.co")

    model = on_timm(small_timm())
    monkeypatch.setattr("cct_lightning.weights.timm_weights.timm.create_model", no_network)
    for reaches, reason in ((True, "no address for huggingface.co"), (False, "https://huggingface.co does not answer, and nothing was downloaded")):
        monkeypatch.setattr("cct_lightning.weights.timm_weights.reaches", lambda address, reaches=reaches: reaches)
        with pytest.raises(InputError, match=rf"timm/vit_tiny_patch16_224: the weights can't be had \({reason}"):
            load_weights(model, f"timm/{TIMM}")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_timms_weights_by_name_are_those_that_timm_has(monkeypatch):
    source = small_timm()
    model = on_timm(source)
    monkeypatch.setattr(
        "cct_lightning.weights.timm_weights.timm.create_model", lambda name, pretrained: source if (name, pretrained) == (TIMM, True) else None
    )
    report = load_weights(model, f"timm/{TIMM}")
    assert report.source == f"timm/{TIMM}"
    assert torch.equal(model.head.weight, source.head.weight)


def test_timms_weights_need_timms_network(tmp_path):
    with pytest.raises(InputError, match=r"choose it with model\.arch=timm/vit_tiny_patch16_224"):
        create_model("cct_2_3x2_32", pretrained=f"timm/{TIMM}")
    save_file(small_timm().state_dict(), tmp_path / "timm.safetensors")
    with pytest.raises(InputError, match=r"They are of a timm network: choose it with model\.arch=timm/NAME"):
        create_model("vit_2_4_32", pretrained=tmp_path / "timm.safetensors")


def export_folder(folder, model, **about):
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    network = {"arch": "cct_2_3x2_32", "num_classes": model.num_classes, "image_size": [32, 32], "in_chans": 3}
    preprocessing = {"image_size": [32, 32], "in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    ours = {"format": "safetensors", "weights": "model.safetensors", "sha256": sha256(folder / "model.safetensors"), "class_names": None}
    ours |= {"model": network, "preprocessing": preprocessing, **about}
    (folder / "config.json").write_text(json.dumps({KEY: ours}))
    return folder


def test_an_exported_folder_is_read(tmp_path):
    source = create_model("cct_2_3x2_32", num_classes=3)
    folder = export_folder(tmp_path / "export", source)
    model = create_model("cct_2_3x2_32", pretrained=folder, num_classes=3)
    assert torch.equal(model.head.weight, source.head.weight)


def test_an_exported_folder_whose_file_changed_is_refused(tmp_path):
    folder = export_folder(tmp_path / "export", create_model("cct_2_3x2_32"))
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"model\.safetensors is not the file that .*config\.json describes"):
        create_model("cct_2_3x2_32", pretrained=folder)


def test_a_graph_is_no_start(tmp_path):
    folder = export_folder(tmp_path / "export", create_model("cct_2_3x2_32"), format="onnx", weights="model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx is a graph to predict with"):
        create_model("cct_2_3x2_32", pretrained=folder)


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
    assert model.load_report.resized == {"encoder.pos_embed": ("8x8", "12x6 (bilinear)")}
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
    ({"arch": "cct_2_3x2_32", "kernel_size": 5}, r"tokenizer\.convs\.0\.weight is \(64, 3, 3, 3\) in the file, \(64, 3, 5, 5\) in the network"),
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


@pytest.mark.parametrize(("theirs", "ours"), [("class_token", "mean"), ("seqpool", "class_token"), ("class_token", "class_token"), ("mean", "map")])
def test_a_sine_table_begins_where_the_files_does_whatever_the_pooling(tmp_path, theirs, ours):
    source = create_model("vit_2_4_32_sine", pooling=theirs)
    torch.save(source.state_dict(), tmp_path / "sine.pth")
    model = create_model("vit_2_4_32_sine", pooling=ours, pretrained=tmp_path / "sine.pth", num_classes=10)
    assert torch.equal(model.encoder.pos_embed, source.encoder.pos_embed)
    larger = create_model("vit_2_4_32_sine", pooling=ours, pretrained=tmp_path / "sine.pth", num_classes=10, image_size=48)
    first = int(theirs == "class_token")
    assert torch.equal(larger.encoder.pos_embed, sine_table(144 + first, larger.encoder.embed_dim)[:, first:])
