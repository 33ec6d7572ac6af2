import json
import pickle

import lightning as L
import numpy as np
import pytest
import torch
from pictures import write_images
from trained import NAMES, write_checkpoint, write_export

from cct_lightning import ImageDataModule, InputError, LitClassifier
from cct_lightning.data.options import Preprocessing
from cct_lightning.run_folder import find_network
from cct_lightning.weights.files import KEY, open_weights
from cct_lightning.weights.inspection import describe
from cct_lightning.weights.trained import build, read_saved


@pytest.fixture
def best(tmp_path):
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", data={"crop_pct": 0.5})


def test_preprocessing_survives_json():
    given = Preprocessing((16, 24), 3, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 0.875)
    assert Preprocessing.from_json(json.loads(json.dumps(given.to_json()))) == given


def test_a_run_and_its_folders_lead_to_the_best_checkpoint_else_the_last(best, tmp_path):
    last = write_checkpoint(best.with_name("last.ckpt"))
    for source in (best, best.parent, tmp_path / "run", str(tmp_path / "run")):
        assert find_network(source) == best
    best.unlink()
    assert find_network(tmp_path / "run") == last


def test_an_export_says_what_its_checkpoint_says(best, tmp_path):
    run, export = read_saved(best), read_saved(write_export(tmp_path / "export", best))
    for saved in (run, export):
        assert saved.class_names == NAMES
        assert Preprocessing.from_json(saved.preprocessing) == Preprocessing((16, 16), 3, [0.4] * 3, [0.2] * 3, 0.5)
        assert saved.model["arch"] == "cct_2_3x2_32"
    assert read_saved(tmp_path / "export" / "model.safetensors") == export


def test_without_recipe_and_names_the_whole_image_and_numbers(tmp_path):
    saved = read_saved(write_checkpoint(tmp_path / "a.ckpt", recipe=False, class_names=None))
    assert saved.preprocessing["crop_pct"] == 1.0
    assert saved.class_names == ["0", "1", "2"]


def test_a_checkpoint_of_a_script_knows_how_its_images_were_seen(tmp_path):
    write_images(tmp_path / "photos", 2, 6, 20)
    data = ImageDataModule("image_folder", tmp_path / "photos", image_size=16, batch_size=4, fit="pad", crop_pct=0.9, value_range=(0, 4095), seed=0)
    about = {"image_size": 16, "class_names": data.class_names, "num_classes": 2, "mean": data.mean, "std": data.std}
    module = LitClassifier("cvt_2_4_32", depth=1, **about)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    seen = {name: read_saved(tmp_path / "mine.ckpt").preprocessing[name] for name in ("fit", "crop_pct", "value_range")}
    assert seen == {"fit": "pad", "crop_pct": 0.9, "value_range": [0, 4095]}
    assert describe(open_weights(tmp_path / "mine.ckpt"))["data"].items() >= seen.items()


def test_what_is_built_takes_the_weights_of_the_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path / "a.ckpt", pooling="map", head_hidden_dim=8, position="none", depth=1)
    state = torch.load(path, weights_only=True)["state_dict"]
    network = build(json.loads(json.dumps(read_saved(path).model)))  # an export's values went through JSON
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    assert not network.training


def test_sources_that_are_none(best, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no file or folder .*none\.ckpt\."):
        read_saved(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="empty holds no network: neither a run's checkpoints"):
        read_saved(tmp_path / "empty")


def test_files_that_are_no_checkpoint_of_ours(best, tmp_path):
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(best.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"truncated\.ckpt can't be read as weights"):
        read_saved(truncated)
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth is no checkpoint of cct-lightning"):
        read_saved(tmp_path / "other.pth")
    content = torch.load(best, weights_only=True)
    content[KEY]["model"] = None
    torch.save(content, tmp_path / "own.ckpt")
    with pytest.raises(InputError, match=r"own\.ckpt was trained with a network of its own"):
        read_saved(tmp_path / "own.ckpt")


class Trap:
    def __reduce__(self):
        return (np.save, ("sprung.npy", np.zeros(1)))


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.ckpt").write_bytes(pickle.dumps({KEY: Trap()}))
    with pytest.raises(InputError, match=r"trap\.ckpt is damaged, or holds more than tensors"):
        read_saved("trap.ckpt")
    assert not (tmp_path / "sprung.npy").exists()


def test_an_export_whose_files_do_not_belong_together(best, tmp_path):
    folder = write_export(tmp_path / "export", best)
    weights, config = folder / "model.safetensors", folder / "config.json"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.safetensors is not the file that .*config\.json describes: its sha256 is [0-9a-f]{12}"):
        read_saved(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"config\.json describes model\.safetensors, which is not beside it"):
        read_saved(folder)
    weights.write_bytes(good)
    weights.with_name("other.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"describes model\.safetensors, not other\.onnx"):
        read_saved(folder / "other.onnx")
    config.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors has no config\.json beside it"):
        read_saved(weights)


@pytest.mark.parametrize(("text", "message"), [
    ("{", r"config\.json can't be read as JSON"),
    ("[]", r"config\.json lacks the key cct_lightning"),
    ('{"architecture": "vit_tiny"}', r"config\.json lacks the key cct_lightning"),
    ('{"cct_lightning": {"format": "onnx", "weights": "", "sha256": "", "model": {}, "preprocessing": {}}}', r"lacks cct_lightning\.class_names"),
])  # fmt: skip
def test_a_config_of_another_kind(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_saved(tmp_path)
