import pytest


@pytest.mark.parametrize(("words", "said"), [
    ((), "push needs a checkpoint and a name: cct push runs/.../checkpoints/best.ckpt OWNER/NAME"),
    (("x.ckpt", "me/x", "--privat"), "push does not take '--privat'. Did you mean --private?"),
    (("x.ckpt", "me/x"), "There is no file or folder x.ckpt"),
])  # fmt: skip
def test_words_that_are_none_are_refused(cct, words, said):
    outcome = cct("push", *words)
    assert outcome.code == 2
    assert said in outcome.err


def test_the_help_is_there(cct):
    assert "--dry-run" in cct("push", "--help").out
