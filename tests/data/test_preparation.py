import cv2
import numpy as np
import pytest

from cct_lightning.data.options import Preprocessing
from cct_lightning.data.preparation import Fitting, cut, fit, prepare, resize

SOURCE = np.random.default_rng(0)
STRIPES = np.zeros((64, 64, 3), np.uint8)
STRIPES[::2] = 255  # rows, black and white in turns


@pytest.mark.parametrize("size", [(16, 64), (16, 100), (8, 64), (5, 200)])
@pytest.mark.parametrize("cubic", [False, True])
def test_what_shrinks_along_one_side_alone_is_averaged(size, cubic):
    """Stripes finer than the new rows become grey, also where columns stay or grow."""
    rows = resize(STRIPES, *size, cubic=cubic)
    assert rows.shape == (*size, 3)
    assert np.abs(rows.astype(int) - 128).max() <= (1 if 64 % size[0] == 0 else 20)  # else a new row takes of one stripe more
    columns = resize(STRIPES.transpose(1, 0, 2), *size[::-1], cubic=cubic)
    assert np.array_equal(columns, rows.transpose(1, 0, 2))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("size", "method"), [
    ((16, 20), cv2.INTER_AREA), ((63, 63), cv2.INTER_AREA), ((64, 90), cv2.INTER_LINEAR), ((70, 64), cv2.INTER_LINEAR), ((99, 65), cv2.INTER_LINEAR),
])  # fmt: skip
def test_what_shrinks_or_grows_along_both_sides_is_resized_at_once(size, method, channels):
    image = SOURCE.integers(0, 256, (64, 64, channels), dtype=np.uint8)
    expected = cv2.resize(image, size[::-1], interpolation=method).reshape(*size, channels)
    assert np.array_equal(resize(image, *size), expected)
    assert resize(image, 64, 64) is image


@pytest.mark.parametrize("channels", [2, 5, 9])
@pytest.mark.parametrize("size", [(16, 20), (70, 90), (16, 90)])
def test_every_channel_of_many_is_resized_as_if_alone(size, channels):
    image = SOURCE.integers(0, 256, (64, 64, channels), dtype=np.uint8)
    whole = resize(image, *size)
    for channel in range(channels):
        assert np.array_equal(whole[..., channel : channel + 1], resize(np.ascontiguousarray(image[..., channel : channel + 1]), *size))


def test_the_centre_is_what_evaluation_sees():
    image = SOURCE.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(fit(image, (40, 40)), image[:, 10:50])


@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
@pytest.mark.parametrize("shape", [(2, 200), (9, 700), (100, 6401), (3, 47)])
def test_of_a_long_strip_only_the_middle_is_enlarged(shape, crop_pct):
    image = cv2.resize(SOURCE.integers(0, 256, (shape[0], 40, 3), dtype=np.uint8), shape[::-1])
    factor = 32 / shape[0] / crop_pct
    high, wide = round(shape[0] * factor), round(shape[1] * factor)
    whole = resize(image, high, wide)[(high - 32) // 2 :, (wide - 32) // 2 :][:32, :32]
    for turned, expected in ((image, whole), (image.transpose(1, 0, 2), whole.transpose(1, 0, 2))):
        assert np.abs(fit(turned, (32, 32), crop_pct).astype(int) - expected).max() <= 8  # it may lie half a pixel beside it


def test_a_strip_of_a_million_pixels_takes_no_more_memory_than_it_needs(monkeypatch):
    asked = []
    monkeypatch.setattr(cv2, "resize", lambda image, size, interpolation: asked.append(size) or np.zeros((*size[::-1], 3), np.uint8))
    assert fit(np.zeros((1, 1_000_000, 3), np.uint8), (224, 224)).shape == (224, 224, 3)
    assert asked == [(224 * 16, 224)]


PAD, SQUASH = Fitting("pad", (10, 20, 30)), Fitting("squash")


@pytest.mark.parametrize("shape", [(40, 60, 3), (60, 40, 3)])
def test_padding_shows_all_of_an_image_between_equal_borders_of_the_fill(shape):
    image = SOURCE.integers(0, 256, shape, dtype=np.uint8)
    whole = np.empty((60, 60, 3), np.uint8)
    whole[:] = PAD.fill
    top, left = (60 - shape[0]) // 2, (60 - shape[1]) // 2
    whole[top : top + shape[0], left : left + shape[1]] = image
    assert np.array_equal(fit(image, (60, 60), fitting=PAD), whole)
    assert np.array_equal(fit(image, (30, 30), fitting=PAD), fit(whole, (30, 30)))  # the border lies between two of the new pixels
    assert np.array_equal(fit(image, (30, 30), 0.5, PAD), whole[15:45, 15:45])  # of the padded image the middle, as timm's "border"


def test_squashing_shows_all_of_an_image_stretched():
    image = SOURCE.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(fit(image, (20, 20), fitting=SQUASH), resize(image, 20, 20))
    assert np.array_equal(fit(image, (20, 20), 0.5, SQUASH), resize(image, 40, 40)[10:30, 10:30])


@pytest.mark.parametrize("fitting", [Fitting(), PAD, SQUASH])
def test_images_of_the_right_proportions_look_the_same_however_they_are_fitted(fitting):
    image = SOURCE.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for size in ((20, 30), (80, 120), (40, 60)):
        assert np.array_equal(fit(image, size, fitting=fitting), fit(image, size))
        assert np.array_equal(cut(image, (4, 6, 20, 30), size, True, fitting), resize(image[4:24, 6:36], *size, cubic=True))


@pytest.mark.parametrize("fitting", [PAD, SQUASH])
@pytest.mark.parametrize("shape", [(40, 60, 3), (61, 32, 3), (1, 5000, 3)])
def test_the_whole_plane_is_what_evaluation_sees(shape, fitting):
    image = cv2.resize(SOURCE.integers(0, 256, (4, 4, 3), dtype=np.uint8), shape[1::-1])
    high, wide = fitting.plane(shape[:2], (30, 30))
    assert high == wide == max(shape)
    seen, expected = cut(image, (0, 0, high, wide), (30, 30), False, fitting), fit(image, (30, 30), fitting=fitting)
    assert (np.abs(seen.astype(int) - expected).max(axis=2) > 8).sum() <= 2 * 30  # a row at either border may lie half a pixel beside


def test_random_crops_of_a_padded_image_are_those_of_an_image_with_borders():
    image = SOURCE.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = fit(image, (60, 60), fitting=PAD)
    for top, left, high, wide in ((0, 0, 30, 30), (5, 3, 40, 40), (15, 0, 45, 45), (0, 9, 8, 8), (52, 0, 8, 8)):
        seen = cut(image, (top, left, high, wide), (high, wide), False, PAD)
        assert np.array_equal(seen, whole[top : top + high, left : left + wide])


def test_random_crops_of_a_squashed_image_come_from_its_own_pixels():
    image = SOURCE.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert SQUASH.plane((40, 60), (24, 24)) == (60, 60)
    assert np.array_equal(cut(image, (30, 12, 30, 24), (24, 24), False, SQUASH), resize(image[20:40, 12:36], 24, 24))


def test_what_a_network_is_given_follows_from_what_is_kept_of_the_preparation():
    about = Preprocessing((30, 30), 3, [0.1, 0.2, 0.3], [0.2] * 3, 1.0, "pad")
    image = SOURCE.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(prepare(image, Preprocessing.from_json(about.to_json())), fit(image, (30, 30), fitting=Fitting("pad", (26, 51, 76))))
    before = {name: value for name, value in about.to_json().items() if name != "fit"}  # of a file written before there was a choice
    assert Preprocessing.from_json(before).fit == "crop"
