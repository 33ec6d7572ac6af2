import inspect
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import pytest

from cct_lightning.errors import InputError
from cct_lightning.options import as_size, helps, keywords_of


@dataclass(frozen=True)
class Base:
    """A base.

    Args:
        name: What it is
            called.
        size: Of the base.
    """

    name: str
    _: KW_ONLY
    size: "int | None" = None


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """Its child.

    Args:
        size: Of the child.
        words: Some.

    Raises:
        ValueError: Not a key.
    """

    words: Sequence[str] = field(default_factory=list)
    mode: Literal["fast", "slow"] = "fast"


@keywords_of(Options)
def make(options: Options) -> Options:
    """Makes it.

    Returns:
        What it was given.
    """
    return options


class Owner:
    @keywords_of(Options)
    def __init__(self, options: Options) -> None:
        self.options = options


def test_help_comes_from_the_class_and_its_bases():
    assert helps(Options) == {"name": "What it is called.", "size": "Of the child.", "words": "Some."}


def test_keywords_become_options():
    expected = Options("x", size=3, mode="slow")
    assert make("x", size=3, mode="slow") == expected
    assert Owner("x", size=3, mode="slow").options == expected
    assert Owner(name="x").options == Options("x")


def test_the_signature_shows_types_and_defaults_as_values():
    for callable in (make, Owner):
        parameters = inspect.signature(callable).parameters
        assert list(parameters) == ["name", "size", "words", "mode"]
        assert parameters["size"].annotation == int | None  # not as text
        assert parameters["words"].default == []
        assert parameters["name"].default is inspect.Parameter.empty
        assert parameters["mode"].kind is inspect.Parameter.KEYWORD_ONLY
    assert next(iter(inspect.signature(Owner.__init__).parameters)) == "self"


def test_the_docstring_gets_the_arguments():
    assert inspect.getdoc(make) == (
        "Makes it.\n\nArgs:\n    name: What it is called.\n    size: Of the child.\n    words: Some.\n\nReturns:\n    What it was given."
    )
    assert inspect.getdoc(Owner.__init__).startswith("The keywords of Owner.\n\nArgs:\n    name: ")


@pytest.mark.parametrize(("arguments", "keywords", "message"), [
    (("x",), {"mod": 1}, r" has no argument 'mod'\. Did you mean mode\?"),
    ((), {}, r": missing a required argument: 'name'\."),
    (("x", 3), {}, r": too many positional arguments\."),
])  # fmt: skip
@pytest.mark.parametrize("owner", [make, Owner])
def test_errors_name_what_was_called(owner, arguments, keywords, message):
    with pytest.raises(TypeError, match=f"^{owner.__name__}{message}"):
        owner(*arguments, **keywords)


@pytest.mark.parametrize(("value", "size"), [(16, (16, 16)), ((8, 16), (8, 16)), ([8, 16], (8, 16))])
def test_sizes(value, size):
    assert as_size("image_size", value) == size


@pytest.mark.parametrize(("value", "message"), [
    (0, "image_size=0 is out of range"), ((4, -1), "image_size=-1 is out of range"), ("x", "image_size='x': give the side"),
    ((1, 2, 3), r"image_size=\(1, 2, 3\): give the side"), (1.5, "image_size=1.5: give the side"),
])  # fmt: skip
def test_what_is_no_size_is_refused(value, message):
    with pytest.raises(InputError, match=message):
        as_size("image_size", value)
