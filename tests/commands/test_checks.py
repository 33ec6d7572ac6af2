import numpy as np
import PIL.Image
import pytest
import yaml

from cct_lightning import InputError
from cct_lightning.commands import checks
from cct_lightning.commands.checks import check_data, check_given, check_names, check_test_images, check_timm_weights, recipe_of


def folder(root, *splits, classes=("cat", "dog")):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / split / name / "1.png")
    return root


def table(root, *splits):
    folder(root, "all")
    rows = [f"all/{name}/1.png,{name},{split}" for split, name in zip(splits, ("cat", "dog"), strict=True)]
    (root / "images.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return root / "images.csv"


@pytest.mark.parametrize(("given", "message"), [
    ({"model.optim.name": "torch.optim.RAdam"}, r"optim\.name='torch\.optim\.RAdam' is no optimizer of timm [\d.]+ Did you mean radam"),
    ({"model.arch": "timm/vit_tinny_patch16_224"}, r"model\.arch=timm/vit_tinny_patch16_224: timm [\d.]+ has no network 'vit_tinny"),
    ({"model.pretrained": "timm/deit9"}, r"model\.pretrained=timm/deit9: timm [\d.]+ has no network 'deit9'"),
])  # fmt: skip
def test_names_that_timm_has_not_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        check_names(given)


def test_other_names_are_none_of_its_business():
    check_names({"model.optim.name": "AdamW", "model.arch": "cct_7_3x1_32", "model.pretrained": "weights.pth", "model.pooling": None})
    check_names({"model.optim.name": None, "model.arch": "timm/vit_tiny_patch16_224", "model.pretrained": "null"})


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty folders of downloads, and no server."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(checks, "reaches", lambda address: False)
    return tmp_path


TIMM = "timm/vit_tiny_patch16_224"


def test_timms_weights_need_a_network_or_an_earlier_download(caches, monkeypatch):
    given = {"model.pretrained": TIMM}
    with pytest.raises(InputError, match=rf"{TIMM}: the weights can't be had \(https://huggingface.co does not answer, and nothing was downloaded"):
        check_timm_weights(given)
    (caches / "hub" / "models--timm--vit_small_patch16_224.augreg_in1k").mkdir(parents=True)  # another network
    with pytest.raises(InputError, match="does not answer"):
        check_timm_weights(given)
    monkeypatch.setattr(checks, "reaches", lambda address: True)
    check_timm_weights(given)
    monkeypatch.setattr(checks, "reaches", lambda address: False)
    check_timm_weights({"model.pretrained": "weights.pth"})
    check_timm_weights({"model.arch": TIMM})  # without its weights


@pytest.mark.parametrize("place", [
    "hub/models--timm--vit_tiny_patch16_224.augreg_in21k", "hub/models--someone--anything", "torch/hub/checkpoints/weights.pth",
])  # fmt: skip
def test_what_may_have_been_downloaded_is_left_to_timm(caches, place):
    (caches / place).mkdir(parents=True)
    check_timm_weights({"model.pretrained": TIMM})


def test_a_hub_that_is_switched_off_is_told(caches, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and nothing was downloaded before"):
        check_timm_weights({"model.pretrained": TIMM})


def test_images_that_are_not_there_are_refused_as_the_data_module_does(tmp_path):
    from cct_lightning import ImageDataModule

    (tmp_path / "one" / "cat").mkdir(parents=True)
    for dataset, place in (("image_folder", "nowhere"), ("image_folder", "one"), ("csv", "nowhere.csv")):
        root = str(tmp_path / place)
        with pytest.raises(InputError) as ours:
            check_data({"data.dataset": dataset, "data.root": root})
        with pytest.raises(InputError) as theirs:
            ImageDataModule(dataset, root, image_size=8)
        assert str(ours.value) == str(theirs.value)


def test_images_that_are_there_and_other_data_sets_pass(tmp_path):
    check_data({"data.dataset": "image_folder", "data.root": str(folder(tmp_path / "a", "train", "val"))})
    check_data({"data.dataset": "csv", "data.root": str(table(tmp_path / "b", "train", "train"))})
    check_data({"data.dataset": "cifar10", "data.root": "/nowhere"})  # may be downloaded
    check_data({"data.dataset": "image_folder", "data.root": None})


@pytest.mark.parametrize(("splits", "options", "way"), [
    (("train", "val"), {}, ""), (("train", "val"), {"test_fraction": 0}, ""), (("train",), {"test_fraction": "0.0"}, "train with a share set aside"),
])  # fmt: skip
def test_a_test_needs_test_images_as_the_data_module_says(tmp_path, splits, options, way):
    from cct_lightning import ImageDataModule

    root = folder(tmp_path, *splits)
    with pytest.raises(InputError, match=f"has no test images: add a test folder, {way}") as ours:
        check_test_images({"data.dataset": "image_folder", "data.root": str(root), **{f"data.{key}": value for key, value in options.items()}})
    data = ImageDataModule("image_folder", str(root), image_size=4, val_fraction=0, **{key: float(value) for key, value in options.items()})
    data.setup("test")
    with pytest.raises(InputError) as theirs:
        data.test_dataloader()
    assert str(ours.value) == str(theirs.value)


def test_a_table_without_test_images_is_refused_too(tmp_path):
    given = {"data.dataset": "csv", "data.root": str(table(tmp_path, "train", "train"))}
    check_test_images(given)  # a share is set aside
    with pytest.raises(InputError, match="has no test images: add a test folder, train with a share set aside"):
        check_test_images({**given, "data.test_fraction": 0})


def test_test_images_that_are_there_or_set_aside_pass(tmp_path):
    check_test_images({"data.dataset": "image_folder", "data.root": str(folder(tmp_path / "a", "train", "test"))})
    check_test_images({"data.dataset": "image_folder", "data.root": str(folder(tmp_path / "b", "train"))})
    check_test_images({"data.dataset": "image_folder", "data.root": str(folder(tmp_path / "c", "train")), "data.test_fraction": "x"})
    check_test_images({"data.dataset": "digits", "data.root": "/nowhere"})


def test_the_run_of_a_checkpoint_says_what_is_not_given(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    assert recipe_of(str(checkpoint)) == {}
    root = folder(tmp_path / "photos", "train", "val")
    recipe = {"data": {"dataset": "image_folder", "root": "/elsewhere", "augment": {"flip": 0.5}}, "model": {"arch": "x"}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(recipe))
    assert recipe_of(str(checkpoint)) == {"data.dataset": "image_folder", "data.root": "/elsewhere", "data.augment.flip": 0.5}
    with pytest.raises(InputError, match=r"data\.root=/elsewhere is no folder on this machine"):
        check_given("test", {}, str(checkpoint))
    with pytest.raises(InputError, match="has no test images"):
        check_given("test", {"data.root": str(root)}, str(checkpoint))
    check_given("validate", {"data.root": str(root)}, str(checkpoint))
    (tmp_path / "run" / "config.yaml").write_text("data: [")
    assert recipe_of(str(checkpoint)) == {}


def test_a_fit_is_checked_whole():
    for key, value in (("model.optim.name", "adamx"), ("model.arch", "timm/vit9"), ("data.root", "/nowhere")):
        with pytest.raises(InputError):
            check_given("fit", {"data.dataset": "image_folder", key: value})
    check_given("fit", {"data.dataset": "digits", "model.optim.name": "adamw"})
