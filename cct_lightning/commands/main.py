"""Where ``cct`` begins: the light front, which answers at once and hands on what trains, measures or predicts."""

import os
import sys
from errno import EACCES, ENAMETOOLONG, EPERM, EPIPE
from importlib import import_module
from typing import NoReturn

import cct_lightning
from cct_lightning.commands import evaluate, finetune, fit, folds, pretrain, resume
from cct_lightning.commands.help import COMMANDS, print_help, print_keys
from cct_lightning.commands.models import print_models
from cct_lightning.commands.recipes import print_recipes
from cct_lightning.commands.requests import Request
from cct_lightning.commands.streams import kept_open
from cct_lightning.errors import InputError, RunError, did_you_mean
from cct_lightning.wording import shortened

# These import what they need once their words are checked.
LIGHT = ("check", "predict", "embed", "similar", "export", "push", "study", "tune")
LINE = 1000  # characters of an error's line, which may repeat what was typed


def prepare(arguments: list[str]) -> Request:
    """Reads and checks the words of a training or an evaluation; nothing heavy is imported.

    Raises:
        InputError: An unknown command, recipe or key; a way of calling that is refused.
    """
    command, *rest = arguments
    match command:
        case "fit":
            return fit.prepare(rest)
        case "finetune":
            return finetune.prepare(rest)
        case "pretrain":
            return pretrain.prepare(rest)
        case "resume":
            return resume.prepare(rest)
        case "test" | "validate":
            return evaluate.prepare(rest, command)
    raise InputError(f"There is no command {command!r}.{did_you_mean(command, COMMANDS)}")


def _carry_out(request: Request) -> None:
    """Trains or measures, and ends the process where a signal ended the training."""
    if request.run is not None and resume.say_finished(request):
        return
    # On cores that others use, too, OpenMP's idle threads spin for milliseconds and steal the time of those that work: a run took
    # twenty times as long. 3,000 turns are some ten microseconds, and cost 4 % on a quiet machine (benchmarks/README.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from cct_lightning.runs.postponed import postpone

    postpone()
    from cct_lightning.commands.running import measure, train

    if request.checkpoint is not None:
        measure(request)
    elif code := train(request).exit_code:
        sys.exit(code)


def _fail(error: Exception) -> NoReturn:
    lines = [shortened(line, LINE) for line in str(error).strip().splitlines()] or [type(error).__name__]
    print("\n".join([f"error: {lines[0]}", *lines[1:5]]), file=sys.stderr)
    sys.exit(1 if isinstance(error, RunError) else 2)


def in_words(error: Exception) -> InputError | None:
    """Says of what was typed that no file can have such a name, or may be opened, or that nobody reads anything so deep; None of anything else."""
    if isinstance(error, OSError) and error.errno in (EACCES, EPERM) and error.filename is not None:
        return InputError(f"{shortened(str(error.filename), 80)} can't be opened ({error.strerror}): it is not yours to read or write.")
    if isinstance(error, OSError) and error.errno == ENAMETOOLONG:
        return InputError(f"a path of {len(str(error.filename)):,} characters is too long: {shortened(str(error.filename), 80)}")
    if isinstance(error, RecursionError):
        return InputError("a value is nested too deeply to be read.")
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return InputError("a path begins with ~ and a name that no user of this machine has: write ./~ where a file's name begins so.")
    return None


def main() -> None:
    """Runs ``cct`` with the arguments of the process."""
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("CCT_DEBUG") == "1"
    if debug:
        os.environ["CCT_DEBUG"] = "1"  # for the processes that a launch starts
    with kept_open() as lost:
        try:
            trains = _run(arguments)
            sys.stdout.flush()
        except InputError as error:
            if debug:
                raise
            _fail(error)
        except (OSError, RuntimeError) as error:
            if debug or (told := in_words(error)) is None:
                raise
            _fail(told)
        except KeyboardInterrupt:
            if debug:
                raise
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        if lost and lost[0].errno != EPIPE and not trains:  # what a training found is in its folder
            sys.exit(1)


def _run(arguments: list[str]) -> bool:
    """Runs a command; returns whether it was one that trains or measures, which keep what they find in files."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help()
    elif arguments[0] == "--version":
        print(cct_lightning.__version__)
    elif arguments[0] == "recipes":
        print_recipes(arguments[1:])
    elif arguments[0] == "models":
        print_models(arguments[1:])
    elif arguments[0] in LIGHT:
        import_module(f"cct_lightning.commands.{arguments[0]}").main(arguments[1:])
    elif folds.are_asked(arguments):
        folds.main(arguments)
        return True
    elif arguments[0] in COMMANDS and {"-h", "--help"} & set(arguments):
        print_keys(arguments[0])
    else:
        _carry_out(prepare(arguments))
        return True
    return False
