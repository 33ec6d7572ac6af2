import http.server
import shutil
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import cct_lightning
from cct_lightning import InputError, create_model
from cct_lightning.networks.presets import VARIANTS
from cct_lightning.weights.files import open_weights
from cct_lightning.weights.inspection import describe
from cct_lightning.weights.sources import PUBLISHED, card, check_source, download, find_source, inside, locate, sha256

NAME = "cct_7_3x1_32_cifar10_300epochs"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server on loopback in the place of SHI-Labs'; returns its folder and its address."""
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "site"
    (folder / "pretrained").mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_published_weights_are_of_networks_that_there_are():
    assert len(PUBLISHED) == 10
    assert {about.arch for about in PUBLISHED.values()} <= set(VARIANTS)


def test_a_download_is_made_once_and_its_sum_remembered(site, capsys):
    folder, address = site
    (folder / "pretrained" / f"{NAME}.pth").write_bytes(b"weights")
    path = download(NAME, address)
    digest = sha256(path)
    assert digest in capsys.readouterr().out
    assert path.with_suffix(".sha256").read_text() == f"{digest}  {NAME}.pth\n"
    (folder / "pretrained" / f"{NAME}.pth").unlink()
    assert download(NAME, address) == path == locate(NAME)
    assert capsys.readouterr().out == ""

    path.write_bytes(b"other weights")
    with pytest.raises(InputError, match=rf"{NAME}\.pth has changed since it was downloaded"):
        download(NAME, address)


def test_another_file_under_the_same_name_is_refused(site):
    folder, address = site
    (folder / "pretrained" / f"{NAME}.pth").write_bytes(b"weights")
    path = download(NAME, address)
    path.unlink()
    (folder / "pretrained" / f"{NAME}.pth").write_bytes(b"exchanged")
    with pytest.raises(InputError, match=rf"{NAME}\.pth is another file than before: its sha256 is"):
        download(NAME, address)
    assert list(path.parent.iterdir()) == [path.with_suffix(".sha256")]


def test_what_can_not_be_downloaded_says_why_and_where(site):
    with pytest.raises(InputError, match=rf"can't be downloaded \(File not found\).\n  From http://127.0.0.1.*/pretrained/{NAME}.pth\n  Where"):
        download(NAME, site[1])
    with pytest.raises(InputError, match="Connection refused"):
        download(NAME, "http://127.0.0.1:9")


def test_the_address_is_secure():
    from cct_lightning.weights.sources import URL

    assert URL.startswith("https://")


def test_a_run_stands_for_its_best_weights(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="a run without checkpoints"):
        locate(tmp_path / "run")
    for name in ("last", "best"):
        path = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        path.touch()
        assert locate(tmp_path / "run") == path


@pytest.mark.parametrize(("source", "message"), [
    ("nowhere.pth", r"There is no file nowhere\.pth\.( Beside it: .*)?\n  Weights come from a file"),
    ("cct_7_3x1_32_cifar10_30epochs", "Did you mean cct_7_3x1_32_cifar10_300epochs"),
    (f"{NAME}.pth", rf"no file {NAME}\.pth\. Published weights go by their name without \.pth, which downloads them: {NAME}\."),
    (".", "is a folder without weights"),
])  # fmt: skip
def test_what_is_no_source_says_what_is(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        check_source(source)


def test_files_beside_are_named(tmp_path):
    Path(tmp_path, "weights.safetensors").touch()
    with pytest.raises(InputError, match=r"Beside it: weights\.safetensors"):
        check_source(str(tmp_path / "weight.pth"))


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


def test_there_are_weights_inside():
    assert "cct_2_3x2_32_cifar10" in inside()
    assert not set(inside()) & set(PUBLISHED)


@pytest.mark.parametrize("name", inside())
def test_the_card_is_that_of_the_file(name):
    folder = inside()[name].parent
    assert {path.name for path in folder.iterdir()} == {"card.md", "config.json", "model.safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_500_000
    says, text = card(name)
    opened = open_weights(inside()[name])
    about = opened.about
    assert says["name"] == name
    assert says["sha256"] == about["sha256"] == sha256(folder / "model.safetensors")
    assert (says["arch"], says["classes"]) == (about["model"]["arch"], about["class_names"])
    assert says["parameters"] == sum(p.numel() for p in cct_lightning.load(name, accelerator="cpu").network.parameters())
    assert 1 / len(says["classes"]) < says["test_accuracy"] < 1
    assert {"recipe", "changed_keys", "seed", "steps", "test_images", "cpu_seconds", "licence"} <= says.keys()
    assert "## Data\n" in text
    assert f"{100 * says['test_accuracy']:.2f} %" in text


@pytest.mark.parametrize("name", inside())
def test_weights_inside_are_weights_as_any_without_a_network(name, no_network):
    check_source(name)
    says = card(name)[0]
    known = describe(open_weights(locate(name), name))
    assert known["model"]["arch"] == says["arch"]
    assert known["data"]["image_size"] == says["image_size"]
    assert known["data"]["mean"]
    network = {key: value for key, value in known["model"].items() if value is not None}
    model = create_model(**network, num_classes=2, image_size=64, pretrained=name, class_names=["ant", "bee"])
    report = model.load_report
    assert report.source == name
    assert set(report.resized) == {"encoder.pos_embed"}
    assert set(report.dropped) == set(report.new) == {"head.weight", "head.bias"}
    assert len(report.loaded) == len(model.state_dict()) - 2


@pytest.mark.parametrize("name", inside())
def test_weights_inside_predict_by_their_name(name, no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictor = cct_lightning.load(name, accelerator="cpu")
    assert predictor.class_names == card(name)[0]["classes"]
    height, width = predictor.preprocessing.image_size
    assert predictor.predict(np.zeros((height, width, 3), np.uint8)).class_name in predictor.class_names
    Path(name).mkdir()  # a folder of that name is what stands there
    with pytest.raises(InputError, match=f"{name} holds no network"):
        find_source(name)


def test_weights_inside_that_were_damaged_are_refused(tmp_path, monkeypatch):
    name = next(iter(inside()))
    shutil.copytree(inside()[name].parent, tmp_path / name)
    monkeypatch.setattr("cct_lightning.weights.sources.INSIDE", tmp_path)
    path = tmp_path / name / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for read in (lambda: open_weights(locate(name)), lambda: cct_lightning.load(name)):
        with pytest.raises(InputError, match=r"model\.safetensors is not the file that .*config\.json describes: its sha256 is"):
            read()
