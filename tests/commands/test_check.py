import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import write_images

import cct_lightning.commands.check as command


@pytest.fixture
def photos(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_images(tmp_path / "photos" / split, classes=2, each=60, size=8 + seed)
    return tmp_path / "photos"


def rows(folder):
    with (folder / "problems.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_r07b_a_folder_is_read_whole_and_reported_on_screen_and_in_files(cct, photos, tmp_path):
    before = sorted(photos.rglob("*"))
    outcome = cct("check", "photos")
    assert outcome.code == 0, outcome.err
    assert "photos: 240 images, " in outcome.out
    assert "nothing blocks a training" in outcome.out
    assert outcome.out.rstrip().endswith("cct finetune photos")
    assert rows(tmp_path / "runs/check/photos") == []
    (photos / "train/class0000/1.png").write_bytes(b"no image")
    (photos / "val/class0001/5.png").write_bytes((photos / "train/class0001/5.png").read_bytes())
    outcome = cct("check", photos, "--out", "report")
    assert outcome.code == 1
    assert "blocks a training\n  unreadable            1  train/class0000/1.png (can't be read as an image" in outcome.out
    assert "duplicate             1  val/class0001/5.png = train/class0001/5.png" in outcome.out
    assert "across splits      1" in outcome.out
    assert "cct finetune" not in outcome.out
    assert [(row["problem"], row["path"]) for row in rows(tmp_path / "report")] == [
        ("unreadable", "train/class0000/1.png"),
        ("duplicate", "val/class0001/5.png"),
    ]
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert (report["images"], report["blocks_a_training"], report["problems"]) == (240, True, {"unreadable": 1, "duplicate": 1})
    assert report["splits"]["val"] == {"class0000": 60, "class0001": 60}
    assert sorted(photos.rglob("*")) == before  # nothing is written beside the user's images
    assert cct("check", photos, "--data.on_bad_image", "skip").code == 0  # 1 of 240 would be left out


def test_images_without_labels_are_checked(cct, photos, tmp_path):
    write_images(tmp_path / "heap/2025", classes=1, each=5, size=8)
    (tmp_path / "heap/bad.png").write_bytes(b"no image")
    (tmp_path / "heap/again.png").write_bytes((photos / "train/class0001/5.png").read_bytes())
    (tmp_path / "heap/link.png").symlink_to(photos / "val/class0001/5.png")  # which a training leaves out of the heap
    outcome = cct("check", "photos", "--data.unlabelled", "heap")
    assert outcome.code == 1
    assert "photos: 247 images" in outcome.out
    assert "unreadable            1  " in outcome.out
    assert "duplicate             6  " in outcome.out
    assert "in two classes" not in outcome.out
    assert "across splits" not in outcome.out
    (tmp_path / "heap/bad.png").unlink()
    assert cct("check", "photos", "--data.unlabelled", "heap").out.rstrip().endswith("cct pretrain photos --data.unlabelled heap")
    alone = cct("check", "heap", "--data.dataset", "images")
    assert alone.code == 0, alone.err
    assert "heap: 7 images" in alone.out
    assert "tiny class" not in alone.out
    assert alone.out.rstrip().endswith("cct pretrain heap")


def test_tables_named_sets_and_recipes_are_checked(cct, tmp_path):
    write_images(tmp_path / "heap", classes=2, each=12, size=8)
    lines = [f"heap/class000{label}/{number}.png,{label}" for label in range(2) for number in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    assert "labels.csv: 24 images" in cct("check", "labels.csv").out
    Path("heap", "all.tar").touch()  # a format that is named is not guessed
    assert "heap: 24 images" in cct("check", "heap", "--data.dataset", "image_folder").out
    for words in (("digits",), ("-c", "digits"), ("--data.dataset", "digits")):
        outcome = cct("check", *words)
        assert outcome.code == 0, outcome.err
        assert "1,797 images" in outcome.out
    assert (tmp_path / "runs/check/digits/report.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "check needs your images"),
        (["nowhere"], "There is no folder, file or data set nowhere"),
        (["cifar"], "Did you mean cifar10"),
        (["photos", "more"], "one data set, and 2 words"),
        (["photos", "--data.batch_size", "3"], "--data.batch_size means nothing to check"),
        (["photos", "--data.num_worker", "3"], "Did you mean data.num_workers"),
        (["photos", "--data.num_workers", "-1"], "data.num_workers=-1"),
        (["photos", "--data.max_megapixels", "many"], "data.max_megapixels=many"),
        (["photos", "--out"], "--out needs a value"),
        (["photos/train/class0000/1.png"], "neither a folder of class folders nor a .csv"),
        (["-c", "nowhere"], "neither a file nor a recipe"),
        (["cifar10", "--data.root", "."], "is not in data.root"),
        (["photos", "--out", "photos/train/class0000/1.png"], "can't be made"),
    ],
)
def test_a_wrong_command_is_refused(cct, photos, words, message):
    outcome = cct("check", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_another_data_set_under_a_name_blocks(cct, photos):
    outcome = cct("check", "cifar10", "--data.root", "photos")
    assert outcome.code == 1
    assert "2 classes, and cifar10 has 10" in outcome.out


def test_it_is_listed_and_has_a_help(cct):
    assert "cct check" in cct().out
    outcome = cct("check", "--help")
    assert outcome.code == 0
    assert all(f"--{key}" in outcome.out for key in command.KEYS)


def test_an_interrupt_is_one_line_and_writes_no_report(cct, photos, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cct_lightning.data.check.examine", interrupted)
    outcome = cct("check", "photos", "--data.num_workers", 0)
    assert outcome.code == 130
    assert outcome.err == "interrupted: no report was written\n"
    assert not list((tmp_path / "runs/check/photos").iterdir())


def test_it_needs_neither_torch_nor_lightning(photos, tmp_path):
    code = (
        "import sys; sys.argv = ['cct', 'check', 'photos']\n"
        "from cct_lightning.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, sorted({'torch', 'lightning', 'cv2'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0 []", ended.stderr
    assert Path(tmp_path, "runs/check/photos/report.json").is_file()
