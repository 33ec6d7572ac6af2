import io
import json
import pickle
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import cct_lightning
from cct_lightning import InputError
from cct_lightning.weights.programs import read_weights
from cct_lightning.weights.sources import sha256

FROZEN = Path(__file__).parents[1] / "frozen" / "exports"
PROGRAM = FROZEN / "torch-export" / "model.pt2"


class Trap:
    def __reduce__(self):
        return (Path.mkdir, (Path("sprung"),))


def rewrite(change, compression=zipfile.ZIP_STORED):
    """Returns the frozen archive with parts changed: ``change`` takes a part's name behind the archive's, and its bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(PROGRAM) as archive, zipfile.ZipFile(out, "w", compression) as written:
        for name in archive.namelist():
            data = archive.read(name)
            written.writestr(name, change(name.partition("/")[2], data) or data)
    return out.getvalue()


def pickled_inputs(name, data):
    if name != "data/sample_inputs/model.pt":
        return None
    out = io.BytesIO()
    torch.save((Trap(),), out)
    return out.getvalue()


def expression(name, data):
    if name != "models/model.json":
        return None
    return data.replace(b"\"Symbol('s34', positive=True, integer=True)\"", b"\"__import__('os').mkdir('sprung')\"")


def pickled_weights(name, data):
    if name == "data/weights/weight_0":
        return pickle.dumps(Trap())
    return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1) if name.endswith("model_weights_config.json") else None


TRAPS = {"pickled inputs": pickled_inputs, "expression": expression, "pickled weights": pickled_weights}


def hostile_folder(folder, data, name="model.pt2", **about):
    """Writes an export whose config.json agrees with the archive in all that a checksum can tell."""
    folder.mkdir()
    (folder / name).write_bytes(data)
    whole = json.loads((FROZEN / "torch-export" / "config.json").read_text())
    whole["cct_lightning"] |= {"weights": name, "sha256": sha256(folder / name), **about}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def test_the_weights_are_those_that_the_graph_has():
    wanted = load_file(FROZEN / "safetensors" / "model.safetensors")
    given = read_weights(PROGRAM.read_bytes())
    assert wanted.keys() == given.keys()
    assert all(torch.equal(given[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("kind", TRAPS)
def test_r10a_no_code_of_a_hostile_archive_is_run(kind, tmp_path, monkeypatch, cct):
    data = rewrite(TRAPS[kind])
    (tmp_path / "control.pt2").write_bytes(data)
    with suppress(Exception):  # what the trap leaves behind is no number
        torch.export.load(tmp_path / "control.pt2")
    assert (tmp_path / "sprung").is_dir()  # torch's own reader runs it
    (tmp_path / "sprung").rmdir()

    export = hostile_folder(tmp_path / "export", data)
    (tmp_path / "photos").mkdir()
    PIL.Image.new("L", (16, 16)).save(tmp_path / "photos" / "a.png")
    for source in (export, export / "model.pt2"):
        refused = pytest.raises(InputError, match=r"model\.pt2 can't be read as weights: its weights are pickled")
        with refused if kind == "pickled weights" else nullcontext():
            cct_lightning.load(source, accelerator="cpu").predict(tmp_path / "photos" / "a.png")
    for words in (
        ("predict", "export", "photos"),
        ("predict", "export/model.pt2", "photos"),
        ("embed", "export", "photos", "--out", "a.npz"),
        ("export", "export", "--format", "onnx"),
        ("test", "export/model.pt2"),
        ("finetune", "photos", "--model.pretrained", "export"),
    ):
        outcome = cct(*words)
        assert "Traceback" not in outcome.err
        assert not (tmp_path / "sprung").exists(), words


@pytest.mark.parametrize(("name", "about"), [
    ("model.safetensors", {}), ("model.safetensors", {"format": "safetensors"}), ("model.safetensors", {"format": "timm"}),
    ("model.safetensors", {"format": "checkpoint"}), ("model.pt2", {"format": "safetensors"}), ("model.pt2", {"weights": "../model.pt2"}),
    ("model.pth", {}), ("model.onnx", {"format": "onnx"}),
])  # fmt: skip
def test_r10a_a_name_and_its_content_agree(name, about, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime")
    folder = hostile_folder(tmp_path / "export", rewrite(pickled_inputs), name, **about)
    for source in (folder, folder / name):
        with pytest.raises(InputError) as caught:
            cct_lightning.load(source)
        assert len(str(caught.value).splitlines()) <= 5
    assert not (tmp_path / "sprung").exists()


def test_r10a_a_checkpoint_of_another_name_is_no_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("best.ckpt", "weights.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(rewrite(pickled_inputs))
        with pytest.raises(InputError):
            cct_lightning.load(tmp_path / name)
        with pytest.raises(InputError):
            cct_lightning.create_model("cct_2_3x2_32", pretrained=tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def told(change):
    def rewritten(name, data):
        if not name.endswith("model_weights_config.json"):
            return None
        about = json.loads(data)
        change(about["config"]["head.bias"])
        return json.dumps(about).encode()

    return rewritten


@pytest.mark.parametrize("change", [
    lambda about: about["tensor_meta"].update(sizes=[{"as_int": 11}]),
    lambda about: about["tensor_meta"].update(sizes=[{"as_int": 10**12}]),
    lambda about: about["tensor_meta"].update(sizes=[{"as_int": -1}]),
    lambda about: about["tensor_meta"].update(sizes=[{"as_int": 10**12}], strides=[{"as_int": 0}]),
    lambda about: about["tensor_meta"].update(strides=[{"as_int": 10**9}]),
    lambda about: about["tensor_meta"].update(storage_offset={"as_int": 4}),
    lambda about: about["tensor_meta"].update(storage_offset={"as_int": -4}),
    lambda about: about["tensor_meta"].update(dtype=9),
    lambda about: about["tensor_meta"].update(sizes="x"),
    lambda about: about.update(tensor_meta=None),
    lambda about: about.update(path_name="../../byteorder"),
    lambda about: about.pop("use_pickle"),
])  # fmt: skip
def test_r10d_what_an_archive_says_of_its_weights_is_checked(change):
    with pytest.raises(ValueError, match=r"weights|damaged"):
        read_weights(rewrite(told(change)))


def test_r10d_a_compressed_archive_is_refused():
    with pytest.raises(ValueError, match="compressed, which torch never does"):
        read_weights(rewrite(lambda name, data: b"\0" * 10**7 if name == "data/weights/weight_0" else None, zipfile.ZIP_DEFLATED))


def test_archives_before_torch_2_9_keep_their_weights_in_one_file():
    out = io.BytesIO()
    torch.save({"head.weight": torch.ones(2, 3)}, out)

    def old(parts):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for name, part in parts.items():
                archive.writestr(f"model/{name}", part)
        return data.getvalue()

    assert torch.equal(read_weights(old({"data/weights/model.pt": out.getvalue()}))["head.weight"], torch.ones(2, 3))
    with pytest.raises(ValueError, match="its weights hold more than tensors"):
        read_weights(old({"data/weights/model.pt": pickle.dumps(Trap(), protocol=2)}))
    with pytest.raises(ValueError, match="holds no weights of one program"):
        read_weights(old({"models/model.json": "{}"}))
