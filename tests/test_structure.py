"""The house's figures: how long a file and a function may be, and what stands where."""

import ast
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
LINES, FUNCTION_LINES, MODULES = 350, 60, 10


def _product() -> list[Path]:
    """Returns the product's Python files, as git knows them; without git those that lie there."""
    folders = ["cct_lightning", "callbacks", "recipes", "cli.py"]
    if (CHECKOUT / ".git").exists():
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", *folders],
            cwd=CHECKOUT,
            check=True,
            capture_output=True,
            text=True,
        )
        paths = [CHECKOUT / name for name in listed.stdout.splitlines()]
    else:
        paths = [path for folder in folders for path in [CHECKOUT / folder, *(CHECKOUT / folder).rglob("*")]]
    return sorted(path for path in paths if path.suffix == ".py" and path.is_file())


PRODUCT = _product()
INITS = [path for path in PRODUCT if path.name == "__init__.py" and path.parent.parent != CHECKOUT]


def _name(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def _too_long(path: Path) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {f"{path.name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return [f"{name} has {count} lines" for name, count in lines.items() if count > FUNCTION_LINES]


def test_the_files_are_found():
    assert {"cli.py", "cct_lightning/__main__.py", "callbacks/ema.py", "recipes/__init__.py"} <= set(map(_name, PRODUCT))
    assert len(INITS) > 8


@pytest.mark.parametrize("path", PRODUCT, ids=_name)
def test_files_and_functions_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= LINES
    assert not _too_long(path)


def test_a_room_is_found_for_what_is_new():
    own = [path.name for path in PRODUCT if path.parent == CHECKOUT / "cct_lightning"]
    assert len(own) <= MODULES, own


@pytest.mark.parametrize("path", INITS, ids=lambda path: _name(path.parent))
def test_a_room_s_init_is_one_docstring(path):
    """An import here would be one of everybody who enters the room: options are read without torch."""
    body = ast.parse(path.read_text()).body
    assert len(body) == 1
    assert ast.get_docstring(ast.parse(path.read_text()))
