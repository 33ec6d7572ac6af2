import inspect
import re
from dataclasses import fields

import pytest

from cct_lightning import AugmentConfig, ImageDataModule, InputError
from cct_lightning.data.options import DataOptions, Preprocessing
from cct_lightning.options import helps


def test_every_key_has_a_help_and_is_an_argument_of_the_data_module():
    names = [option.name for option in fields(DataOptions)]
    assert set(helps(DataOptions)) == set(names)
    assert list(inspect.signature(ImageDataModule).parameters) == names


@pytest.mark.parametrize("size", [16, [16, 16], (16, 16)])
def test_a_size_is_a_number_a_list_or_a_tuple(size):
    assert ImageDataModule("digits", image_size=size).image_size == (16, 16)


@pytest.mark.parametrize(("option", "message"), [
    ({"val_fraction": 1}, "data.val_fraction=1 is out of range: it must be at least 0 and less than 1."),
    ({"batch_size": 0}, "data.batch_size=0 is out of range: it must be at least 1."),
    ({"per_class": 0}, "data.per_class=0 is out of range: it must be at least 1."),
    ({"image_size": 0}, "data.image_size=0 is out of range: it must be at least 1."),
    ({"image_size": 8, "augment": AugmentConfig(shift=8)}, "data.augment.shift=8 is out of range: it must be at least 0 and less than 8."),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(option, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ImageDataModule("digits", **option)


def test_preprocessing_survives_json():
    preprocessing = Preprocessing((8, 16), 1, [0.5], [0.25], 0.9)
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
