import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pictures import write_images
from trained import NAMES, write_checkpoint, write_export

import cct_lightning
from cct_lightning.commands.embed import HELP, OPTIONS, write_features
from cct_lightning.inference.predictor import Embedding, Predictor

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def files(cct, tmp_path):
    """best.ckpt and photos/class000{0,1,2}/{0..3}.png in the working folder."""
    write_checkpoint(tmp_path / "best.ckpt", recipe=False)
    return sorted(str(file.relative_to(tmp_path)) for file in write_images(tmp_path / "photos", 3, 4).rglob("*.png"))


def arrays(path):
    with np.load(path) as found:  # pickles are refused
        return dict(found)


def test_a_file_holds_what_python_computes_whatever_the_batch(cct, tmp_path, files):
    opened = cct_lightning.load("best.ckpt")
    expected, predictions = opened.embed(files), list(opened.predict(files))
    for size in (1, 3, 32):
        outcome = cct("embed", "best.ckpt", "photos", "--out", f"{size}.npz", "--data.batch-size", size)
        assert outcome.code == 0, outcome.err
        found = arrays(tmp_path / f"{size}.npz")
        np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-5)
        assert found["features"].dtype == np.float32
        assert found["paths"].tolist() == files
        assert found["class_names"].tolist() == NAMES
        assert [NAMES[label] for label in found["predicted"]] == [p.class_name for p in predictions]
        np.testing.assert_allclose(found["probability"], [p.probability for p in predictions], atol=1e-5)
        assert found["bad_paths"].shape == found["errors"].shape == (0,)
    assert "12 image(s), none bad, " in outcome.out
    assert f"written to 32.npz: features of {expected.shape[1]} numbers" in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if "in Python: " in line]
    import_, load = line.partition("in Python: ")[2].split("; ")
    space = {}
    exec(import_, space)
    np.testing.assert_array_equal(eval(load, space), found["features"])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_r19_what_is_no_regular_file_is_named_apart_and_so_is_what_is_too_large(cct, tmp_path, files):
    os.mkfifo(tmp_path / "photos" / "x.png")
    PIL.Image.new("L", (400, 300)).save(tmp_path / "photos" / "z.png")
    assert cct("embed", "best.ckpt", "photos", "--out", "a.npz", "--data.max_megapixels", 0.1).code == 0
    found = arrays(tmp_path / "a.npz")
    assert found["bad_paths"].tolist() == ["photos/x.png", "photos/z.png"]
    assert [str(error)[:20] for error in found["errors"]] == ["is no regular file", "has 0.12 megapixels,"]


def test_files_that_can_not_be_read_are_named_apart(cct, tmp_path, files):
    (tmp_path / files[4]).write_text("none")
    outcome = cct("embed", "best.ckpt", "none.png", "photos", "--out", "a.npz")
    assert outcome.code == 0, outcome.err
    found = arrays(tmp_path / "a.npz")
    assert found["paths"].tolist() == [file for file in files if file != files[4]]
    assert len(found["features"]) == len(found["predicted"]) == 11
    assert found["bad_paths"].tolist() == ["none.png", files[4]]
    assert found["errors"][0] == "there is no such file"
    assert "can't be read as an image" in found["errors"][1]
    assert "13 image(s), 2 of them bad (errors says why)" in outcome.out
    outcome = cct("embed", "best.ckpt", files[4], "--out", "b.npz")
    assert outcome.code == 1
    assert {name: values.shape[0] for name, values in arrays(tmp_path / "b.npz").items()} == {
        "features": 0, "paths": 0, "predicted": 0, "probability": 0, "class_names": 3, "bad_paths": 1, "errors": 1,
    }  # fmt: skip


def test_the_same_images_give_the_same_bytes(cct, tmp_path):
    for name in ("a", "b"):
        cct("embed", "best.ckpt", "photos", "--out", f"{name}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_flags_and_other_sources(cct, tmp_path, files):
    write_export(tmp_path / "export", tmp_path / "best.ckpt")
    words = ("--data.image_size=32", "--data.crop-pct", 0.5, "--trainer.accelerator", "cpu")
    assert cct("embed", "export", files[0], "--out", "a.npz", *words).code == 0
    expected = cct_lightning.load("best.ckpt", image_size=32, crop_pct=0.5, accelerator="cpu").embed(files[0])
    np.testing.assert_allclose(arrays(tmp_path / "a.npz")["features"], expected, rtol=1e-5, atol=1e-5)


def test_a_graph_has_no_features(cct, tmp_path):
    pytest.importorskip("onnxruntime")
    assert cct("export", "best.ckpt", "--format", "onnx", "--out", "graph").code == 0
    outcome = cct("embed", "graph", "photos", "--out", "a.npz")
    assert outcome.code == 2
    assert "graph/model.onnx is a graph (onnx): it computes logits and tells no features." in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "graph", "photos"]


def test_what_stops_it_leaves_the_old_file_and_nothing_beside_it(cct, tmp_path, files, monkeypatch):
    (tmp_path / "a.npz").write_text("mine")
    assert "error: --out a.npz exists" in cct("embed", "best.ckpt", "photos", "--out", "a.npz").err
    embeddings = Predictor.embeddings

    def stopped(error):
        def some(self, items):
            yield from list(embeddings(self, items))[:5]
            raise error

        monkeypatch.setattr(Predictor, "embeddings", some)
        return cct("embed", "best.ckpt", "photos", "--out", "a.npz", "--overwrite")

    outcome = stopped(KeyboardInterrupt())
    assert (outcome.code, outcome.out) == (130, "interrupted: a.npz was not written\n")
    assert "error: --out a.npz can't be written: No space left on device." in stopped(OSError(28, "No space left on device")).err
    assert (tmp_path / "a.npz").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "best.ckpt", "photos"]
    monkeypatch.setattr(Predictor, "embeddings", embeddings)
    assert cct("embed", "best.ckpt", "photos", "--out", "a.npz", "--overwrite").code == 0
    assert len(arrays(tmp_path / "a.npz")["features"]) == 12


def test_a_kill_leaves_the_old_file(tmp_path):
    (tmp_path / "a.npz").write_text("mine")
    program = """
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import PIL.Image
from cct_lightning.commands.embed import write_features

def endless():
    while True:
        yield SimpleNamespace(path="x.png", feature=np.zeros(1000, np.float32), label=0, probability=1.0)
        Path("begun").touch()

write_features(Path("a.npz"), endless(), ["a"])
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(CHECKOUT)})
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "a.npz").read_text() == "mine"


def test_memory_does_not_grow_with_the_features(tmp_path):
    feature, n = np.ones(1000, np.float32), 5000  # 20 MB
    tracemalloc.start()
    counts = write_features(tmp_path / "a.npz", (Embedding(f"{number}.png", feature * number, 0, 1.0) for number in range(n)), ["a"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == (n, 0, 1000)
    assert peak < 4e6
    np.testing.assert_array_equal(arrays(tmp_path / "a.npz")["features"][:, 0], np.arange(n))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None


def test_names_of_files_that_are_no_utf8(cct, tmp_path, files):
    odd = b"photos/\xe4.png".decode("utf-8", "surrogateescape")
    try:
        (tmp_path / odd).write_bytes((tmp_path / files[0]).read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert cct("embed", "best.ckpt", "photos", "--out", "a.npz").code == 0
    assert arrays(tmp_path / "a.npz")["paths"].tolist() == [*files, odd]


@pytest.mark.parametrize(("words", "message"), [
    ((), "embed needs a network and images: cct embed runs/"),
    (("best.ckpt",), "embed needs images, too: files, folders or globs, as in cct embed best.ckpt photos/"),
    (("none.ckpt", "photos", "--out", "a.npz"), "no file or folder none.ckpt."),
    (("best.ckpt", "photos"), "embed needs a file to write: --out features.npz"),
    (("best.ckpt", "photos", "--out", "a.csv"), "--out a.csv: features are written as NumPy's .npz, so the name ends in .npz."),
    (("best.ckpt", "photos", "--out", "none/a.npz"), "--out none/a.npz: there is no folder none."),
    (("best.ckpt", "none", "--out", "a.npz"), "none: there is no such file."),
    (("best.ckpt", "photos", "--top_k", "3"), "embed has no option --top_k."),
    (("best.ckpt", "photos", "--out"), "--out needs a value. `cct embed --help` says which."),
    (("best.ckpt", "photos", "-c", "digits"), "embed takes no recipe"),
    (("best.ckpt", "photos", "--trainer.max_epochs", "3"), "--trainer.max_epochs means nothing to embed: it is for trainings and tests."),
    (("best.ckpt", "photos", "--trainer.precision", "bf16"), "--trainer.precision=bf16: embed takes 32-true, bf16-mixed, 16-mixed."),
])  # fmt: skip
def test_what_can_not_be_done_is_said(cct, words, message):
    outcome = cct("embed", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_the_help_names_every_option_and_takes_no_torch():
    assert all(f"--{option} " in HELP for option in OPTIONS)
    program = (
        "import sys\nfrom cct_lightning.commands.embed import main\nfrom cct_lightning.errors import InputError\nmain(['--help'])\n"
        "try: main(['best.ckpt', 'none.png', '--out', 'a.npz'])\nexcept InputError as error: print(error)\n"
        "import json; print(json.dumps('torch' in sys.modules))"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(CHECKOUT)})
    assert "head_hidden_dim" in outcome.stdout.partition("KEY is one of")[2]
    assert outcome.stdout.splitlines()[-2].startswith("No image to classify. none.png: there is no such file.")
    assert json.loads(outcome.stdout.splitlines()[-1]) is False
