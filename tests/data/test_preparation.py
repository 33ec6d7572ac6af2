import cv2
import numpy as np
import pytest

from cct_lightning.data.preparation import fit, resize

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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "method"), [
    ((16, 20), cv2.INTER_AREA), ((63, 63), cv2.INTER_AREA), ((64, 90), cv2.INTER_LINEAR), ((70, 64), cv2.INTER_LINEAR), ((99, 65), cv2.INTER_LINEAR),
])  # fmt: skip
def test_what_shrinks_or_grows_along_both_sides_is_resized_at_once(size, method, channels):
    image = SOURCE.integers(0, 256, (64, 64, channels), dtype=np.uint8)
    expected = cv2.resize(image, size[::-1], interpolation=method).reshape(*size, channels)
    assert np.array_equal(resize(image, *size), expected)
    assert resize(image, 64, 64) is image


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
