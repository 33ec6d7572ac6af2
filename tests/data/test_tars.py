import io
import json
import os
import tarfile

import PIL.Image
import pytest

import cct_lightning.data.tars
from cct_lightning.data.files import decode
from cct_lightning.data.packed import read_kept
from cct_lightning.data.tars import read_shards
from cct_lightning.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))


def png(value, size=(6, 4)):
    content = io.BytesIO()
    PIL.Image.new("RGB", size, (value, 2 * value, 3)).save(content, "png")
    return content.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(count, first=0):
    """Members of samples whose image tells its number: every third one's label in a .json."""
    found = [("about.txt", b"no sample")]
    for number in range(first, first + count):
        key, label = f"some/{number:04d}", ("cat", "dog")[number % 2]
        about = ("json", json.dumps({"width": 6, "label": label}).encode()) if number % 3 == 0 else ("cls", label.encode() + b"\n")
        found += [(f"{key}.{about[0]}", about[1]), (f"{key}.seg.png", b"a mask"), (f"{key}.PNG", png(number))]
    return found


def test_images_are_read_where_they_lie_in_the_order_of_shards_and_members(tmp_path):
    write(tmp_path / "set" / "train-1.tar", samples(3, first=5))
    write(tmp_path / "set" / "train-0.tar", samples(5))
    write(tmp_path / "set" / "val-0.tar", samples(2, first=20))
    table = read_shards(tmp_path / "set")
    assert table.class_names == ["cat", "dog"]
    train, val = table.splits["train"], table.splits["val"]
    assert [int(decode(image, 3)[0, 0, 0]) for image in train.images] == list(range(8))
    assert train.targets.tolist() == [0, 1] * 4
    assert [int(decode(image, 3)[0, 0, 1]) for image in val.images] == [40, 42]
    assert str(train.images[5]) == str(tmp_path / "set" / "train-1.tar" / "some" / "0005.png")


def test_an_index_is_kept_and_made_anew_when_the_shard_has_changed(tmp_path, monkeypatch):
    shard = write(tmp_path / "a.tar", samples(4))
    first = read_shards(shard)
    monkeypatch.setattr(cct_lightning.data.tars, "_index", None)
    again = read_shards(shard)
    assert again.splits["train"].images == first.splits["train"].images
    assert again.splits["train"].targets.tolist() == first.splits["train"].targets.tolist()
    monkeypatch.undo()
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))
    write(shard, samples(6))
    assert len(read_shards(shard).splits["train"]) == 6
    assert read_kept(shard) is not None
    os.utime(shard, ns=(1, 1))
    assert read_kept(shard) is None


def test_integers_are_classes_by_number(tmp_path):
    numbered = [("a", 10), ("b", 9), ("c", 9)]
    shard = write(tmp_path / "a.tar", [member for key, n in numbered for member in ((f"{key}.jpg", png(n)), (f"{key}.cls", b"%d" % n))])
    table = read_shards(shard)
    assert (table.class_names, table.splits["train"].targets.tolist()) == (["9", "10"], [1, 0, 0])


@pytest.mark.parametrize(("damage", "said"), [
    (lambda content: content[:5000], "truncated"),
    (lambda content: content[: content.rindex(b"0003.PNG") + 100], "truncated"),  # inside of the last header
    (lambda content: content[:-2 * 512 - 9000].rstrip(b"\0"), "truncated"),
    (lambda content: b"x" * 2000, "no tar"),
    (lambda content: b"", "no tar"),
])  # fmt: skip
def test_a_truncated_shard_is_refused(tmp_path, damage, said):
    shard = write(tmp_path / "a.tar", samples(4))
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(InputError, match=rf"a\.tar can't be read as a shard \(.*{said}"):
        read_shards(shard)


def test_a_shard_that_shrinks_under_its_index_names_the_image(tmp_path):
    shard = write(tmp_path / "a.tar", samples(4))
    last = read_shards(shard).splits["train"].images[-1]
    with shard.open("r+b") as file:
        file.truncate(last.start + 10)
    with pytest.raises(InputError, match=r"a\.tar/some/0003\.png can't be read as an image \(its file ends before it\)"):
        decode(last, 3)


@pytest.mark.parametrize(("members", "said"), [
    ([("a.png", b"x")], r"a\.png has no label"),
    ([("a.png", b"x"), ("a.cls", b" ")], r"a\.cls is empty"),
    ([("a.png", b"x"), ("a.json", b"[1]")], r"a\.json tells no label: it should hold a dictionary with cls, label, class or class_name"),
    ([("a.png", b"x"), ("a.cls", b"\xff\xfe")], r"a\.cls tells no label"),
    ([("a.txt", b"x")], "holds no image"),
])  # fmt: skip
def test_samples_without_a_label_are_refused(tmp_path, members, said):
    with pytest.raises(InputError, match=said):
        read_shards(write(tmp_path / "a.tar", members))


def test_shards_joined_by_cat_are_refused(tmp_path):
    whole = write(tmp_path / "a.tar", samples(4)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole + write(tmp_path / "b.tar", samples(4, 4)).read_bytes())
    with pytest.raises(InputError, match="something follows behind its end"):
        read_shards(tmp_path / "a.tar")


@pytest.mark.parametrize("label", [None, [1, 2], 3.5, True, "two\nlines", "\ud83d"])
def test_a_label_is_text_of_a_line_or_a_whole_number(tmp_path, label):
    file = write(tmp_path / "a.tar", [("a.png", png(1)), ("a.json", json.dumps({"label": label}).encode())])
    with pytest.raises(InputError, match="tells no label"):
        read_shards(file)
