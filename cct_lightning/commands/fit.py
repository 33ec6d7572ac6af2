"""Runs what the front has checked."""

import os
import sys
import tempfile
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cct_lightning.commands.evaluate import from_checkpoint
from cct_lightning.commands.finetune import arguments_of as finetune_arguments
from cct_lightning.commands.keys import FIND
from cct_lightning.commands.messages import Parser, quieten
from cct_lightning.commands.parser import CLI
from cct_lightning.commands.resume import arguments_of as resume_arguments
from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError
from cct_lightning.run_folder import discard, unlock
from cct_lightning.runs.sitting import VARIABLE
from cct_lightning.runs.tracking.tracker import end_tracking
from cct_lightning.runs.trainer import SaveConfig
from cct_lightning.tasks.classification import LitClassifier
from cct_lightning.training.hardware import keep_freed_memory


def _raised_by_lightning(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and f"{os.sep}lightning{os.sep}" in frame.tb_frame.f_code.co_filename


def run(arguments: list[str]) -> None:
    """Runs a command whose arguments the front has checked.

    Raises:
        InputError: Anything the user can mend.
    """
    quieten()
    keep_freed_memory()
    is_first, command = "CCT_RUN_DIR" not in os.environ, arguments[0]
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments[0] == "finetune":
                arguments = finetune_arguments(arguments, Path(folder))
            elif arguments[0] == "resume":
                arguments = resume_arguments(arguments)
            if arguments[0] != "fit":
                arguments = from_checkpoint(arguments, Path(folder))
            CLI.command = command
            CLI.finding = next((word for word in arguments if word in FIND), None)
            arguments = [word for word in arguments if word not in FIND]
            sys.argv[1:] = arguments  # what is parsed, and what a launch of more processes repeats
            CLI(
                LitClassifier,
                ImageDataModule,
                save_config_callback=SaveConfig,
                seed_everything_default=0,
                parser_class=Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
    except InputError as error:
        if "Original Traceback" in str(error):  # a DataLoader worker wraps the message in its traceback
            raise InputError(str(error).rsplit("InputError: ", 1)[-1]) from error
        raise
    except (MisconfigurationException, ModuleNotFoundError, OSError) as error:  # of accelerators, loggers and folders that are not there
        raise InputError(str(error)) from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error.__cause__, InputError):  # of a callback, wrapped by the parser in what it has against every other type
            raise InputError(str(error.__cause__)) from error
        if "Error(s) in loading state_dict" in str(error):
            raise InputError(
                f"the checkpoint's weights do not fit this network: {str(error).splitlines()[1].strip()[:150]}\n"
                "  A flag changes the network (model.arch, model.pooling, ...): leave it out, or start a run with --model.pretrained."
            ) from error
        if _raised_by_lightning(error):  # its own checks of what it was given
            raise InputError(str(error)) from error
        raise
    finally:
        end_tracking()
        unlock()
        if is_first:
            os.environ.pop(VARIABLE, None)
        if is_first and (run_dir := os.environ.pop("CCT_RUN_DIR", None)):
            discard(run_dir)  # the variable was for the processes of this run; the next one gets a folder of its own
