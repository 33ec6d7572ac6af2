"""``cct tune``: trials of a recipe's keys, judged by validation images, of which the poor ones end early; what was stopped goes on."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cct_lightning.commands import fit as fitting
from cct_lightning.commands import resume as resuming
from cct_lightning.commands.checks import check_one_device
from cct_lightning.commands.keys import check_keys, check_value, groups, known_keys, read_typed
from cct_lightning.commands.permissions import FLAGS, Permissions
from cct_lightning.commands.ranges import as_number
from cct_lightning.commands.recipes import find_recipe, read_recipe
from cct_lightning.commands.words import CONFIG, Typed, read_words
from cct_lightning.errors import InputError, RunError
from cct_lightning.networks.presets import VARIANTS
from cct_lightning.plain_yaml import read_yaml
from cct_lightning.runs.options import mode_of
from cct_lightning.studies.space import HOW, Choices, Numbers, plain, read_values
from cct_lightning.tasks.options import FROM_DATA
from cct_lightning.tasks.registry import DEFAULT

if TYPE_CHECKING:
    from cct_lightning.studies.plan import Job
    from cct_lightning.studies.tuning import Search

OWN = ("key", "trials", "minutes", "jobs", "out")
TRIALS = 20
HELP = f"""cct tune -c RECIPE --key NAME=VALUES [--key NAME=VALUES ...] [--trials N] [--minutes M] [--key value] ...

Tries values of a recipe's keys and tells which do best on the validation images; the test images are never looked at. What is tried next follows
from what came of the trials before (Optuna's TPE; the first ten are drawn evenly, the very first has the recipe's own values where they lie inside).
A trial whose best validation so far is below the median of the others' at the same point ends there, from 5 finished trials and a quarter of its
training on. pip install "cct-lightning[tune]" brings Optuna; no account is needed, and nothing leaves the machine.

  --key model.optim.lr=1e-4..1e-2:log     numbers between two; with :log as many between 1e-4 and 1e-3 as between 1e-3 and 1e-2
  --key model.depth=2..8                  whole ones of a key that takes these
  --key model.pooling=map,seqpool,mean    a few values
  --trials N                              in all, those that are there included  (default: {TRIALS})
  --minutes M                             no trial begins after so many; those at hand come to their end
  --jobs N                                trials side by side, each on its share of the cores; what is tried then depends on which ends first
  --out DIR                               where runs, table and pictures are written  (default: tuning/<recipe>)
  --NAME VALUE                            a key of all trials, as in `cct fit --help`; --allow-import and --allow-path likewise

All trials have the recipe's seed. The same command goes on where it was stopped, inside an epoch, too; a trial that fails is told and ends nothing
else. Written: trials.csv, report.html, pictures, and optuna.db, which Optuna's own tools read; the runs lie below trials/, each as in runs/<recipe>.
Exit code: 0; 1 where no trial came to its end; 2 where the command is wrong."""


@dataclass(frozen=True)
class Request:
    """A search that was asked for.

    Attributes:
        search: What is tried.
        trials: How many in all.
        minutes: After which none begins; None: all do.
        jobs: How many side by side.
        permissions: What is allowed to all.
    """

    search: "Search"
    trials: int
    minutes: float | None
    jobs: int
    permissions: Permissions = Permissions()


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        folder: With table, pictures and runs.
        keys: The best values of what was searched.
        value: Their measure on the validation images, such as the accuracy, 0..1.
        command: What trains them on, as it is typed.
    """

    folder: Path
    keys: Mapping[str, Any]
    value: float
    command: str


def prepare(arguments: Sequence[str]) -> Request:
    """Reads and checks the words behind ``tune``; nothing heavy is imported.

    Raises:
        InputError: An unknown recipe or key, values that are none, a number out of range; Optuna is not installed.
    """
    typed = read_words(arguments, "tune")
    for word in typed.alone:
        raise InputError(f"tune does not take the word {word!r}: recipes are given as -c NAME, what is searched as --key NAME={HOW}.")
    names = [option.value or "" for option in typed.options if option.key == CONFIG]
    recipes = tuple(find_recipe(name) for name in names)
    if not recipes:
        raise InputError("tune needs a recipe that all trials begin with: cct tune -c digits --key model.optim.lr=1e-4..1e-2:log")
    usual: dict[str, Any] = {}
    for path in recipes:
        usual |= read_recipe(path, trains=True)
    if "data.dataset" not in usual and typed.last("data.dataset") is None:
        raise InputError("no recipe says which data: the overlays are laid over one, as in cct tune -c digits -c smoke ...")
    fixed = _fixed(typed)
    space = _space(typed)
    for key in space:
        if key in fixed:
            raise InputError(f"{key} is searched and set to {plain(fixed[key])}: say one of them.")
    _check_as_run(typed, space)
    if find_spec("optuna") is None:
        raise InputError('tune needs Optuna, which is not installed: pip install "cct-lightning[tune]"')
    from cct_lightning.studies.tuning import Search

    usual |= fixed
    check_one_device(usual, "a trial")
    out, permissions = typed.last("out"), Permissions.read(typed)
    root = Path(out).expanduser() if out else Path("tuning", "-".join(path.stem for path in recipes))
    search = Search(
        space, {key: _usual(key, usual) for key in space}, fixed, recipes, names, root, *_judged_by(usual),
        int(_usual("seed_everything", usual) or 0), str(_usual("task", usual)), permissions.words,
    )  # fmt: skip
    minutes = typed.last("minutes")
    number = None if minutes is None else as_number(minutes)
    if minutes is not None and (number is None or not 0 < number < float("inf")):
        raise InputError(f"--minutes {minutes}: it takes a number above 0.")
    return Request(search, typed.number("trials", TRIALS), number, typed.number("jobs", 1), permissions)


def _check_as_run(typed: Typed, space: Mapping[str, Numbers | Choices]) -> None:
    """Checks what all trials share, and what names something, as `cct fit` does: before the first one instead of in each."""
    words = [word for option in typed.options if option.key not in OWN for word in option.words]
    fitting.prepare(words)
    for key, values in space.items():
        tried = values.values if isinstance(values, Choices) else (values.low,)
        for value in tried if key.startswith("model.") else ():
            fitting.prepare([*words, f"--{key}={plain(value)}"])


def _space(typed: Typed) -> dict[str, Numbers | Choices]:
    space: dict[str, Numbers | Choices] = {}
    for option in typed.options:
        if option.key != "key":
            continue
        key, equals, text = (option.value or "").partition("=")
        if not equals:
            raise InputError(f"--key {key}: what may it be? --key {key}={HOW}, such as --key model.optim.lr=1e-4..1e-2:log")
        check_keys({key: "--key"})
        if key in groups() or key not in known_keys() or key.removeprefix("model.") in FROM_DATA:
            raise InputError(f"--key {key}: it is no key with a value of its own that `cct fit --help` lists, or follows from the data.")
        if key in space:
            raise InputError(f"--key {key} is given twice: say all its values once, {key}={HOW}.")
        space[key] = values = read_values(key, text, known_keys()[key].type)
        for value in (values.low, values.high) if isinstance(values, Numbers) else values.values:
            check_value(key, value, "--key")
    if not space:
        raise InputError("tune needs something to search: --key model.optim.lr=1e-4..1e-2:log, once for each key.")
    return space


def _fixed(typed: Typed) -> dict[str, Any]:
    fixed: dict[str, Any] = {}
    for option in typed.options:
        if option.key in (*OWN, *FLAGS, CONFIG):
            continue
        check_keys({option.key: "command line"})
        check_value(option.key, option.value, "command line")
        if option.adds:
            raise InputError(f"{option.name}+= can't be said of a search: put it into a recipe of your own, and lay that over with -c.")
        fixed[option.key] = read_typed(option.key, option.value)
    return fixed


def _usual(key: str, given: Mapping[str, Any]) -> Any:
    """Returns the value that a key has without a search; a number also where YAML takes it for text, as 1e-3; of a network's size its own."""
    value = given[key] if key in given else read_yaml(known_keys()[key].default.replace("None", "null").lower(), key)
    if value is None and key.startswith("model.") and (variant := VARIANTS.get(str(_usual("model.arch", given)))) is not None:
        value = vars(variant).get(key.removeprefix("model."))
    number = as_number(value)
    return value if number is None else number


def _judged_by(usual: Mapping[str, Any]) -> tuple[str, Literal["max", "min"]]:
    """Returns the measure that trials are judged by, and which of it is better; no measure where the task says it, whose class needs torch."""
    if "checkpoint.monitor" not in usual and _usual("task", usual) != DEFAULT:
        return "", "max"
    monitor = str(_usual("checkpoint.monitor", usual))
    return monitor, mode_of(monitor, _usual("checkpoint.mode", usual))


def _by_task(search: "Search") -> "Search":
    """Has trials be judged by what the task names first of its measures."""
    from cct_lightning.tasks.registry import task_class

    monitor = task_class(search.task).measures[0]
    return replace(search, monitor=monitor, mode=mode_of(monitor))


def main(arguments: list[str]) -> None:
    """Runs ``cct tune`` with the words behind it."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    run(prepare(arguments))


def run(request: Request) -> Tuned:
    """Carries out the trials that are missing, and writes what was found.

    Raises:
        InputError: The folder holds another search's trials, or is at work elsewhere.
        RunError: No trial came to its end.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # see commands/main.py
    from cct_lightning.run_folder import PATIENCE, RunFolder
    from cct_lightning.studies.tuning_report import as_text, command, write_report

    if not request.search.monitor:
        request = replace(request, search=_by_task(request.search))
    search = request.search
    search.root.mkdir(parents=True, exist_ok=True)
    with RunFolder(search.root).held(PATIENCE):
        there = sum(outcome.state != "unfinished" for outcome in search.outcomes)
        try:
            _carry_out(request, there)
        except (KeyboardInterrupt, SystemExit):
            print(f"stopped; the same command goes on. What there is so far is in {search.root}.", file=sys.stderr)
            raise
        finally:
            write_report(search)
    print("\n".join(["", *as_text(search)]))
    print(f"\nwritten: {search.root}: trials.csv, report.html{', pictures' * (search.root / 'pictures').is_dir()}")
    if not (ranked := search.ranked()):
        raise RunError(f"no trial came to its end: {search.root / 'trials.csv'} tells why.")
    return Tuned(search.root, ranked[0].keys, float(ranked[0].value or 0.0), command(search, ranked[0]))


def _carry_out(request: Request, there: int) -> None:
    from cct_lightning.studies.running import carry_out
    from cct_lightning.studies.tuning_report import line

    search = request.search
    print(f"{', '.join(f'{key} {values}' for key, values in search.space.items())}; seed {search.seed}", flush=True)
    print(f"{request.trials} trials, of which {there} are there", flush=True)
    until = float("inf") if request.minutes is None else time.monotonic() + 60 * request.minutes
    call = partial(
        train, search=replace(search), permissions=request.permissions
    )  # without the connection to the database, which other processes open themselves
    with closing(carry_out(search.jobs(request.trials, until), call, request.jobs)) as results:
        for result in results:
            before = search.ranked()[:1]
            outcome = search.tell(result)
            print(line(search, outcome, request.trials, search.ranked()[:1] != before), flush=True)


def train(job: "Job", search: "Search", permissions: Permissions = Permissions()) -> None:
    """Trains a trial, or goes on with it; it ends early where the search says so."""
    from cct_lightning.runs.postponed import postpone

    postpone()
    from cct_lightning.commands.calls import carry_out, fit

    begun, watch = job.run, search.watch(job)
    if begun is None or not begun.last.is_file():
        keys = {**job.keys, "trainer.default_root_dir": str(job.folder)}
        fit(list(search.recipes), keys, allow_import=permissions.imports, allow_path=permissions.paths, watch=watch)
    else:
        carry_out(replace(resuming.prepare([str(begun.path), *permissions.words]), watch=watch))
