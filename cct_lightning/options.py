"""Keys are defined once, as the fields of a frozen dataclass beside what takes them: here is what reads their help, and what makes keyword
arguments of them. Importing this needs no torch."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import wraps
from inspect import Parameter, Signature, cleandoc, signature
from operator import index
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, get_type_hints, overload

from cct_lightning.errors import InputError, check_range, did_you_mean

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741  an options object
O_co = TypeVar("O_co", covariant=True)
S = TypeVar("S")
R = TypeVar("R")


def helps(options: type) -> dict[str, str]:
    """Returns what the docstrings of a dataclass and its bases say of each field, under "Args:"; the class itself wins over its bases."""
    found: dict[str, str] = {}
    for kind in reversed(options.__mro__):
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", cleandoc(kind.__doc__ or ""), re.S | re.M)
        texts = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1], re.S | re.M) if section else []
        found |= {name: " ".join(text.split()) for name, text in texts}
    return found


def default_of(field: Field[Any]) -> Any:
    """Returns a field's default, ``inspect.Parameter.empty`` where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return Parameter.empty if field.default is MISSING else field.default


def as_size(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width), pixels, of the side of square images or of both sides.

    Raises:
        InputError: It is neither, or less than a pixel.
    """
    try:
        sides = tuple(map(index, value)) if isinstance(value, Iterable) else (index(value), index(value))
    except TypeError:
        sides = ()
    if len(sides) != 2:
        raise InputError(f"{name}={value!r}: give the side of square images, or height and width, in whole pixels.")
    check_range(name, min(sides), 1)
    return sides[0], sides[1]


class _Decorator(Protocol[P, O_co]):
    """Of a function, and of a method, which has ``self`` before the options."""

    @overload
    def __call__(self, function: Callable[[O_co], R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Callable[[S, O_co], R], /) -> Callable[Concatenate[S, P], R]: ...


def keywords_of(options: Callable[P, O]) -> _Decorator[P, O]:
    """Lets a function or an ``__init__`` that takes one options object be called with that object's fields.

    Type checkers see the fields as arguments, by the ParamSpec; ``inspect.signature``, ``help`` and LightningCLI see them, too, by the
    signature and the docstring that the decorated function gets.

    Args:
        options: A dataclass.

    Raises:
        TypeError: From what is decorated, where an argument is unknown, missing or one too many, as from any function, with a suggestion.
    """
    # jsonargparse would look up types that are text in the decorated function's module, in vain, and takes no factory for a default.
    types = get_type_hints(options)
    defaults = {field.name: default_of(field) for field in fields(cast(Any, options))}
    own = [p.replace(annotation=types[p.name], default=defaults[p.name]) for p in signature(options).parameters.values()]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        before = list(signature(function).parameters.values())[:-1]
        name = function.__qualname__.removesuffix(".__init__")
        taken = Signature(own)

        @wraps(function)
        def __init__(*given: Any, **keywords: Any) -> Any:  # noqa: N807  by this name jsonargparse reads the help of a class from it
            positional = given[len(before) :]
            _check(name, taken, positional, keywords)
            return function(*given[: len(before)], options(*positional, **keywords))

        vars(__init__)["__signature__"] = signature(function).replace(parameters=[*before, *own])
        __init__.__doc__ = _documented(function.__doc__ or f"The keywords of {name}.", helps(cast(type, options)))
        return __init__

    return cast("_Decorator[P, O]", decorate)


def _check(name: str, taken: Signature, positional: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Refuses what the options' class would refuse by its own name, which nobody typed."""
    for keyword in keywords:
        if keyword not in taken.parameters:
            raise TypeError(f"{name} has no argument {keyword!r}.{did_you_mean(keyword, taken.parameters, listed=0)}")
    try:
        taken.bind(*positional, **keywords)
    except TypeError as error:
        raise TypeError(f"{name}: {error}.") from None


def _documented(docstring: str, said: Mapping[str, str]) -> str:
    """Puts "Args:" of all keywords into a docstring, before what it returns and raises."""
    head, *tail = re.split(r"\n\n(?=Returns:|Raises:)", cleandoc(docstring))
    arguments = "\n".join(["Args:", *(f"    {name}: {text}" for name, text in said.items())])
    return "\n\n".join([head, arguments, *tail])
