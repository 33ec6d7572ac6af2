import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_images
from sklearn.metrics import precision_recall_fscore_support

from cct_lightning import InputError
from cct_lightning.evaluation.outcomes import Outcomes, make_report
from cct_lightning.evaluation.tables import FILES, check_class_names, describe_report, write_report
from cct_lightning.tasks.classification import metrics

NAMES = ["ant", "bee", "cat"]


def outcomes(targets, predicted, probability=None):
    """Outcomes with given classes; the true class gets what is left of the probability."""
    targets, predicted = torch.tensor(targets), torch.tensor(predicted)
    probability = torch.full((len(targets),), 0.75) if probability is None else torch.tensor(probability)
    true = torch.where(targets == predicted, probability, 1 - probability)
    return Outcomes(torch.arange(len(targets)), targets, predicted, probability, true)


def random_outcomes(classes, n, absent=(), scale=3.0):
    """Logits and targets that agree more often than not, without images of the absent classes; as outcomes, too."""
    source = torch.Generator().manual_seed(classes)
    labels = torch.tensor([label for label in range(classes) if label not in absent])
    targets = labels[torch.randint(len(labels), (n,), generator=source)]
    logits = scale * (torch.randn(n, classes, generator=source) + 2 * torch.nn.functional.one_hot(targets, classes))
    return logits, targets, Outcomes.of(torch.arange(n), targets, logits)


def read(folder):
    """The files of a report: the measures, and the rows of each table."""
    tables = [list(csv.DictReader(io.StringIO((folder / name).read_text(encoding="utf-8")))) for name in FILES[1:]]
    return json.loads((folder / "measures.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")), *tables


def test_outcomes_keep_what_the_logits_say_and_are_joined_in_order():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    whole = Outcomes.of(torch.tensor([4, 2, 7]), torch.tensor([1, 2, 2]), logits)
    assert whole.predicted.tolist() == [1, 0, 2]
    probabilities = logits.softmax(1)
    torch.testing.assert_close(whole.probability, probabilities[[0, 1, 2], [1, 0, 2]])
    torch.testing.assert_close(whole.true_probability, probabilities[[0, 1, 2], [1, 2, 2]])
    parts = [Outcomes(*(values[rows] for values in whole)) for rows in ([2], [0, 1])]  # as two devices have them
    joined = Outcomes.join(parts)
    assert joined.indices.tolist() == [2, 4, 7]
    assert joined.targets.tolist() == [2, 1, 2]


def test_a_report_counted_by_hand():
    # ant: 4 images, 3 right, one taken for bee; bee: 2 images, both right; cat: 2 images, one taken for bee, one for ant
    report = make_report(
        outcomes([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 1, 0], [0.95, 0.95, 0.95, 0.62, 0.7, 0.7, 0.9, 0.42]),
        NAMES,
        [Path(f"{i}.png") for i in range(8)],
    )
    assert report.classes[0] == ("ant", 4, 3 / 4, 3 / 4, 6 / 8)
    assert report.classes[1] == ("bee", 2, 2 / 4, 1.0, 4 / 6)
    assert report.classes[2] == ("cat", 2, None, 0.0, 0.0)  # never predicted: there is no precision to speak of
    assert report.measures["accuracy"] == 5 / 8
    assert report.measures["f1"] == pytest.approx((6 / 8 + 4 / 6) / 3)
    assert report.confusions[:3] == [("ant", "ant", 3, 0.75), ("ant", "bee", 1, 0.25), ("bee", "bee", 2, 1.0)]
    assert report.confusions[3:] == report.most_confused[:2] == [("cat", "ant", 1, 0.5), ("cat", "bee", 1, 0.5)]
    assert report.most_confused[2:] == [("ant", "bee", 1, 0.25)]  # of equal numbers the larger share comes first
    assert [(m.image, m.file, m.true, m.predicted) for m in report.mistakes] == [
        (6, "6.png", "cat", "bee"), (3, "3.png", "ant", "bee"), (7, "7.png", "cat", "ant"),
    ]  # fmt: skip
    assert report.mistakes[0][4:] == pytest.approx((0.9, 0.1))

    filled = {round(bin.low * 15): bin for bin in report.calibration if bin.n}
    assert {number: bin.n for number, bin in filled.items()} == {6: 1, 9: 1, 10: 2, 13: 1, 14: 3}
    assert filled[14].confidence == pytest.approx(0.95)
    assert [bin.accuracy for bin in filled.values()] == [0.0, 0.0, 1.0, 0.0, 1.0]
    gaps = 0.42 + 0.62 + 2 * (1 - 0.7) + 0.9 + 3 * (1 - 0.95)
    assert report.measures["calibration_error"] == pytest.approx(gaps / 8)


@pytest.mark.parametrize(("classes", "absent"), [(2, ()), (3, (1,)), (102, (5, 77))])
def test_measures_are_those_of_torchmetrics_and_sklearn(classes, absent):
    logits, targets, whole = random_outcomes(classes, 500, absent, scale=1.0)
    report = make_report(whole, [f"class {i}" for i in range(classes)])
    expected = metrics(classes, "test/")
    expected.update(logits, targets)
    for name, value in expected.compute().items():
        if name != "test/top5":  # which outcomes can't tell
            assert report.measures[name.removeprefix("test/")] == pytest.approx(float(value), abs=1e-6), name
    precision, recall, f1, n = precision_recall_fscore_support(
        targets, logits.argmax(1), labels=range(classes), zero_division=np.nan
    )  # sklearn's NaN is our None
    for row, *values in zip(report.classes, precision, recall, f1, n, strict=True):
        ours = [np.nan if value is None else value for value in (row.precision, row.recall, row.f1)]
        assert [*ours, row.n] == pytest.approx(values, nan_ok=True), row.name
    assert sum(confusion.n for confusion in report.confusions) == 500
    assert report.calibration[-1].high == 1.0
    assert sum(bin.n for bin in report.calibration) == 500


def test_a_class_without_images_has_no_values_and_no_part_in_the_mean(tmp_path):
    report = make_report(outcomes([0, 0, 2], [0, 0, 2]), NAMES)
    assert report.classes[1] == ("bee", 0, None, None, None)
    assert report.measures["f1"] == 1.0
    write_report(report, tmp_path, {})
    _, classes, _, mistakes = read(tmp_path)
    assert classes[1] == {"name": "bee", "n": "0", "precision": "", "recall": "", "f1": ""}
    assert mistakes == []


def test_files_hold_all_and_no_nan(tmp_path):
    report = make_report(outcomes([0, 1, 1], [0, 0, 2], [0.9, float("nan"), 0.6]), NAMES, measured={"loss": float("nan"), "top5": 1.0})
    write_report(report, tmp_path, {"checkpoint": "best.ckpt", "data": {"root": Path("x")}})
    measures, classes, confusion, mistakes = read(tmp_path)
    assert measures["loss"] is None
    assert (measures["n"], measures["top5"], measures["accuracy"]) == (3, 1.0, pytest.approx(1 / 3))
    assert (measures["checkpoint"], measures["data"]) == ("best.ckpt", {"root": "x"})
    assert [bin["n"] for bin in measures["calibration"]][13] == 1
    assert sum(bin["n"] for bin in measures["calibration"]) == 3
    assert [row["name"] for row in classes] == NAMES
    assert confusion[2] == {"true": "bee", "predicted": "cat", "n": "1", "share": "0.500000"}
    assert [row["image"] for row in mistakes] == ["2", "1"]  # a probability that is none comes last
    assert mistakes[0] == {"image": "2", "file": "", "true": "bee", "predicted": "cat", "probability": "0.600000", "true_probability": "0.400000"}
    assert mistakes[1]["probability"] == ""
    assert "nan" not in "".join((tmp_path / name).read_text() for name in FILES).lower()


def test_measures_from_elsewhere_win_over_those_counted_here():
    assert make_report(outcomes([0, 1], [0, 0]), NAMES, measured={"accuracy": 0.5000001}).measures["accuracy"] == 0.5000001


def described(report):
    return describe_report(report, "test of pets: all", "my runs/best.ckpt", Path("my runs/best-pets-test"))


def test_two_classes_fit_on_a_screen():
    source = np.random.default_rng(0)
    targets, predicted = source.integers(0, 2, (2, 1000)).tolist()
    files = [Path(f"pets/test/{i}.jpg") for i in range(1000)]
    report = make_report(outcomes(targets, predicted, source.uniform(0.5, 1, 1000).tolist()), ["cat", "dog"], files, measured={"loss": 0.25})
    text = described(report)
    assert len(text.splitlines()) <= 25
    worst = report.mistakes[0]
    for part in (
        "test of pets: all\n", f"accuracy {100 * report.measures['accuracy']:.2f} %, F1 ", "loss 0.2500\n", f"{worst.file}\n",
        f"worst of {len(report.mistakes)} mistakes", "files  my runs/best-pets-test: measures.json, classes.csv, confusion.csv, mistakes.csv\n",
        "  cct predict 'my runs/best.ckpt' PATH...\n", "  cct export 'my runs/best.ckpt' --format onnx",
    ):  # fmt: skip
        assert part in text
    rows = text.splitlines()[3:6]
    assert rows[0].split() == ["class", "n", "precision", "recall", "F1"]
    assert len({len(row) for row in rows}) == 1  # aligned


def test_of_many_classes_the_worst_and_the_largest_are_printed():
    logits, targets, _ = random_outcomes(102, 3000, absent=(5,), scale=1.0)
    logits[:, 5] = -100.0  # neither there nor predicted: not among the worst
    names = [f"class {i}" for i in range(102)]
    report = make_report(Outcomes.of(torch.arange(3000), targets, logits), names)
    text = described(report)
    assert "the 10 classes with the lowest F1 and the 5 largest others; 87 more in classes.csv\n" in text
    shown = [line.split("  ")[1] for line in text.splitlines()[4:19]]
    assert "class 5" not in shown
    by_f1 = sorted((row for row in report.classes if row.f1 is not None), key=lambda row: row.f1)
    assert {row.f1 for row in report.classes if row.name in shown[:10]} == {row.f1 for row in by_f1[:10]}
    others = sorted((row.n for row in report.classes if row.name not in shown[:10]), reverse=True)
    assert [report.classes[names.index(name)].n for name in shown[10:]] == others[:5]
    assert all(f"image {mistake.image} of the data set" in text for mistake in report.mistakes[:5])


def test_names_are_cut_in_print_alone(tmp_path):
    long, odd = "a" * 30 + "b" * 30, "b\nee\udcff"
    report = make_report(outcomes([0, 1], [1, 1]), [long, odd], [Path("x\udcff.png"), Path("y.png")])
    text = described(report)
    assert f"  {'a' * 14}…{'b' * 13}  " in text  # both ends: names of one kind begin alike
    assert long not in text
    assert "b\\nee\\udcff" in text  # a name breaks no line, and bytes that are no text no terminal
    assert "x\\udcff.png" in text
    write_report(report, tmp_path, {})
    _, classes, _, mistakes = read(tmp_path)
    assert [row["name"] for row in classes] == [long, "b\nee\\udcff"]
    assert mistakes[0]["file"] == "x\\udcff.png"


@pytest.mark.parametrize(("predicted", "told"), [([0, 1, 2], "accuracy 100.00 %, F1 100.00 %"), ([1, 2, 0], "accuracy 0.00 %, F1 0.00 %")])
def test_all_right_and_all_wrong(predicted, told, tmp_path):
    report = make_report(outcomes([0, 1, 2], predicted), NAMES)
    text = described(report)
    assert told in text
    wrong = predicted != [0, 1, 2]
    assert ("\nmistakes\n" in text) == ("\nmost confused\n" in text) == wrong
    write_report(report, tmp_path, {})
    assert len(read(tmp_path)[3]) == 3 * wrong


@pytest.mark.parametrize(("known", "names", "message"), [
    (["ant", "bee"], ["ant", "cat"], "pets has other classes than x.ckpt: only the data has 'cat'; only the checkpoint has 'bee'.\n  Name data"),
    (["ant", "bee"], NAMES, "pets has other classes than x.ckpt (3 instead of 2): only the data has 'cat'.\n"),
    (NAMES, ["ant", "bee"], "pets has other classes than x.ckpt (2 instead of 3): only the checkpoint has 'cat'.\n"),
    (None, ["ant"], "pets has other classes than x.ckpt (1 instead of 3).\n"),
    (list("abcdefg"), list("hijklmn"), "only the data has 'h', 'i', 'j' and 4 more; only the checkpoint has 'a', 'b', 'c' and 4 more."),
    (["0", "1", "2", "10"], ["0", "1", "10", "2"], "in another order: class 2 is '10' there and '2' in the checkpoint.\n  Right answers would"),
])  # fmt: skip
def test_other_classes_are_refused(known, names, message):
    with pytest.raises(InputError) as error:
        check_class_names("x.ckpt", known, len(known or NAMES), names, "pets")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_the_same_classes_and_unknown_ones_pass():
    check_class_names("x.ckpt", NAMES, 3, tuple(NAMES), "pets")
    check_class_names("x.ckpt", None, 3, NAMES, "pets")


SHORT = ("--data.batch_size", 16, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
FOLDER = ("-c", "image_folder", "--data.image_size", 32, "--model.arch", "cct_2_3x2_32", "--data.augment.policy", "none", "--data.num_workers", 0)
QUIET = ("--trainer.enable_progress_bar", "false")


def trained(cct, tmp_path, *words):
    outcome = cct("fit", *words, *SHORT)
    assert outcome.code == 0, outcome.err
    return max(tmp_path.glob("runs/*/*/checkpoints/best.ckpt"))


@pytest.mark.parametrize(("cache", "folder"), [("auto", "test/"), ("none", "test/"), ("auto", "")])
def test_a_test_names_the_files_of_its_mistakes(cct, tmp_path, cache, folder):
    """Decoded images keep their names, those that are set aside from one heap as well, and every mistake is an image of its class."""
    for split in ("train", "val", "test") if folder else ("",):
        write_images(tmp_path / "pets" / split, 3, 5 if split else 25)
    best = trained(cct, tmp_path, *FOLDER, "--data.root", "pets", "--data.cache", cache)
    written = best.parent / "best-image_folder-test"
    fitted = {name: (written / name).read_text() for name in FILES}
    tested = cct("test", best.relative_to(tmp_path), *QUIET)
    assert tested.code == 0, tested.err
    assert {name: (written / name).read_text() for name in FILES} == fitted  # `cct fit` wrote the same at its end
    measures, classes, confusion, mistakes = read(written)
    assert (measures["n"], measures["checkpoint"], measures["split"], measures["data"]["root"]) == (15, "best.ckpt", "test", "pets")
    assert [(row["name"], row["n"]) for row in classes] == [(f"class{i:04d}", "5") for i in range(3)]
    assert sum(int(row["n"]) for row in confusion) == 15
    assert mistakes  # an epoch teaches little
    assert len(mistakes) == 15 - sum(int(row["n"]) for row in confusion if row["true"] == row["predicted"])
    for row in mistakes:
        assert row["file"].startswith(f"pets/{folder}{row['true']}/")
        assert Path(row["file"]).is_file()
    for part in ("test of pets: 15 images\n", f"files  {written.relative_to(tmp_path)}: measures.json", f"  {mistakes[0]['file']}\n"):
        assert part in tested.out


def test_a_validation_has_a_report_of_its_own_and_refuses_other_classes(cct, tmp_path):
    write_images(tmp_path / "pets", 3, 20)
    best = trained(cct, tmp_path, *FOLDER, "--data.root", "pets", "--data.val_fraction", 0.25)
    validated = cct("validate", best, *QUIET)
    assert "validation of pets: 12 images\n" in validated.out
    assert read(best.parent / "best-image_folder-val")[0]["n"] == 12
    limited = cct("test", best, "--data.batch_size", 5, "--trainer.limit_test_batches", 2, *QUIET)
    assert "test of pets: 8 of 12 images\n" in limited.out  # of three batches of four
    measures = read(best.parent / "best-image_folder-test")[0]
    assert (measures["n"], measures["split_size"]) == (8, 12)
    write_images(tmp_path / "other", 4, 20)
    outcome = cct("validate", best, "--data.root", "other")
    assert outcome.code == 2
    assert f"error: data.root=other has other classes than {best} (4 instead of 3): only the data has 'class0003'.\n" in outcome.err


def test_a_report_that_cannot_be_written_is_printed_all_the_same(cct, tmp_path):
    best = trained(cct, tmp_path, "-c", "digits", "--data.per_class", 10)
    for path in (folder := best.parent / "best-digits-test").iterdir():
        path.unlink()
    folder.rmdir()
    folder.touch()  # root may write into any folder, but nobody into a file
    outcome = cct("test", best, *QUIET)
    assert outcome.code == 0, outcome.err
    assert "test of digits: 359 images\n" in outcome.out
    assert f"files  none: {folder} can't be written (File exists)\n" in outcome.out
    assert "of digits\n" in outcome.out[outcome.out.index("mistakes\n") :]  # images of arrays are named by their index
    assert folder.read_bytes() == b""


def test_nothing_to_measure_is_refused(cct, tmp_path):
    best = trained(cct, tmp_path, "-c", "digits", "--data.per_class", 10)
    for words, message in (
        (("test", best, "--trainer.limit_test_batches", 0), "no image was measured: leave out trainer.limit_test_batches=0"),
        (("validate", best, "--data.val_fraction", 0), "there are no validation images: data.val_fraction=0 sets none aside"),
    ):
        outcome = cct(*words, *QUIET)
        assert outcome.code == 2
        assert message in outcome.err
