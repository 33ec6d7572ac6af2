import inspect
import re
from dataclasses import fields

import pytest
from torch import nn

from cct_lightning import InputError, LitClassifier, create_model
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.options import helps


def test_every_option_has_a_help_and_is_an_argument_of_all_that_builds_networks():
    options = {option.name for option in fields(NetworkOptions)}
    assert set(helps(NetworkOptions)) == options
    for builder in (create_model, LitClassifier):
        assert options <= inspect.signature(builder).parameters.keys()


@pytest.mark.parametrize("size", [16, [16, 16], (16, 16)])
def test_a_size_is_a_number_a_list_or_a_tuple(size):
    options = NetworkOptions("cct_2_3x2_32", image_size=size)
    assert options == NetworkOptions("cct_2_3x2_32", image_size=(16, 16))
    assert options.size == (16, 16)
    assert NetworkOptions("cct_2_3x2_32").size is None


@pytest.mark.parametrize(("option", "message"), [
    ({"drop_path": 1}, "drop_path=1 is out of range: it must be at least 0 and less than 1."),
    ({"depth": 0}, "depth=0 is out of range: it must be at least 1."),
    ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 is out of range: it must be more than 0."),
    ({"num_classes": -1}, "num_classes=-1 is out of range: it must be at least 0."),
    ({"image_size": 0}, "image_size=0 is out of range: it must be at least 1."),
])  # fmt: skip
def test_numbers_out_of_range_are_refused_before_torch_is_needed(option, message):
    with pytest.raises(InputError, match=re.escape(message)):
        NetworkOptions("cct_2_3x2_32", **option)


@pytest.mark.parametrize("builder", [create_model, LitClassifier])
def test_a_module_is_no_name(builder):
    with pytest.raises(InputError, match=r'not a Linear\.\n.*around an Encoder.*model=: see "A network of your own" in the README\.'):
        builder(nn.Linear(2, 2))
