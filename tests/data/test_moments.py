import numpy as np
import pytest
import yaml

from cct_lightning.data.moments import as_yaml, measure
from cct_lightning.errors import InputError

SOURCE = np.random.default_rng(0)


def read(moments):
    return yaml.safe_load(as_yaml(moments))["data"]


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_mean_and_deviation_are_those_of_all_pixels_of_images_of_one_size(channels):
    images = SOURCE.integers(0, 256, (5, 6, 9, channels), dtype=np.uint8)
    found = read([measure(image) for image in images])
    pixels = images.reshape(-1, channels) / 255
    assert found == {"in_chans": channels, "mean": found["mean"], "std": found["std"]}
    np.testing.assert_allclose(found["mean"], pixels.mean(axis=0), atol=5.1e-6)
    np.testing.assert_allclose(found["std"], pixels.std(axis=0), atol=5.1e-6)


def test_each_image_counts_alike_whatever_its_size():
    dark, bright = np.zeros((2, 2, 1), np.uint8), np.full((40, 40, 1), 255, np.uint8)
    assert read([measure(dark), measure(bright)]) == {"in_chans": 1, "mean": [0.5], "std": [0.5]}


def test_values_of_more_bits_are_measured_in_the_range_they_have():
    images = SOURCE.integers(300, 3000, (5, 6, 9, 2)).astype(np.uint16)
    found = read([measure(image) for image in images])
    low, high = found["value_range"]
    assert (low, high) == (images.min(), images.max())
    unit = (images.reshape(-1, 2) - low) / (high - low)
    np.testing.assert_allclose(found["mean"], unit.mean(axis=0), atol=5.1e-6)
    np.testing.assert_allclose(found["std"], unit.std(axis=0), atol=5.1e-6)


def test_what_can_not_be_joined_is_refused():
    with pytest.raises(InputError, match="none could be read"):
        as_yaml([])
    with pytest.raises(InputError, match=r"1 of 2 training images have more than 8 bits: give their --data\.value_range"):
        as_yaml([measure(np.zeros((2, 2, 1), np.uint8)), measure(np.zeros((2, 2, 1), np.uint16))])
    with pytest.raises(ValueError, match="no numbers"):
        measure(np.full((2, 2, 1), np.nan, np.float32))
    assert "of one value everywhere, so that a std can't divide: channel 2" in as_yaml([measure(np.array([[[1, 5], [2, 5]]], np.uint8))])
