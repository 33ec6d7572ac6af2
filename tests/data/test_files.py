import os
import socket
import struct
import sys
import tempfile
import zlib

import numpy as np
import PIL.Image
import pytest
from pictures import write_images

from cct_lightning import InputError
from cct_lightning.data.files import Found, decode, find_images, is_glob, to_uint8


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """photos/class0000/{0,1}.png, photos/class0001/{0,1}.png, hidden images and a text."""
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "photos", 2, 2)
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".trash").mkdir()
    (folder / ".trash" / "0.png").write_bytes(b"")
    return folder


ALL = [f"photos/class000{label}/{number}.png" for label in (0, 1) for number in (0, 1)]


@pytest.mark.parametrize("path", ["photos", "photos/", "photos/**/*.png", "photos/class*", "photos/*/*.png", "photos/**"])
def test_a_folder_and_globs_list_the_same_images_sorted(path):
    assert [os.path.normpath(found.path) for found in find_images([path])] == ALL
    assert not any(found.error for found in find_images([path]))


def test_the_order_of_what_is_named_is_kept():
    named = ["photos/class0001/1.png", "photos/class0000", "photos/class0001/0.png"]
    assert [found.path for found in find_images(named)] == [ALL[3], ALL[0], ALL[1], ALL[2]]


def test_a_path_that_leads_nowhere_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert list(find_images(["none.png", "empty", "photos/*.jpg", ALL[0]])) == [
        Found("none.png", "there is no such file"),
        Found("empty", "there is no image in this folder"),
        Found("photos/*.jpg", "no image matches"),
        Found(ALL[0]),
    ]


def test_a_named_file_is_taken_whatever_its_name(tmp_path):
    (tmp_path / "a[1].png").write_bytes(b"")
    assert list(find_images(["photos/notes.txt", "photos/.hidden.png", "a[1].png"])) == [
        Found("photos/notes.txt"),
        Found("photos/.hidden.png"),
        Found("a[1].png"),
    ]
    assert not is_glob("a[1].png")
    assert is_glob("b[1].png")


def test_a_link_that_leads_back_ends_the_walk(photos):
    (photos / "class0001" / "again").symlink_to(photos)
    assert [found.path for found in find_images(["photos"])] == ALL


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may open every folder")
def test_a_closed_folder_is_told(photos):
    (photos / "class0000").chmod(0)
    assert next(find_images(["photos"])) == Found("photos/class0000", "can't be opened (Permission denied)")
    (photos / "class0000").chmod(0o700)


def test_no_more_is_listed_than_asked_for(monkeypatch):
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: opened.append(folder) or scandir(folder))
    listing = find_images(["photos"])
    assert opened == []
    next(listing)
    assert opened == ["photos", "photos/class0000"]


def write_tiff(path, pixels, bits, sample_format=1, photometric=1):
    """Writes an uncompressed grey TIFF of any number of bits, most of which Pillow does not write."""
    height, width = pixels.shape
    if bits == 12:  # three bytes for two values
        first, second = pixels.ravel()[::2].astype(int), pixels.ravel()[1::2].astype(int)
        content = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    else:
        content = pixels.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height), (279, len(content)),
            (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


DEEP = np.array([[0, 250, 255, 256], [300, 4095, 32768, 65535]], np.uint16)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("write", [
    lambda path: PIL.Image.fromarray(DEEP).save(path / "a.png"),
    lambda path: PIL.Image.fromarray(DEEP).save(path / "a.tif"),
    lambda path: PIL.Image.fromarray(DEEP).save(path / "a.tif", compression="tiff_lzw"),
    lambda path: PIL.Image.fromarray(DEEP.astype(">u2")).save(path / "a.tif"),
    lambda path: write_tiff(path / "a.tif", 65535 - DEEP, 16, photometric=0),
    lambda path: PIL.Image.fromarray(DEEP).save(path / "a.jp2"),
    lambda path: (path / "a.pgm").write_bytes(b"P5 4 2 65535\n" + DEEP.astype(">u2").tobytes()),
], ids=["png", "tiff", "lzw", "big-endian tiff", "white-is-zero tiff", "jpeg 2000", "pgm"])  # fmt: skip
def test_r07_sixteen_bits_are_scaled_by_their_range_and_not_by_the_brightest(tmp_path, write, in_chans):
    write(tmp_path)
    (file,) = tmp_path.glob("a.*")
    read = decode(file, in_chans)
    assert read.shape == (2, 4, in_chans)
    for channel in range(in_chans):
        assert read[..., channel].tolist() == [[0, 0, 0, 0], [1, 15, 127, 255]]


def test_r07_a_dark_image_of_sixteen_bits_stays_dark(tmp_path):
    PIL.Image.fromarray(np.full((4, 4), 250, np.uint16)).save(tmp_path / "dark.png")
    PIL.Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "less.png")
    assert decode(tmp_path / "dark.png", 1).max() == 0
    assert decode(tmp_path / "less.png", 1).max() == 1


def test_r07_twelve_bits_are_scaled_by_their_range(tmp_path):
    twelve = np.array([[0, 17, 2048, 4095]], np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 4095\n" + twelve.astype(">u2").tobytes())
    for file in (write_tiff(tmp_path / "a.tif", twelve, 12), tmp_path / "a.pgm"):
        assert decode(file, 1)[0, :, 0].tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_r07_sixteen_bits_are_turned_upright(tmp_path, name, kind):
    image = PIL.Image.fromarray(np.array([[0, 257, 514], [771, 1028, 1285]], kind))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / name, exif=exif)
    assert decode(tmp_path / name, 1)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_r07_sixteen_bits_of_colour_keep_the_upper_eight(tmp_path):
    rows = b"\0" + np.array([[0, 255, 256], [32768, 65535, 300]], ">u2").tobytes()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = [struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    assert decode(tmp_path / "a.png", 3).tolist() == [[[0, 0, 1], [128, 255, 1]]]
    with pytest.raises(InputError, match=r"colours of 16 bits can't be scaled by data\.value_range in a PNG: save it as TIFF"):
        decode(tmp_path / "a.png", 3, value_range=(0, 4095))


REFUSED = {
    "float": (np.linspace(0, 1, 16, dtype=np.float32), 32, 3),
    "nan": (np.full(16, np.nan, np.float32), 32, 3),
    "bright float": (np.linspace(0, 300, 16, dtype=np.float32), 32, 3),
    "32 bits": (np.arange(16, dtype=np.uint32) * 2**28, 32, 1),
    "32 bits with a sign": (np.arange(16, dtype=np.int32) - 8, 32, 2),
    "16 bits with a sign": (np.arange(16, dtype=np.int16) - 8, 16, 2),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_r07_numbers_without_a_known_range_are_refused(tmp_path, kind):
    values, bits, sample_format = REFUSED[kind]
    file = write_tiff(tmp_path / "a.tif", values.reshape(4, 4), bits, sample_format)
    with pytest.raises(InputError, match=r"a\.tif can't be read as an image \(mode [FI], (float|integers of .*), tells no largest value: save it"):
        decode(file, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_r07_every_mode_that_is_read_keeps_black_and_white(tmp_path, mode):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[1] = 255
    image = PIL.Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else PIL.Image.fromarray(pixels).convert("RGB").convert(mode)
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    image.save(tmp_path / f"a.{suffix}")
    for in_chans in (1, 3):
        assert np.array_equal(decode(tmp_path / f"a.{suffix}", in_chans), np.repeat(pixels[..., None], in_chans, axis=2))


def test_r07_an_image_of_pillow_is_read_as_its_file(tmp_path):
    PIL.Image.fromarray(DEEP).save(tmp_path / "a.png")
    write_tiff(tmp_path / "b.tif", np.array([[0, 17, 2048, 4095]], np.uint16), 12)
    for name in ("a.png", "b.tif"):
        with PIL.Image.open(tmp_path / name) as image:
            assert np.array_equal(to_uint8(image, 3), decode(tmp_path / name, 3))


SPECIAL = {
    "a FIFO": os.mkfifo if hasattr(os, "mkfifo") else None,
    "a link to a FIFO": lambda path: (os.mkfifo(path.with_suffix("")), path.symlink_to(path.with_suffix(""))),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": lambda path: path.symlink_to(listening(path)),
    "a folder": lambda path: path.mkdir(),
}


def listening(path):
    """Leaves a socket in a folder of a short name, since a socket's may have a hundred characters."""
    folder = tempfile.mkdtemp()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{folder}/s")
    return f"{folder}/s"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
@pytest.mark.parametrize("kind", SPECIAL)
def test_r19_what_is_no_regular_file_is_refused_and_not_opened(photos, kind):
    odd = photos / "class0000" / "x.png"
    SPECIAL[kind](odd)
    with pytest.raises(InputError, match=rf"x\.png is {kind.replace('a link to ', '')}, no regular file"):
        decode(odd, 3)
    if kind == "a folder":
        return
    told = Found("photos/class0000/x.png", "is no regular file")
    assert [found for found in find_images(["photos"]) if found.error] == [told]
    assert [found for found in find_images(["photos/*/*.png"]) if found.error] == [told]
    assert list(find_images(["photos/class0000/x.png"])) == [told]


def test_a_link_that_leads_nowhere_is_told(photos):
    (photos / "class0000" / "x.png").symlink_to("none")
    (photos / "class0000" / "y.png").symlink_to("0.png")
    assert [found.error for found in find_images(["photos/class0000"])] == [None, None, "is a link that leads to no file", None]


def huge(path, width, height):
    """Writes a PNG of so many pixels, which takes hundreds of bytes."""
    rows = zlib.compressobj()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
              (b"IDAT", b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()), (b"IEND", b""))  # fmt: skip
    framed = [struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    return path


def test_r19_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    file = huge(tmp_path / "x.png", 12_000, 12_000)
    monkeypatch.setattr(PIL.Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"x\.png has 144 megapixels, and data\.max_megapixels=100 allows no more: make it"):
        decode(file, 1)
    huge(file, 15_000, 15_000)  # Pillow refuses it itself
    with pytest.raises(InputError, match=r"x\.png has 225 megapixels, and data\.max_megapixels=100 allows no more"):
        decode(file, 1)


def test_r19_the_limit_can_be_set(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 500_000)  # of Pillow, which would refuse more than twice as many
    file = huge(tmp_path / "x.png", 1_200, 1_000)
    assert decode(file, 1, max_megapixels=1.2).shape == (1_000, 1_200, 1)
    with pytest.raises(InputError, match=r"has 1\.2 megapixels, and data\.max_megapixels=1\.1 allows"):
        decode(file, 1, max_megapixels=1.1)


def test_what_another_program_would_draw_is_refused(tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "x.png", "EPS")
    with pytest.raises(InputError, match=r"x\.png can't be read as an image \(it is EPS, which other programs draw\)"):
        decode(tmp_path / "x.png", 3)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def fail(image, in_chans, value_range):
        raise EOFError

    monkeypatch.setattr("cct_lightning.data.files.to_uint8", fail)
    with pytest.raises(InputError, match=r"x\.png can't be read as an image \(EOFError\)"):
        decode(tmp_path / "x.png", 3)
