import numpy as np
import PIL.Image
import pytest

from cct_lightning import InputError
from cct_lightning.data.files import decode


def test_images_are_decoded_upright_and_in_the_asked_channels(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 255
    turned = PIL.Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    assert decode(tmp_path / "turned.png", 3).shape == (6, 4, 3)
    assert decode(tmp_path / "turned.png", 1).shape == (6, 4, 1)
    assert (decode(tmp_path / "turned.png", 3)[:, -1] == 255).all()


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(decode(tmp_path / "deep.png", 1)[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "fake.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"fake\.jpg can't be read as an image"):
        decode(tmp_path / "fake.jpg", 3)
