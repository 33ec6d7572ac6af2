"""The light front of ``cct``: help, recipes and early errors, answered at once. What trains or tests is handed on to cli.py."""

import os
import re
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import cct_lightning
from cct_lightning.errors import InputError, did_you_mean

COMMANDS = {
    "fit": "train: cct fit -c digits [--model.pooling class_token] [any key]",
    "test": "measure a checkpoint on the test images: cct test runs/.../best.ckpt",
    "validate": "the same on the validation images: cct validate runs/.../best.ckpt",
    "recipes": "list the recipes; cct recipes NAME prints one",
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
    from cct_lightning.keys import FROM_DATA, known_keys

    print(f"cct {command} {'-c RECIPE' if command == 'fit' else 'CHECKPOINT'} [--key value] ...\n\n{COMMANDS[command]}\n")
    if command != "fit":
        print("What is not given is as in the training: the checkpoint knows. Any key of `cct fit --help` may differ, such as --data.root DIR,\n"
              "--data.batch_size N or --trainer.accelerator cpu; -c RECIPE lays a file over what the checkpoint says.")  # fmt: skip
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
    print("\n  --print_config prints the whole configuration as a recipe.")


def _check_keys(given: dict[str, str]) -> None:
    """Refuses keys that don't exist; ``given`` maps each to where it stands."""
    from cct_lightning.keys import known_keys, unknown_keys

    for key in unknown_keys(list(given)):
        raise InputError(f"{given[key]}: there is no key {key!r}.{did_you_mean(key, known_keys(), listed=0)} `cct fit --help` lists all keys.")


def _read_recipe(path: Path, command: str) -> dict[str, str]:
    """Returns the keys of a recipe, each with the file's name, after a first check of their values."""
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
        if command == "fit" and key.startswith("model.") and key.removeprefix("model.") in FROM_DATA:
            raise InputError(f"{path}: {key} flows from the data to the model: set it there, as in data.image_size, or leave it out.")
        check_value(key, value, str(path))
    return dict.fromkeys(keys, str(path))


def prepare(arguments: list[str]) -> list[str]:
    """Checks what can be checked without torch, and puts the paths of recipes in the place of their names.

    Raises:
        InputError: An unknown command, recipe or key; a way of calling that is refused.
    """
    from cct_lightning.keys import FROM_DATA, check_value, groups, known_keys

    command, *rest = arguments
    if command not in COMMANDS:
        raise InputError(f"There is no command {command!r}.{did_you_mean(command, COMMANDS)}")
    out, recipes = [command], 0
    given: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            value = value if equals else next(words, "")
            path = find_recipe(value)
            given |= _read_recipe(path, command)
            recipes += 1
            out += ["--config", str(path)]
            continue
        key = name.removeprefix("--").removesuffix("+")
        if name.startswith("--") and key.removeprefix("model.") in FROM_DATA and key.startswith("model."):
            raise InputError(f"{key} flows from the data to the model: set it there, as in --data.image_size, or leave it out.")
        if command == "fit" and key == "ckpt_path":
            raise InputError("fit does not take --ckpt_path: --model.pretrained FILE starts a new run from the weights of a file.")
        if name.startswith("--") and key in groups():
            raise InputError(f"{name} is a group of keys: give one of them, as in {next(k for k in known_keys() if k.startswith(key))}.")
        if name.startswith("--") and key not in ("ckpt_path", "print_config", "verbose"):
            given[key] = "command line"
            if key in known_keys() and not name.endswith("+"):
                following = value if equals else next(iter(rest[rest.index(word) + 1 :]), "")
                check_value(key, following, "command line")
        out.append(word)
    _check_keys(given)
    if command == "fit" and not recipes:
        raise InputError("fit needs a recipe: cct fit -c digits. `cct recipes` lists those that are shipped; a path of your own will do as well.")
    if command == "fit" and "data.dataset" not in given:
        raise InputError("no recipe says which data: the overlays smoke, ddp and fsdp are laid over one, as in cct fit -c digits -c smoke.")
    if command in ("test", "validate"):
        checkpoint = next((word.removeprefix("--ckpt_path=") for word in rest if word.endswith(".ckpt")), None)
        if checkpoint is None:
            folder = next((word for word in rest if Path(word).is_dir()), None)
            found = sorted(Path(folder).rglob("best.ckpt"))[-1:] if folder else []
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
        elif arguments[0] in COMMANDS and {"-h", "--help"} & set(arguments):
            _print_keys(arguments[0])
        else:
            prepared = prepare(arguments)
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
