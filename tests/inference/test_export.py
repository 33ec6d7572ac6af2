import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import timm
import timm.data
import timm.models._hub
import torch
from pictures import write_images
from sklearn.datasets import load_digits, load_sample_images
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import cct_lightning.inference.export
from cct_lightning import POOLINGS, ImageClassifier, InputError, LitClassifier, PatchTokenizer, ViTEncoder
from cct_lightning.data.preparation import fit, normalize, prepare
from cct_lightning.inference.opening import load
from cct_lightning.inference.writers import FORMATS
from cct_lightning.networks.poolings import MeanPooling
from cct_lightning.weights.files import KEY, open_weights

CHECKOUT = Path(__file__).parents[2]
SMALL = {
    "arch": "cct_2_3x2_32", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": (12, 20), "in_chans": 1, "num_classes": 3,
    "class_names": ["cat", "dog", "owl"], "mean": [0.3], "std": [0.4],
}  # fmt: skip
VIT = {"image_size": (32, 48), "in_chans": 3, "num_classes": 3, "class_names": ["cat", "dog", "owl"], "mean": [0.5] * 3, "std": [0.5] * 3}
# One part in a hundred thousand: float32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def export(*given, **named):
    return cct_lightning.inference.export.export(*given, **named).folder


def scatter(module: torch.nn.Module) -> None:
    """Moves every parameter off its initial value, so that none is zero or one where another could take its place unseen."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=source)


def write_checkpoint(path: Path, recipe: dict | None = None, **options) -> LitClassifier:
    """Writes what a run would, and returns it."""
    module = LitClassifier(**{**SMALL, **options}).eval()
    scatter(module.model)
    config = None if module.own_model else module.model_config
    about = {"format": 1, "model": config, "class_names": module.class_names, "mean": module.mean, "std": module.std, "recipe": recipe}
    checkpoint = {"state_dict": module.state_dict(), KEY: {**about, "grid_size": list(module.model.encoder.grid_size)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return module


def some_images(module: LitClassifier, count: int) -> Tensor:
    encoder = module.model.encoder
    return torch.randn(count, encoder.in_chans, *encoder.image_size, generator=torch.Generator().manual_seed(2))


def check_equal(folder: Path, module: LitClassifier) -> None:
    """An exported folder computes what the checkpoint does, for batches of sizes that the export did not see."""
    network = load(folder, accelerator="cpu")
    assert network.class_names == module.class_names
    for count in (1, 2, 5):
        images = some_images(module, count)
        with torch.no_grad():
            wanted = module(images)
        assert wanted.std() > 0.01  # else everything would be equal
        torch.testing.assert_close(network.logits(images), wanted, **CLOSE)


@pytest.fixture
def checkpoint(tmp_path):
    """A run's folder with a small network in it."""
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    return path, write_checkpoint(path)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_survives_every_format(tmp_path, pooling):
    module = write_checkpoint(tmp_path / "a.ckpt", pooling=pooling)
    for format in FORMATS:
        folder = export(tmp_path / "a.ckpt", format)
        assert folder == tmp_path / f"a-{format}"
        check_equal(folder, module)


OTHERS = {
    "cvt": {"arch": "cvt_2_4_32_sine", "in_chans": 3, "mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3], "residual_norm": False},
    "vit": {"arch": "vit_2_4_32", "position": "none", "head_hidden_dim": 5},
    "five channels": {"in_chans": 5, "mean": [0.5] * 5, "std": [0.5] * 5, "position": "sine", "pooling": "class_token", "num_conv_layers": 1},
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_network_survives_every_format(tmp_path, name, format):
    module = write_checkpoint(tmp_path / "a.ckpt", **OTHERS[name])
    check_equal(export(tmp_path / "a.ckpt", format), module)


@pytest.mark.parametrize(("format", "pooling"), [
    ("safetensors", "seqpool"), ("torch-export", "map"), ("onnx", "seqpool"), ("timm", "class_token"), ("timm", "mean"),
])  # fmt: skip
def test_encoders_of_timm_survive(tmp_path, format, pooling):
    shape = {"embed_dim": None, "depth": None, "num_heads": None}
    module = write_checkpoint(tmp_path / "a.ckpt", arch="timm/vit_tiny_patch16_224", pooling=pooling, **shape, **VIT)
    check_equal(export(tmp_path / "a.ckpt", format), module)


@pytest.mark.parametrize("format", FORMATS)
def test_networks_of_timm_that_return_a_map_survive(tmp_path, format):
    shape = {"embed_dim": None, "depth": None, "num_heads": None}
    module = write_checkpoint(tmp_path / "a.ckpt", arch="timm/test_resnet", pooling="mean", **shape, **{**VIT, "image_size": (32, 48)})
    folder = export(tmp_path / "a.ckpt", format)
    check_equal(folder, module)
    if format == "timm":
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 32, 48)
        torch.testing.assert_close(model(some_images(module, 2)), module(some_images(module, 2)), **CLOSE)


def test_timms_own_networks_become_timms_own(tmp_path):
    shape = {"embed_dim": None, "depth": None, "num_heads": None}
    module = write_checkpoint(tmp_path / "a.ckpt", arch="timm/vit_tiny_patch16_224", pooling="mean", **shape, **VIT)
    folder = export(tmp_path / "a.ckpt", "timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert type(model) is VisionTransformer
    torch.testing.assert_close(model(some_images(module, 2)), module(some_images(module, 2)), **CLOSE)
    other, original = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5), model.state_dict()
    assert other.head.weight.shape == (5, 192)
    assert all(torch.equal(tensor, original[name]) for name, tensor in other.state_dict().items() if not name.startswith("head."))
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["pretrained_cfg"].keys().isdisjoint(cct_lightning.inference.writers.PUBLISHED_KEYS)
    assert timm.data.resolve_model_data_config(model)["mean"] == [0.5] * 3
    write_checkpoint(tmp_path / "b.ckpt", arch="timm/vit_tiny_patch16_224", pooling="seqpool", **shape, **VIT)
    with pytest.raises(InputError, match="timm's own vit_tiny_patch16_224 has nothing that computes pooling=seqpool as ours does: use --format saf"):
        export(tmp_path / "b.ckpt", "timm")


def test_networks_of_timm_with_the_norm_behind_the_pool(tmp_path):
    shape = {"embed_dim": None, "depth": None, "num_heads": None}
    eva = {"arch": "timm/eva02_tiny_patch14_224", **shape, **VIT, "image_size": (28, 28)}
    module = write_checkpoint(tmp_path / "a.ckpt", pooling="class_token", **eva)
    folder = export(tmp_path / "a.ckpt", "timm")
    torch.testing.assert_close(
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(some_images(module, 2)), module(some_images(module, 2))
    )


def test_the_folder_says_all_that_is_needed(checkpoint):
    path, module = checkpoint
    folder = export(path.parent.parent, "safetensors")
    assert folder == path.parent.parent / "export" / "safetensors"
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    about = json.loads((folder / "config.json").read_text())["cct_lightning"]
    assert about["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert about["class_names"] == ["cat", "dog", "owl"]
    assert about["preprocessing"] == {"image_size": [12, 20], "in_chans": 1, "mean": [0.3], "std": [0.4], "crop_pct": 1.0, "fit": "crop"}
    assert about["grid_size"] == list(module.model.encoder.grid_size)
    assert about["model"] == json.loads(json.dumps(module.model_config))
    assert about["versions"]["torch"] == torch.__version__
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, module.model.state_dict()[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_graphs_have_names_a_free_batch_and_no_places_of_this_machine(checkpoint, format):
    folder = export(checkpoint[0], format)
    path = folder / FORMATS[format].file
    for place in (CHECKOUT, Path(torch.__file__).parent, Path.home()):
        assert f"{place}/".encode() not in path.read_bytes()
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        (given,), (returned,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape, given.type) == ("images", ["batch", 1, 12, 20], "tensor(float)")
        assert (returned.name, returned.shape) == ("logits", ["batch", 3])
        assert {"onnx", "onnxscript", "onnxruntime"} <= json.loads((folder / "config.json").read_text())["cct_lightning"]["versions"].keys()
    else:
        program = torch.export.load(path)
        assert [given.arg.name for given in program.graph_signature.input_specs][-1] == "images"


def local(folder, **options):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


@pytest.fixture
def timm_folder(tmp_path):
    # Everything that a name can stand for is another one here.
    options = {
        "pooling": "map",
        "position": "sine",
        "mlp_ratio": 1.5,
        "kernel_size": 5,
        "num_conv_layers": 1,
        "drop_path": 0.3,
        "residual_norm": False,
    }
    module = write_checkpoint(tmp_path / "a.ckpt", **options)
    return export(tmp_path / "a.ckpt", "timm"), module


def test_timm_builds_the_network_as_it_was(timm_folder):
    folder, module = timm_folder
    model, images = local(folder), some_images(module, 2)
    torch.testing.assert_close(model(images), module(images), **CLOSE)
    assert model.encoder.blocks[-1].drop_path.drop_prob == pytest.approx(0.3)
    data = timm.data.resolve_model_data_config(model)
    assert (list(data["mean"]), list(data["std"]), tuple(data["input_size"]), data["crop_pct"]) == ([0.3], [0.4], (1, 12, 20), 1.0)
    assert list(model.pretrained_cfg["label_names"]) == ["cat", "dog", "owl"]
    untrained = timm.create_model(f"local-dir:{folder}")
    assert not torch.equal(untrained.head.weight, model.head.weight)


def test_timm_makes_another_head_and_keeps_the_rest(timm_folder):
    folder, module = timm_folder
    model, original = local(folder, num_classes=5), module.model.state_dict()
    assert model.head.weight.shape == (5, 16)
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items() if not name.startswith("head."))
    assert model.load_report.new == ["head.bias", "head.weight"]
    assert (model.pretrained_cfg["num_classes"], model.pretrained_cfg.get("label_names")) == (5, None)
    assert local(folder, num_classes=0)(some_images(module, 2)).shape == (2, 16)


def test_timm_changes_what_the_caller_asks_for(timm_folder):
    folder, module = timm_folder
    for name in (
        "pooling",
        "global_pool",
    ):  # our word and timm's
        model = local(folder, **{name: "mean"})
        assert type(model.pooling) is MeanPooling
        assert torch.equal(model.encoder.blocks[0].attn.qkv.weight, module.model.encoder.blocks[0].attn.qkv.weight)
    assert local(folder, in_chans=3, img_size=(24, 20)).encoder.image_size == (24, 20)
    assert local(folder, drop_path_rate=0.5).encoder.blocks[-1].drop_path.drop_prob == pytest.approx(0.5)
    with pytest.raises(InputError, match="does not fit this network"):
        local(folder, depth=3)
    with pytest.raises(InputError, match=r"cct_2_3x2_32 has no option 'deph'\. Did you mean depth\?"):
        local(folder, deph=3)


def test_what_timm_saves_of_ours_timm_loads_again(timm_folder, tmp_path):
    folder, module = timm_folder
    timm.models._hub.save_for_hf(local(folder), tmp_path / "again", safe_serialization=True)
    torch.testing.assert_close(local(tmp_path / "again")(some_images(module, 2)), module(some_images(module, 2)), **CLOSE)


def test_timm_loads_from_a_file_and_from_a_hub(timm_folder, monkeypatch):
    folder, module = timm_folder
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", lambda repo_id, filename, **_: str(folder / filename))
    images = some_images(module, 2)
    torch.testing.assert_close(timm.create_model("hf-hub:someone/owls", pretrained=True).eval()(images), module(images), **CLOSE)
    args = json.loads((folder / "config.json").read_text())["model_args"]
    overlay = {"file": str(folder / "model.safetensors")}
    model = timm.create_model("cct_2_3x2_32", pretrained=True, pretrained_cfg_overlay=overlay, **args)
    torch.testing.assert_close(model.eval()(images), module(images), **CLOSE)


def test_the_check_refuses_what_computes_something_else(checkpoint, monkeypatch):
    path, module = checkpoint
    folder = export(path, "safetensors")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    save = cct_lightning.inference.writers._save_tensors
    monkeypatch.setattr(cct_lightning.inference.writers, "_save_tensors", lambda state, path: save({n: t + 0.01 for n, t in state.items()}, path))
    for format, out in (("safetensors", folder), ("timm", path.parent / "new" / "timm")):
        with pytest.raises(
            InputError, match=rf"the {format} file does not compute what the checkpoint does: logits differ by up to \d\.\de[-+]\d+, 1\.\de-04"
        ):
            export(path, format, out, overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["best.ckpt"]
    export(path, "safetensors", folder, tolerance=1e3, overwrite=True)  # who knows why may have it
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert load(folder, accelerator="cpu").logits(some_images(module, 1)).isfinite().all()


def write_files(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def test_nothing_is_lost_and_nothing_left_half(checkpoint, cct, monkeypatch):
    path, _ = checkpoint
    folder = path.parent / "kept"
    assert cct("export", path, "--format", "safetensors", "--out", folder).code == 0
    refused = cct("export", path, "--format=timm", "--out", folder)
    assert refused.code == 2
    assert f"{folder} is not empty: --overwrite replaces what is in it" in refused.err
    assert cct("export", path, "--format=torch-export", "--out", folder, "--overwrite").code == 0
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.pt2", "README.md"}  # nothing of the old one
    load(folder, accelerator="cpu")
    (folder / "thesis.txt").write_text("all of it")
    refused = cct("export", path, "--format", "timm", "--out", folder, "--overwrite")
    assert f"{folder} holds thesis.txt, which no export wrote: name another folder with --out." in refused.err
    assert (folder / "thesis.txt").read_text() == "all of it"
    (folder / "thesis.txt").rename(folder / "README.md")  # the user's own is no card
    refused = cct("export", path, "--format", "timm", "--out", folder, "--overwrite")
    assert f"{folder} holds README.md, which no export wrote" in refused.err
    other = write_files(path.parent / "other", {"config.json": '{"architecture": "resnet18"}', "model.safetensors": "a year of training"})
    refused = cct("export", path, "--format", "timm", "--out", other, "--overwrite")
    assert f"{other} holds config.json, which no export wrote: name another folder with --out." in refused.err
    assert f"{path} is a file: name a folder with --out." in cct("export", path, "--format", "timm", "--out", path).err

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cct_lightning.inference.writers, "_save_tensors", full)
    outcome = cct("export", path, "--format", "safetensors", "--out", path.parent / "new")
    assert (outcome.code, outcome.err) == (2, f"error: {path.parent / 'new'} can't be written: No space left on device.\n")
    assert {file.name for file in path.parent.iterdir()} == {"best.ckpt", "kept", "other"}


def test_an_empty_folder_is_filled_even_the_current_one(checkpoint, cct, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cct("export", checkpoint[0], "--format", "safetensors", "--out", ".").code == 0
    assert sorted(os.listdir(".")) == ["README.md", "config.json", "model.safetensors"]


def test_the_comparison_is_on_real_images(tmp_path, cct):
    photos = write_images(tmp_path / "photos", classes=3, each=10)
    recipe = {"data": {"dataset": "image_folder", "root": str(photos), "crop_pct": 0.5}}
    write_checkpoint(tmp_path / "a.ckpt", recipe)
    out = cct("export", "a.ckpt", "--format", "safetensors").out
    assert f"compared on 15 images of {photos}, in batches of 1, 3, 15: logits differ by " in out  # every second of 30
    assert "15 of 15 predicted classes agree" in out
    assert json.loads((tmp_path / "a-safetensors" / "config.json").read_text())["cct_lightning"]["preprocessing"]["crop_pct"] == 0.5
    for folder in photos.iterdir():
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
    out = cct("export", "a.ckpt", "--format", "safetensors", "--overwrite", "--images", photos / "class0001").out
    assert f"compared on 1 image of {photos / 'class0001'}, in batches of 1: " in out
    write_checkpoint(tmp_path / "a.ckpt", {"data": {"dataset": "image_folder", "root": "/nowhere", "crop_pct": 1.0}})
    assert "compared on 16 pieces of scikit-learn's photographs, in batches of 1, 3, 16: " in cct("export", "a.ckpt", "--format", "timm").out


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_how_images_are_fitted_is_written_in_timms_words_too(tmp_path, fit):
    write_checkpoint(tmp_path / "a.ckpt", {"data": {"fit": fit}}, in_chans=3, mean=[0.2, 0.5, 0.8], std=[0.4] * 3)
    folder = export(tmp_path / "a.ckpt", "timm")
    preprocessing = cct_lightning.load(folder).preprocessing
    assert preprocessing.fit == fit
    photo = load_sample_images().images[0]
    data = timm.data.resolve_model_data_config(local(folder))
    theirs = timm.data.create_transform(**data)(PIL.Image.fromarray(photo))
    ours = normalize(torch.from_numpy(prepare(photo, preprocessing))[None].permute(0, 3, 1, 2), preprocessing.mean, preprocessing.std)[0]
    assert (theirs - ours).abs().mean() < 0.06  # Pillow's triangle sees twice as far as an average


def test_pictures_are_of_the_networks_size_and_differ(tmp_path):
    from cct_lightning.data.options import Preprocessing

    write_checkpoint(tmp_path / "a.ckpt")
    for in_chans in (1, 3, 5):
        preprocessing = Preprocessing((12, 20), in_chans, [0.5] * in_chans, [0.5] * in_chans, 0.9)
        pictures, _ = cct_lightning.inference.comparison.sample_pictures(open_weights(tmp_path / "a.ckpt"), preprocessing, None)
        assert (pictures.shape, pictures.dtype) == ((16, 12, 20, in_chans), np.uint8)
        assert len({picture.tobytes() for picture in pictures}) == 16


def test_an_image_that_can_not_be_read_is_left_out_of_the_comparison(tmp_path):
    from cct_lightning.data.options import Preprocessing

    preprocessing = Preprocessing((8, 8), 3, [0.5] * 3, [0.5] * 3, 1.0)
    folder = write_images(tmp_path / "photos", 2, 10, 8)
    for bad in ("class0000/0.png", "class0001/9.png"):
        (folder / bad).write_bytes(b"no image")
    pictures, where = cct_lightning.inference.comparison.sample_pictures(None, preprocessing, folder)
    assert (len(pictures), where) == (10, f"10 images of {folder}")
    for image in folder.rglob("*.png"):
        image.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"photos holds no image that can be read: .*0\.png can't be read"):
        cct_lightning.inference.comparison.sample_pictures(None, preprocessing, folder)


def _truncated(folder):
    (folder / "t.ckpt").write_bytes((folder / "a.ckpt").read_bytes()[:2000])


def _own(folder):
    encoder = ViTEncoder(PatchTokenizer(1, 8, 4), (8, 8), depth=1, num_heads=2)
    write_checkpoint(folder / "own.ckpt", model=ImageClassifier(encoder, MeanPooling(8, 2), 3))


def _without_mean(folder):
    write_checkpoint(folder / "raw.ckpt", mean=None, std=None)


def _diverged(folder):
    content = torch.load(folder / "a.ckpt", weights_only=True)
    content["state_dict"]["model.head.bias"][0] = float("nan")
    torch.save(content, folder / "nan.ckpt")


def _weights(folder):
    (folder / "empty").mkdir()
    (folder / "w.safetensors").touch()
    torch.save({"head.weight": torch.zeros(2)}, folder / "w.pth")


@pytest.mark.parametrize(("words", "message", "prepare"), [
    ((), "export needs a checkpoint: cct export runs/.../checkpoints/best.ckpt --format onnx", None),
    (("a.ckpt",), "export needs a format: cct export a.ckpt --format safetensors|onnx|torch-export|timm", None),
    (("a.ckpt", "--format", "onx"), "--format onx is unknown. Did you mean onnx?", None),
    (("a.ckpt", "--format"), "--format needs a value. `cct export --help` says which.", None),
    (("a.ckpt", "--fromat", "onnx"), "export does not take '--fromat'. Did you mean --format?", None),
    (("a.ckpt", "b.ckpt", "--format", "onnx"), "export does not take 'b.ckpt'.", None),
    (("a.ckpt", "--format", "timm", "--tolerance", "small"), "--tolerance small: it takes a number.", None),
    (("a.ckpt", "--format", "timm", "--tolerance", "-1"), "--tolerance=-1.0 is out of range: it must be at least 0.", None),
    (("b.ckpt", "--format", "timm"), "There is no file or folder b.ckpt.", None),
    (("a.ckpt", "--format", "timm", "--images", "nowhere"), "--images nowhere is no folder.", None),
    (("a.ckpt", "--format", "timm", "--images", "empty"), "--images empty holds no image.", _weights),
    (("empty", "--format", "timm"), "empty holds no network: neither a run's checkpoints", _weights),
    (("w.safetensors", "--format", "timm"), "w.safetensors is an export, or weights alone: give a run's folder or its best.ckpt.", _weights),
    (("w.pth", "--format", "timm"), "w.pth is no checkpoint of cct-lightning", _weights),
    (("t.ckpt", "--format", "timm"), "t.ckpt can't be read as weights", _truncated),
    (("own.ckpt", "--format", "timm"), "own.ckpt was trained with a network of its own, which only Python can build", _own),
    (("raw.ckpt", "--format", "timm"), "raw.ckpt does not say how its images are normalised", _without_mean),
    (("nan.ckpt", "--format", "timm"), "nan.ckpt holds weights that are not finite numbers: its training diverged.", _diverged),
])  # fmt: skip
def test_errors_are_short_and_say_the_way_out(cct, tmp_path, words, message, prepare):
    write_checkpoint(tmp_path / "a.ckpt")
    if prepare:
        prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    outcome = cct("export", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) <= 5
    assert not outcome.out
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_packages_are_named(checkpoint, monkeypatch):
    monkeypatch.setattr(cct_lightning.inference.export, "find_spec", lambda name: None if name.startswith("onnx") else "there")
    message = r'--format onnx needs onnx, onnxscript, onnxruntime, not installed here: pip install "cct-lightning\[onnx\]"'
    with pytest.raises(InputError, match=message):
        export(checkpoint[0], "onnx")
    extra = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    bounds = extra["project"]["optional-dependencies"]["onnx"]
    assert {bound.split(">=")[0] for bound in bounds} == set(FORMATS["onnx"].needs)
    assert set(bounds) <= set(extra["dependency-groups"]["dev"])


def test_more_than_an_onnx_file_holds_is_refused_before_it_is_traced(checkpoint, monkeypatch):
    monkeypatch.setattr(cct_lightning.inference.writers, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(InputError, match=r"GB of weights are more than one ONNX file holds \(2 GB\): use --format torch-export\."):
        export(checkpoint[0], "onnx")


def test_what_torch_can_not_trace_is_told_in_a_line(checkpoint, monkeypatch):
    monkeypatch.setattr(ViTEncoder, "forward", lambda self, images: torch.zeros(int(images.sum())))  # depends on the pixels
    with pytest.raises(InputError, match=r"torch can't turn this network into a graph: .*\n  --format safetensors writes its weights\."):
        cct_lightning.inference.writers._save_graph(checkpoint[1].model, "torch-export", checkpoint[0].with_name("model.pt2"))


def test_help_and_early_errors_need_no_torch(tmp_path):
    for words in (["--help"], ["a.ckpt", "--format", "onx"], ["nowhere.ckpt", "--format", "onnx"]):
        code = f"import sys; sys.argv = ['cct', 'export', *{words}]; from cct_lightning.commands.main import main\ntry:\n    main()\nfinally:\n"
        code += "    print(sorted({m.split('.')[0] for m in sys.modules}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == (0 if words == ["--help"] else 2), done.stderr
        assert not any(f"'{name}'" in done.stdout.splitlines()[-1] for name in ("torch", "lightning", "timm"))
        if words == ["--help"]:
            assert all(text in done.stdout for text in (*FORMATS, "--overwrite", "--tolerance", "--images", "--out"))


def test_a_run_and_its_exports_predict_the_same(cct, tmp_path):
    short = ("--data.per_class", 10, "--data.batch_size", 32, "--trainer.max_epochs", 8, "--trainer.precision", "32-true")
    assert cct("fit", "-c", "digits", *short, "--trainer.enable_progress_bar", "false").code == 0
    (run,) = tmp_path.glob("runs/digits/*")
    digits = load_digits().images[:40, ..., None] * (255 / 16)
    images = np.stack([fit(digit.astype(np.uint8), (16, 16)) for digit in digits])
    wanted = load(run, accelerator="cpu").probabilities(images)
    assert len(set(wanted.argmax(1))) > 1
    for format, about in FORMATS.items():
        outcome = cct("export", run.relative_to(tmp_path), "--format", format)
        assert outcome.code == 0, outcome.err
        folder = run.relative_to(tmp_path) / "export" / format
        assert outcome.out.startswith(f"written: {folder}/{about.file} (1.")
        assert f"\nnext\n  cct predict {folder} PATH...\n" in outcome.out
        assert ("timm.create_model" in outcome.out) == (format == "timm")
        assert not outcome.err
        for source in (folder, folder / about.file):
            given = load(source, accelerator="cpu")
            np.testing.assert_allclose(given.probabilities(images), wanted, atol=1e-5)
            assert given.class_names == list("0123456789")
