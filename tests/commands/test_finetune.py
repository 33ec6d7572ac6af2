import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from doors import pack
from pictures import write_images, write_photos
from safetensors.torch import save_file

from cct_lightning import LitClassifier, create_model
from cct_lightning.commands.finetune import INSIDE, prepare
from cct_lightning.networks.poolings import POOLINGS
from cct_lightning.networks.presets import VARIANTS
from cct_lightning.weights.files import KEY, Opened, open_weights
from cct_lightning.weights.inspection import describe
from cct_lightning.weights.sources import PUBLISHED, card, sha256

GOLDEN = Path(os.environ.get("CCT_GOLDEN", "golden-vectors"))
QUICK = ("--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false", "--data.batch_size", 4, "--data.num_workers", 0)


@pytest.fixture
def photos(tmp_path):
    """Two classes of six images, to be split by the command."""
    return write_images(tmp_path / "photos", 2, 6, 24)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "small.pth"
    torch.save(create_model("cct_2_3x2_32", num_classes=5).state_dict(), path)
    return path


def summary_of(folder):
    (path,) = folder.glob("runs/finetune/*/summary.json")
    return json.loads(path.read_text())


def configuration_of(folder):
    (path,) = folder.glob("runs/finetune/*/config.yaml")
    return yaml.safe_load(path.read_text())


SMALL = [name for name in VARIANTS if not name.startswith("cct_14")]


@pytest.mark.parametrize(("arch", "reference"), [*((name, False) for name in SMALL), *((name, True) for name in SMALL if name.startswith("cct"))])
def test_a_network_is_read_off_its_tensors(arch, reference, tmp_path):
    variant, state = VARIANTS[arch], create_model(arch).state_dict()
    if reference:
        back = {"encoder.tokenizer.convs.": "tokenizer.conv_layers.", "encoder.blocks.": "classifier.blocks.", "mlp.fc1": "linear1",
                "pooling.score": "classifier.attention_pool", "encoder.pos_embed": "classifier.positional_emb"}  # fmt: skip
        for ours, theirs in back.items():
            state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
        state = {name.replace(".weight", ".0.weight") if "conv_layers" in name else name: tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    known = describe(open_weights(tmp_path / "weights.pth"))
    found = VARIANTS[known["model"].pop("arch")]
    for field in ("depth", "num_heads", "mlp_ratio", "embed_dim", "tokenizer", "kernel_size", "num_conv_layers"):
        assert getattr(found, field) == getattr(variant, field)
    assert known["model"] == {"pooling": variant.pooling, "position": variant.position, "residual_norm": None}
    assert known["data"] == {"in_chans": 3, "image_size": variant.image_size}


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_a_network_off_the_presets_is_read_off_its_tensors(pooling, tmp_path):
    shape = {"embed_dim": 96, "depth": 3, "num_heads": 6, "mlp_ratio": 1.5, "kernel_size": 5, "num_conv_layers": 2, "hidden_channels": 40}
    source = create_model("cct_2_3x2_32", pooling=pooling, image_size=28, in_chans=1, **shape)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    known = describe(open_weights(tmp_path / "weights.safetensors"), {"model.num_heads": "6"})
    same = {**known["model"], "pooling": pooling}  # a masked class token can't be told from a plain one
    model = create_model(
        **same, in_chans=known["data"]["in_chans"], image_size=known["data"]["image_size"], pretrained=tmp_path / "weights.safetensors"
    )
    assert known["data"]["image_size"] == 28
    assert known["model"]["pooling"] == ("class_token" if "class_token" in pooling else pooling)  # what is made of it has no tensor
    assert not model.load_report.new
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), source.eval()(images))


def test_the_number_of_queries_comes_with_the_weights_and_leaves_with_the_pooling(tmp_path):
    source = create_model("cct_2_3x2_32", pooling="multi_query", num_queries=8)
    assert source.pooling.num_queries == 8
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    opened = open_weights(tmp_path / "weights.safetensors")
    about = {**dict.fromkeys(("image_size", "in_chans", "mean", "std")), "arch": "cct_2_3x2_32", "pooling": "multi_query", "num_queries": 8}
    ours = Opened(opened.name, opened.path, {**opened.content, KEY: {"model": about}})
    for found in (opened, ours):
        assert describe(found)["model"]["num_queries"] == 8
        assert describe(found, {"model.pooling": "mean"})["model"].get("num_queries") is None
    fewer = create_model("cct_2_3x2_32", pooling="multi_query", num_queries=4, pretrained=tmp_path / "weights.safetensors")
    assert fewer.load_report.new == ["pooling.queries", "pooling.v.weight"]


def test_the_published_weights_bring_their_normalisation(tmp_path):
    torch.save(create_model("cct_7_3x1_32_sine").state_dict(), tmp_path / "file.pth")
    known = describe(open_weights(tmp_path / "file.pth", "cct_7_3x1_32_sine_cifar10_5000epochs"))
    assert known["model"]["arch"] == PUBLISHED["cct_7_3x1_32_sine_cifar10_5000epochs"].arch
    assert known["data"]["mean"] == [0.4914, 0.4822, 0.4465]


def test_timm_brings_size_and_normalisation():
    known = describe("timm/vit_tiny_patch16_224")
    assert known["model"]["arch"] == "timm/vit_tiny_patch16_224"
    assert known["data"]["image_size"] == [224, 224]
    assert known["data"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="CCT_GOLDEN names no folder of golden vectors")
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_golden_files_with_other_classes_size_and_pooling(path, cct, photos, tmp_path):
    heads = ("--model.num_heads", 3) if "custom" in path.name else ()
    pooling = "seqpool" if path.name.startswith("vit") else "class_token"
    outcome = cct("finetune", photos, "--model.pretrained", path, "--data.image_size", 40, "--model.pooling", pooling, *heads, *QUICK)
    assert outcome.code == 0, outcome.err
    report = summary_of(tmp_path)["load_report"]
    assert report["format"] == "reference"
    assert {"head.bias", "head.weight"} <= set(report["new"])
    assert ("encoder.cls_token" in report["dropped"]) == path.name.startswith("vit")
    learned = not path.stem.endswith(("_nope", "_sine"))
    assert ("encoder.pos_embed" in report["resized"]) == learned
    assert "weights from" in outcome.out
    config = configuration_of(tmp_path)
    assert config["data"]["in_chans"] == (1 if "1ch" in path.name else 3)
    assert config["model"]["pooling"] == pooling


def test_a_run_s_checkpoint_brings_network_and_images(cct, photos, tmp_path):
    small = ("--data.per_class", 3, "--model.pooling", "map", "--model.residual_norm", "false", "--model.depth", 1)
    assert cct("fit", "-c", "digits", *small, *QUICK).code == 0
    (best,) = tmp_path.glob("runs/digits/*/checkpoints/best.ckpt")
    outcome = cct("finetune", photos, "--model.pretrained", best, *QUICK)
    assert outcome.code == 0, outcome.err
    config = configuration_of(tmp_path)
    trained = torch.load(best, weights_only=True)[KEY]["model"]
    for name in ("arch", "pooling", "residual_norm", "position", "depth"):
        assert config["model"][name] == trained[name]
    assert config["data"]["image_size"] == trained["image_size"]
    assert (config["data"]["in_chans"], config["data"]["mean"]) == (1, trained["mean"])
    report = summary_of(tmp_path)["load_report"]
    assert report["new"] == ["head.bias", "head.weight"]
    assert report["resized"] == {}
    assert any("the weights know other classes (0, 1, 2 and 7 more)" in note for note in report["notes"])


def test_flags_and_recipes_win_over_the_source(cct, photos, weights, tmp_path):
    Path("mine.yaml").write_text("data: {image_size: 40}\nmodel: {drop_path: 0.0}\n")
    outcome = cct("finetune", photos, "-c", "mine.yaml", "--model.pretrained", weights, "--data.in_chans", 1, *QUICK)
    assert outcome.code == 0, outcome.err
    config = configuration_of(tmp_path)
    assert (config["data"]["image_size"], config["data"]["in_chans"], config["model"]["arch"]) == (40, 1, "cct_2_3x2_32")
    assert set(summary_of(tmp_path)["load_report"]["resized"]) == {"encoder.pos_embed", "encoder.tokenizer.convs.0.weight"}


def test_a_run_without_weights_says_so_loudly(cct, photos, tmp_path):
    arch = ("--model.arch", "cvt_2_4_32", "--data.image_size", 32)
    outcome = cct("finetune", photos, *arch, *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("TRAINING FROM SCRATCH: no --model.pretrained is given.")
    assert "cct_7_3x1_32_cifar10_300epochs" in outcome.out
    (best,) = tmp_path.glob("runs/finetune/*/checkpoints/best.ckpt")
    again = cct("finetune", photos, *arch, *QUICK)
    assert str(best.relative_to(tmp_path)) in again.out  # what could be used
    asked = cct("finetune", photos, *arch, "--model.pretrained", "null", *QUICK)
    assert asked.out.startswith("training from scratch: --model.pretrained null\n")


def test_few_images_start_from_the_weights_inside(cct, photos, tmp_path):
    outcome = cct("finetune", photos, *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(
        f"weights: {INSIDE}, inside the package, at 64 pixels (12 images are few: up to 5,000); --model.pretrained null starts from nothing\n"
    )
    config, report = configuration_of(tmp_path), summary_of(tmp_path)["load_report"]
    assert (config["model"]["pretrained"], config["data"]["image_size"]) == (INSIDE, 64)
    assert config["model"]["arch"] == card(INSIDE)[0]["arch"]
    assert (report["source"], list(report["resized"])) == (INSIDE, ["encoder.pos_embed"])
    assert set(report["new"]) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("words", "found"), [
    ((), (INSIDE, "64")),
    (("--data.image_size", "48"), (INSIDE, "48")),
    (("--data.image_size", "[32, 64]"), (INSIDE, "[32, 64]")),
    (("--data.image_size", "65"), (None, "65")),
    (("--data.image_size", "128"), (None, "128")),
    (("--model.arch", "cct_2_3x2_32", "--model.pooling", "map", "--model.drop_path", "0.2"), (INSIDE, "64")),
    (("--model.arch", "cvt_2_4_32"), (None, 128)),
    (("--model.depth", "3"), (None, 128)),
    (("--model.whiten", "frozen"), (None, 128)),
    (("--model.whiten", "none", "--model.teacher", "null"), (INSIDE, "64")),
    (("--model.teacher", "small.pth"), (None, 128)),
    (("--model.pretrained", "null"), (None, 128)),
    (("--model.pretrained=null", "--data.image_size", "32"), (None, "32")),
    (("--model.pretrained", "small.pth"), ("small.pth", 128)),
    (("-c", "linear_probe"), (INSIDE, "64")),
    (("-c", "mine.yaml"), ("small.pth", 128)),
    (("-c", "large.yaml"), (None, 96)),
])  # fmt: skip
def test_the_weights_inside_are_taken_where_nothing_says_against_them(photos, weights, tmp_path, monkeypatch, words, found):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {pretrained: small.pth}\n")
    Path("large.yaml").write_text("data: {image_size: 96}\n")
    keys = prepare([str(photos), *words]).keys
    value = keys.get("model.pretrained")
    assert (None if value == "null" else value, keys["data.image_size"]) == found


@pytest.mark.parametrize(("words", "epochs", "every", "warmup"), [
    ((), "200", "6", "20"),  # of twelve, some are set aside, and the rest is a step
    (("--data.batch_size", "2"), "50", "1", "5"),
    (("--data.batch_size", "2", "--data.val_fraction", "0.3", "--model.schedule.warmup_epochs", "2"), "67", "2", "2"),
    (("--data.batch_size", "2", "--data.per_class", "2", "--trainer.check_val_every_n_epoch", "9"), "100", "9", "10"),
    (("--data.batch_size", "1"), 30, None, 3),
    (("--trainer.max_epochs", "30"), "30", None, 3),
    (("--trainer.max_steps", "5"), 30, None, 3),
    (("-c", "mine.yaml"), 7, None, 3),
])  # fmt: skip
def test_few_images_are_seen_more_often(photos, tmp_path, monkeypatch, words, epochs, every, warmup):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("trainer: {max_epochs: 7}\n")
    request = prepare([str(photos), *words])
    keys = request.keys
    found = (keys["trainer.max_epochs"], keys.get("trainer.check_val_every_n_epoch"), keys["model.schedule.warmup_epochs"])
    assert found == (epochs, every, warmup)
    assert (f"epochs: {epochs}, since 30 of" in request.told) == (every is not None)


def test_images_of_a_table_with_splits_are_counted_too(tmp_path):
    lines = ["path,label,split", *(f"{number}.png,{'ab'[number % 2]},train" for number in range(70)), "70.png,a,val"]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    for number in range(71):
        (tmp_path / f"{number}.png").touch()
    request = prepare([str(tmp_path / "mine.csv")])
    assert request.keys["trainer.max_epochs"] == "100"
    assert "epochs: 100, since 30 of 2 steps each would be few; --trainer.max_epochs N says otherwise" in request.told.splitlines()


def test_a_recipe_of_other_images_brings_all_but_these(photos, tmp_path):
    (tmp_path / "own.yaml").write_text("data: {dataset: cifar10, root: elsewhere, batch_size: 7}\n")
    keys = prepare([str(photos), "-c", str(tmp_path / "own.yaml"), "--data.crop_pct", "0.9"]).keys
    assert (keys["data.dataset"], keys["data.root"]) == ("image_folder", str(photos))
    assert (keys["data.batch_size"], keys["data.crop_pct"]) == (7, "0.9")


@pytest.mark.parametrize("kind", ["heap", "train", "csv"])
def test_many_images_are_trained_from_scratch_unless_small_ones_are_asked_for(photos, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    place, count = photos, 12
    if kind == "train":
        write_images(tmp_path / "split" / "val", 2, 6)
        place = write_images(tmp_path / "split" / "train", 2, 6).parent  # the training images count
    elif kind == "csv":
        place = tmp_path / "labels.csv"
        place.write_text("\n".join(["path,label", *(f"{file},{file.parent.name}" for file in photos.rglob("*.png"))]))
    for few in (count, count - 1):
        monkeypatch.setattr("cct_lightning.commands.finetune.FEW", few)
        assert prepare([str(place)]).keys.get("model.pretrained") == (INSIDE if few == count else None)
    small = prepare([str(place), "--data.image_size", "32"])
    assert small.keys["model.pretrained"] == INSIDE
    assert "at 32 pixels (images of 32 pixels are small: up to 64)" in small.told


@pytest.mark.parametrize("dataset", ["webdataset", "parquet"])
def test_files_of_many_images_do_as_well(cct, weights, tmp_path, monkeypatch, dataset):
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))
    place = pack(write_photos(tmp_path / "real", 6, 60), tmp_path / "packed")[dataset]
    assert cct("finetune", place, "--model.pretrained", weights, *QUICK).code == 0
    configuration = configuration_of(tmp_path)
    assert (configuration["data"]["dataset"], configuration["data"]["root"]) == (dataset, str(place))
    checked = cct("check", place)
    assert checked.code == 0
    assert "12 images" in checked.out
    assert f"cct finetune {place}" in checked.out
    best = next(tmp_path.glob("runs/finetune/*/checkpoints/best.ckpt"))
    assert "accuracy" in cct("test", best).out


def test_images_of_many_channels_do_as_well(cct, weights, tmp_path):
    source = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "bands" / f"class{label}").mkdir(parents=True)
        for number in range(6):
            values = source.integers(200, 900, (24, 30, 5)) + 400 * label
            np.save(tmp_path / "bands" / f"class{label}" / f"{number}.npy", values.astype(np.uint16))
    refused = cct("finetune", "bands", "--model.pretrained", weights, "--data.in_chans", 5, *QUICK)
    assert refused.code == 2
    assert "augment.policy=trivialaugment changes colours, which images of 5 channels have not: --data.augment.policy none" in refused.err
    words = ("--data.in_chans", 5, "--data.augment.policy", "none")
    refused = cct("finetune", "bands", "--model.pretrained", weights, *words, *QUICK)
    assert refused.code == 2
    assert "`cct check DATA --statistics --data.in_chans 5` measures them" in refused.err
    checked = cct("check", "bands", "--statistics", "--data.in_chans", 5)
    assert checked.code == 0
    measured = "data:" + checked.out.split("\ndata:")[1]
    (tmp_path / "measured.yaml").write_text(measured)
    low, high = yaml.safe_load(measured)["data"]["value_range"]
    assert (low, high) == (200, 1299)
    assert cct("finetune", "bands", "-c", "measured.yaml", "--model.pretrained", weights, *words[2:], *QUICK).code == 0
    best = next(tmp_path.glob("runs/finetune/*/checkpoints/best.ckpt"))
    assert torch.load(best, weights_only=True)["state_dict"]["model.encoder.tokenizer.convs.0.weight"].shape[1] == 5
    rows = cct("predict", best, "bands")
    assert rows.out.count(".npy,class") == 12
    exported = cct("export", best, "--format", "safetensors", "--out", tmp_path / "out", "--images", "bands")
    assert "compared on 12 images of bands" in exported.out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["cct_lightning"]["preprocessing"]["value_range"] == [200, 1299]
    assert cct("predict", tmp_path / "out", "bands").out == rows.out


def test_a_format_that_is_named_is_not_guessed(photos):
    """The archive that the photographs came in lay beside their folders: it was read, whatever data.dataset said."""
    (photos / "photos.tar").touch()
    assert prepare([str(photos), "--data.dataset", "image_folder"]).keys["data.dataset"] == "image_folder"


def test_a_table_of_labels_does_as_well(cct, photos, weights, tmp_path):
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in sorted(photos.rglob("*.png"))]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    options = ("--data.sampler", "balanced", "--model.loss.class_weights", "balanced")
    outcome = cct("finetune", "labels.csv", "--model.pretrained", weights, *options, *QUICK)
    assert outcome.code == 2  # the rare class would count most
    assert "data.sampler=balanced shows all classes equally often, and model.loss.class_weights=balanced would weigh them once more" in outcome.err
    outcome = cct("finetune", "labels.csv", "--model.pretrained", weights, *options[:2], *QUICK)
    assert outcome.code == 0, outcome.err
    assert configuration_of(tmp_path)["data"]["dataset"] == "csv"
    assert summary_of(tmp_path)["test_accuracy"] is not None


@pytest.mark.parametrize("pooling", ["seqpool", "mean"])
def test_the_road_over_features_gives_what_the_long_one_gives(cct, photos, weights, tmp_path, pooling, monkeypatch):
    options = ("-c", "linear_probe", "--model.pretrained", weights, "--model.pooling", pooling, "--trainer.precision", "32-true", *QUICK)
    options = (*options, "--trainer.max_epochs", 3)
    fast = cct("finetune", photos, *options)
    assert fast.code == 0, fast.err
    assert "features are computed once" in fast.out
    monkeypatch.setattr("cct_lightning.data.module.ImageDataModule.use_features", lambda self, encode: None)
    assert cct("finetune", photos, *options).code == 0
    states = [torch.load(path, weights_only=True)["state_dict"] for path in sorted(tmp_path.glob("runs/finetune/*/checkpoints/last.ckpt"))]
    assert len(states) == 2
    moved = create_model("cct_2_3x2_32", pooling=pooling, num_classes=5, pretrained=weights).state_dict()
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=0)
        if name.startswith("model.encoder."):
            assert torch.equal(tensor, moved[name.removeprefix("model.")])
    assert states[0]["model.head.weight"].any()
    measured = [json.loads(path.read_text())["test"] for path in sorted(tmp_path.glob("runs/finetune/*/summary.json"))]
    assert measured[0] == pytest.approx(measured[1], abs=1e-5)


def test_the_test_at_the_end_sees_views_only_where_asked_though_features_were_trained_on(cct, photos, weights, tmp_path):
    outcome = cct("finetune", photos, "-c", "linear_probe", "--model.pretrained", weights, "--tta", "mirror", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "features are computed once" in outcome.out
    assert "with the best weights, tta mirror: 2 forward passes an image\n" in outcome.out
    (path,) = tmp_path.glob("runs/finetune/*/checkpoints/best-image_folder-test/measures.json")
    assert json.loads(path.read_text())["tta"] == summary_of(tmp_path)["tta"] == configuration_of(tmp_path)["model"]["tta"] == "mirror"
    again = cct("test", path.parents[1] / "best.ckpt")
    assert again.code == 0, again.err
    assert (json.loads(path.read_text())["tta"], "tta mirror" in again.out) == ("none", False)  # a checkpoint does not ask for it


def test_augmentation_and_a_frozen_backbone_take_the_long_road(cct, photos, weights, tmp_path):
    outcome = cct("finetune", photos, "--model.pretrained", weights, "--model.freeze", "backbone", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "features are computed once" not in outcome.out
    before = torch.load(weights, weights_only=True)
    (last,) = tmp_path.glob("runs/finetune/*/checkpoints/last.ckpt")
    after = LitClassifier.load_from_checkpoint(last).model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder."))


def code_in_a_pickle(path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(path.parent / "ran"),))

    path.write_bytes(pickle.dumps({"state_dict": Evil()}))


def half(path):
    torch.save(create_model("cct_2_3x2_32").state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other(path):
    torch.save({"fc.weight": torch.zeros(3, 3)}, path)


def of_timm(path):
    torch.save({"patch_embed.proj.weight": torch.zeros(3, 3, 4, 4)}, path)


def wide(path):
    torch.save(create_model("cct_2_3x2_32", embed_dim=96, num_heads=3).state_dict(), path)


@pytest.mark.parametrize(("make", "words", "message"), [
    (half, (), r"can't be read as weights"),
    (code_in_a_pickle, (), r"holds more than tensors and plain values"),
    (other, (), r"holds no CCT, CVT or ViT-Lite by the names of its tensors \(fc\.weight"),
    (of_timm, (), r"give --model\.arch timm/NAME"),
    (wide, (), r"tokens of width 96, whose number of heads can't be read off the tensors: give --model\.num_heads N"),
    (None, ("--model.arch", "cct_4_3x2_32"), r"missing in the file: encoder\.blocks\.2"),
    (None, ("--data.image_size", 0), r"data\.image_size=0 is out of range"),
    (None, ("--model.arch", "cvt_2_4_32", "--data.image_size", 30), r"image_size=30 is not a multiple of patch_size=4"),
    (None, ("--model.kernel_size", 5), r"other shape: encoder\.tokenizer\.convs\.0\.weight"),
])  # fmt: skip
def test_weights_and_flags_that_do_not_fit_leave_nothing_behind(cct, photos, weights, tmp_path, make, words, message):
    if make:
        make(weights)
    outcome = cct("finetune", photos, "--model.pretrained", weights, *words, *QUICK)
    assert outcome.code == 2
    assert outcome.err.strip().splitlines()[-1]
    assert re.search(message, outcome.err), outcome.err
    assert len(outcome.err.strip().splitlines()) <= 7
    assert not list(tmp_path.glob("runs/*/*"))
    assert not (tmp_path / "ran").exists()


def empty(folder):
    folder.mkdir()


def one_class(folder):
    write_images(folder, 1, 3, 8)


def no_images(folder):
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()


@pytest.mark.parametrize(("make", "message"), [
    (None, "There is no folder or file place."),
    (empty, "place holds 0 class folder(s)"),
    (one_class, "place holds 1 class folder(s): class0000; at least two are needed"),
    (no_images, "place/a holds no image"),
    (lambda path: path.write_text("x"), "place is neither a folder of class folders nor a .csv"),
])  # fmt: skip
def test_a_place_without_images_is_refused(cct, tmp_path, make, message, weights):
    if make:
        make(tmp_path / "place")
    outcome = cct("finetune", "place", "--model.pretrained", weights, *QUICK)
    assert outcome.code == 2
    assert message in outcome.err
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize(("words", "message"), [
    ((), "finetune begins with your images: cct finetune DIR"),
    (("--data.root", "photos"), "finetune begins with your images"),
    (("photos", "--model.pretrained", "none.ckpt"), "There is no file none.ckpt."),
    (("photos", "--ckpt_path", "x.ckpt"), "finetune does not take --ckpt_path"),
    (("photos", "--model.pretrain", "x.ckpt"), "there is no key 'model.pretrain'. Did you mean model.pretrained"),
])  # fmt: skip
def test_a_way_of_calling_that_is_refused(cct, photos, words, message):
    outcome = cct("finetune", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_frozen_backbone_does_not_train_while_it_is_read(cct, photos, weights, monkeypatch):
    seen = []
    step, encode = LitClassifier.training_step, LitClassifier.encode

    def look(self):
        seen.append(any(part.training for part in self.model.encoder.modules()))

    monkeypatch.setattr(LitClassifier, "training_step", lambda self, *batch: look(self) or step(self, *batch))
    monkeypatch.setattr(LitClassifier, "encode", lambda self, images: (encode(self, images), look(self))[0])
    for options in (("-c", "linear_probe"), ("--model.freeze", "backbone")):
        assert cct("finetune", photos, *options, "--model.pretrained", weights, "--model.drop_path", 0.5, *QUICK).code == 0
    assert len(seen) > 3
    assert not any(seen)


def test_the_road_over_features_sees_the_centre_that_evaluation_sees(cct, photos, weights, tmp_path, monkeypatch):
    options = ("-c", "linear_probe", "--model.pretrained", weights, "--trainer.precision", "32-true", "--data.crop_pct", 0.8, *QUICK)
    assert cct("finetune", photos, *options).code == 0
    monkeypatch.setattr("cct_lightning.data.module.ImageDataModule.use_features", lambda self, encode: None)
    assert cct("finetune", photos, *options).code == 0
    fast, slow = (torch.load(path, weights_only=True)["state_dict"] for path in sorted(tmp_path.glob("runs/finetune/*/checkpoints/last.ckpt")))
    torch.testing.assert_close(fast["model.head.weight"], slow["model.head.weight"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("words", "message"), [
    (("-c", "linear_probe", "--model.pretrained", "null"), "model.freeze=backbone needs weights to keep"),
    (("-c", "linear_probe", "--model.pooling", "class_token", "--model.pretrained"), "would keep encoder.cls_pos_embed, encoder.cls_token at"),
    (("-c", "linear_probe", "--data.image_size_schedule", "[[16, 0.5]]", "--model.pretrained"), "leave data.image_size_schedule out"),
    (("--model.pretrained",), "model.pretrained is given without a value"),
])  # fmt: skip
def test_a_frozen_backbone_needs_weights(cct, photos, weights, words, message):
    value = (weights,) if words[-1] == "--model.pretrained" and len(words) > 1 else ()
    outcome = cct("finetune", photos, *words, *value, "--model.arch", "cct_2_3x2_32", *QUICK) if value or len(words) > 1 else cct(
        "finetune", photos, *words
    )  # fmt: skip
    assert outcome.code == 2
    assert message in outcome.err


def test_the_file_of_an_export_is_read_with_what_stands_beside_it(tmp_path):
    network = {"arch": "cct_2_3x2_32", "pooling": "masked_class_token", "residual_norm": False, "image_size": [32, 32], "in_chans": 3,
               "mean": [0.1] * 3, "std": [0.2] * 3, "num_classes": 10}  # fmt: skip
    save_file(create_model("cct_2_3x2_32", pooling="masked_class_token", residual_norm=False).state_dict(), tmp_path / "model.safetensors")
    about = {"weights": "model.safetensors", "sha256": sha256(tmp_path / "model.safetensors"), "model": network}
    about["preprocessing"] = {**{name: network[name] for name in ("image_size", "in_chans", "mean", "std")}, "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({KEY: {**about, "format": "safetensors", "class_names": None}}))
    assert describe(open_weights(tmp_path / "model.safetensors")) == describe(open_weights(tmp_path))
    assert describe(open_weights(tmp_path))["model"]["residual_norm"] is False
    assert describe(open_weights(tmp_path))["data"]["crop_pct"] == 0.9


def test_a_file_under_its_published_name_brings_its_normalisation(tmp_path):
    torch.save(create_model("cct_7_3x1_32").state_dict(), tmp_path / "cct_7_3x1_32_cifar10_300epochs.pth")
    assert describe(open_weights(tmp_path / "cct_7_3x1_32_cifar10_300epochs.pth"))["data"]["mean"] == [0.4914, 0.4822, 0.4465]


def test_a_flag_replaces_weights_that_are_gone(cct, photos, weights):
    Path("old.yaml").write_text("model: {pretrained: gone.ckpt}\n")
    assert "There is no file gone.ckpt" in cct("finetune", photos, "-c", "old.yaml", *QUICK).err
    assert cct("finetune", photos, "-c", "old.yaml", "--model.pretrained", weights, *QUICK).code == 0
