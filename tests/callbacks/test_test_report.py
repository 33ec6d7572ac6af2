import csv
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch
from cct_lightning.callbacks import TestReport, test_report
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pictures import write_images

from cct_lightning import ImageDataModule, InputError, LitClassifier
from cct_lightning.data.files import decode
from cct_lightning.data.sets import DATASETS
from cct_lightning.evaluation.drawings import _shown
from cct_lightning.evaluation.outcomes import Outcomes, make_report
from cct_lightning.evaluation.pictures import save_picture
from cct_lightning.runs.page import write_page

DRAWINGS = ("draw_confusion", "draw_reliability", "draw_classes", "draw_mistakes")
FLOWERS = [f"a long name of a flower number {number}" for number in range(102)]
CASES = {
    "two": ["ants", "bees"],
    "digits": list("0123456789"),
    "cifar10": list(DATASETS["cifar10"].class_names),
    "twenty": FLOWERS[:20],
    "102": FLOWERS,
}


def report_of(names, n=2000, scale=2.5, absent=None):
    """The report of random logits that favour the true class."""
    torch.manual_seed(0)
    k = len(names)
    targets = torch.randint(0, k, (n,))
    logits = torch.randn(n, k)
    logits[torch.arange(n), targets] += scale
    if absent is not None:
        targets[targets == absent], logits[:, absent] = (absent + 1) % k, -50.0
    return make_report(Outcomes.of(torch.arange(n), targets, logits), names)


def draw(name, report, images=None):
    if name != "draw_mistakes":
        return getattr(test_report, name)(report)
    return test_report.draw_mistakes(report, [np.zeros((8, 8, 3), np.uint8)] * min(24, len(report.mistakes)) if images is None else images)


def saved(folder, figure):
    path = save_picture(SimpleNamespace(default_root_dir=folder, loggers=[]), "drawn", figure)
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def boxes(figure, labels):
    FigureCanvasAgg(figure).draw()
    found = [label.get_window_extent() for label in labels if label.get_text()]
    return sorted((box.x0, box.x1, box.y0, box.y1) for box in found)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_is_cut(tmp_path, name, case):
    """A margin of white is left on each side, whatever the names are."""
    pixels = saved(tmp_path, draw(name, report_of(CASES[case])))
    for edge in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert (edge == 255).all()
    assert (pixels < 128).any()
    assert max(pixels.shape) < 1600  # a screen


@pytest.mark.parametrize("case", CASES)
def test_names_beside_the_confusion_matrix_and_the_bars_do_not_touch(case):
    for figure in (draw("draw_confusion", report_of(CASES[case])), draw("draw_classes", report_of(CASES[case]))):
        heights = sorted(box[2:] for box in boxes(figure, figure.axes[0].get_yticklabels()))
        assert len(heights) > 1
        assert all(low[1] <= high[0] for low, high in pairwise(heights))
    labels = draw("draw_confusion", report_of(CASES[case])).axes[0].get_xticklabels()
    if labels[0].get_rotation() != 45:
        widths = boxes(labels[0].figure, labels)
        assert all(left[1] <= right[0] for left, right in pairwise(widths))


def test_the_confusion_matrix_holds_shares_and_numbers():
    report = report_of(CASES["cifar10"], absent=3)
    axes = draw("draw_confusion", report).axes[0]
    shares = axes.images[0].get_array()
    numbers = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    names = CASES["cifar10"]
    assert numbers == {(names.index(c.true), names.index(c.predicted)): f"{c.n:,}" for c in report.confusions}
    assert np.allclose(shares.sum(axis=1), [row.n > 0 for row in report.classes])
    for c in report.confusions:
        assert shares[names.index(c.true), names.index(c.predicted)] == c.share
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert f"of {report.n:,} images right" in axes.get_title(loc="left")


def test_many_classes_have_a_heat_map_without_numbers_that_says_where_they_are():
    report = report_of(FLOWERS)
    axes = draw("draw_confusion", report).axes[0]
    assert [text.get_text() for text in axes.texts] == ["one class in 2 is named; the most frequent confusions are in confusion.csv"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [_shown(name) for name in FLOWERS[::2]]
    assert axes.images[0].get_array().shape == (102, 102)
    assert axes.images[0].norm(0.01) > 0.09  # a mistake of a hundred can be seen


def test_the_reliability_diagram_shows_the_bins():
    report = report_of(CASES["digits"])
    axes, below = draw("draw_reliability", report).axes
    told = {round(bar.get_x() + bar.get_width() / 2, 4): bar.get_height() for bar in axes.patches if bar.get_x() >= 0}
    expected = {round((bin.low + bin.high) / 2, 4): bin.accuracy for bin in report.calibration if bin.accuracy is not None}
    assert told == expected
    assert [bar.get_height() for bar in below.patches] == [bin.n for bin in report.calibration]
    pale = {round(bar.get_x() + bar.get_width() / 2, 4) for bar in axes.patches if bar.get_alpha() < 0.5 and bar.get_x() >= 0}
    assert pale == {round((bin.low + bin.high) / 2, 4) for bin in report.calibration if 0 < bin.n < 10}
    assert f"{100 * report.measures['calibration_error']:.2f} %" in axes.get_title(loc="left")


def test_classes_are_sorted_and_of_many_the_worst_and_the_best_are_shown():
    report = report_of(CASES["digits"], absent=4)
    axes = draw("draw_classes", report).axes[0]
    rows = sorted((row for row in report.classes if row.f1 is not None), key=lambda row: row.f1)
    assert [bar.get_width() for bar in axes.patches] == [row.f1 for row in rows]
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.name for row in rows]
    points = {collection.get_label(): collection.get_offsets()[:, 0].tolist() for collection in axes.collections}
    assert points == {"precision": [row.precision for row in rows], "recall": [row.recall for row in rows]}
    assert axes.get_xlabel() == "1 more: no image of the class, and none taken for it"
    report = report_of(FLOWERS)
    axes = draw("draw_classes", report).axes[0]
    rows = sorted((row for row in report.classes if row.f1 is not None), key=lambda row: row.f1)
    assert [bar.get_width() for bar in axes.patches] == [row.f1 for row in rows[:15] + rows[-15:]]
    assert "72 classes between these" in [text.get_text() for text in axes.texts]


def test_images_keep_colours_and_shape_in_the_grid(tmp_path):
    report = report_of(["ants", "bees"])
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    images = [np.full(shape, colour, np.uint8) for shape, colour in zip([(900, 300, 3), (20, 20, 3), (300, 900, 3)], colours, strict=True)]
    pixels = saved(tmp_path, test_report.draw_mistakes(report, images))
    places = [np.argwhere((np.abs(pixels - colour).max(axis=-1)) < 3) for colour in colours]
    sizes = [found.max(axis=0) - found.min(axis=0) + 1 for found in places]
    for (height, width), ratio in zip(sizes, (3, 1, 1 / 3), strict=True):
        assert height / width == pytest.approx(ratio, rel=0.05)
        assert max(height, width) == pytest.approx(1.4 * 120, abs=3)
    assert places[0][:, 1].max() < places[1][:, 1].min() < places[2][:, 1].min()
    grey = saved(tmp_path, test_report.draw_mistakes(report, [np.full((8, 8, 1), 77, np.uint8)]))
    assert ((np.abs(grey - 77)).max(axis=-1) == 0).sum() > 100**2


@pytest.mark.parametrize(("names", "lines"), [
    (["ants", "bees"], ["{true}", "→ {predicted}, {sure}"]),
    ([f"number {i} of the families of bees" for i in range(3)], ["{true}", "→ {predicted}", "{sure}"]),
])  # fmt: skip
def test_under_each_mistake_stands_what_it_was_and_what_it_was_taken_for(names, lines):
    report = report_of(names, n=300)
    axes = draw("draw_mistakes", report, [np.zeros((8, 8, 3), np.uint8)] * 2).axes[0]
    expected = []
    for mistake in report.mistakes[:2]:
        told = {"true": _shown(mistake.true, 20), "predicted": _shown(mistake.predicted, 18)}
        expected += [line.format(**told, sure=f"{100 * mistake.probability:.0f} %") for line in lines]
    assert [text.get_text() for text in axes.texts] == expected
    assert axes.get_title(loc="left") == f"Worst mistakes: 2 of {len(report.mistakes)}, the surest first"


def test_without_a_mistake_a_sentence_says_so(tmp_path):
    n = torch.arange(4)
    report = make_report(Outcomes(n, n % 2, n % 2, torch.ones(4), torch.ones(4)), ["ants", "bees"])
    figure = draw("draw_mistakes", report)
    assert [text.get_text() for text in figure.axes[0].texts] == ["None: all 4 images were classified right."]
    for name in DRAWINGS:
        saved(tmp_path, draw(name, report))


def test_names_are_no_formulas_and_break_no_line(tmp_path):
    names = ["costs $5 or $6", r"$\frac{$", "two\nlines", "x\udcff"]
    report = report_of(names, scale=0.5)
    for name in DRAWINGS:
        saved(tmp_path, draw(name, report))
    assert _shown("two\nlines") == "two\\nlines"
    plain, costs = (draw("draw_classes", report_of([name, "b"])).axes[0].get_yticklabels() for name in ("costs X5 or X6", "costs $5 or $6"))
    widths = [sorted(box[1] - box[0] for box in boxes(labels[0].figure, labels))[-1] for labels in (plain, costs)]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)  # a formula would be set in slanted letters, without the signs


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_network_that_diverged_is_drawn_all_the_same(tmp_path, name):
    n, nan = torch.arange(6), torch.full((6,), float("nan"))
    assert saved(tmp_path, draw(name, make_report(Outcomes(n, n % 3, n * 0, nan, nan), ["a", "b", "c"]))).std() > 0  # no empty sheet


SHORT = (
    "--data.batch_size", 16, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false", "--trainer.callbacks+=TestReport",
)  # fmt: skip
PICTURES = {"confusion.png", "reliability.png", "classes.png", "mistakes.png"}


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_run_has_its_pictures_and_its_page(cct, tmp_path, monkeypatch):
    """The images in the grid are those of the mistakes; `cct test` draws beside its tables, and leaves the run's own as they are."""
    for split in ("train", "val", "test"):
        write_images(tmp_path / "pets" / split, 3, 6, size=40)
    seen = []
    monkeypatch.setattr(test_report, "draw_mistakes", lambda report, images: seen.append((report, images)) or draw("draw_confusion", report))
    words = ("-c", "image_folder", "--data.image_size", 32, "--model.arch", "cct_2_3x2_32", "--data.augment.policy", "none", "--data.num_workers", 0)
    outcome = cct("fit", *words, "--data.root", "pets", *SHORT, "--trainer.callbacks.num_mistakes", 4)
    assert outcome.code == 0, outcome.err
    (run_dir,) = tmp_path.glob("runs/*/*")
    assert names_in(run_dir / "pictures") == PICTURES
    assert "summary.json, pictures, report.html, checkpoints/best.ckpt" in outcome.out
    assert "data:image/" in (run_dir / "report.html").read_text()
    tables = run_dir / "checkpoints" / "best-image_folder-test"
    with (tables / "mistakes.csv").open(newline="") as file:
        mistakes = list(csv.DictReader(file))
    ((report, images),) = seen
    assert len(images) == min(4, len(mistakes)) > 0
    for image, mistake in zip(images, mistakes, strict=False):
        assert np.array_equal(image, decode(tmp_path / mistake["file"], 3))
    assert [mistake.true for mistake in report.mistakes] == [mistake["true"] for mistake in mistakes]
    before = {path: path.stat().st_mtime_ns for path in (*(run_dir / "pictures").iterdir(), run_dir / "report.html")}
    tested = cct("test", tables.with_name("best.ckpt"), *SHORT[-3:])
    assert tested.code == 0, tested.err
    assert names_in(tables / "pictures") == PICTURES
    assert "confusion.csv, mistakes.csv, pictures\n" in tested.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_cannot_be_drawn_is_told_and_stops_nothing(cct, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no room\nfor it")

    monkeypatch.setattr(test_report, "draw_confusion", fails)
    with pytest.warns(UserWarning, match=r"^TestReport could not make pictures/confusion.png: no room$"):
        outcome = cct("fit", "-c", "digits", "--data.per_class", 10, *SHORT)
    assert outcome.code == 0, outcome.err
    (run_dir,) = tmp_path.glob("runs/*/*")
    assert names_in(run_dir / "pictures") == PICTURES - {"confusion.png"}
    assert "Not there or not readable: pictures/confusion.png." in (run_dir / "report.html").read_text()
    (tmp_path / "other" / "report.html").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"report.html could not be written: .*Is a directory"):
        write_page(tmp_path / "other")


def test_a_run_that_ends_without_a_test_has_a_page(cct, tmp_path):
    outcome = cct("fit", "-c", "digits", "--data.per_class", 10, *SHORT, "--trainer.limit_test_batches", 0)
    assert outcome.code == 0, outcome.err
    (run_dir,) = tmp_path.glob("runs/*/*")
    assert not (run_dir / "pictures").exists()
    assert "The test images were not looked at" in (run_dir / "report.html").read_text()
    assert "metrics.csv, summary.json, report.html" in outcome.out


def test_it_works_with_a_trainer_of_python_and_on_the_first_device_alone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = LitClassifier("cct_2_3x2_32", image_size=(16, 16), in_chans=1, mean=[0.3], std=[0.4])
    data = ImageDataModule("digits", image_size=16, batch_size=64, seed=0)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(callbacks=[TestReport()], default_root_dir=tmp_path, **quiet)
    trainer.test(module, data, verbose=False)
    assert names_in(tmp_path / "pictures") == PICTURES
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    second = SimpleNamespace(default_root_dir=tmp_path / "second", loggers=[], datamodule=data)
    TestReport().on_test_end(second, module)
    assert names_in(tmp_path) == {"pictures"}


def test_it_refuses_what_it_cannot_draw(cct, tmp_path):
    with pytest.raises(InputError, match="TestReport draws the test on an ImageDataModule, passed as datamodule"):
        TestReport().setup(SimpleNamespace(datamodule=None), LitClassifier("cct_2_3x2_32"), "fit")
    with pytest.raises(InputError, match="TestReport draws what came of each image, which LightningModule does not keep"):
        TestReport().setup(SimpleNamespace(datamodule=ImageDataModule("digits")), L.LightningModule(), "fit")
    outcome = cct("fit", "-c", "digits", *SHORT, "--trainer.callbacks.num_mistakes", 0)
    assert (outcome.code, outcome.err) == (2, "error: TestReport.num_mistakes=0 is out of range: it must be at least 1 and at most 120.\n")


def test_matplotlib_waits_until_something_is_drawn():
    code = "import sys, cct_lightning.runs.page; assert 'matplotlib' not in sys.modules and 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
