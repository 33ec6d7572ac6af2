import base64
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from cct_lightning.evaluation.outcomes import Outcomes, make_report
from cct_lightning.evaluation.rejection import Rejection
from cct_lightning.evaluation.tables import FILES, write_report
from cct_lightning.runs.page import write_html
from cct_lightning.runs.page_parts import TEST_PICTURES
from cct_lightning.weights.trained import write_rejection, write_temperature

NAMES = ["<script>alert(1)</script>", "a & b", "</pre>'\""]
SUMMARY = {
    "recipe": "pets", "arch": "cct_2_3x2_32", "pooling": "SeqPool", "val_accuracy": 0.875, "val_accuracy_last": 0.75, "test_accuracy": 0.8,
    "test": {"accuracy": 0.8, "f1": 0.7, "calibration_error": 0.05, "loss": 0.6}, "num_parameters": 276427, "flops_per_image": 16292352,
    "images_per_second": 1234.5, "seconds": 3725.0, "epochs": 3, "steps": 12, "best_checkpoint": "runs/pets/x/checkpoints/best.ckpt",
    "last_checkpoint": "runs/pets/x/checkpoints/last.ckpt", "device": "CPU, 1 thread(s)", "devices": 2, "seed": 7, "finished": True, "resumed": 1,
}  # fmt: skip
METRICS = """epoch,step,train/lr,train/loss_epoch,val/accuracy,val/loss,test/accuracy
0,3,,,0.5,1.0,
0,3,,2.0,,,
1,7,0.01,,0.875,0.5,
1,7,,1.5,,,
2,11,0.001,,0.75,0.6,
2,11,,1.25,,,
3,12,,,,,0.8
"""
CONFIG = """seed_everything: 7
trainer:
  precision: bf16-mixed
model:
  arch: cct_2_3x2_32  # </pre><script>
data:
  dataset: image_folder
  image_size: [32, 48]
"""


def write_picture(path, colour=(200, 200, 200), size=(240, 120)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)


@pytest.fixture
def run_dir(tmp_path):
    """A finished run's folder, as far as the page reads it."""
    folder = tmp_path / "runs" / "pets" / "20261120-070104"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "config.yaml").write_text(CONFIG)
    targets, predicted = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 2, 1, 1, 2])
    found = Outcomes(torch.arange(5), targets, predicted, torch.full((5,), 0.9), torch.full((5,), 0.05))
    report = make_report(found, NAMES, [Path(f"pets/<b>{i}.jpg") for i in range(5)])
    write_report(report, folder / "checkpoints" / "best-image_folder-test", {})
    for name in TEST_PICTURES:
        write_picture(folder / "pictures" / f"{name}.png")
    return folder


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what there is."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(set(ids)) == len(ids)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self):
        return [attributes["id"] for attributes in self.all("section")]


def page(folder):
    path = write_html(folder)
    assert path == folder / "report.html"
    return Page(path)


def test_a_run_on_one_page(run_dir):
    found = page(run_dir)
    assert found.sections == ["results", "curves", "test", "configuration"]
    for words in (
        "pets cct_2_3x2_32 · image_folder · 2026-11-20 07:01", "Test accuracy 80.00 % 5 images; 95 % interval 37.6 to 96.4 %",
        "Validation accuracy 87.50 % of the kept weights; last 75.00 %", "F1 70.00 %", "Calibration error 5.00 %", "Parameters 276,427",
        "16.3 MFLOPs per image", "image_folder, 32 × 48 px", "3 epochs, 12 steps", "1 h 02 min, 2 sittings", "1,234 images/s", "2 × CPU, 1 thread(s)",
        "Precision bf16-mixed", "Seed 7", "checkpoints/best.ckpt", f"torch {torch.__version__.split('+')[0]}", f"cct fit -c {run_dir}/config.yaml",
    ):  # fmt: skip
        assert words in found.text
    assert [attributes["aria-label"] for attributes in found.all("svg")] == ["Loss", "Validation accuracy", "Learning rate"]
    assert len(found.all("img")) == len(TEST_PICTURES)
    assert {(image["width"], image["height"]) for image in found.all("img")} == {("192", "96")}
    assert all(image["alt"] for image in found.all("img"))


def test_a_large_calibration_error_is_explained(run_dir):
    sure = SUMMARY | {"test": SUMMARY["test"] | {"calibration_error": 0.15}, "test_confidence": 0.95, "label_smoothing": 0.1, "steps": 9000}
    (run_dir / "summary.json").write_text(json.dumps(sure))
    told = page(run_dir).text
    assert "Calibration error 15.0 %: right in 80.0 %, sure to 95.0 % on average: too sure, as long trainings on few images make a network." in told
    assert "A temperature mends it: cct test runs/pets/x/checkpoints/best.ckpt --calibrate ." in told
    assert "A temperature" not in page_of(run_dir, sure | {"test_confidence": None})


def page_of(run_dir, summary):
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return page(run_dir).text


def test_nothing_comes_from_elsewhere_and_nothing_runs(run_dir):
    found = page(run_dir)
    assert not found.all("script")
    assert not found.all("link")
    assert all(image["src"].startswith("data:image/") for image in found.all("img"))
    outside = [value for _, attributes in found.elements for name, value in attributes.items() if value and "//" in value and name != "xmlns:xlink"]
    assert outside == []
    assert "url(" not in re.sub(r"url\(#", "", (run_dir / "report.html").read_text())
    assert any("default-src 'none'" in meta.get("content", "") for meta in found.all("meta"))


def test_names_are_shown_as_they_are_written(run_dir):
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"recipe": "<i>pets", "arch": "x</p><img src=1>"}))
    found = page(run_dir)
    for name in (*NAMES, "pets/<b>1.jpg", "arch: cct_2_3x2_32 # </pre><script>", "<i>pets", "x</p><img src=1>"):
        assert name in found.text
    assert len(found.all("img")) == len(TEST_PICTURES)


def test_tables_are_those_of_the_test(run_dir):
    text = page(run_dir).text
    first = "Each class, the worst first (3) class images precision recall F1"
    assert f"{first} {NAMES[0]} 2 100.0 % 50.0 % 66.7 % {NAMES[2]} 1 50.0 % 100.0 % 66.7 % {NAMES[1]} 2 100.0 % 100.0 % 100.0 %" in text
    assert f"Most frequent confusions (1) class taken for images of the class {NAMES[0]} {NAMES[2]} 1 50.0 %" in text
    assert f"Worst mistakes (1) class taken for image probability {NAMES[0]} {NAMES[2]} pets/<b>1.jpg 90.0 %" in text


@pytest.mark.parametrize(("missing", "words", "gone"), [
    ("summary.json", "There is no summary.json that can be read: the run is still going on, or was killed.", "test"),
    ("metrics.csv", "There is no metrics.csv with values: nothing was logged.", None),
    ("config.yaml", "There is no config.yaml: the command above has nothing to read.", None),
    ("pictures", "Not there or not readable: pictures/confusion.png, pictures/reliability.png, pictures/classes.png, pictures/mistakes.png.", None),
    ("pictures/mistakes.png", "Not there or not readable: pictures/mistakes.png.", None),
    ("checkpoints/best-image_folder-test", "The tables of the test are missing, or of a later one with other settings.", None),
    (".", "There is no metrics.csv with values", "test"),
])  # fmt: skip
def test_what_is_missing_is_told(run_dir, missing, words, gone):
    for path in run_dir.iterdir() if missing == "." else [run_dir / missing]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = page(run_dir)
    assert words in found.text
    assert (gone in found.sections) is False
    assert "configuration" in found.sections


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.csv", "config.yaml", "pictures/classes.png", "checkpoints/best-image_folder-test/measures.json"]
)
def test_damaged_files_are_as_good_as_missing(run_dir, name):
    (run_dir / name).write_bytes(b"\x00\xff{: damaged")
    assert "curves" in page(run_dir).sections


def test_an_interrupted_run_was_not_tested_whatever_an_earlier_sitting_left(run_dir):
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"finished": False, "test_accuracy": None, "test": {}}))
    found = page(run_dir)
    assert f"The run was interrupted after 3 epochs and 12 steps. cct resume {run_dir} goes on with it." in found.text
    assert "The test images were not looked at: a run that is interrupted is not tested." in found.text
    assert "Test accuracy – not measured" in found.text
    assert "test" not in found.sections
    assert not found.all("img")


def test_a_run_that_ends_inside_an_epoch_says_how_far_it_got(run_dir):
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"epochs": 0, "steps": 1610, "steps_per_epoch": 2000}))
    assert "0.8 epochs, 1,610 steps" in page(run_dir).text


def test_a_run_without_validation_or_test(run_dir):
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"val_accuracy": None, "val_accuracy_last": None, "test_accuracy": None, "test": {}}))
    (run_dir / "metrics.csv").write_text("epoch,step,train/loss_epoch\n0,3,2.0\n1,7,1.0\n")
    found = page(run_dir)
    assert "There was no validation" in found.text
    assert "there are no test images, or they were left out." in found.text
    assert [attributes["aria-label"] for attributes in found.all("svg")] == ["Loss"]
    assert "Not logged twice: the run has too few steps for trainer.log_every_n_steps" in found.text


def test_a_run_that_diverged(run_dir):
    lines = METRICS.replace(",1.5,", ",nan,").replace(",1.25,", ",inf,").replace("0.75,0.6", "0.75,nan")
    (run_dir / "metrics.csv").write_text(lines)
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"test": {"f1": math.nan, "calibration_error": math.inf}}))
    text = page(run_dir).text
    assert "The training loss was no number, first in epoch 2: the training diverged." in text
    assert "The validation loss was no number, first in epoch 3" in text
    assert "F1 –" in text
    (run_dir / "metrics.csv").write_text("epoch,step,train/loss_epoch\n0,3,nan\n")
    assert not page(run_dir).all("svg")


def test_raw_weights_are_shown_beside_the_average(run_dir):
    header, *rows = METRICS.splitlines()
    (run_dir / "metrics.csv").write_text("\n".join([f"{header},val/accuracy_raw", *(f"{row},{'0.625' if ',1.0,' in row else ''}" for row in rows)]))
    assert "without EMA 62.50 %" in page(run_dir).text
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | {"val_accuracy_raw": 0.5}))
    found = page(run_dir)
    assert "without EMA 50.00 %" in found.text
    assert "without EMA" in "".join(found.words[found.words.index("Validation accuracy", 20) :])


def test_what_other_callbacks_logged_is_drawn(run_dir):
    header, *rows = METRICS.splitlines()
    rows = [f"{row},{'0.9,0.2' if ',1.0,' in row else ','}" for row in rows]
    (run_dir / "metrics.csv").write_text("\n".join([f"{header},pooling/entropy,pooling/top10_share", *rows]))
    found = page(run_dir)
    assert [attributes["aria-label"] for attributes in found.all("svg")][3:] == ["Weights of the pooling"]
    assert "share of the top tenth" in found.text


def test_of_pictures_of_epochs_the_newest_is_open(run_dir):
    for epoch in (5, 10, 999, 1000):
        write_picture(run_dir / "pictures" / f"pooling-epoch{epoch:03d}.png")
    write_picture(run_dir / "pictures" / "batch.png")
    found = page(run_dir)
    told = found.text[found.text.index("Pictures of the training") :]
    assert [int(epoch) for epoch in re.findall(r"after epoch (\d+)", told)] == [1000, 999, 10, 5]
    assert told.index("The first training batch") < told.index("after epoch 1000") < told.index("3 earlier") < told.index("after epoch 999")


def test_the_page_stays_below_five_megabytes(run_dir):
    noise = np.random.default_rng(0)
    for epoch in range(6):
        pixels = noise.integers(0, 256, (900, 900, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(run_dir / "pictures" / f"pooling-epoch{epoch:03d}.png")
    found = page(run_dir)
    assert (run_dir / "report.html").stat().st_size < 5_000_000
    shown = len(found.all("img")) - len(TEST_PICTURES)
    assert 1 <= shown < 6
    assert f"{6 - shown} more in the folder pictures, such as pooling-epoch{5 - shown:03d}.png" in found.text


def test_pictures_keep_their_colours(run_dir):
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[:, :300], pixels[:, 300:] = (200, 30, 30), np.random.default_rng(0).integers(0, 256, (400, 300, 3))  # large enough to be packed
    PIL.Image.fromarray(pixels).save(run_dir / "pictures" / "mistakes.png")
    image = next(image for image in page(run_dir).all("img") if image["alt"] == "Worst mistakes")
    kind, data = image["src"].split(";base64,")
    assert kind == "data:image/webp"
    with PIL.Image.open(BytesIO(base64.b64decode(data))) as packed:
        assert np.abs(np.asarray(packed)[:, :280].astype(int) - (200, 30, 30)).max() <= 8


def test_the_same_folder_makes_the_same_page(run_dir):
    first = write_html(run_dir).read_bytes()
    assert write_html(run_dir).read_bytes() == first


def test_many_classes_are_folded_up(run_dir):
    n = 102
    report = make_report(
        Outcomes(torch.arange(n), torch.arange(n), torch.arange(n).roll(1), torch.ones(n), torch.zeros(n)), [f"c{i}" for i in range(n)]
    )
    write_report(report, run_dir / "checkpoints" / "best-image_folder-test", {})
    found = page(run_dir)
    assert not any("open" in attributes for attributes in found.all("details"))
    assert "Most frequent confusions (20 of 102)" in found.text
    assert sorted((run_dir / "checkpoints" / "best-image_folder-test").iterdir()) == sorted(
        run_dir / "checkpoints" / "best-image_folder-test" / name for name in FILES
    )


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize(("width", "scheme", "background"), [(1200, 1, (255, 255, 255)), (500, 0, (19, 23, 29))])
def test_a_browser_shows_it(run_dir, tmp_path, width, scheme, background):
    """Looks at the page in a window of a desk and of a phone, in light and in dark: pictures, curves and text are there, nothing sticks out."""
    colours = {"confusion": (250, 20, 20), "reliability": (20, 250, 20), "classes": (20, 20, 250), "mistakes": (250, 20, 250)}
    for name, colour in colours.items():
        write_picture(run_dir / "pictures" / f"{name}.png", colour)
    path = page(run_dir) and run_dir / "report.html"
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    browser += [f"--window-size={width},4000", f"--blink-settings=preferredColorScheme={scheme}"]
    picture = tmp_path / "page.png"
    subprocess.run([*browser, f"--screenshot={picture}", path.as_uri()], check=True, capture_output=True, timeout=60)
    with PIL.Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    for name, colour in colours.items():
        shown = (np.abs(pixels - colour).max(axis=-1) < 8).sum()
        assert shown > 8_000, name  # of the 240 x 120 pixels, made smaller
    assert (pixels[:, :4] == background).all()  # nothing sticks out on either side
    assert (pixels[:, -4:] == background).all()
    curve = (0, 114, 178) if scheme else (86, 180, 233)
    assert (np.abs(pixels - curve).max(axis=-1) < 8).sum() > 300
    done = subprocess.run([*browser, "--dump-dom", path.as_uri()], check=True, capture_output=True, timeout=60)
    for words in ('id="results"', 'id="curves"', 'id="test"', 'id="configuration"', "&lt;script&gt;alert(1)&lt;/script&gt;"):
        assert words in done.stdout.decode()


def test_what_a_checkpoint_answers_is_told(run_dir):
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    errors = ({"calibration_error": 0.2, "confidence": 0.6, "loss": 1.0}, {"calibration_error": 0.01, "confidence": 0.8, "loss": 0.9})
    write_temperature(checkpoint, 0.7, {"before": errors[0], "after": errors[1]})
    answered = {"n": 50, "coverage": 0.9, "accuracy": 0.95, "accuracy_of_all": 0.9}
    outliers = {"of": "elsewhere/digits", "n": 20, "answered": 0.25, "auroc": 0.875, "fpr95": 0.5}
    write_rejection(checkpoint, Rejection("energy", 3.5), {"kept": 0.95, "validation": answered, "test": answered, "outliers": outliers})
    page = write_html(run_dir).read_text()
    for told in (
        "<dt>Temperature</dt><dd>0.7; calibration error of the validation images 20.0 % → 1.0 %</dd>",
        "<dt>Answers none</dt><dd>where the energy is below 3.5, which 95 % of the right answers reach</dd>",
        "<dt>Answered, test</dt><dd>50 images, 90.00 % answered, of which 95.00 % right (of all 90.00 %)</dd>",
        "<dt>Outliers</dt><dd>digits: 20 outliers, 25.00 % answered; beside the test images AUROC 87.50 %",
    ):
        assert told in page
    checkpoint.write_bytes(b"other weights")  # which what was kept is not about
    assert "Answers none" not in write_html(run_dir).read_text()
