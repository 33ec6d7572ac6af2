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
