"""``cct resume``: what is typed, and whether the run can go on with it."""

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cct_lightning.commands.keys import check_keys, check_value, flatten
from cct_lightning.commands.permissions import FLAGS, Permissions
from cct_lightning.commands.recipes import read_recipe
from cct_lightning.commands.requests import Request
from cct_lightning.commands.words import CONFIG, Option, read_words
from cct_lightning.errors import InputError
from cct_lightning.run_folder import RunFolder, find_run
from cct_lightning.runs.options import WHERE

if TYPE_CHECKING:
    from cct_lightning.weights.files import Opened

EXTEND, ACCEPT = "extend-to", "accept-changed-data"


def prepare(arguments: list[str]) -> Request:
    """Reads and checks the words behind ``resume``.

    Raises:
        InputError: There is no such run, or a key would make another one of it.
    """
    typed = read_words(arguments, "resume", (ACCEPT,))
    run = find_run(typed.alone[0] if len(typed.alone) == 1 else None)
    for option in typed.options:
        _check_option(option, run)
    permissions = Permissions.read(typed)
    recipe = read_recipe(run.config_file, trains=False)
    permissions.check_places(recipe, str(run.config_file))
    epochs = typed.last(EXTEND)
    # The checkpoint holds all weights; the file that the run started from may be gone.
    words = ["--config", str(run.config_file), *(["--model.pretrained", "null"] if "model.pretrained" in recipe else [])]
    words += [word for option in typed.options if option.key not in (EXTEND, ACCEPT, *FLAGS) for word in option.words]
    words += [] if epochs is None else ["--trainer.max_epochs", epochs]
    accepts = any(option.key == ACCEPT for option in typed.options)
    longer = None if epochs is None else int(epochs)
    return Request("resume", tuple(words), run=run, recipes=(run.config_file,), epochs=longer, accepts_images=accepts, permissions=permissions)


def _check_option(option: Option, run: RunFolder) -> None:
    key, value = option.key, option.value
    if key in FLAGS:
        return
    if key in (CONFIG, "ckpt_path"):
        raise InputError(f"resume takes no {option.name}: the run's own config.yaml and last.ckpt say all. Another run: cct fit -c {run.config_file}")
    if key == EXTEND:
        if not str(value).isdecimal():
            raise InputError(f"--{EXTEND} {value}: give the number of epochs in all, such as 100.")
        return
    if key == ACCEPT:
        if value is not None:
            raise InputError(f"--{ACCEPT} takes no value, and {value!r} was given.")
        return
    check_keys({key: "command line"})
    if key not in WHERE:
        longer = " To train on: --extend-to EPOCHS." if key in ("trainer.max_epochs", "trainer.max_steps") else ""
        raise InputError(
            f"--{key} would make it another run, and resume goes on with the same one.{longer}\n"
            f"  A new one that differs in this: cct fit -c {run.config_file} --{key} {value}\n"
            f"  What may differ when a run is resumed: {', '.join(WHERE)}."
        )
    check_value(key, value, "command line")


def say_finished(request: Request) -> bool:
    """Tells whether a run has ended by itself and shall not have more epochs; if so says what can be done with it."""
    run = request.run
    if run is None or request.epochs is not None or not run.summary.get("finished") or not {"epochs", "steps"} <= run.summary.keys():
        return False
    print(f"{run.path} is finished: {run.summary['epochs']} epochs, {run.summary['steps']} steps.")
    if run.key("trainer.max_steps") == -1:
        print(f"  cct resume {run.path} --extend-to EPOCHS   trains it on to so many epochs in all")
    print(f"  cct fit -c {run.config_file} --model.pretrained {run.path}   starts a run from its weights")
    return True


def check_checkpoint(request: Request, opened: "Opened") -> None:
    """Refuses a checkpoint that the run can't go on from.

    Args:
        request: What was asked for.
        opened: The run's last.ckpt.

    Raises:
        InputError: It does not say where the run stopped, is of another configuration, or there is nothing to extend.
    """
    run, checkpoint, about = request.run, opened.content, opened.about
    assert run is not None
    if about is None or not about["recipe"] or "sitting" not in checkpoint:
        raise InputError(
            f"{run.last} does not say where the run stopped: it is none of `cct fit`, or of a version without `cct resume`.\n"
            f"  A new run may start from its weights: cct fit -c {run.config_file} --model.pretrained {run.last}"
        )
    _check_same_run(run, about["recipe"], request.epochs is not None)
    _check_cache(request.words, run, checkpoint)
    if request.epochs is not None:
        _check_length(request.epochs, run, checkpoint, about["recipe"]["trainer"]["max_epochs"])


def _check_same_run(run: RunFolder, trained: Mapping[str, Any], extends: bool) -> None:
    """Refuses a config.yaml that was changed in what makes the run this one; in its length, too, unless that is given now."""
    ours, theirs = flatten(dict(run.config)), flatten(dict(trained))
    length = "trainer.max_epochs"
    if not extends and (epochs := ours.get(length)) != (had := theirs.get(length)):
        longer = isinstance(epochs, int) and isinstance(had, int) and epochs > had
        raise InputError(
            f"{run.config_file} was changed since the checkpoint was written: {length}={epochs}, and the run has {had}; its rates follow from that.\n"
            f"  To train longer: cct resume {run.path} --extend-to {epochs if longer else 'EPOCHS'}. To go on as it was, put {had} back."
        )
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in (*WHERE, length) and ours.get(key) != theirs.get(key):
            raise InputError(
                f"{run.config_file} was changed since the checkpoint was written: {key}={ours.get(key)}, and the run has {theirs.get(key)}.\n"
                f"  Put it back to resume the run, or start another one: cct fit -c {run.config_file}"
            )


def _check_cache(words: tuple[str, ...], run: RunFolder, checkpoint: Mapping[str, Any]) -> None:
    """Refuses another place for the images where the checkpoint does not say how they are augmented; where it does, the data module knows."""
    given = next((value for key, value in reversed([*pairwise(words)]) if key == "--data.cache"), None)
    known = "road" in checkpoint.get("ImageDataModule", {})
    if given not in (None, run.key("data.cache")) and not known:
        raise InputError(
            f"--data.cache {given}: {run.last} is of a version that did not note how images are augmented, a batch at a time or one by one,\n"
            "  which may follow from where they are kept. Leave --data.cache out."
        )


def _check_length(epochs: int, run: RunFolder, checkpoint: Mapping[str, Any], planned: int | None) -> None:
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if (steps := run.key("trainer.max_steps")) not in (None, -1):
        raise InputError(
            f"--extend-to {epochs}: the run is given by trainer.max_steps={steps} and may end inside an epoch: only whole epochs are extended.\n"
            f"  A longer one from the start: cct fit -c {run.config_file} --trainer.max_steps N; from its weights: --model.pretrained {run.path}"
        )
    if epochs <= done:
        raise InputError(f"--extend-to {epochs}: the run has {done} epochs already. Give the epochs in all, more than those.")
    if epochs < (planned or 0):
        raise InputError(f"--extend-to {epochs}: the run is to have {planned} epochs as it is: `cct resume {run.path}` goes on, or give more.")
