import pytest

from cct_lightning import InputError
from cct_lightning.commands.words import Option, read_words


def test_every_way_of_writing_a_key_is_read():
    typed = read_words(["-c", "a", "--config=b", "--model.optim.lr", "-1", "--x=", "--trainer.callbacks+=EMA", "photos", "--", "--odd"], "fit")
    assert typed.alone == ["photos", "--odd"]
    assert typed.options == [
        Option("config", "a"), Option("config", "b"), Option("model.optim.lr", "-1"), Option("x", ""), Option("trainer.callbacks", "EMA", adds=True),
    ]  # fmt: skip
    assert (typed.last("config"), typed.last("y")) == ("b", None)


def test_what_is_read_can_be_parsed_again():
    words = ["--config", "a", "--model.optim.lr", "-1", "--trainer.callbacks+", "EMA", "--print_config"]
    typed = read_words(words, "fit", ["print_config"])
    assert [word for option in typed.options for word in option.words] == words


def test_flags_take_no_word():
    typed = read_words(["--find-lr", "digits", "--print_config=comments"], "fit", ["find-lr", "print_config"])
    assert typed.alone == ["digits"]
    assert typed.options == [Option("find-lr", None), Option("print_config", "comments")]


@pytest.mark.parametrize(("words", "message"), [
    (["--out"], "--out needs a value. `cct predict --help` says which."),
    (["--out", "--top_k", "3"], "--out needs a value"),
    (["-c"], "-c needs a value"),
    (["--model.pretrained"], "--model.pretrained is given without a value: name a file"),
])  # fmt: skip
def test_a_key_without_a_value_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        read_words(words, "predict")
