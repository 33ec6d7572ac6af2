"""What Lightning and jsonargparse say, cut down to what a user needs: short errors, and no harmless messages."""

import logging
import os
import re
import warnings
from typing import Any, NoReturn

from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import LightningArgumentParser

from cct_lightning import callbacks as ours
from cct_lightning.commands.keys import known_keys
from cct_lightning.data.imports import not_allowed
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.runs.loggers import MODE as LOGGERS_MODE

# Harmless messages, by their words. Nothing else is hidden.
HARMLESS_WARNINGS = (
    r".*does not have many workers.*",  # images in memory are faster without
    r".*IProgress not found.*",  # of tqdm in a notebook, which nothing of ours shows
    r".*LeafSpec.*is deprecated.*",  # Lightning 2.6 with torch 2.15
    r".*Experiment logs directory .* exists and is not empty.*",  # the run folder is this run's own
    r".*The number of training batches \(\d+\) is smaller than the logging interval.*",
    r".*callbacks used to create the checkpoint need to be provided.*",  # a test needs none of the training's
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # the measures were gathered over the devices before
    r".*module\(s\) in eval mode at the start of training.*",  # a frozen backbone is
    r".*Starting from v1\.9\.0, `tensorboardX`.*",
    r".*ended before the epoch ended and your dataloader is not resumable.*",  # ours skips what is done, by the data module's state
)
HARMLESS_MESSAGES = (
    "💡 Tip",
    "GPU available",
    "TPU available",
    "HPU available",
    "Seed set to",
    "to estimate number of stepping batches",
    "`Trainer.fit` stopped",
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "`weights_only` was not set",  # a file that Lightning's search for a batch size wrote itself
    "Finished batch size finder, will continue",  # it does not: the recipe is the user's to change
)
# Loggers of Lightning's searches.
TUNING = ("lightning.pytorch.trainer.connectors.checkpoint_connector", "lightning.pytorch.tuner.batch_size_scaling")
# What a key of these types takes, by short names.
CLASSES = {
    "Callback": [name for module in (callbacks, ours) for name, kind in vars(module).items() if isinstance(kind, type)],
    "Logger": [name for name, kind in vars(loggers).items() if isinstance(kind, type)],
}


class _WithoutTips(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in HARMLESS_MESSAGES)


_WITHOUT_TIPS = _WithoutTips()  # one for all runs of a process: a logger takes a filter once


def quieten() -> None:
    """Filters the known harmless messages of Lightning and jsonargparse, by name."""
    # Lightning 2.6 calls what jsonargparse 5 will drop: https://github.com/Lightning-AI/pytorch-lightning/issues/21900
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "lightning.fabric.utilities.seed", *TUNING):
        logging.getLogger(name).addFilter(_WITHOUT_TIPS)


def _plain_type(annotation: str) -> str:
    """Writes a type as a sentence does: Optional[Union[int, float]] as "int, float or null"."""
    plain = annotation
    while (inner := re.sub(r"(?:Optional|Union|Literal)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", r"\1", plain)) != plain:
        plain = inner
    plain = (
        plain.replace("'", "")
        .replace("_PRECISION_INPUT", "32-true, 16-mixed, bf16-mixed, 16-true, bf16-true, 64-true")
        .replace(" | None", "")
        .replace(" | ", ", ")
    )
    return plain + (" or null" if "None" in annotation or "Optional" in annotation else "")


def shorten(message: str) -> str:
    """Cuts the parser's message down to the key, the value and the rule, without what each member of a union objects to."""
    found = re.search(r'Parser key "([\w.]+)":(.*)', message, re.S)
    if not found:
        return " ".join(message.split())[:300]
    key, rest = re.sub(r"^(fit|test|validate)\.", "", found[1]), found[2]
    value = re.search(r"(?:Given|Got) value: (.*)", rest)
    shown = "" if value is None or value[1].startswith("NestedArg") else f"={value[1][:80]}"
    objections = [line.strip().lstrip("- ") for line in rest.splitlines() if line.strip()]
    # The objections to a class say most; "Expected a ..." is said by the type, which is told anyway.
    special = [o for o in objections if not re.match(r"Expected|Does not validate|Subtypes|Errors|Given value", o)]
    needs = re.search(r"arguments are required: (\w+)([\w, ]*)", rest)
    # Of several classes in a list the one that lacks the argument is meant.
    lacking = rf"(?:(?!class_path).)*?\b{needs[1]}=None" if needs and f"{needs[1]}=None" in rest else ""
    named = re.search(rf"class_path='([\w.]+)'{lacking}", rest, re.S)
    if named and needs:
        shown, special = "", [f"{named[1].rsplit('.', 1)[-1]} needs {needs[1]}{needs[2]}; give --{key}.{needs[1]}"]
    lines = [f"{key}{shown}: " + (special[0][:160] if special else "the value does not fit") + "."]
    if (known := known_keys().get(key)) and known.type:
        name = next((f"a {base}'s class" for base in CLASSES if base in known.type), None) or _plain_type(known.type)
        given = value[1].strip("[]'") if value else ""
        hint = next((did_you_mean(given, CLASSES[base], listed=0) for base in CLASSES if base in known.type), "")
        lines.append(f"  It takes {name}.{hint}")
    return "\n".join(lines)


class Parser(LightningArgumentParser):
    """Ends with one short error instead of 55 lines of usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"parser_mode": LOGGERS_MODE, **options})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if os.environ.get("CCT_DEBUG") == "1":
            raise InputError(message) from ex
        if found := re.search(
            r"Key '?([\w.]+)'? is not expected|[Uu]nrecognized arguments: (?:--)?([\w.]+)|does not accept option '?(?:--)?([\w.]+)", message
        ):
            key = re.sub(r"^(fit|test|validate)\.", "", next(filter(None, found.groups())))
            if key in known_keys():
                raise InputError(f"{key} is a key of another task than this one (`task: NAME` in a recipe): leave it out.")
            raise InputError(f"there is no key {key!r} here.{did_you_mean(key, known_keys(), listed=0)}")
        if found := re.search(r"Importing '([\w.]+)' is not allowed", message):
            raise not_allowed(found[1])
        if found := re.search(r'argument data\.(\w+) --> model|Linked "model\.(\w+)" must be given', message):
            name = next(filter(None, found.groups()))
            raise InputError(f"model.{name} flows from the data to the model: set it there (data.image_size), or leave it out.")
        raise InputError(shorten(message))


def raised_by_lightning(error: BaseException) -> bool:
    """Tells whether an error comes out of Lightning's own code."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and f"{os.sep}lightning{os.sep}" in frame.tb_frame.f_code.co_filename


def raised_while_restoring(error: BaseException) -> bool:
    """Tells whether an error came up while Lightning took up a checkpoint."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_name not in ("_restore_modules_and_callbacks", "restore_training_state"):
        frame = frame.tb_next
    return frame is not None
