import numpy as np
import PIL.Image
import pytest
from pictures import write_images

from cct_lightning import ImageDataModule
from cct_lightning.data.folders import Split
from cct_lightning.data.proportions import advice, excess, what_is_cut_off


def test_long_and_tall_images_lose_alike():
    assert excess([(100, 150), (150, 100), (100, 100)]) == 1.5
    assert excess([(100, 150)], (2, 3)) == 1.0
    assert excess([]) == 1.0


@pytest.mark.parametrize(("size", "warns"), [((60, 40), True), ((40, 60), True), ((56, 42), False)])
def test_the_share_that_is_left_out_is_said_with_the_keys_to_type(tmp_path, size, warns):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files[1:]:
        PIL.Image.new("RGB", size).save(file)
    files[0].write_text("no image")
    told = what_is_cut_off(Split(files, np.zeros(3, int)), np.arange(3), (16, 16))
    assert (told is not None) == warns
    if told is not None:
        assert "1.5 times as long" in told
        assert "leaves out 33% of such an image; --data.fit pad or --data.fit squash" in told
        assert "\n" not in told
    assert advice(1.4) is None


def test_a_training_says_it_where_it_crops(tmp_path, caplog):
    for file in write_images(tmp_path, 2, 4).rglob("*.png"):
        PIL.Image.open(file).resize((60, 30)).save(file)
    for fit, times in (("pad", 0), ("crop", 1)):
        ImageDataModule("image_folder", str(tmp_path), image_size=16, fit=fit).setup("fit")
        assert caplog.text.count("2 times as long as the network's or more: data.fit=crop leaves out 50%") == times
