"""``cct study``: runs that differ in one thing, over equal seeds; what is missing of them is computed, and compared."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cct_lightning.commands.checks import check_one_device
from cct_lightning.commands.keys import check_keys, check_value, flatten, read_typed
from cct_lightning.commands.permissions import FLAGS, Permissions
from cct_lightning.commands.ranges import as_number
from cct_lightning.commands.recipes import RECIPES, find_recipe, header, read_recipe
from cct_lightning.commands.words import CONFIG, Typed, read_words
from cct_lightning.data.options import DataOptions
from cct_lightning.errors import InputError, RunError, did_you_mean
from cct_lightning.plain_yaml import read_yaml
from cct_lightning.run_folder import PATIENCE, RunFolder
from cct_lightning.studies.options import Keys, Study, check_once, read_study, with_rates
from cct_lightning.studies.plan import Job, Plan, missing
from cct_lightning.wording import duration

OWN = ("seeds", "tune", "jobs", "out", "plan", "look")
HELP = """cct study STUDY -c RECIPE [--seeds N] [--jobs N] [--key value] ...

Compares runs that differ in one thing: the same seeds, order of images, augmentation and initial values, as far as they share tensors, which is
checked and not assumed. STUDY is one of those below or a file of yours:

  factor: model.pooling                          what differs: a key, and values a list of its values; or words, and values the keys of each arm,
  values: [class_token, seqpool, mean]           such as {shallow: {model.depth: 2}, deep: {model.depth: 6}}
  baseline: class_token                          held against the others; the first where it is left out
  seeds: 5                                       reported; 3 where it is left out
  tune: {learning_rate: [0.5, 1, 2]}             chosen for each arm, by validation images and by other seeds than those reported; factors on all
                                                 rates of the recipe, and values of any other key
  across: {data.fraction: [0.1, 1.0]}            a comparison for each value
  fixed: {data.val_fraction: 0.1}                the same for all
  pad: model.mlp_ratio                           raised in smaller arms until they have the weights of the largest
  expected: a sentence                           shown beside what is found

  --seeds N                    more or fewer than the file says; with more, what is there already is not computed again
  --tune KEY=A,B,C             other values to choose from than the file's, such as learning_rate=0.5,1,2,4; what is there already is not computed
                               again. --tune none takes the recipe's own
  --jobs N                     runs side by side, each on its share of the cores
  --out DIR                    where runs, tables and pictures are written (default: studies/<study>-<recipe>)
  --look                       also measure what the networks do with their tokens (entropy of the weights, accuracy without the heaviest patches,
                               a linear probe, ...), and draw the maps of all arms on the same images; analysis.csv
  --plan                       say how many runs are missing and about how long they take, after twenty steps of the baseline
  --key value                  a key of all runs, as in `cct fit --help`; --allow-import and --allow-path likewise

What was stopped goes on when the same is typed again, runs that were inside an epoch included. A run that fails is told and ends nothing else.
Written: results.csv (a row for each run), results.md, pictures, report.html; the runs lie below runs/ and tuning/, each as in runs/<recipe>/<time>.
Exit code: 0; 1 where a run failed; 2 where the command is wrong."""


@dataclass(frozen=True)
class Request:
    """A study that was asked for.

    Attributes:
        study: What is compared.
        recipes: As they are laid over each other.
        root: Its folder.
        jobs: How many runs side by side.
        only_plan: Whether to say what there is to do, and no more.
        looks: Whether to look at the networks, too.
        keys: All keys of the recipes and the study, for what is computed of them beforehand.
        permissions: What is allowed to all runs.
    """

    study: Study
    recipes: tuple[Path, ...]
    root: Path
    jobs: int
    only_plan: bool
    looks: bool
    keys: Mapping[str, Any]
    permissions: Permissions = Permissions()


def study_paths() -> dict[str, Path]:
    """Returns the shipped studies by name."""
    return {path.stem: path for path in sorted((RECIPES / "studies").glob("*.yaml"))}


def prepare(arguments: Sequence[str]) -> Request:
    """Reads and checks the words behind ``study``; nothing heavy is imported.

    Raises:
        InputError: An unknown study, recipe or key; a number that is none.
    """
    typed = read_words(arguments, "study", flags=("plan", "look"))
    if len(typed.alone) != 1:
        given = f", and {len(typed.alone)} words were given" if typed.alone else ""
        raise InputError(f"study takes one study{given}: cct study poolings -c digits. Shipped: {', '.join(study_paths())}.")
    study = read_study(_find(typed.alone[0]))
    recipes = tuple(find_recipe(option.value or "") for option in typed.options if option.key == CONFIG)
    if not recipes:
        raise InputError(f"study needs a recipe that all runs begin with: cct study {typed.alone[0]} -c digits. `cct recipes` lists them.")
    fixed: dict[str, Any] = {}
    for option in typed.options:
        if option.key not in (*OWN, *FLAGS, CONFIG):
            check_keys({option.key: "command line"})
            check_value(option.key, option.value, "command line")
            if option.adds:
                raise InputError(f"{option.name}+= can't be said of a study: put it into a recipe of your own, and lay that over with -c.")
            fixed[option.key] = read_typed(option.key, option.value)
    keys: dict[str, Any] = {}
    for path in recipes:
        keys |= read_recipe(path, trains=True)
    study = replace(study, fixed={**study.fixed, **fixed}, seeds=typed.number("seeds", study.seeds), tune=_tuned(study.tune, typed))
    study = with_rates(study, {**keys, **flatten(dict(study.fixed))})
    check_once(study, typed.alone[0])
    _check(study, typed.alone[0], keys)
    name = "-".join(path.stem for path in recipes)
    out = typed.last("out")
    root = Path(out).expanduser() if out else Path("studies", f"{study.name}-{name}")
    only_plan, looks = (any(option.key == name for option in typed.options) for name in ("plan", "look"))
    return Request(study, recipes, root, typed.number("jobs", 1), only_plan, looks, {**keys, **study.fixed}, Permissions.read(typed))


def _tuned(tune: Mapping[str, Sequence[Any]], typed: Typed) -> Mapping[str, Sequence[Any]]:
    """Returns what is tuned: as the study's file says, with what ``--tune`` says instead."""
    for option in typed.options:
        if option.key != "tune":
            continue
        key, equals, text = (option.value or "").partition("=")
        found = read_yaml(f"[{text}]", f"--tune {option.value}")
        values = [value if (number := as_number(value)) is None else number for value in found]
        if (key, equals) == ("none", ""):
            tune = {}
        elif not equals or not values or option.adds:
            raise InputError(f"--tune {option.value}: it takes a key and its values, such as --tune learning_rate=0.5,1,2,4, or none.")
        else:
            tune = {**tune, key: values}
    return tune


def _find(name: str) -> Path:
    known, path = study_paths(), Path(name)
    if path.is_file():
        return path
    if name in known:
        return known[name]
    raise InputError(f"{name}: neither a file nor a study.{did_you_mean(name, known)}")


def _check(study: Study, where: str, recipe: Keys) -> None:
    """Refuses keys that no run would take before the first one begins."""
    check_one_device({**recipe, **flatten(dict(study.fixed))}, "a run of a study")
    groups: list[Keys] = [
        study.fixed,
        *study.arms.values(),
        *study.cells,
        *map(study.keys_of, study.trials),
        *([{study.pad: 1.0}] if study.pad else []),
    ]
    for keys in groups:
        flat = flatten(dict(keys))
        check_keys(dict.fromkeys(flat, where))
        for key, value in flat.items():
            check_value(key, value, where)
        check_one_device(flat, "a run of a study")


def main(arguments: list[str]) -> None:
    """Runs ``cct study`` with the words behind it."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    if not arguments:
        _list()
        return
    if failed := run(prepare(arguments)):
        raise RunError(f"{failed} of the runs failed: each is told above, with the log of what it said.")


def _list() -> None:
    width = max(map(len, study_paths())) + 2
    for name, path in study_paths().items():
        print(f"{name:{width}}{next(iter(header(path)), '')}")
    print("\ncct study NAME -c RECIPE runs one; `cct study --help` says how to write your own.")


def run(request: Request) -> int:
    """Computes what is missing of a study, and writes what it found.

    Returns:
        The number of runs that failed.

    Raises:
        InputError: The folder holds another study's runs, or is at work elsewhere; a network can't be padded.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # see commands/main.py
    plan = Plan(request.study, request.recipes, request.root, _padding(request))
    if request.only_plan:
        print("\n".join(_told(plan, request)))
        return 0
    request.root.mkdir(parents=True, exist_ok=True)
    with RunFolder(request.root).held(PATIENCE):
        plan.record()
        return _carry_out(plan, request)


def _carry_out(plan: Plan, request: Request) -> int:
    from cct_lightning.studies.looking import as_text as as_told
    from cct_lightning.studies.looking import look_at as _look
    from cct_lightning.studies.report import write_report
    from cct_lightning.studies.results import as_text, collect, write_tables

    failed = 0
    try:
        failed += _compute(plan.trials(), "choosing values", request)
        failed += _compute(plan.reported(plan.chosen()), "the runs that are reported", request)
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; the same command goes on. What there is so far is in {request.root}.", file=sys.stderr)
        raise
    finally:
        cells = collect(plan)
        write_tables(plan, cells)
    found = _look(plan, cells) if request.looks else []
    write_report(plan, cells, found)
    for cell in cells:
        print("\n".join(["", *as_text(cell)]))
    for one in found:
        print("\n".join(["", *as_told(one)]))
    print(f"\nwritten: {request.root}: results.csv, results.md, report.html, pictures")
    return failed


def _compute(jobs: Sequence[Job], what: str, request: Request) -> int:
    from cct_lightning.studies.running import carry_out, line

    todo, failed = missing(jobs), 0
    if not jobs:
        return 0
    print(f"{what}: {len(jobs)}, of which {len(jobs) - len(todo)} are there", flush=True)
    call = partial(train, recipes=request.recipes, permissions=request.permissions)
    with closing(carry_out(todo, call, request.jobs)) as results:
        for number, result in enumerate(results, 1 + len(jobs) - len(todo)):
            print(line(number, len(jobs), result), flush=True)
            failed += result.error is not None
    return failed


def train(job: Job, recipes: Sequence[Path], permissions: Permissions = Permissions()) -> None:
    """Trains a run of a study, or goes on with it."""
    from cct_lightning.runs.postponed import postpone

    postpone()
    from cct_lightning.commands.calls import fit, resume

    begun, (imports, paths) = job.run, permissions
    if begun is not None and begun.last.is_file():
        resume(begun.path, allow_import=imports, allow_path=paths)
    else:
        keys = {**job.keys, "trainer.default_root_dir": str(job.folder), "trainer.callbacks+": "StartRecord"}
        fit(list(recipes), keys, allow_import=imports, allow_path=paths)


def _padding(request: Request) -> dict[str, Keys]:
    if request.study.pad is None:
        return {}
    from cct_lightning.studies.padding import padding

    return padding(request.study, request.keys)


def _told(plan: Plan, request: Request) -> list[str]:
    """Says how many runs there are, and about how long those take that are missing."""
    trials, count = plan.trials(), len(plan.study.cells) * len(plan.study.arms) * plan.study.seeds
    reported = plan.reported(plan.chosen())
    todo = len(missing(trials)) + count - (len(reported) - len(missing(reported)))
    lines = [f"{plan.study.name}: {len(plan.study.arms)} arms x {plan.study.seeds} seeds x {len(plan.study.cells)} comparison(s) = {count} runs"
             + (f", and {len(trials)} that choose values" if trials else "") + f"; {todo} are missing"]  # fmt: skip
    for arm, keys in plan.padding.items():
        lines += [f"  {arm}: {', '.join(f'{key} {value}' for key, value in keys.items())}, for as many weights as the largest arm has"]
    seconds, source, unit = _seconds(plan, request)
    return [*lines, f"  about {duration(seconds)} each, {source}: {unit}-hours {todo * seconds / 3600:.1f} in all"]


def _seconds(plan: Plan, request: Request) -> tuple[float, str, str]:
    """Estimates how long a run takes: as those that have ended, else by some steps of the baseline."""
    ended = [summary for job in plan.reported(plan.chosen()) if (summary := job.summary)]
    if ended:
        on_cpu = str(ended[0].get("device", "")).startswith("CPU")
        name = "cpu_seconds" if on_cpu else "seconds"
        return sum(summary[name] for summary in ended) / len(ended), f"as the {len(ended)} that have ended", "CPU" if on_cpu else "GPU"
    study = plan.study
    with tempfile.TemporaryDirectory() as place:
        job = Job(study.baseline, study.cells[0], 0, {**study.fixed, **study.cells[0], **study.arms[study.baseline]}, Path(place))
        return _probe(job, request)


def _probe(job: Job, request: Request) -> tuple[float, str, str]:
    from cct_lightning.commands.calls import fit
    from cct_lightning.studies.running import into

    short = {
        "trainer.max_steps": 20, "trainer.limit_val_batches": 0, "trainer.limit_test_batches": 0, "trainer.callbacks": None, "wandb.mode": "disabled",
        "trainer.enable_checkpointing": False, "trainer.enable_progress_bar": False, "trainer.default_root_dir": str(job.folder),
    }  # fmt: skip
    with into(job.folder / "log.txt"):
        imports, paths = request.permissions
        summary = fit(list(request.recipes), {**job.keys, **short}, allow_import=imports, allow_path=paths).summary
    asked = {**request.keys, **flatten(dict(job.keys))}
    steps, epochs = asked.get("trainer.max_steps", -1), asked.get("trainer.max_epochs")
    if steps in (-1, None):
        steps = (summary.steps_per_epoch or 0) * int(epochs or 0)
    import torch

    on_cpu, speed = summary.device.startswith("CPU"), summary.images_per_second
    each = asked.get("data.batch_size", DataOptions.batch_size) / speed if speed else summary.seconds / max(summary.steps, 1)
    seconds = max(summary.seconds - summary.steps * each, 0.0) + int(steps) * each  # what comes before the first step comes once
    how = f"by {summary.steps} steps of {job.arm}, validation and test left out"
    return (seconds * torch.get_num_threads(), how, "CPU") if on_cpu else (seconds, how, "GPU")
