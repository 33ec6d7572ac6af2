"""The light front of ``cct``: help, recipes and early errors, answered at once. What trains or tests is handed on to cli.py."""

import json
import os
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import cct_lightning
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.sources import check_source

COMMANDS = {
    "fit": "train: cct fit -c digits [--model.pooling class_token] [any key]",
    "finetune": "train on a folder or a CSV of your own: cct finetune DIR [--model.pretrained SOURCE] [any key]",
    "resume": "go on with a run that was stopped: cct resume runs/digits/20261120-095029",
    "test": "measure a checkpoint on the test images: cct test runs/.../best.ckpt",
    "validate": "the same on the validation images: cct validate runs/.../best.ckpt",
    "predict": "classify images: cct predict runs/.../best.ckpt PATH... [--out FILE]",
    "export": "write a network for other programs: cct export runs/.../best.ckpt --format onnx",
    "recipes": "list the recipes; cct recipes NAME prints one",
}
EVALUATION = (
    "CHECKPOINT [--key value] ...",
    "What is not given is as in the training: the checkpoint knows. Any key of `cct fit --help` may differ, such as --data.root DIR,\n"
    "--data.batch_size N or --trainer.accelerator cpu; -c RECIPE lays a file over what the checkpoint says.",
)
# Of the commands but fit: what follows the command, and what is worth knowing.
HELP = {
    "finetune": (
        "DIR [--model.pretrained SOURCE] [-c RECIPE] [--key value] ...",
        """DIR holds a folder of images for each class, or train and val (and test) with such folders; or it is a CSV with the columns path and label,
and split (train, val or test) where you split. One heap gets both set aside; beside a val of yours, test is what you give.

SOURCE is one of
  runs/.../best.ckpt, a run's folder or an exported one       network, image size, channels and normalisation are taken over
  FILE.pth, FILE.safetensors                                  weights of SHI-Labs/Compact-Transformers or vit-pytorch, the network read off them;
                                                              of timm with --model.arch timm/NAME
  timm/NAME                                                   timm's, where there is a network
  cct_7_3x1_32_cifar10_300epochs, ...                         SHI-Labs' ten published files, where there is a network
without it the network is trained from scratch. The head is made anew, positions are resized; what became of each tensor is printed.

Everything may be changed, as in `cct fit --help`:
  --data.image_size 64                       larger images, and so more tokens
  --model.pooling map                        another pooling
  -c linear_probe                            train pooling and head alone, on features that are computed once
  --model.optim.layer_decay 0.6              lower rates for the lower layers
  --model.loss.class_weights balanced        classes of uneven size count the same; or --data.sampler balanced, not both""",
    ),
    "resume": (
        "RUN [--extend-to EPOCHS] [--key value]",
        """RUN is the folder of a run, runs/<recipe>/<time>, or its checkpoints/last.ckpt. The run goes on in this folder from where last.ckpt was
written, as the same run of W&B, and ends with the same weights and measures as if it had never stopped. Ctrl-C and SIGTERM write last.ckpt
before they end a run; after a kill it is that of the last epoch that ended.

--extend-to EPOCHS trains a run of whole epochs on to so many in all, with the learning rates of a run of that length from there on.

What the run is stays as in its config.yaml; where it is computed may change:""",
    ),
    "test": EVALUATION,
    "validate": EVALUATION,
}
RECIPES = next(folder for folder in (Path(__file__).parent / "recipes", Path(__file__).parent.parent / "recipes") if folder.is_dir())


def recipe_paths() -> dict[str, Path]:
    """Returns the shipped recipes and overlays by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def header(path: Path) -> list[str]:
    """Returns the comment lines at the top of a recipe, without their marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return lines


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe: a path that is there, or the name of a shipped one.

    Raises:
        InputError: It is neither.
    """
    if name in recipe_paths() and not Path(name).is_file():
        return recipe_paths()[name]
    if not Path(name).is_file():
        raise InputError(
            f"-c {name}: neither a file nor a recipe.{did_you_mean(Path(name).stem, recipe_paths(), listed=20)} `cct recipes` lists them."
        )
    return Path(name)


def _print_help() -> None:
    print(f"cct-lightning {cct_lightning.__version__}: small vision transformers on your own data\n")
    for command, text in COMMANDS.items():
        print(f"  cct {command:10}{text}")
    print(f"\nrecipes: {', '.join(recipe_paths())}")
    print("`cct fit --help` lists every key; --debug shows where an error came from.")


def _print_recipes(names: list[str]) -> None:
    if names:
        print(find_recipe(names[0]).read_text(encoding="utf-8"), end="")
        return
    width = max(map(len, recipe_paths())) + 2
    for name, path in recipe_paths().items():
        lines = header(path)
        print(f"{name:{width}}{lines[0] if lines else ''}")
        for line in lines:
            if line.startswith(("Measured", "Published")):
                print(textwrap.fill(line, 110, initial_indent=" " * (width + 2), subsequent_indent=" " * (width + 4)))
    print("\ncct fit -c NAME runs one; -c again lays another over it: cct fit -c cifar10 -c smoke")


def _print_keys(command: str) -> None:
    from cct_lightning.keys import FROM_DATA, WHERE, known_keys

    usage, text = HELP.get(command, ("-c RECIPE [--key value] ...", ""))
    print(f"cct {command} {usage}\n\n{COMMANDS[command]}\n")
    if text:
        print(text)
        if command == "resume":
            print("\n".join(f"  --{key} {known_keys()[key].type}".replace(" | None", "") for key in WHERE))
        return
    for key in known_keys().values():
        group, _, name = key.name.partition(".")
        if group == "trainer":
            continue
        if group == "model" and name in FROM_DATA:
            continue  # flows from the data
        kind = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", "|"), key.type)
        kind = kind.replace("Position", "learned|sine|none").replace(" | None", "")
        print(f"  --{key.name} {kind}  (default: {'[]' if key.default.startswith('field(') else key.default.strip(chr(39)).replace('None', 'null')})")
        if key.help:
            print(textwrap.fill(key.help, 110, initial_indent=" " * 8, subsequent_indent=" " * 8))
    trainer = ", ".join(name.removeprefix("trainer.") for name in known_keys() if name.startswith("trainer."))
    print("\n  --trainer.KEY  Lightning's Trainer:")
    print(textwrap.fill(trainer, 110, initial_indent=" " * 8, subsequent_indent=" " * 8))
    print(
        "        trainer.precision left out: bf16-mixed where the hardware computes it (GPUs since 2020, CPUs with avx512_bf16 or AMX), else 32-true."
    )
    print("\n  --find-lr, --find-batch-size  look for the rate where the loss falls fastest, the largest batch that fits; nothing is trained then.")
    print("\n  --print_config prints the whole configuration as a recipe.")


def _check_keys(given: dict[str, str]) -> None:
    """Refuses keys that don't exist; ``given`` maps each to where it stands."""
    from cct_lightning.keys import FROM_DATA, known_keys, unknown_keys

    for key in unknown_keys(list(given)):
        name = key.rsplit(".", 1)[-1]
        names = [known for known in known_keys() if known.removeprefix("model.") not in FROM_DATA]
        alike = [known for known in names if known.rsplit(".", 1)[-1] in (name, f"max_{name}")]  # --lr, --epochs
        hint = f" Did you mean {' or '.join(alike[:3])}?" if alike else did_you_mean(key, names, listed=0)
        raise InputError(f"{given[key]}: there is no key {key!r}.{hint} `cct fit --help` lists all keys.")


def _with_default_recipe(words: list[str]) -> list[str]:
    """Turns the words of ``finetune DIR ...`` into those of a ``fit`` of the default recipe on it; what follows wins.

    Raises:
        InputError: There is no such folder or file.
    """
    if not words or words[0].startswith("-"):
        raise InputError(f"finetune begins with your images: cct finetune {'DIR'} [--model.pretrained SOURCE]. DIR holds a folder for each class,\n"
                         "  or train and val (and test) with such folders, or is a CSV with the columns path and label.")  # fmt: skip
    place = Path(words[0]).expanduser()
    if not place.exists():
        raise InputError(f"There is no folder or file {words[0]}.")
    if place.is_file() and place.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise InputError(f"{words[0]} is neither a folder of class folders nor a .csv with the columns path and label.")
    from cct_lightning.data.sets import folder_class_names, read_table

    read_table(place) if place.is_file() else folder_class_names(place)
    return ["-c", "finetune", "--data.dataset", "csv" if place.is_file() else "image_folder", "--data.root", words[0], *words[1:]]


def _read_recipe(path: Path, fits: bool) -> dict[str, Any]:
    """Returns the keys of a recipe with their values, after a first check of these."""
    import yaml

    from cct_lightning.keys import FROM_DATA, check_value, flatten, groups_without_keys

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"{path}{f', line {mark.line + 1}' if mark else ''} is no YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(recipe, dict):
        what = "is empty" if recipe is None else f"holds a {type(recipe).__name__}"
        raise InputError(f"{path} is no recipe: it should hold keys such as model and data, and {what}.")
    for group in groups_without_keys(recipe):
        raise InputError(f"{path}: {group} is a group of keys, such as {group}: {{...}}; it can't be set to a value.")
    keys = flatten(recipe)
    for key, value in keys.items():
        if fits and key.startswith("model.") and key.removeprefix("model.") in FROM_DATA:
            raise InputError(f"{path}: {key} flows from the data to the model: set it there, as in data.image_size, or leave it out.")
        check_value(key, value, str(path))
    return keys


def _newest_run(folder: Path) -> str:
    """Ends an error message with the last run below a folder."""
    found = sorted(folder.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    return f" The last run there: cct resume {found[-1].parent.parent}" if found else ""


def _find_run(word: str) -> Path:
    """Returns the folder of a run, given by itself, its last.ckpt or its config.yaml.

    Raises:
        InputError: It is no run, or one that can't be resumed.
    """
    path = Path(os.path.abspath(Path(word).expanduser()))
    if path.name == "last.ckpt" and path.parent.name == "checkpoints":
        path = path.parent.parent
    elif path.name in ("config.yaml", "checkpoints"):
        path = path.parent
    elif path.suffix == ".ckpt":
        raise InputError(f"{word}: a run is resumed from its last.ckpt: cct resume {os.path.relpath(path.parent.parent)}")
    run = path if Path(word).is_absolute() else Path(os.path.relpath(path))
    if not run.is_dir():
        raise InputError(f"There is no run {word}.{_newest_run(Path('runs'))}")
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is no run: it holds no config.yaml. Runs lie in runs/<recipe>/<time>.{_newest_run(run)}")
    if not (run / "checkpoints" / "last.ckpt").is_file():
        raise InputError(
            f"{run} has no checkpoints/last.ckpt: it was stopped before its first epoch ended, or keeps no checkpoints.\n"
            f"  It can start anew: cct fit -c {run / 'config.yaml'}"
        )
    return run


def _prepare_resume(words: list[str]) -> list[str]:
    """Checks the words of ``resume``; returns them with the run's folder first.

    Raises:
        InputError: There is no such run, or a key would make another one of it.
    """
    from cct_lightning.keys import WHERE, check_value

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
        raise InputError(f"resume goes on with one run: cct resume runs/<recipe>/<time>.{'' if runs else _newest_run(Path('runs'))}")
    run = _find_run(runs[0])
    for key, value in flags:
        if key in ("c", "config", "ckpt_path"):
            raise InputError(f"resume takes no --{key}: the run's own config.yaml and last.ckpt say all. Another run: cct fit -c {run}/config.yaml")
        if key == "extend-to":
            if not value.isdecimal():
                raise InputError(f"--extend-to {value}: give the number of epochs in all, such as 100.")
            continue
        _check_keys({key: "command line"})
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
    _read_recipe(run / "config.yaml", fits=False)
    return [str(run), *(word for key, value in flags for word in (f"--{key}", value))]


def _say_finished(run: Path) -> bool:
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


def prepare(arguments: list[str]) -> list[str]:
    """Checks what can be checked without torch, and puts the paths of recipes in the place of their names.

    Raises:
        InputError: An unknown command, recipe or key; a way of calling that is refused.
    """
    from cct_lightning.keys import FIND, FROM_DATA, check_value, groups, known_keys

    command, *rest = arguments
    if command not in COMMANDS:
        raise InputError(f"There is no command {command!r}.{did_you_mean(command, COMMANDS)}")
    if command == "resume":
        return [command, *_prepare_resume(rest)]
    if command == "finetune":
        rest = _with_default_recipe(rest)
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
            keys = _read_recipe(path, fits)
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
    _check_keys(given)
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
            _print_help()
        elif arguments[0] == "--version":
            print(cct_lightning.__version__)
        elif arguments[0] == "recipes":
            _print_recipes(arguments[1:])
        elif arguments[0] in ("predict", "export"):  # plain torch: they need no Lightning, which takes 10 s to import
            import_module(f"cct_lightning.{arguments[0]}").main(arguments[1:])
        elif arguments[0] in COMMANDS and {"-h", "--help"} & set(arguments):
            _print_keys(arguments[0])
        else:
            prepared = prepare(arguments)
            if prepared[0] == "resume" and "--extend-to" not in prepared and _say_finished(Path(prepared[1])):
                return
            # On cores that others use, too, OpenMP's idle threads spin for milliseconds and steal the time of those that work: a run took
            # twenty times as long. 3,000 turns are some ten microseconds, and cost 4 % on a quiet machine (benchmarks/README.md).
            os.environ.setdefault("GOMP_SPINCOUNT", "3000")
            from cct_lightning.cli import run

            run(prepared)
    except InputError as error:
        if debug:
            raise
        _fail(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (head, less) has gone


if __name__ == "__main__":
    main()
