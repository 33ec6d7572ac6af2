import json
import math
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
from trained import write_checkpoint, write_export

import cct_lightning
from cct_lightning import InputError
from cct_lightning.inference.writers import FORMATS
from cct_lightning.weights.files import KEY, open_weights
from cct_lightning.weights.inspection import describe
from cct_lightning.weights.schema import FILES, LARGEST, MAX_BYTES, check_about
from cct_lightning.weights.trained import calibration_path

FROZEN = Path(__file__).parents[1] / "frozen"
WRONG = (None, True, -1, 0, 1.5, math.nan, math.inf, 10**400, "x", "", [], [[1]], {}, {"x": 1}, [None], ["a", 1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run says of itself, and its file."""
    path = shutil.copy(FROZEN / "ema.ckpt", tmp_path_factory.mktemp("schema") / "best.ckpt")
    return Path(path), torch.load(path, weights_only=True)


def names_of(tree, prefix=()):
    for name, value in tree.items():
        yield (*prefix, name)
        if isinstance(value, dict) and name not in ("versions", "augment", "callbacks"):
            yield from names_of(value, (*prefix, name))


def changed(tree, place, value):
    return {**tree, place[0]: changed(tree[place[0]], place[1:], value) if len(place) > 1 else value}


def without(tree, place):
    return {name: without(value, place[1:]) if name == place[0] else value for name, value in tree.items() if name != place[0] or len(place) > 1}


def is_short(error):
    return len(str(error).splitlines()) <= 5 and len(str(error)) < 600


def uses(opened):
    """Opens a network by the roads that take files of others; returns what was raised."""
    roads = (
        lambda: cct_lightning.load(opened, accelerator="cpu"),
        lambda: describe(opened),
        lambda: cct_lightning.create_model("cct_2_3x2_32", pretrained=opened, num_classes=10, embed_dim=8, in_chans=1),
    )
    raised = []
    for road in roads:
        try:
            road()
        except InputError as error:
            raised.append(str(error))
    return raised


def test_what_is_written_passes(whole):
    _, content = whole
    said = content[KEY]
    younger = {"hidden_channels": None, "num_queries": None}  # keys that are younger than the file
    assert check_about(said, "here") == {**said, "model": {**younger, **said["model"]}}
    for file in (FROZEN / "stopped" / "checkpoints").glob("*.ckpt"):
        open_weights(file)
    assert {name: about.file for name, about in FORMATS.items()} == FILES


def test_r10d_a_checkpoint_with_any_key_of_another_type_or_gone_ends_in_a_message(whole):
    path, content = whole
    about = content[KEY]
    tried = refused = 0  # a traceback fails the test
    for place in names_of(about):
        for variant in (*(changed(about, place, value) for value in WRONG), without(about, place)):
            tried += 1
            try:
                told = check_about(variant, str(path))
            except InputError as error:
                refused += is_short(error)
                continue
            if place[0] not in ("recipe", "versions") and place[:2] not in (("model", "optim"), ("model", "schedule"), ("model", "loss")):
                # what passes can be used, or is refused by name where it is
                uses(cct_lightning.weights.files.Opened(str(path), path, {**content, KEY: told}))
    assert tried > 2500
    assert refused > 700


@pytest.mark.parametrize(("place", "value", "message"), [
    (("model", "image_size"), [100000, 100000], "model.image_size=100000 is out of range: it is 0 to 4096 here"),
    (("model", "image_size"), [16, 16, 16], "model.image_size=[16, 16, 16] should be height and width, in pixels"),
    (("model", "num_classes"), 2**31, "model.num_classes=2147483648 is out of range: it is 0 to 1000000 here"),
    (("model", "embed_dim"), "8", "model.embed_dim is '8', and should be a whole number or nothing"),
    (("model", "arch"), None, "model.arch is None, and should be text"),
    (("model", "optim"), {"lr": "high"}, "model.optim is a dict, and should be its group of keys"),
    (("class_names",), [1, 2], "class_names is a list, and should be a list, each item text or nothing"),
    (("mean",), [math.nan], "mean is a list, and should be a list, each item a finite number or nothing"),
    (("model", "std"), [0.0], "model.std=[0.0] should be one number for each channel, above 0"),
    (("recipe",), [1], "recipe is a list, and should be a dictionary"),
    (("recipe", "data"), None, "recipe.data is None, and should be a dictionary"),
])  # fmt: skip
def test_r10d_a_message_names_the_key(whole, tmp_path, place, value, message):
    _, content = whole
    torch.save({**content, KEY: changed(content[KEY], place, value)}, tmp_path / "a.ckpt")
    with pytest.raises(InputError) as caught:
        cct_lightning.load(tmp_path / "a.ckpt")
    assert str(caught.value).startswith(f"{tmp_path / 'a.ckpt'}: cct_lightning.{message}")


def test_r10d_no_memory_is_taken_for_a_network_that_the_file_does_not_hold(tmp_path):
    began = time.process_time()
    for changes in (
        {"num_classes": LARGEST["num_classes"], "embed_dim": 65536},
        {"image_size": [4096, 4096], "embed_dim": 4096},
        {"depth": 1000, "embed_dim": 8192},
        {"head_hidden_dim": 10**5, "embed_dim": 8192},
        {"mlp_ratio": 1000, "embed_dim": 8192},
    ):
        path = write_checkpoint(tmp_path / "a.ckpt")
        content = torch.load(path, weights_only=True)
        about = content[KEY]
        about["model"] |= {**changes, "class_names": None}
        about["class_names"] = None
        torch.save(content, path)
        with pytest.raises(InputError, match=r"a\.ckpt describes a network of [\d,]{10,} weights, and holds [\d,]+: a size is wrong"):
            cct_lightning.load(path)
    assert time.process_time() - began < 20


def test_r10d_a_json_that_is_deep_long_or_none_is_refused(tmp_path, cct):
    folder = write_export(tmp_path / "export", write_checkpoint(tmp_path / "best.ckpt"))
    config, calibration = folder / "config.json", calibration_path(tmp_path / "best.ckpt")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    deep = "[" * 100_000 + "]" * 100_000
    nested = json.dumps({KEY: {**json.loads(config.read_text())[KEY], "versions": json.loads("[" * 40 + "]" * 40)}})
    for text, told in (
        (deep, "it is nested too deeply"),
        (f'{{"cct_lightning": {deep}}}', "it is nested too deeply"),
        (nested, "nested deeper than 16 levels"),
        ("[" + "1," * MAX_BYTES + "1]", "larger than 32 MB"),
        ("\0" * 100, "can't be read as JSON"),
        ("", "can't be read as JSON"),
        ("7" * 10**5, "can't be read as JSON"),
        ("null", "lacks the key cct_lightning"),
    ):
        config.write_text(text)
        for words in (("predict", "export", "photos"), ("finetune", "photos", "--model.pretrained", "export")):
            outcome = cct(*words)
            assert outcome.code == 2
            assert "Traceback" not in outcome.err
        with pytest.raises(InputError, match=told):
            cct_lightning.load(folder)
        calibration.write_text(text)
        with pytest.raises(InputError, match=r"best\.calibration\.json can't be read as a temperature"):
            cct_lightning.load(tmp_path / "best.ckpt")
        calibration.unlink()


def test_r10d_a_dictionary_that_names_itself_ends(whole):
    about = dict(whole[1][KEY])
    about["versions"] = about
    with pytest.raises(InputError, match="nested deeper than 16 levels"):
        check_about(about, "here")
    laughs: list = ["ha"] * 10
    for _ in range(12):
        laughs = [laughs] * 10
    check_about({**whole[1][KEY], "versions": laughs}, "here")


def test_r10d_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = write_checkpoint(tmp_path / "best.ckpt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name) if not name.endswith("/0") else b"\0" * 10**8)
    assert (tmp_path / "bomb.ckpt").stat().st_size < 2 * 10**6
    with pytest.raises(InputError, match=r"bomb\.ckpt holds compressed parts, which torch\.save never writes"):
        cct_lightning.load(tmp_path / "bomb.ckpt")


def test_r10d_a_tensor_of_terabytes_that_holds_one_number_is_refused(tmp_path):
    torch.save({"state_dict": {"model.head.weight": torch.zeros(1).expand(10**6, 10**7)}}, tmp_path / "a.ckpt")
    began = time.process_time()
    with pytest.raises(InputError, match=r"model\.head\.weight has 10,000,000,000,000 numbers and holds fewer"):
        open_weights(tmp_path / "a.ckpt")
    assert time.process_time() - began < 5
