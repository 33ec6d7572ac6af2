"""Carries out a request: parsed, built, trained or measured. The command line and Python call the same."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cct_lightning.commands.evaluate import recipe_of, task_of
from cct_lightning.commands.finetune import own_keys
from cct_lightning.commands.messages import quieten, raised_by_lightning, raised_while_restoring
from cct_lightning.commands.parser import CLI
from cct_lightning.commands.requests import Request
from cct_lightning.commands.resume import check_checkpoint
from cct_lightning.data.fingerprint import Past, Unseen
from cct_lightning.errors import InputError, RunError
from cct_lightning.run_folder import PATIENCE, RunFolder, is_first_rank, recipe_name
from cct_lightning.runs.full_disk import full_disk
from cct_lightning.runs.resumption import check_resumable
from cct_lightning.runs.session import Session
from cct_lightning.runs.testing import Stage, evaluate
from cct_lightning.runs.tracking.tracker import end_tracking
from cct_lightning.runs.watching import Watched
from cct_lightning.training.hardware import keep_freed_memory
from cct_lightning.weights.files import Opened, open_weights
from cct_lightning.weights.inspection import describe
from cct_lightning.weights.sources import locate
from cct_lightning.wording import reason


def train(request: Request) -> Session:
    """Trains, or goes on with a training: fit, finetune and resume.

    Returns:
        The session, which has ended; ``signal`` tells whether one came.

    Raises:
        InputError: Anything the user can mend.
    """
    with _readable_errors(), ExitStack() as stack:
        words, opened = list(request.words), None
        if request.run is not None:
            if is_first_rank():
                stack.enter_context(request.run.held(PATIENCE))  # before its checkpoint is read, which another may be writing
            opened = _open_last(request)
        elif request.command == "finetune":
            words, opened = _with_source(request, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        last, source = (opened, None) if request.run is not None else (None, opened)
        cli = CLI(request, words, source, task_of(last.about) if last is not None else None)
        folder = request.run or RunFolder.make(recipe_name(request.recipes[0]), cli.base)
        if request.run is None and is_first_rank():
            stack.callback(folder.discard_unless_begun)
            stack.enter_context(folder.held())
        stack.callback(end_tracking)  # the first to be called
        setting = cli.build(folder.path)
        if last is not None:
            cli.datamodule.past = _past_images(request, last)
        session = Session(setting, folder, cli.model, cli.datamodule, request.search, last)
        if request.watch is not None:
            session.trainer.callbacks.insert(0, Watched(request.watch))  # type: ignore[attr-defined]  # those that keep checkpoints stay the last
        del opened, last, source  # from here on they would only take memory
        cli.weights = None
        if request.search:
            print(session.search())
        else:
            session.fit()
        return session


def measure(request: Request) -> None:
    """Measures a checkpoint and prints what was found: test and validate.

    Raises:
        InputError: Anything the user can mend.
    """
    assert request.checkpoint is not None
    with _readable_errors(), tempfile.TemporaryDirectory() as place:
        opened = open_weights(request.checkpoint)
        known = Path(place, "recipe.yaml")
        known.write_text(yaml.safe_dump(recipe_of(opened.about, request)), encoding="utf-8")
        cli = CLI(request, ["--config", str(known), *request.words], task=request.task or task_of(opened.about))
        setting = cli.build(request.checkpoint.parent)
        stage: Stage = "test" if request.command == "test" else "val"
        images = setting.recipe["data"]
        run = RunFolder(request.checkpoint.resolve().parent.parent)
        further = ["val"] if stage == "test" and (request.calibrates or request.rejects is not None) else []
        trained = (opened.about or {}).get("recipe") or {}
        said = opened.content.get("sitting")
        kept = said.get("images") if isinstance(said, Mapping) else None
        digest = kept.get("digest") if isinstance(kept, Mapping) else None
        cli.datamodule.unseen = Unseen(run.path, run.images_file, [stage, *further], trained.get("data") or {}, images, digest)
        if told := evaluate(stage, setting.trainer, opened, cli.model, cli.datamodule, images, request.calibrates, request.rejects):
            print(told)


def _open_last(request: Request) -> Opened:
    assert request.run is not None
    try:
        opened = open_weights(request.run.last)
    except InputError as error:
        raise InputError(f"{error}\n  Without it the run can't go on; it can start anew: cct fit -c {request.run.config_file}") from None
    if opened.about is not None and opened.about["recipe"] and "sitting" in opened.content:  # else check_checkpoint says what it is
        check_resumable(opened)
    check_checkpoint(request, opened)
    return opened


def _past_images(request: Request, opened: Opened) -> Past:
    """Returns what the run's last.ckpt, once checked, says of the images it was trained on."""
    run, checkpoint = request.run, opened.content
    assert run is not None
    said = checkpoint["sitting"].get("images")
    return Past.read(said, run.images_file, run.path, run.last, checkpoint["global_step"], request.accepts_images)


def _with_source(request: Request, place: Path) -> tuple[list[str], Opened | None]:
    """Puts what the weights say of the network and its images, as a recipe, between the default one and what the user set."""
    config, default, *rest = request.words
    own = own_keys(request)
    if request.told and is_first_rank():
        print(request.told)
    if (source := own.get("model.pretrained")) is None:
        return [*request.words], None
    opened = None if source.startswith("timm/") else open_weights(locate(source), source)
    path = place / "source.yaml"
    path.write_text(yaml.safe_dump(describe(opened or source, own)), encoding="utf-8")
    return [config, default, "--config", str(path), *rest], opened


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Turns what is raised for the user's sake into an InputError, however deep it comes from."""
    quieten()
    keep_freed_memory()
    try:
        yield
    except InputError as error:
        if "Original Traceback" in str(error):  # a DataLoader worker wraps the message in its traceback
            raise InputError(str(error).rsplit("InputError: ", 1)[-1]) from error
        raise
    except (MisconfigurationException, ModuleNotFoundError, OSError) as error:  # of accelerators, loggers and folders that are not there
        raise full_disk(error) or InputError(str(error)) from error
    except torch.OutOfMemoryError as error:
        said = ". ".join(re.split(r"\. (?=[A-Z])", str(error))[:4]).rstrip(".")  # what was asked for, what is free, and who has the rest
        raise RunError(
            f"{said}.\n  Smaller batches need less: --data.batch_size N, and --find-batch-size looks for the largest. nvidia-smi tells who else "
            "uses the GPU."
        ) from error
    except (ValueError, RuntimeError) as error:
        if found := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*[^. ])", str(error)):
            raise RunError(
                f"a process that reads images (process {found[1]}) {found[2]}. Where memory is short, fewer help: --data.num_workers N."
            ) from error
        if isinstance(error.__cause__, InputError):  # of a callback, wrapped by the parser in what it has against every other type
            raise InputError(str(error.__cause__)) from error
        if "Error(s) in loading state_dict" in str(error):
            raise InputError(
                f"the checkpoint's weights do not fit this network: {str(error).splitlines()[1].strip()[:150]}\n"
                "  A flag changes the network (model.arch, model.pooling, ...): leave it out, or start a run with --model.pretrained."
            ) from error
        if raised_by_lightning(error) and not raised_while_restoring(error):  # its own checks of what it was given
            raise InputError(str(error)) from error
        _check_restoring(error)
        raise
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        _check_restoring(error)
        raise


def _check_restoring(error: Exception) -> None:
    """Says of an error that came up while a checkpoint was taken up that this is not what a run writes, in a way that no check foresaw."""
    if raised_while_restoring(error):
        what = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"the checkpoint can't be taken up ({what}): it was changed, or written by something else.") from error
