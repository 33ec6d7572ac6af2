import logging

import pytest

from cct_lightning.commands.messages import quieten, shorten


def test_messages_of_the_parser_without_a_key_are_passed_on():
    assert shorten("argument --data.root:\n  expected one argument") == "argument --data.root: expected one argument"


@pytest.mark.parametrize(("message", "expected"), [
    ('Parser key "fit.model.optim.lr":\n  Expected a <class \'float\'>. Got value: fast',
     "model.optim.lr=fast: the value does not fit.\n  It takes float."),
    ('Parser key "data.cache":\n  Expected a typing.Literal[...]. Got value: ram',
     "data.cache=ram: the value does not fit.\n  It takes auto, device, host, none."),
    ('Parser key "data.image_size_schedule":\n  Not a list. Got value: 16',
     "data.image_size_schedule=16: Not a list. Got value: 16.\n  It takes list[tuple[int, float]] or null."),
])  # fmt: skip
def test_messages_keep_the_key_the_value_and_the_rule(message, expected):
    assert shorten(message) == expected


def test_only_the_known_messages_are_hidden(caplog):
    quieten()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("GPU available: False, used: False")
        logger.info("the run of 2 epochs has no room")
    assert [record.message for record in caplog.records] == ["the run of 2 epochs has no room"]
