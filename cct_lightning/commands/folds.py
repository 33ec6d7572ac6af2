"""``cct finetune --folds``: a run for each part of the images, tested on it, and what all of them say; what is missing is computed."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cct_lightning.commands import finetune, resume
from cct_lightning.commands.checks import check_one_device
from cct_lightning.commands.fit import SEARCHES
from cct_lightning.commands.permissions import FLAGS
from cct_lightning.commands.requests import Request
from cct_lightning.commands.words import Option, read_words
from cct_lightning.errors import InputError, RunError
from cct_lightning.plain_yaml import read_yaml
from cct_lightning.run_folder import PATIENCE, RunFolder, new_folder
from cct_lightning.runs.options import WHERE
from cct_lightning.side_files import read_json
from cct_lightning.tasks.registry import DEFAULT

if TYPE_CHECKING:
    from cct_lightning.studies.folds import FoldsSummary, Plan
    from cct_lightning.studies.plan import Job

OWN = ("folds", "jobs")
RECORD = "folds.json"


@dataclass(frozen=True)
class Asked:
    """Folds that were asked for, or go on.

    Attributes:
        request: What each run begins with.
        words: What was typed behind ``cct finetune``, the images first, without what is the folds' own.
        count: Number of folds.
        jobs: Runs side by side.
        root: Their folder; None: a new one.
        given: What counts for this call alone: what is allowed, and of folds that go on where they are computed.
    """

    request: Request
    words: tuple[str, ...]
    count: int
    jobs: int = 1
    root: Path | None = None
    given: tuple[str, ...] = ()


def are_asked(arguments: Sequence[str]) -> bool:
    """Tells whether what is typed is about folds: those of a fine-tuning, or a folder of such that goes on."""
    command, *rest = arguments
    if command == "finetune" and not {"-h", "--help"} & set(rest):
        return any(word == "--folds" or word.startswith("--folds=") for word in rest)
    return command == "resume" and any(not word.startswith("-") and _folder(word) is not None for word in rest)


def _folder(word: str) -> Path | None:
    path = Path(word).expanduser()
    path = path.parent if path.name == RECORD else path
    return path if (path / RECORD).is_file() else None


def prepare(arguments: Sequence[str]) -> Asked:
    """Reads and checks the words of folds; nothing heavy is imported.

    Raises:
        InputError: As ``finetune`` and ``resume`` do; what can't be said of folds.
    """
    command, *rest = arguments
    return _prepare_resumed(rest) if command == "resume" else _prepare_new(rest)


def _prepare_new(rest: Sequence[str]) -> Asked:
    typed = read_words(rest, "finetune", (*SEARCHES, "print_config", "calibrate"))
    for option in typed.options:
        if option.key in (*SEARCHES, "print_config", "data.fold"):
            raise InputError(f"{option.name} is for one run: leave it out with --folds, which says which images each is tested on.")
    count, jobs = typed.number("folds", 0, 2), typed.number("jobs", 1)
    words = [*typed.alone, *(word for option in typed.options if option.key not in (*OWN, *FLAGS) for word in option.words)]
    given = [word for option in typed.options if option.key in FLAGS for word in option.words]
    request = finetune.prepare([*words, *given])
    if request.task not in (None, DEFAULT):
        raise InputError(f"--folds is for images of one class each, and task={request.task} is asked for.")
    check_one_device(request.keys, "a fold")
    return Asked(request, tuple(words), count, jobs, given=tuple(given))


def _prepare_resumed(rest: Sequence[str]) -> Asked:
    typed = read_words(rest, "resume")
    if len(typed.alone) != 1 or (root := _folder(typed.alone[0])) is None:
        raise InputError(f"resume goes on with one run or one folder of folds, and {len(typed.alone)} were given: {' '.join(typed.alone[:5])}")
    said = read_json(root / RECORD)
    count, words = said.get("folds"), said.get("words")
    if not isinstance(count, int) or count < 2 or not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{root / RECORD} is damaged: the folds can't go on. Begin anew with cct finetune DIR --folds N.")
    jobs, given = typed.number("jobs", 1), list[Option]()
    for option in typed.options:
        if option.key == "jobs":
            continue
        if option.key in WHERE or option.key in FLAGS:
            given.append(option)
        else:
            raise InputError(f"{option.name} would make other folds of these, which go on as they are. What may differ: {', '.join(WHERE)}.")
    if {option.key for option in read_words(words, "finetune", FLAGS).options} & {*FLAGS, *OWN}:  # which are for the command line alone
        raise InputError(f"{root / RECORD} says of itself what it may import or write: it was changed. Begin anew with cct finetune DIR --folds N.")
    flags = [word for option in given for word in option.words]
    root_given = next((option.value for option in reversed(given) if option.key == "data.root" and option.value), None)
    words = [root_given or words[0], *words[1:]]
    request = finetune.prepare([*words, *flags])
    check_one_device(request.keys, "a fold")
    return Asked(request, tuple(words), count, jobs, root, tuple(flags))


def main(arguments: Sequence[str]) -> None:
    """Runs ``cct finetune DIR --folds N``, or ``cct resume`` of such a folder.

    Raises:
        InputError: Anything the user can mend.
        RunError: A fold failed.
    """
    run(prepare(arguments))


def run(asked: Asked) -> tuple[Path, "FoldsSummary"]:
    """Computes what is missing of folds, and writes what they found.

    Returns:
        Their folder, and what came of them.

    Raises:
        InputError: Images are too few, or not those that the folds began with; another process is at work on these folds.
        RunError: A fold failed.
        KeyboardInterrupt: Ctrl-C; the folds go on by `cct resume`.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # see commands/main.py
    from cct_lightning.data.imports import allowing
    from cct_lightning.data.options import DataOptions
    from cct_lightning.studies.folds import FoldsSummary, Plan, look_ahead

    keys = asked.request.keys
    given = {name: _value(keys[f"data.{name}"], f"data.{name}") for name in DIVIDE if f"data.{name}" in keys}
    with allowing(asked.request.permissions.imports):
        digest = look_ahead(DataOptions(**{**given, "fold": f"1/{asked.count}"}), asked.count)
    plan = Plan(asked.root or _new_folder(asked.request), asked.words, asked.count, digest)
    with RunFolder(plan.root).held(PATIENCE):
        plan.record()
        seed = int(keys.get("seed_everything", 0))
        if asked.root is None and asked.request.told:
            print(asked.request.told)
        _compute(plan, asked, seed)
        jobs = plan.jobs(seed)
        if (summary := FoldsSummary.read(plan.root)) is None:
            with allowing(asked.request.permissions.imports):
                summary = _conclude(plan, jobs, keys.get("data.root"))
        else:
            print(f"{plan.root} is finished: {plan.folds} folds, all tested.")
        return plan.root, summary


# Of the keys of data, those that say which images there are and how they are divided.
DIVIDE = ("dataset", "root", "unlabelled", "val_fraction", "test_fraction", "split_seed", "fraction", "per_class")


def _value(value: Any, key: str) -> Any:
    return value if key in ("data.root", "data.unlabelled", "data.dataset") or not isinstance(value, str) else read_yaml(value, key)


def _new_folder(request: Request) -> Path:
    base = Path(str(request.keys.get("trainer.default_root_dir") or "runs"))
    return new_folder(base / request.recipes[0].stem / f"folds-{time.strftime('%Y%m%d-%H%M%S')}")


def _compute(plan: "Plan", asked: Asked, seed: int) -> None:
    from cct_lightning.studies.plan import missing
    from cct_lightning.studies.running import carry_out, line

    jobs, failed = plan.jobs(seed), 0
    todo = missing(jobs)
    print(f"{plan.root}: {plan.folds} folds, of which {len(jobs) - len(todo)} are there", flush=True)
    call = partial(train, words=plan.words, given=asked.given)
    try:
        with closing(carry_out(todo, call, asked.jobs)) as results:
            for number, result in enumerate(results, 1 + len(jobs) - len(todo)):
                print(line(number, len(jobs), result), flush=True)
                failed += result.error is not None
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; cct resume {shlex.quote(str(plan.root))} goes on.", file=sys.stderr)
        raise
    if failed:
        raise RunError(
            f"{failed} of the {plan.folds} folds failed: each is told above, with the log of what it said.\n"
            f"  cct resume {shlex.quote(str(plan.root))} tries these again."
        )


def train(job: "Job", words: Sequence[str], given: Sequence[str]) -> None:
    """Trains the run of a fold, or goes on with it."""
    from cct_lightning.runs.postponed import postpone

    postpone()
    from cct_lightning.commands.calls import carry_out

    begun = job.run
    if begun is not None and begun.last.is_file():
        carry_out(resume.prepare([str(begun.path), *given]))
        return
    usual = ["--trainer.enable_progress_bar", "false", "--wandb.group", job.folder.parents[1].name]
    place = ["--data.fold", job.keys["data.fold"], "--trainer.default_root_dir", str(job.folder)]
    carry_out(finetune.prepare([words[0], *usual, *words[1:], *given, *place]))


def _conclude(plan: "Plan", jobs: Sequence["Job"], images: str | None) -> "FoldsSummary":
    from cct_lightning.studies.folds import collect, join, sum_up
    from cct_lightning.studies.folds_report import FILES, as_text, write_report

    found, own_test = collect(jobs, images)
    report = found.report()
    wrong = found.wrong_labels()
    summary = sum_up(found, report, wrong_labels=len(wrong), **join(plan.root, found, own_test))
    about = {"Images": plan.words[0], "Folds": str(plan.folds), "Command": shlex.join(["cct", "finetune", *plan.words, "--folds", str(plan.folds)])}
    write_report(plan.root, found, report, wrong, summary, about)
    summary.write(plan.root)
    print("\n".join(["", *as_text(found, summary, wrong), f"files  {plan.root}: {', '.join(FILES)}, pictures"]))
    folder = shlex.quote(str(plan.root))
    print(f"next\n  cct predict {folder} PATH...   by the mean of what the {plan.folds} networks hold probable\n  cct export {folder} --format onnx")
    return summary
