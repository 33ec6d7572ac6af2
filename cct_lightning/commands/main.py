"""The light front of ``cct``: help, recipes and early errors, answered at once. What trains or tests is handed on to cli.py."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import cct_lightning
from cct_lightning.commands.finetune import with_default_recipe
from cct_lightning.commands.help import COMMANDS, print_help, print_keys
from cct_lightning.commands.keys import check_keys
from cct_lightning.commands.recipes import find_recipe, print_recipes, read_recipe
from cct_lightning.commands.resume import prepare_resume, say_finished
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.weights.sources import check_source


def prepare(arguments: list[str]) -> list[str]:
    """Checks what can be checked without torch, and puts the paths of recipes in the place of their names.

    Raises:
        InputError: An unknown command, recipe or key; a way of calling that is refused.
    """
    from cct_lightning.commands.keys import FIND, FROM_DATA, check_value, groups, known_keys

    command, *rest = arguments
    if command not in COMMANDS:
        raise InputError(f"There is no command {command!r}.{did_you_mean(command, COMMANDS)}")
    if command == "resume":
        return [command, *prepare_resume(rest)]
    if command == "finetune":
        rest = with_default_recipe(rest)
    fits = command in ("fit", "finetune")
    out, recipes = [command], 0
    given: dict[str, str] = {}
    source: str | None = None  # of weights, the last that is named
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            value = value if equals else next(words, "")
            path = find_recipe(value)
            keys = read_recipe(path, fits)
            given |= dict.fromkeys(keys, str(path))
            source = keys.get("model.pretrained", source)
            recipes += 1
            out += ["--config", str(path)]
            continue
        if word in FIND:
            if not fits:
                raise InputError(f"{word} is for `cct fit` and `cct finetune`.")
            if set(FIND) <= set(rest):
                raise InputError(f"{' and '.join(FIND)}: one at a time, since what the one finds changes the other.")
            out.append(word)
            continue
        key = name.removeprefix("--").removesuffix("+")
        if name.startswith("--") and key.removeprefix("model.") in FROM_DATA and key.startswith("model."):
            raise InputError(f"{key} flows from the data to the model: set it there, as in --data.image_size, or leave it out.")
        if fits and key == "ckpt_path":
            raise InputError(
                f"{command} does not take --ckpt_path: --model.pretrained FILE starts a new run from the weights of a file,\n"
                "  `cct resume RUN` goes on with a run."
            )
        if name.startswith("--") and key in groups():
            raise InputError(f"{name} is a group of keys: give one of them, as in {next(k for k in known_keys() if k.startswith(key))}.")
        if name.startswith("--") and key not in ("ckpt_path", "print_config", "verbose"):
            given[key] = "command line"
            if key in known_keys() and not name.endswith("+"):
                following = value if equals else next(iter(rest[rest.index(word) + 1 :]), "")
                check_value(key, following, "command line")
                source = following if key == "model.pretrained" else source
        out.append(word)
    check_keys(given)
    if fits and source not in (None, "null") and "CCT_RESUME" not in os.environ:  # a resumed run needs them no more
        check_source(str(source))
    if command == "fit" and not recipes:
        raise InputError("fit needs a recipe: cct fit -c digits. `cct recipes` lists those that are shipped; a path of your own will do as well.")
    if command == "fit" and "data.dataset" not in given:
        raise InputError("no recipe says which data: the overlays smoke, ddp and fsdp are laid over one, as in cct fit -c digits -c smoke.")
    if command in ("test", "validate"):
        checkpoint = next((word.removeprefix("--ckpt_path=") for word in rest if word.endswith(".ckpt")), None)
        if checkpoint is None:
            folder = next((word for word in rest if Path(word).is_dir()), None)
            found = sorted(Path(folder).rglob("best.ckpt"))[-1:] if folder else []
            if folder and found and found[0].parent.parent == Path(folder):  # a run
                out[out.index(folder)] = checkpoint = str(found[0])
        if checkpoint is None:
            hint = found[0] if found else "runs/.../checkpoints/best.ckpt"
            raise InputError(f"{command} needs a checkpoint, a file that ends in .ckpt: cct {command} {hint}")
        if not Path(checkpoint).is_file():
            raise InputError(f"There is no file {checkpoint}. Checkpoints lie in runs/<recipe>/<time>/checkpoints/.")
    return out


def _fail(error: Exception) -> NoReturn:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    print("\n".join([f"error: {lines[0]}", *lines[1:5]]), file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Runs ``cct`` with the arguments of the process."""
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("CCT_DEBUG") == "1"
    if debug:
        os.environ["CCT_DEBUG"] = "1"  # for the processes that a launch starts
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print_help()
        elif arguments[0] == "--version":
            print(cct_lightning.__version__)
        elif arguments[0] == "recipes":
            print_recipes(arguments[1:])
        elif arguments[0] in ("predict", "export"):  # plain torch: they need no Lightning, which takes 10 s to import
            import_module(f"cct_lightning.commands.{arguments[0]}").main(arguments[1:])
        elif arguments[0] in COMMANDS and {"-h", "--help"} & set(arguments):
            print_keys(arguments[0])
        else:
            prepared = prepare(arguments)
            if prepared[0] == "resume" and "--extend-to" not in prepared and say_finished(Path(prepared[1])):
                return
            # On cores that others use, too, OpenMP's idle threads spin for milliseconds and steal the time of those that work: a run took
            # twenty times as long. 3,000 turns are some ten microseconds, and cost 4 % on a quiet machine (benchmarks/README.md).
            os.environ.setdefault("GOMP_SPINCOUNT", "3000")
            from cct_lightning.commands.fit import run

            run(prepared)
    except InputError as error:
        if debug:
            raise
        _fail(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (head, less) has gone
