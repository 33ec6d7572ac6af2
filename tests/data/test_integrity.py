import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from cct_lightning import InputError
from cct_lightning.data.files import decode
from cct_lightning.data.integrity import check_png

SOURCE = np.random.default_rng(0)
PHOTO = np.asarray(PIL.Image.fromarray(SOURCE.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48), PIL.Image.Resampling.BICUBIC))


def as_png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_header(data, position, form, value):
    """Puts another value into the header of a PNG, and the checksum that goes with it."""
    header = bytearray(data[16:29])
    struct.pack_into(form, header, position, value)
    return data[:8] + chunk(b"IHDR", bytes(header)) + data[33:]


KINDS = {
    "colour": PIL.Image.fromarray(PHOTO),
    "grey": PIL.Image.fromarray(PHOTO).convert("L"),
    "one bit": PIL.Image.fromarray(PHOTO).convert("1"),
    "palette": PIL.Image.fromarray(PHOTO).quantize(11),
    "alpha": PIL.Image.fromarray(PHOTO).convert("RGBA"),
    "grey and alpha": PIL.Image.fromarray(PHOTO).convert("LA"),
    "16 bits": PIL.Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257),
    "one row": PIL.Image.fromarray(PHOTO[:1]),
    "one pixel": PIL.Image.fromarray(PHOTO[:1, :1]),
    "flat": PIL.Image.new("RGB", (500, 700)),
}


@pytest.mark.parametrize("image", KINDS.values(), ids=KINDS)
def test_what_pillow_writes_is_whole(image):
    for options in ({}, {"compress_level": 0}, {"optimize": True}):
        check_png(io.BytesIO(as_png(image, **options)))


def interlaced(image):
    """Writes a PNG of grey in Adam7's seven passes, which Pillow reads and does not write."""
    height, width = image.shape
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(b"\0" + row.tobytes() for x, y, right, down in passes for row in image[y::down, x::right] if row.size)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (17, 30)])
def test_an_interlaced_png_is_whole(tmp_path, size):
    grey = SOURCE.integers(0, 256, size, dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(interlaced(grey))
    assert np.array_equal(decode(tmp_path / "a.png", 1)[..., 0], grey)


def test_pixels_may_lie_in_many_chunks(tmp_path):
    data = as_png(KINDS["colour"])
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    content = data[start + 8 : start + 8 + length]
    parts = [chunk(b"IDAT", content[at : at + 100]) for at in range(0, length, 100)]
    (tmp_path / "a.png").write_bytes(data[:start] + b"".join([*parts, chunk(b"IDAT", b"")]) + data[start + 12 + length :] + b"behind its end")
    assert np.array_equal(decode(tmp_path / "a.png", 3), PHOTO)


@pytest.mark.parametrize("kind", ["colour", "16 bits", "palette"])
def test_r07_no_flipped_bit_of_a_png_gives_other_pixels(tmp_path, kind):
    data, file = as_png(KINDS[kind]), tmp_path / "flipped.png"
    for bit in SOURCE.choice(len(data) * 8, 200, replace=False).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(InputError, match=r"flipped\.png can't be read as an image"):
            decode(file, 3)


@pytest.mark.parametrize("kind", ["colour", "grey", "16 bits", "flat"])
@pytest.mark.parametrize("rows", [-7, -1, 1, 48])
def test_r07_a_png_with_a_false_height_is_refused(tmp_path, kind, rows):
    height = KINDS[kind].height
    (tmp_path / "a.png").write_bytes(with_header(as_png(KINDS[kind]), 4, ">I", height + rows))
    with pytest.raises(
        InputError, match=rf"a\.png can't be read as an image \(its pixels are {'fewer' if rows > 0 else 'more'} than its header says"
    ):
        decode(tmp_path / "a.png", 3)


def test_r07_a_png_that_was_cut_off_is_refused(tmp_path):
    data = as_png(KINDS["colour"])
    for length in (len(data) - 1, len(data) - 12, len(data) - 13, len(data) // 2, 33, 8):
        (tmp_path / "a.png").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"a\.png can't be read as an image"):
            decode(tmp_path / "a.png", 3)


def test_r07_a_png_whose_pixels_do_not_give_their_own_checksum_is_refused(tmp_path):
    data = bytearray(as_png(KINDS["colour"]))
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    content = bytes(data[start + 4 : start + length]) + bytes(4)  # in the place of Adler's
    (tmp_path / "a.png").write_bytes(data[: start - 4] + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="incorrect data check"):
        decode(tmp_path / "a.png", 3)


def test_a_png_that_unpacks_to_more_than_its_header_says_is_not_unpacked():
    bomb = zlib.compress(bytes(20_000_000))
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="more than its header says"):
        check_png(io.BytesIO(data))
