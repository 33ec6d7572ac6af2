"""``cct fit``: what is typed, checked without torch."""

from collections.abc import Iterable
from dataclasses import replace

from cct_lightning.commands.requests import Request, read_request
from cct_lightning.commands.words import CONFIG, read_words
from cct_lightning.errors import InputError
from cct_lightning.weights.sources import check_source, check_teacher

# Keys of their own: these look for a value instead of training.
SEARCHES = ("find-lr", "find-batch-size")
FLAGS = (*SEARCHES, "print_config")


def apart(arguments: Iterable[str], command: str) -> tuple[list[str], list[str]]:
    """Parts what was typed into recipes and all the rest: the images that a command begins with go in between, and no recipe's in their place."""
    typed = read_words(arguments, command, (*FLAGS, "calibrate"))
    recipes = [word for option in typed.options if option.key == CONFIG for word in option.words]
    return recipes, [*typed.alone, *(word for option in typed.options if option.key != CONFIG for word in option.words)]


def prepare(arguments: list[str], command: str = "fit") -> Request:
    """Reads and checks the words behind ``fit``, or those that ``finetune`` and ``pretrain`` make of their own.

    Raises:
        InputError: An unknown recipe or key, a way of calling that is refused, weights that are not there.
    """
    typed = read_words(arguments, command, (*FLAGS, "calibrate"))
    if any(option.key == "calibrate" for option in typed.options):
        raise InputError("--calibrate is for `cct test` and `cct validate`.")
    for word in typed.alone:
        raise InputError(f"{command} does not take the word {word!r}: recipes are given as -c NAME, keys as --key value.")
    request = read_request(command, typed, SEARCHES)
    searches = [option.key for option in typed.options if option.key in SEARCHES]
    if len(set(searches)) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in SEARCHES)}: one at a time, since what the one finds changes the other.")
    if (source := request.keys.get("model.pretrained")) not in (None, "null"):
        check_source(str(source))
    if (teacher := request.keys.get("model.teacher")) not in (None, "null"):
        check_teacher(str(teacher))
    if not request.recipes:
        raise InputError("fit needs a recipe: cct fit -c digits. `cct recipes` lists those that are shipped; a path of your own will do as well.")
    if "data.dataset" not in request.keys:
        raise InputError("no recipe says which data: the overlays smoke, ddp and fsdp are laid over one, as in cct fit -c digits -c smoke.")
    if "print_config" not in {option.key for option in typed.options}:  # which needs nothing to be there
        from cct_lightning.commands.checks import check_given  # help and errors in keys do without

        check_given(command, request.keys)
    return replace(request, search=searches[0] if searches else None)
