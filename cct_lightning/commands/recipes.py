"""The shipped recipes: found, listed and read."""

import textwrap
from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError, did_you_mean

RECIPES = next(folder for folder in (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes") if folder.is_dir())


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


def print_recipes(names: list[str]) -> None:
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


def read_recipe(path: Path, trains: bool) -> dict[str, Any]:
    """Returns the keys of a recipe with their values, after a first check of these."""
    from cct_lightning.commands.keys import check_value, flatten, groups_without_keys
    from cct_lightning.plain_yaml import read_yaml_file
    from cct_lightning.tasks.options import FROM_DATA

    recipe = read_yaml_file(path)
    if not isinstance(recipe, dict):
        what = "is empty" if recipe is None else f"holds a {type(recipe).__name__}"
        raise InputError(f"{path} is no recipe: it should hold keys such as model and data, and {what}.")
    for group in groups_without_keys(recipe):
        raise InputError(f"{path}: {group} is a group of keys, such as {group}: {{...}}; it can't be set to a value.")
    keys = flatten(recipe)
    for key, value in keys.items():
        if trains and key.startswith("model.") and key.removeprefix("model.") in FROM_DATA:
            raise InputError(f"{path}: {key} flows from the data to the model: set it there, as in data.image_size, or leave it out.")
        check_value(key, value, str(path))
    return keys
