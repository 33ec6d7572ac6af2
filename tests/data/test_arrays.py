import io
import sys

import numpy as np
import PIL.Image
import pytest
import tifffile

from cct_lightning.data.arrays import scaled, with_number
from cct_lightning.data.files import decode, find_images, size_of
from cct_lightning.data.folders import class_images
from cct_lightning.errors import InputError

SOURCE = np.random.default_rng(0)


def image(channels, dtype=np.uint16, size=(6, 9)):
    values = SOURCE.integers(0, 4000, (*size, channels))
    return (values / 4000).astype(dtype) if np.dtype(dtype).kind == "f" else values.astype(dtype)


def save(path, values, **options):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        tifffile.imwrite(path, values, **options)
    return path


def test_values_become_eight_bits_by_their_type_alone():
    assert scaled(np.array([0, 256, 65535], np.uint16), None).tolist() == [0, 0, 255]
    assert scaled(np.array([0, 0.5, 1], np.float32), None).tolist() == [0, 128, 255]
    assert scaled(np.array([3, 200], np.uint8), (0, 10)).tolist() == [3, 200]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.int32])
def test_what_lies_beyond_the_range_is_cut_off(dtype):
    values = np.array([0, 10, 60, 110, 500]) if dtype == np.uint16 else np.array([-5, 10, 60, 110, 500])
    assert scaled(values.astype(dtype), (10, 110)).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("values", "value_range", "said"), [
    (np.array([-1], np.int16), None, "int16 tells no largest value: give data.value_range"),
    (np.array([0.5, 7.25], np.float32), None, r"float from 0\.5 to 7\.25 lies beyond 0\.\.1: give data.value_range"),
    (np.array([0.5, np.nan], np.float32), (0, 1), "no numbers"),
    (np.array([1j]), (0, 1), "complex128 are no numbers"),
])  # fmt: skip
def test_values_without_a_known_range_are_refused(values, value_range, said):
    with pytest.raises(ValueError, match=said):
        scaled(values, value_range)


@pytest.mark.parametrize(("kind", "options"), [
    ("a.npy", {}),
    ("a.tif", {"photometric": "minisblack", "planarconfig": "contig"}),
    ("a.TIFF", {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 5, 16])
def test_any_number_of_channels_is_read_as_it_was_written(tmp_path, kind, options, dtype, channels):
    values = image(channels, dtype)
    path = save(tmp_path / kind, values, **options)
    assert np.array_equal(decode(path, channels), scaled(values, None))
    assert size_of(path, channels) == (6, 9)


@pytest.mark.parametrize("options", [{"photometric": "minisblack"}, {"photometric": "minisblack", "planarconfig": "separate"}])
def test_pages_and_planes_of_a_tiff_are_its_channels(tmp_path, options):
    values = image(5)
    path = save(tmp_path / "a.tif", values.transpose(2, 0, 1), **options)
    assert np.array_equal(decode(path, 5, value_range=(0, 4000)), scaled(values, (0, 4000)))


@pytest.mark.parametrize(("photometric", "said"), [
    ("miniswhite", "zero is white in it: save it with zero as black"),
    ("palette", "its values stand for the colours of a palette: save it as grey or RGB"),
])  # fmt: skip
def test_values_that_are_no_brightness_are_refused(tmp_path, photometric, said):
    colours = {"colormap": np.zeros((3, 256), np.uint16)} if photometric == "palette" else {}
    path = save(tmp_path / "a.tif", image(1, np.uint8)[..., 0], photometric=photometric, **colours)
    with pytest.raises(InputError, match=said):
        decode(path, 1, value_range=(0, 200))


def test_grey_and_colour_become_what_the_network_takes(tmp_path):
    grey, colour = image(1)[..., 0], image(3)
    assert np.array_equal(decode(save(tmp_path / "a.npy", grey), 3), np.repeat(scaled(grey, None)[..., None], 3, axis=2))
    ours = decode(save(tmp_path / "b.npy", colour), 1)[..., 0].astype(int)
    assert np.abs(ours - np.asarray(PIL.Image.fromarray(scaled(colour, None)).convert("L"))).max() <= 1


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_transparency_is_a_channel_where_it_is_asked_for(tmp_path, mode, channels):
    values = image(channels, np.uint8)
    PIL.Image.fromarray(values).save(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == mode
    assert np.array_equal(decode(tmp_path / "a.png", channels), values)


def test_sixteen_bits_in_grey_are_scaled_by_the_range_whatever_the_format(tmp_path):
    values = image(1)[..., 0]
    PIL.Image.fromarray(values).save(tmp_path / "a.png")
    expected = scaled(values, (100, 3000))[..., None]
    for path in (tmp_path / "a.png", save(tmp_path / "b.tif", values), save(tmp_path / "c.npy", values)):
        assert np.array_equal(decode(path, 1, value_range=(100, 3000)), expected)
    assert decode(tmp_path / "a.png", 1).max() <= 15  # of 65535


@pytest.mark.parametrize(("write", "in_chans", "said"), [
    (lambda path: np.save(path, image(5)), 3, "it has 5 channels, and data.in_chans=3"),
    (lambda path: np.save(path, image(3)), 5, "it has 3 channels, and data.in_chans=5"),
    (lambda path: np.save(path, np.zeros((2, 3, 4, 5), np.uint8)), 3, r"an array \(2, 3, 4, 5\) is no image"),
    (lambda path: np.save(path, np.zeros((0, 3), np.uint8)), 1, r"an array \(0, 3\) is no image"),
    (lambda path: np.save(path, np.array([[{"code": 1}]], object), allow_pickle=True), 1, "can't be read as an image"),
    (lambda path: path.write_bytes(b"no array"), 3, "can't be read as an image"),
    (lambda path: path.write_bytes(_saved(image(3))[:-20]), 3, "can't be read as an image"),
])  # fmt: skip
def test_arrays_that_are_no_such_image_are_refused(tmp_path, write, in_chans, said):
    write(tmp_path / "a.npy")
    with pytest.raises(InputError, match=rf"a\.npy can't be read as an image.*{said if 'can' not in said else ''}"):
        decode(tmp_path / "a.npy", in_chans)


def _saved(values):
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def test_an_array_too_large_is_refused_by_its_header(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": (30_000, 30_000, 5)})
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    with pytest.raises(InputError, match=r"a\.npy has 900 megapixels, and data.max_megapixels=100 allows no more"):
        decode(tmp_path / "a.npy", 5)


def test_files_of_pillow_need_the_right_number_of_channels(tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for in_chans in (2, 4, 5):
        with pytest.raises(InputError, match=rf"a\.png can't be read .*it has 3 channels, and data.in_chans={in_chans}"):
            decode(tmp_path / "a.png", in_chans)
    with pytest.raises(ValueError, match="it has 4 channels"):
        with_number(np.zeros((2, 2, 4), np.uint8), 3)


def test_without_tifffile_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif", image(5), photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError, match=r'needs tifffile, which is not installed: pip install "cct-lightning\[tiff\]"'):
        decode(path, 5)


def test_arrays_of_a_folder_are_taken_where_it_holds_no_other_images(tmp_path):
    for name in ("b.npy", "a.npy"):
        np.save(tmp_path / name, image(5))
    assert [file.name for file in class_images(tmp_path)] == ["a.npy", "b.npy"]
    assert [found.path for found in find_images([tmp_path])] == [found.path for found in find_images([f"{tmp_path}/*.npy"])]
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    assert [file.name for file in class_images(tmp_path)] == ["c.png"]
    assert [found.path for found in find_images([tmp_path])] == [str(tmp_path / "c.png")]


@pytest.mark.parametrize(("values", "said"), [
    (np.full((4, 4, 5), 7, np.int16), "tells no largest value"), (np.full((4, 4, 5), np.nan, np.float32), "NaN"),
    (np.full((4, 4, 5), 7.0, np.float32), "lies beyond 0..1"),
])  # fmt: skip
def test_an_array_without_a_known_range_is_named(tmp_path, values, said):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=rf"a.npy can't be read as an image \(.*{said}"):
        decode(tmp_path / "a.npy", 5)


def test_the_order_of_bytes_changes_no_value(tmp_path):
    values = np.arange(80, dtype=np.uint16).reshape(4, 4, 5) * 800
    np.save(tmp_path / "a.npy", values.astype(">u2"))
    assert np.array_equal(decode(tmp_path / "a.npy", 5), scaled(values, None))
