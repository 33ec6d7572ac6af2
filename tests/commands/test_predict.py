import csv
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import write_images
from trained import NAMES, write_checkpoint, write_export

import cct_lightning
from cct_lightning.commands.keys import known_keys
from cct_lightning.commands.predict import HELP, OPTIONS, main, network_keys
from cct_lightning.inference.predictor import Predictor

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def files(cct, tmp_path):
    """best.ckpt and photos/class000{0,1,2}/{0..3}.png in the working folder."""
    write_checkpoint(tmp_path / "best.ckpt")
    return sorted(str(file.relative_to(tmp_path)) for file in write_images(tmp_path / "photos", 3, 4).rglob("*.png"))


def read_csv(text):
    return list(csv.DictReader(text.splitlines(keepends=True)))


def test_rows_are_what_python_predicts(cct, tmp_path, files):
    outcome = cct("predict", "best.ckpt", "photos", "--out", "a.csv", "--top_k", 3)
    assert outcome.code == 0, outcome.err
    rows = read_csv((tmp_path / "a.csv").read_text())
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "error"]
    assert [row["path"] for row in rows] == files
    for row, prediction in zip(rows, cct_lightning.load("best.ckpt").predict(files, top_k=3), strict=True):
        assert row["class"] == prediction.class_name
        assert [row["class"], row["class_2"], row["class_3"]] == [name for name, _ in prediction.top]
        assert float(row["probability_3"]) == pytest.approx(prediction.top[2][1], rel=1e-5)
        assert row["error"] == ""
    assert {row["class"] for row in rows} <= set(NAMES)  # names with comma, quotes and line break came through
    assert "12 image(s), none bad, " in outcome.out
    assert "images/s on the CPU; written to a.csv\nnext\n  cct export best.ckpt --format onnx" in outcome.out

    assert cct("predict", "best.ckpt", "photos", "--out=a.jsonl", "--top_k=9").code == 0  # there are no more than three
    for line, row in zip((tmp_path / "a.jsonl").read_text().splitlines(), rows, strict=True):
        found = json.loads(line)
        assert (found["path"], found["class"]) == (row["path"], row["class"])
        assert [f"{each['probability']:.6g}" for each in found["top"]] == [row["probability"], row["probability_2"], row["probability_3"]]
        assert found["probability"] == found["top"][0]["probability"]


@pytest.mark.parametrize("tta", ["none", "shift"])
def test_rows_are_of_the_views_that_are_asked_for_and_their_cost_is_said(cct, tmp_path, files, tta):
    outcome = cct("predict", "best.ckpt", "photos", "--out", "a.csv", "--tta", tta)
    told = [f"{p.probability:.6g}" for p in cct_lightning.load("best.ckpt").predict(files, tta=tta)]
    assert [row["probability"] for row in read_csv((tmp_path / "a.csv").read_text())] == told
    assert ("images/s on the CPU, tta shift: 6 forward passes an image; written to a.csv" in outcome.out) == (tta == "shift")


def test_without_out_rows_go_to_the_screen_and_words_beside_them(cct, files):
    outcome = cct("predict", "best.ckpt", *files[:2])
    assert [row["path"] for row in read_csv(outcome.out)] == files[:2]
    assert "2 image(s), none bad" in outcome.err
    assert f"next\n  cct predict best.ckpt {files[0]} {files[1]} --out predictions.csv" in outcome.err
    lines = cct("predict", "best.ckpt", files[0], "--format", "jsonl").out.splitlines()
    assert [json.loads(line)["path"] for line in lines] == files[:1]


def test_the_next_command_keeps_what_was_asked_for(cct, tmp_path, files):
    words = ("--top-k", 2, "--data.crop-pct=0.5", "--data.image_size", "[16, 16]", "--trainer.accelerator", "cpu", "--model.position=learned")
    kept = "--top_k 2 --data.crop_pct 0.5 --data.image_size '[16, 16]' --trainer.accelerator cpu --model.position learned"
    tried = cct("predict", "best.ckpt", *files[:2], *words, "--format", "jsonl")
    assert f"next\n  cct predict best.ckpt {files[0]} {files[1]} {kept} --out predictions.jsonl\n" in tried.err
    write_export(tmp_path / "export", tmp_path / "best.ckpt")
    written = cct("predict", "export", *files[:2], *words, "--out", "a.csv")
    assert f"next\n  cct predict export PATH... --out a.csv {kept} --overwrite\n" in written.out
    assert "PATH... --out b.csv --top_k 3 --overwrite\n" in cct("predict", "export", *files[:2], "--out", "b.csv").out
    repeated = cct(*shlex.split(tried.err.partition("next\n  cct ")[2]))
    assert repeated.code == 0, repeated.err
    assert (tmp_path / "predictions.jsonl").read_text() == tried.out


def test_dashes_stand_for_underscores(cct, files):
    expected = cct("predict", "best.ckpt", files[0], "--top_k", 2, "--data.batch_size", 1).out
    assert cct("predict", "best.ckpt", files[0], "--top-k=2", "--data.batch-size", 1).out == expected
    assert "predict has no option --top-kk. Did you mean top_k?" in cct("predict", "best.ckpt", files[0], "--top-kk", 1).err


def test_a_bad_file_is_a_row_and_not_the_end(cct, tmp_path, files):
    (tmp_path / "photos" / "class0001" / "0.png").write_text("none")
    outcome = cct("predict", "best.ckpt", "none.png", "photos", "--out", "a.csv")
    assert outcome.code == 0
    rows = read_csv((tmp_path / "a.csv").read_text())
    assert [(row["path"], row["error"][:31]) for row in rows if row["error"]] == [
        ("none.png", "there is no such file"),
        (files[4], "can't be read as an image (cann"),
    ]
    assert all((row["class"] == "") == (row["error"] != "") for row in rows)
    assert "13 image(s), 2 of them bad" in outcome.out
    assert cct("predict", "best.ckpt", "none.png", "photos", "--out", "a.jsonl").code == 0
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0]) == {"path": "none.png", "error": "there is no such file"}
    assert cct("predict", "best.ckpt", files[4]).code == 1  # all of them


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_r19_what_is_no_regular_file_is_a_row_and_so_is_what_is_too_large(cct, tmp_path, files):
    os.mkfifo(tmp_path / "photos" / "x.png")
    (tmp_path / "photos" / "y.png").symlink_to("/dev/zero")
    PIL.Image.new("L", (400, 300)).save(tmp_path / "photos" / "z.png")
    outcome = cct("predict", "best.ckpt", "photos", "--data.max-megapixels", 0.1)
    assert outcome.code == 0, outcome.err
    assert [(row["path"], row["error"]) for row in read_csv(outcome.out) if row["error"]] == [
        ("photos/x.png", "is no regular file"),
        ("photos/y.png", "is no regular file"),
        ("photos/z.png", "has 0.12 megapixels, and data.max_megapixels=0.1 allows no more: make it smaller, or set the key higher"),
    ]
    assert "15 image(s), 2 of them bad" in cct("predict", "best.ckpt", "photos").err
    assert "--data.max_megapixels=0 is out of range: it must be more than 0." in cct("predict", "best.ckpt", "photos", "--data.max_megapixels", 0).err


def test_no_number_is_written_as_nan(cct, tmp_path, files):
    content = torch.load("best.ckpt", weights_only=True)
    content["state_dict"]["model.head.weight"].fill_(3e38)  # a number, of which the sum is none
    torch.save(content, "broken.ckpt")
    outcome = cct("predict", "broken.ckpt", files[0], "--format", "jsonl")
    assert outcome.code == 1
    assert json.loads(outcome.out) == {"path": files[0], "error": "the network's output is not a number"}


def test_flags_win_over_the_checkpoint(cct, files):
    photo = files[8]
    opened = cct_lightning.load("best.ckpt", image_size=32, crop_pct=0.5)
    words = ("--data.image_size=32", "--data.crop_pct", 0.5, "--data.batch_size", 1, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
    row, plain = (read_csv(cct("predict", *flags, "best.ckpt", photo).out)[0] for flags in (words, ()))
    assert float(row["probability"]) == pytest.approx(opened.predict(photo).probability, rel=1e-5)
    assert row["probability"] != plain["probability"]
    assert read_csv(cct("predict", "best.ckpt", photo, "--data.image_size", "[32, 32]", "--data.crop_pct=.5").out) == [row]
    outcome = cct("predict", "best.ckpt", photo, "--model.pooling", "mean")
    assert outcome.code == 2
    assert "best.ckpt does not fit a network with pooling=mean: leave it out." in outcome.err


def test_a_run_and_an_export_are_sources_too(cct, tmp_path, files):
    write_export(tmp_path / "my export", tmp_path / "best.ckpt")
    write_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    expected = cct("predict", "best.ckpt", "photos").out
    assert cct("predict", "run", "photos").out == expected
    outcome = cct("predict", "my export", "photos", "--out", "a.csv")
    assert (tmp_path / "a.csv").read_text() == expected
    assert "next\n  cct predict 'my export' PATH..." in outcome.out


def test_a_file_is_replaced_only_where_that_is_said(cct, tmp_path, files):
    (tmp_path / "a.csv").write_text("mine")
    assert (
        "error: --out a.csv exists: name another file, or replace it with --overwrite." in cct("predict", "best.ckpt", "photos", "--out", "a.csv").err
    )
    assert cct("predict", "best.ckpt", "none.png", "--out", "a.csv", "--overwrite").code == 2
    (tmp_path / "bad.ckpt").write_text("none")
    assert cct("predict", "bad.ckpt", "photos", "--out", "a.csv", "--overwrite").code == 2
    assert (tmp_path / "a.csv").read_text() == "mine"
    assert cct("predict", "--overwrite", "best.ckpt", "photos", "--out", "a.csv").code == 0
    assert len(read_csv((tmp_path / "a.csv").read_text())) == 12


def test_rows_survive_what_ends_the_command(cct, tmp_path, files, monkeypatch):
    batches = Predictor.batches
    seen = []

    def interrupted(self, items, top_k, tta):
        for batch in batches(self, items, top_k, tta):
            seen.append((tmp_path / "a.csv").read_text().count("png"))  # what another program can read by now
            if len(seen) == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Predictor, "batches", interrupted)
    outcome = cct("predict", "best.ckpt", "photos", "--out", "a.csv", "--data.batch_size", 4)
    assert outcome.code == 130
    assert seen == [0, 4, 8]
    assert [row["path"] for row in read_csv((tmp_path / "a.csv").read_text())] == files[:8]
    assert "interrupted: 8 image(s), none bad" in outcome.out


def test_r05_a_disk_that_fills_costs_one_line(cct, tmp_path, files, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # cut off, it would be there for good
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        outcome = cct("predict", "best.ckpt", "photos", "--out", "a.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 1, outcome
    assert (tmp_path / "a.csv").stat().st_size == 300
    assert "error: --out a.csv can't be written to its end: File too large. It holds the predictions up to there.\n" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_reader_of_the_rows_may_leave(cct, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", gone)
        outcome = cct("predict", "best.ckpt", "photos")
    assert outcome == (0, "", "")


def test_names_of_files_that_are_no_utf8(cct, tmp_path, files):
    odd = b"\xe4.png"
    try:
        (tmp_path / "photos" / odd.decode("utf-8", "surrogateescape")).write_bytes((tmp_path / files[0]).read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert cct("predict", "best.ckpt", "photos", "--out", "a.csv").code == 0
    assert b"photos/\xe4.png," in (tmp_path / "a.csv").read_bytes()
    assert cct("predict", "best.ckpt", "photos", "--out", "a.jsonl").code == 0
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])["path"].encode("utf-8", "surrogateescape") == b"photos/" + odd


@pytest.mark.parametrize(("words", "message"), [
    ((), "predict needs a network and images: cct predict runs/"),
    (("best.ckpt",), "predict needs images, too: files, folders or globs, as in cct predict best.ckpt photos/"),
    (("none.ckpt", "photos"), "no file or folder none.ckpt."),
    (("photos", "photos"), "photos holds no network"),
    (("best.ckpt", "none", "nor.png"), "No image to classify. none: there is no such file, and nothing at the other 1 path(s)."),
    (("best.ckpt", "*.jpg"), "No image to classify. *.jpg: no image matches."),
    (("best.ckpt", "photos", "--topk", "3"), "predict has no option --topk. Did you mean top_k?"),
    (("best.ckpt", "photos", "--batch_size", "3"), "Did you mean data.batch_size?"),
    (("best.ckpt", "photos", "-x"), "predict has no option --x."),
    (("best.ckpt", "photos", "--trainer.max_epochs", "3"), "--trainer.max_epochs means nothing to predict: it is for trainings and tests."),
    (("best.ckpt", "photos", "--model.num_classes", "3"), "--model.num_classes means nothing to predict: the checkpoint knows it."),
    (("best.ckpt", "photos", "--model.optim.lr", "3"), "--model.optim.lr means nothing to predict"),
    (("best.ckpt", "photos", "--model"), "--model is a group of keys"),
    (("best.ckpt", "photos", "-c", "digits"), "predict takes no recipe"),
    (("best.ckpt", "photos", "--top_k", "many"), "--top_k=many: it takes a whole number."),
    (("best.ckpt", "photos", "--top_k", "0"), "--top_k=0 is out of range: it must be at least 1."),
    (("best.ckpt", "photos", "--data.crop_pct", "2"), "--data.crop_pct=2 is out of range"),
    (("best.ckpt", "photos", "--data.crop_pct", "x"), "--data.crop_pct=x: it takes a number."),
    (("best.ckpt", "photos", "--data.image_size", "[3]"), "--data.image_size=[3]: it takes a whole number"),
    (("best.ckpt", "photos", "--data.image_size", "[0, 3]"), "--data.image_size=0 is out of range"),
    (("best.ckpt", "photos", "--trainer.precision", "bf16"), "--trainer.precision=bf16: predict takes 32-true, bf16-mixed, 16-mixed."),
    (("best.ckpt", "photos", "--trainer.accelerator", "tpu"), "--trainer.accelerator=tpu: predict takes auto, cpu, cuda, gpu, mps."),
    (("best.ckpt", "photos", "--model.pooling", "meen"), "model.pooling=meen is unknown. Did you mean mean?"),
    (("best.ckpt", "photos", "--model.depth", "two"), "--model.depth=two: it takes a whole number or null."),
    (("best.ckpt", "photos", "--model.residual_norm", "1"), "--model.residual_norm=1: it takes true or false or null."),
    (("best.ckpt", "photos", "--out"), "--out needs a value."),
    (("best.ckpt", "photos", "--out", "--top_k", "3"), "--out needs a value."),
    (("best.ckpt", "photos", "--out", "a.txt"), "--out a.txt: the name says the format, and ends in .csv or .jsonl."),
    (("best.ckpt", "photos", "--out", "a.csv", "--format", "jsonl"), "--out a.csv and --format jsonl contradict each other"),
    (("best.ckpt", "photos", "--out", "none/a.csv"), "--out none/a.csv: there is no folder none."),
    (("best.ckpt", "photos", "--format", "xml"), "--format=xml: predict takes csv, jsonl."),
])  # fmt: skip
def test_what_can_not_be_done_is_said(cct, words, message):
    outcome = cct("predict", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_words_behind_two_dashes_are_paths(cct, tmp_path, files):
    (tmp_path / "--odd.png").write_bytes((tmp_path / files[0]).read_bytes())
    assert [row["path"] for row in read_csv(cct("predict", "best.ckpt", "--", "--odd.png").out)] == ["./--odd.png"]  # no formula


def test_the_help_names_every_option_and_takes_no_torch(files):
    assert all(f"--{option} " in HELP for option in OPTIONS)
    assert set(network_keys()) <= known_keys().keys()
    program = (
        "import sys\nfrom cct_lightning.commands.predict import main\nfrom cct_lightning.errors import InputError\nmain(['--help'])\n"
        "try: main(['best.ckpt', 'none.png'])\nexcept InputError as error: print(error)\nprint('torch' in sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(CHECKOUT)})
    assert all(key.removeprefix("model.") in outcome.stdout for key in network_keys())
    assert outcome.stdout.splitlines()[-2:] == ["No image to classify. none.png: there is no such file.", "False"], outcome.stderr


def test_a_listing_is_not_read_to_its_end_before_the_first_row(files, monkeypatch):
    """A hundred thousand files: only their names pass through, a batch at a time."""
    listed = []

    def endless(paths):
        for number in range(100_000):
            listed.append(number)
            yield cct_lightning.data.files.Found(files[number % 12])

    monkeypatch.setattr("cct_lightning.inference.reading.find_images", endless)
    predictions = cct_lightning.load("best.ckpt", batch_size=4).predict(["photos"])
    for _ in range(20):
        next(predictions)
    assert len(listed) <= 20 + 2 * 4
    predictions.close()


def test_predict_and_test_agree_on_every_image(cct, tmp_path):
    photos = tmp_path / "set"
    write_images(photos / "train", 4, 8, size=24)
    rng = np.random.default_rng(1)
    for file in sorted(write_images(photos / "test", 4, 10, size=24).rglob("*.png")):
        noisy = np.clip(np.asarray(cct_lightning.data.files.decode(file, 3)) + rng.normal(0, 60, (24, 24, 3)), 0, 255)
        cct_lightning.inference.predictor.PIL.Image.fromarray(noisy.astype(np.uint8)).save(file)
    outcome = cct(
        "fit", "-c", "digits", "--data.dataset", "image_folder", "--data.root", photos, "--data.image_size", 16, "--data.crop_pct", 0.8,
        "--data.num_workers", 0, "--data.batch_size", 16, "--data.val_fraction", 0, "--trainer.max_epochs", 3,
        "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (run,) = tmp_path.glob("runs/digits/*")
    tested = json.loads((run / "summary.json").read_text())["test_accuracy"]
    main([str(run), str(photos / "test"), "--out", "a.csv"])
    rows = read_csv((tmp_path / "a.csv").read_text())
    accuracy = np.mean([row["class"] == Path(row["path"]).parent.name for row in rows])
    assert len(rows) == 40
    assert accuracy == pytest.approx(tested)
    assert 0.2 < accuracy < 1  # else any other preprocessing might give the same


def test_r21_rows_hold_no_formulas(tmp_path, monkeypatch):
    from cct_lightning.commands.predict import row_writer
    from cct_lightning.inference.predictor import Prediction

    told = [Prediction("=x.png", "-a", 0.5, (("-a", 0.5), ("+1", 0.25))), Prediction("@y.png", error="=no image")]
    for kind in ("csv", "jsonl"):
        with (tmp_path / kind).open("w") as file:
            write = row_writer(file, kind, 2)
            for prediction in told:
                write(prediction)
    first, second = csv.reader((tmp_path / "csv").read_text().splitlines()[1:])
    assert first == ["./=x.png", "'-a", "0.5", "+1", "0.25", ""]
    assert (second[0], second[-1]) == ("./@y.png", "'=no image")
    assert json.loads((tmp_path / "jsonl").read_text().splitlines()[0])["path"] == "=x.png"
