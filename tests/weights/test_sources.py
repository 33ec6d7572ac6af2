import http.server
import threading
from pathlib import Path

import pytest

from cct_lightning import InputError
from cct_lightning.networks.presets import VARIANTS
from cct_lightning.weights.sources import PUBLISHED, check_source, download, locate, sha256

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
