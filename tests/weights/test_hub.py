import json

import numpy as np
import PIL.Image
import pytest
from hub import TOKEN
from huggingface_hub import constants
from trained import NAMES, write_checkpoint, write_export

import cct_lightning
from cct_lightning import InputError, create_model
from cct_lightning.weights.hub import fetch
from cct_lightning.weights.sources import check_source, check_teacher, hub_parts
from cct_lightning.weights.teacher import open_teacher

SOURCE = "hf:me/pets"


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    checkpoint = write_checkpoint(folder / "best.ckpt")
    return checkpoint, write_export(folder / "export", checkpoint)


def changed(folder, place, **changes):
    """Copies an export whose config.json says something else."""
    place.mkdir()
    whole = json.loads((folder / "config.json").read_text())
    whole["cct_lightning"] |= changes
    (place / "config.json").write_text(json.dumps(whole))
    (place / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return place


def test_a_network_of_the_hub_is_the_one_that_was_put_there(hub, pets):
    checkpoint, export = pets
    commit = hub.put("me/pets", export)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    ours, theirs = (cct_lightning.load(source, accelerator="cpu") for source in (checkpoint, SOURCE))
    assert np.array_equal(ours.probabilities(images), theirs.probabilities(images))
    assert theirs.class_names == NAMES
    assert open_teacher(SOURCE).class_names == NAMES
    report = create_model("cct_2_3x2_32", num_classes=3, image_size=16, pretrained=SOURCE, class_names=NAMES).load_report
    assert (report.source, report.notes) == (SOURCE, [f"commit {commit} of the hub"])


def test_a_network_is_fetched_once_and_found_again_without_a_network(hub, pets, monkeypatch):
    commit = hub.put("me/pets", pets[1])
    path = fetch(SOURCE)
    assert {line.split("/")[-1] for line in hub.asked if line.startswith("GET")} == {"config.json", "model.safetensors"}
    hub.asked.clear()
    assert fetch(SOURCE) == fetch(f"{SOURCE}@{commit}") == path
    assert hub.asked == ["HEAD /me/pets/resolve/main/config.json"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch(SOURCE) == path
    assert len(hub.asked) == 1


def test_a_revision_stays_and_main_moves(hub, pets, tmp_path):
    before = hub.put("me/pets", pets[1])
    hub.put("me/pets", changed(pets[1], tmp_path / "new", class_names=["a", "b", "c"]))
    assert cct_lightning.load(SOURCE, accelerator="cpu").class_names == ["a", "b", "c"]
    assert cct_lightning.load(f"{SOURCE}@{before}", accelerator="cpu").class_names == NAMES


def test_a_private_one_is_found_with_a_token(hub, pets, monkeypatch):
    hub.put("me/pets", pets[1], private=True)
    with pytest.raises(InputError, match=r"(?s)has no repository me/pets, or it is private.*set HF_TOKEN"):
        fetch(SOURCE)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(SOURCE).is_file()


def test_what_can_not_be_had_says_why(hub, pets, monkeypatch):
    hub.put("me/pets", pets[1])
    with pytest.raises(InputError, match="me/pets has no revision v2"):
        fetch(f"{SOURCE}@v2")
    with pytest.raises(InputError, match="has no repository me/dogs"):
        fetch("hf:me/dogs")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"(?s)hf:me/dogs: it can't be had \(http://127.0.0.1:9 does not answer\).*copy the folder"):
        fetch("hf:me/dogs")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        fetch("hf:me/dogs")


@pytest.mark.parametrize(("changes", "message"), [
    ({"class_names": None}, "does not say what its classes are"),
    ({"preprocessing": {"image_size": [16, 16], "in_chans": 3, "mean": None, "std": None, "crop_pct": 1.0}}, "how images are normalised"),
    ({"format": "onnx", "weights": "model.onnx"}, r"holds model\.onnx and no safetensors"),
    ({"format": "safetensors", "weights": "weights.pkl"}, r"names 'weights\.pkl'"),
])  # fmt: skip
def test_a_network_that_does_not_say_what_it_is_is_refused_before_its_weights(hub, pets, tmp_path, changes, message):
    hub.put("me/pets", changed(pets[1], tmp_path / "changed", **changes))
    with pytest.raises(InputError, match=message):
        fetch(SOURCE)
    assert not [line for line in hub.asked if "model" in line or "pkl" in line]


def test_what_was_not_pushed_by_us_is_refused(hub, pets, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "pytorch_model.bin").write_bytes(b"a pickle")
    hub.put("me/bin", theirs)
    with pytest.raises(InputError, match=r"me/bin holds no config\.json"):
        fetch("hf:me/bin")
    (theirs / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    hub.put("timm/vit", theirs)
    with pytest.raises(InputError, match=r"(?s)is no network of cct-lightning.*--model\.pretrained timm/vit_tiny_patch16_224"):
        fetch("hf:timm/vit")
    (theirs / "config.json").write_bytes((pets[1] / "config.json").read_bytes())
    hub.put("me/half", theirs)
    with pytest.raises(InputError, match=r"me/half holds no model\.safetensors"):
        fetch("hf:me/half")
    assert not [line for line in hub.asked if ".bin" in line]


def test_weights_that_were_changed_are_refused(hub, pets, tmp_path):
    folder = changed(pets[1], tmp_path / "changed", sha256="0" * 64)
    hub.put("me/pets", folder)
    with pytest.raises(InputError, match="is not the file that"):
        cct_lightning.load(SOURCE)


@pytest.mark.parametrize(
    "source",
    ["hf:", "hf:me", "hf:me/", "hf:/etc/passwd", "hf:me/pets/x", "hf:me/pets@", "hf:me/pets@a b", "hf:../pets", "hf:me/a@..", "hf:me/a@/x"],
)
def test_names_that_are_none_are_refused_without_a_network(source):
    for check in (check_source, check_teacher):
        with pytest.raises(InputError, match=r"are named hf:OWNER/NAME, or hf:OWNER/NAME@REVISION"):
            check(source)
    assert hub_parts("hf:me/p.e-t_s@refs/pr/1") == ("me/p.e-t_s", "refs/pr/1")


def test_a_training_starts_from_the_hub_and_a_prediction_takes_it(hub, pets, cct, tmp_path):
    hub.put("me/pets", pets[1])
    run = cct("fit", "-c", "digits", "--model.pretrained", SOURCE, "--data.in_chans", 3, "--data.per_class", 8, "--trainer.max_steps", 1,
              "--data.batch_size", 8, "--trainer.limit_test_batches", 0)  # fmt: skip
    assert run.code == 0, run.err
    assert SOURCE in run.out  # what became of the weights
    failed = cct("fit", "-c", "digits", "--model.pretrained", "hf:me/none")
    assert failed.code == 2
    assert "has no repository me/none" in failed.err
    picture = tmp_path / "x.png"
    PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(picture)
    predicted = cct("predict", SOURCE, picture)
    assert predicted.code == 0, predicted.err
    assert cct("test", SOURCE).code == 2
