"""``cct resume``: what is checked before a run goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cct_lightning.commands.keys import WHERE, check_keys, flatten
from cct_lightning.commands.recipes import read_recipe
from cct_lightning.errors import InputError
from cct_lightning.run_folder import find_run, newest_run


def arguments_of(arguments: list[str]) -> list[str]:
    """Turns ``resume RUN [flags]``, checked by the front, into the words of the ``fit`` that goes on with the run, and notes its checkpoint.

    Raises:
        InputError: The checkpoint can't be read, does not fit the run's configuration, or there is nothing to extend.
    """
    from cct_lightning.runs.sitting import STATE, VARIABLE
    from cct_lightning.weights.files import KEY, read_checkpoint

    _, name, *flags = arguments
    run_dir = Path(name)
    config, last = run_dir / "config.yaml", run_dir / "checkpoints" / "last.ckpt"
    try:
        checkpoint = read_checkpoint(last)
    except InputError as error:
        raise InputError(f"{error}\n  Without it the run can't go on; it can start anew: cct fit -c {config}") from None
    if KEY not in checkpoint or STATE not in checkpoint:
        raise InputError(
            f"{last} does not say where the run stopped: it is none of `cct fit`, or of a version without `cct resume`.\n"
            f"  A new run may start from its weights: cct fit -c {config} --model.pretrained {last}"
        )
    recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
    _check_same_run(recipe, checkpoint[KEY]["recipe"], config)
    if "--extend-to" in flags:
        position = flags.index("--extend-to")
        epochs = int(flags[position + 1])
        del flags[position : position + 2]
        _check_length(epochs, recipe["trainer"], checkpoint, run_dir)
        flags += ["--trainer.max_epochs", str(epochs)]
    os.environ["CCT_RUN_DIR"], os.environ[VARIABLE] = str(run_dir), str(last)
    # The checkpoint holds all weights; the file that the run started from may be gone.
    return ["fit", "--config", str(config), "--model.pretrained", "null", *flags]


def _check_same_run(recipe: Mapping[str, Any], trained: Mapping[str, Any], config: Path) -> None:
    """Refuses a config.yaml that was changed in what makes the run this one. Its length counts as it stands there."""
    ours, theirs = flatten(dict(recipe)), flatten(dict(trained))
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in (*WHERE, "trainer.max_epochs") and ours.get(key) != theirs.get(key):
            raise InputError(
                f"{config} was changed since the checkpoint was written: {key}={ours.get(key)}, and the run has {theirs.get(key)}.\n"
                f"  Put it back to resume the run, or start another one: cct fit -c {config}"
            )


def _check_length(epochs: int, trainer: Mapping[str, Any], checkpoint: Mapping[str, Any], run_dir: Path) -> None:
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if (steps := trainer["max_steps"]) not in (None, -1):
        raise InputError(
            f"--extend-to {epochs}: the run is given by trainer.max_steps={steps} and may end inside an epoch: only whole epochs are extended.\n"
            f"  A longer one from the start: cct fit -c {run_dir}/config.yaml --trainer.max_steps N; from its weights: --model.pretrained {run_dir}"
        )
    if epochs <= done:
        raise InputError(f"--extend-to {epochs}: the run has {done} epochs already. Give the epochs in all, more than those.")
    if epochs < (planned := trainer["max_epochs"] or 0):
        raise InputError(f"--extend-to {epochs}: the run is to have {planned} epochs as it is: `cct resume {run_dir}` goes on, or give more.")


def prepare_resume(words: list[str]) -> list[str]:
    """Checks the words of ``resume``; returns them with the run's folder first.

    Raises:
        InputError: There is no such run, or a key would make another one of it.
    """
    from cct_lightning.commands.keys import WHERE, check_value

    runs, flags = [], []
    given = iter(words)
    for word in given:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            runs.append(word)
            continue
        key, value = name.lstrip("-"), value if equals else next(given, "")
        flags.append((key, value))
    if len(runs) != 1:
        raise InputError(f"resume goes on with one run: cct resume runs/<recipe>/<time>.{'' if runs else newest_run(Path('runs'))}")
    run = find_run(runs[0])
    for key, value in flags:
        if key in ("c", "config", "ckpt_path"):
            raise InputError(f"resume takes no --{key}: the run's own config.yaml and last.ckpt say all. Another run: cct fit -c {run}/config.yaml")
        if key == "extend-to":
            if not value.isdecimal():
                raise InputError(f"--extend-to {value}: give the number of epochs in all, such as 100.")
            continue
        check_keys({key: "command line"})
        if key not in WHERE:
            longer = " To train on: --extend-to EPOCHS." if key in ("trainer.max_epochs", "trainer.max_steps") else ""
            raise InputError(
                f"--{key} would make it another run, and resume goes on with the same one.{longer}\n"
                f"  A new one that differs in this: cct fit -c {run}/config.yaml --{key} {value}\n"
                f"  What may differ when a run is resumed: {', '.join(WHERE)}."
            )
        if not value:
            raise InputError(f"--{key} needs a value.")
        check_value(key, value, "command line")
    read_recipe(run / "config.yaml", fits=False)
    return [str(run), *(word for key, value in flags for word in (f"--{key}", value))]


def say_finished(run: Path) -> bool:
    """Tells whether a run has ended by itself, and if so says what can be done with it."""
    import yaml

    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not summary.get("finished"):
        return False
    print(f"{run} is finished: {summary['epochs']} epochs, {summary['steps']} steps.")
    if yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["trainer"]["max_steps"] == -1:
        print(f"  cct resume {run} --extend-to EPOCHS   trains it on to so many epochs in all")
    print(f"  cct fit -c {run / 'config.yaml'} --model.pretrained {run}   starts a run from its weights")
    return True
