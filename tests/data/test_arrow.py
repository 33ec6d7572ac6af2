import io
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cct_lightning.data.arrow
from cct_lightning.data.arrow import read_parquet, read_saved
from cct_lightning.data.files import decode
from cct_lightning.errors import InputError

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
FEATURES = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["zebra", "ant", "bee"], "_type": "ClassLabel"}}}}).encode()}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))


def png(value):
    content = io.BytesIO()
    PIL.Image.new("RGB", (6, 4), (value, 2 * value, 3)).save(content, "png")
    return content.getvalue()


def table(count, first=0, names=False, as_struct=True, label="label", image="image", labels=None):
    contents = [png(number) for number in range(first, first + count)]
    images = pa.array([{"bytes": content, "path": None} for content in contents] if as_struct else contents, IMAGE if as_struct else pa.binary())
    told = labels or [number % 3 if names else ("cat", "dog")[number % 2] for number in range(first, first + count)]
    return pa.table({"more": list(range(count)), label: told, image: images}).replace_schema_metadata(FEATURES if names else None)


def values(split):
    return [int(decode(image, 3)[0, 0, 0]) for image in split.images]


@pytest.mark.parametrize("as_struct", [True, False])
@pytest.mark.parametrize("names", [True, False])
def test_parquet_is_read_in_the_order_of_files_and_rows(tmp_path, names, as_struct):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name, part in (("train-00001", (3, 100)), ("train-00000", (70, 0)), ("test-00000", (3, 200))):
        pq.write_table(table(*part, names, as_struct), tmp_path / "set" / "data" / f"{name}.parquet", row_group_size=16)
    found = read_parquet(tmp_path / "set")
    assert found.class_names == (["zebra", "ant", "bee"] if names else ["cat", "dog"])
    train = found.splits["train"]
    assert values(train) == [*range(70), 100, 101, 102]
    assert train.targets.tolist() == [number % (3 if names else 2) for number in [*range(70), 100, 101, 102]]
    assert values(found.splits["test"]) == [200, 201, 202]
    assert str(train.images[71]).endswith("train-00001.parquet/row 1")


def test_a_parquet_file_is_copied_once_and_anew_when_it_has_changed(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    pq.write_table(table(4), file)
    first = read_parquet(file).splits["train"]
    copy = cct_lightning.data.arrow._copy
    monkeypatch.setattr(cct_lightning.data.arrow, "_copy", None)
    assert read_parquet(file).splits["train"].images == first.images
    monkeypatch.setattr(cct_lightning.data.arrow, "_copy", copy)
    pq.write_table(table(6, 50), file)
    assert values(read_parquet(file).splits["train"]) == list(range(50, 56))
    next((tmp_path / "home" / "indices").glob("*.images")).write_bytes(b"cut off")
    assert values(read_parquet(file).splits["train"]) == list(range(50, 56))


def test_an_image_without_bytes_is_the_file_of_its_path(tmp_path):
    (tmp_path / "b.png").write_bytes(png(9))
    images = pa.array([{"bytes": png(8), "path": "a.png"}, {"bytes": None, "path": "b.png"}], IMAGE)
    pq.write_table(pa.table({"image": images, "label": ["x", "y"]}), tmp_path / "a.parquet")
    assert values(read_parquet(tmp_path / "a.parquet").splits["train"]) == [8, 9]
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": None}], IMAGE), "label": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, row 0: the image has neither bytes nor a path"):
        read_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize(("made", "said"), [
    (lambda: table(2, image="picture"), r"has the columns more, label, picture; it must have image \(img will do\)"),
    (lambda: table(2, label="kind"), r"it must have label \(labels, fine_label, cls, class will do\)"),
    (lambda: pa.table({"image": ["a", "b"], "label": [0, 1]}), "has images of the type string"),
    (lambda: table(2, labels=[0.5, 1.5]), r"has the label 0\.5: a label is text or a whole number"),
    (lambda: table(2, labels=["a", None]), "has the label None"),
    (lambda: table(0), r"holds no row"),
])  # fmt: skip
def test_tables_without_images_and_labels_are_refused(tmp_path, made, said):
    pq.write_table(made(), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=said):
        read_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize("damage", [lambda content: content[:-300], lambda content: b"", lambda content: content[:400] + bytes(500) + content[900:]])
def test_damaged_files_are_refused(tmp_path, damage):
    file = tmp_path / "a.parquet"
    pq.write_table(table(40, as_struct=False), file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"a\.parquet can't be read \(.*damaged"):
        read_parquet(file)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    pq.write_table(table(2), tmp_path / "a.parquet")
    monkeypatch.setattr(cct_lightning.data.arrow, "import_module", absent)
    with pytest.raises(InputError, match=r'need pyarrow, which is not installed: pip install "cct-lightning\[arrow\]"'):
        read_parquet(tmp_path / "a.parquet")


def save(folder, *tables, options=None):
    """Writes what ``Dataset.save_to_disk`` of datasets 4 does."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, part in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, part.schema, options=options) as stream:
            stream.write_table(part, max_chunksize=16)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("as_struct", [True, False])
def test_what_datasets_saved_is_read_where_it_lies(tmp_path, as_struct):
    root = tmp_path / "set"
    save(root / "train", table(40, 0, True, as_struct), table(5, 40, True, as_struct))
    save(root / "validation", table(6, 100, True, as_struct))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    found = read_saved(root)
    assert found.class_names == ["zebra", "ant", "bee"]
    assert values(found.splits["train"]) == list(range(45))
    assert values(found.splits["val"]) == list(range(100, 106))
    assert found.splits["train"].targets.tolist() == [number % 3 for number in range(45)]
    assert str(found.splits["train"].images[41]) == str(root / "train" / "data-00001-of-00002.arrow" / "row 41")
    assert not (tmp_path / "home").exists()  # nothing is copied


def test_places_beyond_the_file_are_refused(tmp_path):
    root = save(tmp_path / "set", table(5, as_struct=False))
    file = next(root.glob("*.arrow"))
    content = file.read_bytes()
    sizes = np.cumsum([0, *(len(png(number)) for number in range(5))]).astype(np.int32)
    for odd in ([0, 5, 3, 9, 12, 15], [0, 5, 6, 9, 12, 10**9], [-7, 5, 6, 9, 12, 15]):
        assert content.count(sizes.tobytes()) == 1
        file.write_bytes(content.replace(sizes.tobytes(), np.array(odd, np.int32).tobytes()))
        with pytest.raises(InputError, match=r"arrow can't be read \(images lie beyond its end"):
            read_saved(root)


def test_a_data_set_of_one_split_is_one_heap(tmp_path):
    found = read_saved(save(tmp_path / "set", table(5)))
    assert (list(found.splits), found.class_names, values(found.splits["train"])) == (["train"], ["cat", "dog"], list(range(5)))
    assert found.splits["train"].targets.dtype == np.int64


def test_what_is_not_saved_so_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"state\.json can't be read .*a folder of `save_to_disk`"):
        read_saved(tmp_path)
    root = save(tmp_path / "set", table(50))
    file = next(root.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"arrow can't be read \(.*damaged"):
        read_saved(root)
    save(root / "test", table(4))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["test"]}))
    with pytest.raises(InputError, match="has the splits test, and none is called train"):
        read_saved(root)


def test_files_that_number_their_classes_otherwise_are_refused(tmp_path):
    pq.write_table(table(3, names=True), tmp_path / "train.parquet")
    other = FEATURES[b"huggingface"].replace(b'"zebra", "ant"', b'"ant", "zebra"')
    pq.write_table(table(3, names=True).replace_schema_metadata({b"huggingface": other}), tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"numbers the classes .*ant, bee.*\n  A number would mean two of them"):
        read_parquet(tmp_path)
