import numpy as np
import PIL.Image
import pytest
from pictures import write_images

from cct_lightning import ImageDataModule, InputError
from cct_lightning.data.folders import UNLABELLED


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", classes=2, each=10, size=8)


@pytest.fixture
def heap(tmp_path):
    """Twelve images at several depths, beside what is none."""
    folder = tmp_path / "heap"
    for number, place in enumerate(("", "2024", "2025/may", "2025/june/first") * 3):
        (folder / place).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(folder / place / f"{number}.png")
    (folder / "2024/notes.txt").write_text("none")
    (folder / "2024/.hidden.png").write_bytes(b"")
    return folder


def read(dataset, root, stage="fit", **options):
    data = ImageDataModule(dataset, str(root), seed=0, image_size=8, num_workers=0, **options)
    data.setup(stage)
    return data


def names(data, split):
    images, chosen = data.splits[split]
    return {images.files[index].name for index in chosen}


def test_a_heap_is_all_images_below_a_folder(heap):
    data = read("images", heap)
    assert (data.num_classes, data.class_names, data.has_unlabelled, data.has_validation, data.has_test) == (0, [], True, True, False)
    assert {name: len(chosen) for name, (_, chosen) in data.splits.items()} == {"val": 1, "train": 11}
    assert names(data, "train") | names(data, "val") == {f"{number}.png" for number in range(12)}
    assert set(data.splits["train"][0].targets) == {UNLABELLED}
    assert data.class_counts == []
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape[1:] == (3, 8, 8)


def test_a_share_of_a_heap_is_what_fraction_says(heap):
    data = read("images", heap, fraction=0.5, val_fraction=0.0)
    assert len(data.splits["train"][1]) == 6
    assert set(data.splits["train"][1]) <= set(read("images", heap, val_fraction=0.0).splits["train"][1])


def test_a_heap_may_bring_validation_and_its_test_images_are_left_out(heap):
    for split, folder in (("train", "2025"), ("val", "2024")):
        (heap / folder).rename(heap / split)
    (heap / "test").mkdir()
    (heap / "0.png").rename(heap / "test/0.png")
    data = read("images", heap)
    assert (data.has_validation, data.has_test) == (True, False)
    assert (names(data, "train"), names(data, "val")) == ({f"{n}.png" for n in (2, 3, 6, 7, 10, 11)}, {"1.png", "5.png", "9.png"})


def test_a_heap_lies_beside_labelled_images_and_is_for_training_and_validation_alone(photos, heap):
    alone, both = read("image_folder", photos), read("image_folder", photos, unlabelled=str(heap))
    assert names(both, "test") == names(alone, "test")
    assert names(alone, "train") <= names(both, "train")
    split, chosen = both.splits["train"]
    assert (split.targets[chosen] == UNLABELLED).sum() == 11
    assert (both.class_counts, both.num_classes, both.has_unlabelled) == (alone.class_counts, 2, True)
    labelled = split.targets[both.splits["val"][1]] != UNLABELLED
    assert np.array_equal(both.splits["val"][1][labelled], alone.splits["val"][1])  # what a fine-tuning sets aside, too
    few = read("image_folder", photos, unlabelled=str(heap), per_class=1)
    assert few.class_counts == [1, 1]
    assert len(few.splits["train"][1]) == 2 + 11


def test_test_images_that_lie_in_the_heap_are_left_out_of_it(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "photos" / split, classes=2, each=3, size=8)
    (tmp_path / "photos/more").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "photos/more/new.png")
    (tmp_path / "photos/more/link.png").symlink_to(tmp_path / "photos/test/class0000/0.png")
    data = read("image_folder", tmp_path / "photos", unlabelled=str(tmp_path / "photos"), val_fraction=0.0)
    split, chosen = data.splits["train"]
    assert [split.files[index].name for index in chosen if split.targets[index] == UNLABELLED] == ["new.png"]


def test_the_rest_is_trained_on_without_its_labels(caplog):
    few = ImageDataModule("digits", seed=0, per_class=5)
    rest = ImageDataModule("digits", seed=0, per_class=5, unlabelled="rest")
    whole = ImageDataModule("digits", seed=0)
    for data in (few, rest, whole):
        data.setup("fit")
    split, chosen = rest.splits["train"]
    assert np.array_equal(chosen, whole.splits["train"][1])
    assert np.array_equal(chosen[split.targets[chosen] != UNLABELLED], few.splits["train"][1])
    for name in ("val", "test"):
        assert np.array_equal(rest.splits[name][1], whole.splits[name][1])
        assert (split.targets[rest.splits[name][1]] != UNLABELLED).all()
    assert rest.class_counts == [5] * 10
    assert "training on 1,295 images, 50 of them with labels" in caplog.text
    assert (whole.splits["train"][0].targets != UNLABELLED).all()  # the table in memory is shared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("image_folder", "photos", {"unlabelled": "none"}),
            r"data\.unlabelled=.*/none is no folder on this machine: give one that holds images",
        ),
        (
            ("images", "photos", {"unlabelled": "rest"}),
            r"data\.unlabelled=rest chooses images by their labels, and those of data",
        ),
        (("images", "photos", {"per_class": 3}), r"data\.per_class=3 chooses images by their labels"),
        (("images", "empty", {}), r"empty holds no image \(\.bmp, .*\), at any depth"),
        (("images", "none", {}), "data.root=none is no folder on this machine: give one that holds images"),
        (("digits", "", {"unlabelled": "photos"}), "photos holds files, and digits lies in .* as one array"),
    ],
)
def test_images_without_labels_that_can_not_be_had_are_refused(photos, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        read(options[0], options[1], **options[2])


def test_mixing_needs_labels(heap):
    from cct_lightning import AugmentConfig

    with pytest.raises(InputError, match=r"mixup and cutmix mix labels, and training images have none"):
        read("images", heap, augment=AugmentConfig(mixup=0.5)).train_dataloader()


def test_r12_a_heap_has_a_fingerprint_and_bad_images_as_labelled_ones(photos, heap, tmp_path):
    def taken(folder=heap, **options):
        return read("image_folder", photos, unlabelled=str(folder), **options).fingerprint

    first = taken()
    rows = {row.name: row.label for row in first.rows()}
    assert rows["unlabelled/2025/may/2.png"] == ""
    assert rows["class0001/3.png"] == "class0001"
    heap.rename(tmp_path / "elsewhere")
    assert taken(tmp_path / "elsewhere").digest == first.digest  # where they lie is not looked at
    (tmp_path / "elsewhere/2024/5.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2024/5\.png can't be read as an image"):
        taken(tmp_path / "elsewhere")


def test_an_image_of_a_heap_that_can_not_be_read_is_left_out_where_asked(photos, tmp_path):
    write_images(tmp_path / "heap", classes=1, each=100, size=8)
    (tmp_path / "heap/class0000/bad.png").write_bytes(b"no image")
    data = read("image_folder", photos, unlabelled=str(tmp_path / "heap"), on_bad_image="skip")
    assert [bad.path.name for bad in data.bad] == ["bad.png"]
    assert "bad.png" not in names(data, "train") | names(data, "val")
    assert data.about_images()["left_out"] == {"train": [20 + 100]}


def test_labels_that_are_hidden_are_none_of_the_fingerprint():
    def digest(**options):
        data = ImageDataModule("digits", seed=0, per_class=5, **options)
        data.setup("fit")
        return data.fingerprint.digest

    assert digest(unlabelled="rest") != digest()  # so a run goes on with both or with neither
