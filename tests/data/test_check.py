import io
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import studied
from pictures import write_images

from cct_lightning import InputError
from cct_lightning.data import check
from cct_lightning.data.check import Seen, counted, examine, examine_all, look_of, near_duplicates


def photo(seed, size=(120, 90)):
    """Makes an image with large shapes, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)


def differing(one, two):
    return sum((a ^ b).bit_count() for a, b in zip(look_of(np.asarray(one)), look_of(np.asarray(two)), strict=True))


def saved(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return PIL.Image.open(file)


@pytest.mark.parametrize("seed", range(5))
def test_copies_look_alike_and_other_images_do_not(seed):
    image = photo(seed)
    for copy in (saved(image, 50), image.resize((60, 45)), PIL.ImageEnhance.Brightness(image).enhance(0.9), image.convert("L").convert("RGB")):
        assert differing(image, copy) <= check.NEAR
    for other in (photo(seed + 100), image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), image.transpose(PIL.Image.Transpose.ROTATE_180)):
        assert differing(image, other) > 20


def test_small_and_plain_images_have_no_look():
    assert look_of(np.asarray(photo(0, (100, 31)))) is None
    assert look_of(np.full((64, 64, 3), 200, np.uint8)) is None
    assert look_of(np.full((64, 64, 1), 200, np.uint8)) is None


def test_near_duplicates_are_those_of_a_comparison_of_all_with_all():
    source = np.random.default_rng(0)
    looks = [source.bytes(16) for _ in range(300)]
    for index in range(100):  # copies with up to nine bits turned
        bits = np.unpackbits(np.frombuffer(looks[index], np.uint8))
        bits[source.choice(128, index % 10, replace=False)] ^= 1
        looks.append(np.packbits(bits).tobytes())
    looks[7] = None
    expected = []
    for late in range(len(looks)):
        pairs = [(sum((a ^ b).bit_count() for a, b in zip(looks[late], looks[early], strict=True)), early)
                 for early in range(late) if looks[late] is not None and looks[early] is not None]  # fmt: skip
        if pairs and min(pairs)[0] <= check.NEAR:
            expected.append((late, min(pairs)[1], min(pairs)[0]))
    assert near_duplicates(looks) == expected
    assert len(expected) > 60
    assert near_duplicates([None, looks[0]]) == []


def test_a_thousand_images_that_look_the_same_take_no_time():
    assert len(near_duplicates([b"\1" * 16] * 1000)) == 999


def test_an_image_is_described_as_it_is_stored(tmp_path):
    photo(0).convert("CMYK").save(tmp_path / "a.jpg")
    seen = examine(tmp_path / "a.jpg")
    assert (seen.error, seen.format, seen.mode, seen.size) == (None, "JPEG", "CMYK", (90, 120))
    assert seen.num_bytes == os.path.getsize(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert examine(tmp_path / "b.png").error.startswith("can't be read as an image (cannot identify")
    assert str(tmp_path) not in examine(tmp_path / "b.png").error
    os.mkfifo(tmp_path / "c.png")
    assert examine(tmp_path / "c.png").error == "is a FIFO, no regular file"
    assert examine(tmp_path / "none.png").error is not None
    grey = np.zeros((8, 8, 1), np.uint8)
    assert examine(grey)[:6] == (None, 64, examine(grey.copy()).content, "", "L", (8, 8))


def test_r07b_processes_find_what_one_finds_in_order(tmp_path, monkeypatch):
    images = sorted(write_images(tmp_path, classes=2, each=20, size=8).rglob("*.png"))
    images[5].write_bytes(b"")
    monkeypatch.setattr(check, "FEW", 10)
    found = list(examine_all(images, 2))
    assert found == [examine(image) for image in images]
    assert [index for index, seen in enumerate(found) if seen.error] == [5]


def kill(images, limit):
    os.kill(os.getpid(), signal.SIGKILL)


def test_r07b_a_killed_process_is_told_in_one_line(tmp_path, monkeypatch):
    images = sorted(write_images(tmp_path, classes=1, each=20, size=8).rglob("*.png"))
    monkeypatch.setattr(check, "FEW", 10)
    monkeypatch.setattr(check, "_examine_some", kill)
    with pytest.raises(InputError, match=r"was killed.*--data\.num_workers 0"):
        list(examine_all(images, 1))


def test_a_log_file_gets_a_line_now_and_then(capsys):
    clock = iter(range(0, 1000, 20))
    assert len(list(counted([Seen()] * 6, 6, lambda about: about.error is not None, lambda: next(clock)))) == 6
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("reading images  ") and " of 6  " in line for line in lines)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux")
def test_readers_end_with_the_process_that_they_read_for(tmp_path, monkeypatch):
    """Killed, as `timeout 60 cct check DIR` does, it left one for each core for ever, which held its output open."""
    begun = tmp_path / "begun"
    resource_tracker.ensure_running()  # this process's own, which stays
    monkeypatch.setenv("CCT_TEST", str(begun))

    def there():
        marked = []
        for place in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"CCT_TEST={begun}".encode() in place.read_bytes():
                    marked.append(place.parent.name)
        return marked

    parent = multiprocessing.get_context("spawn").Process(target=studied.read_for_ever, args=(begun,))
    parent.start()
    until = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert len(there()) > 2  # it and its readers
    parent.terminate()
    parent.join()
    while there() and time.monotonic() < until:
        time.sleep(0.02)
    assert there() == []
