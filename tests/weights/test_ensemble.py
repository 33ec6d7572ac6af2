import numpy as np
import pytest
import torch
from trained import write_checkpoint

import cct_lightning
from cct_lightning import InputError
from cct_lightning.inference.export import export
from cct_lightning.weights.ensemble import write_ensemble
from cct_lightning.weights.files import KEY
from cct_lightning.weights.teacher import open_teacher

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


@pytest.fixture
def members(tmp_path):
    paths = [write_checkpoint(tmp_path / f"fold{number}.ckpt") for number in range(2)]
    for number, path in enumerate(paths):
        content = torch.load(path, weights_only=True)
        source = torch.Generator().manual_seed(number)
        state = {name: t + torch.randn(t.shape, generator=source) * 0.1 * t.is_floating_point() for name, t in content["state_dict"].items()}
        content[KEY]["recipe"] = {"data": {"crop_pct": 0.9, "root": "photos", "fold": f"{number + 1}/2"}}
        torch.save({**content, "state_dict": state}, path)
    return paths


@pytest.fixture
def folds(members, tmp_path):
    folder = tmp_path / "folds"
    folder.mkdir()
    write_ensemble(folder / "ensemble.ckpt", members)
    return folder


def test_it_predicts_the_mean_of_what_its_networks_hold_probable(members, folds):
    wanted = np.mean([cct_lightning.load(path).probabilities(IMAGES) for path in members], axis=0)
    opened = cct_lightning.load(folds)
    np.testing.assert_allclose(opened.probabilities(IMAGES), wanted, atol=1e-6)
    assert opened.preprocessing.crop_pct == 0.9
    assert torch.load(folds / "ensemble.ckpt", weights_only=True)[KEY]["recipe"]["data"]["fold"] is None
    mirrored = np.mean([cct_lightning.load(path).probabilities(IMAGES, "mirror") for path in members], axis=0)
    np.testing.assert_allclose(opened.probabilities(IMAGES, "mirror"), mirrored, atol=1e-6)
    larger = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    resized = np.mean([cct_lightning.load(path, image_size=24).probabilities(larger) for path in members], axis=0)
    np.testing.assert_allclose(cct_lightning.load(folds, image_size=24).probabilities(larger), resized, atol=1e-6)


@pytest.mark.parametrize("format", ["safetensors", "torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_it_is_exported_as_one_network(folds, format):
    done = export(folds, format)
    assert done.folder == folds / "export" / format
    assert done.agreeing == done.num_images
    exported = cct_lightning.load(done.folder, accelerator="cpu")
    np.testing.assert_allclose(exported.probabilities(IMAGES), cct_lightning.load(folds, accelerator="cpu").probabilities(IMAGES), atol=1e-5)


def test_its_temperature_is_kept_beside_it(folds):
    opened = cct_lightning.load(folds)
    found = opened.calibrate(list(IMAGES), [0, 1, 2, 0, 1, 2])
    assert cct_lightning.load(folds).temperature == found.temperature != 1


def test_it_teaches(members, folds):
    teacher = open_teacher(str(folds))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([open_teacher(str(path)).logits(images).softmax(dim=1) for path in members]).mean(dim=0)
    torch.testing.assert_close(teacher.logits(images).softmax(dim=1), wanted)


def test_what_takes_one_network_says_so(folds, cct):
    with pytest.raises(InputError, match=r"ensemble\.ckpt is an ensemble of 2 networks, each with features of its own: give the run of a fold"):
        cct_lightning.load(folds).features(IMAGES)
    with pytest.raises(InputError, match="timm has no word for an ensemble of 2 networks"):
        export(folds, "timm")
    with pytest.raises(InputError, match=r"ensemble of 2 networks, and one is needed here: give the run of a fold"):
        cct_lightning.create_model("cct_2_3x2_32", image_size=16, num_classes=3, pretrained=folds / "ensemble.ckpt")
    assert "is an ensemble of 2 networks, and each of its images was seen by some of them" in cct("test", folds).err


@pytest.mark.parametrize(("members_said", "said"), [(3, "says that it holds 3 networks, and has no weights of number 3"), (10**6, "out of range")])
def test_a_changed_number_of_networks_is_refused(folds, members_said, said):
    content = torch.load(folds / "ensemble.ckpt", weights_only=True)
    content[KEY]["members"] = members_said
    torch.save(content, folds / "ensemble.ckpt")
    with pytest.raises(InputError, match=said):
        cct_lightning.load(folds)
