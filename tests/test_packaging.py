import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
KEPT = {"cct_lightning", "callbacks", "recipes", "pyproject.toml", "README.md", "LICENSE"}  # what a wheel is built of
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def test_the_wheel_holds_our_packages_and_nothing_else(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(CHECKOUT, copy, ignore=lambda folder, names: [n for n in names if Path(folder) == CHECKOUT and n not in KEPT] + ["__pycache__"])
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, copy]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"cct_lightning", f"cct_lightning-{PYPROJECT_VERSION}.dist-info"}
    files = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "cct_lightning").rglob("*.py")}
    files |= {f"cct_lightning/{path.parent.name}/{path.name}" for folder in ("callbacks", "recipes") for path in (CHECKOUT / folder).glob("*.py")}
    files |= {f"cct_lightning/{path.relative_to(CHECKOUT).as_posix()}" for path in (CHECKOUT / "recipes").rglob("*.yaml")}
    files |= {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "cct_lightning" / "weights" / "inside").glob("*/*")}
    assert {name for name in names if "dist-info" not in name} == files | {"cct_lightning/py.typed", "cct_lightning/runs/page.css"}


PYPROJECT_VERSION = re.search(r'__version__ = "(.*)"', (CHECKOUT / "cct_lightning" / "__init__.py").read_text())[1]


@pytest.mark.parametrize("installed", [True, False])
def test_a_checkout_finds_its_folders(installed, tmp_path):
    bare = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
sys.path[:] = [path for path in sys.path if "editable" not in path]
sys.path.insert(0, {str(CHECKOUT)!r})
import cli
"""
    # The callbacks are only looked for: importing them takes ten seconds.
    code = "from importlib.util import find_spec; print(*(find_spec(f'cct_lightning.{name}').origin for name in ('callbacks', 'recipes')))"
    done = subprocess.run([sys.executable, "-I", "-c", f"{'' if installed else bare}{code}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(CHECKOUT / name / "__init__.py") for name in ("callbacks", "recipes")], done.stderr


def test_no_module_is_there_twice():
    assert find_spec("cct_lightning.errors")
    for name in ("cct_lightning.cct_lightning", "cct_lightning.tests", "cct_lightning.benchmarks"):
        assert find_spec(name) is None


def test_mypy_follows_a_strict_editable_install(tmp_path):
    assert "editable_mode=strict" in (CHECKOUT / "CONTRIBUTING.md").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(CHECKOUT, copy, ignore=lambda folder, names: [n for n in names if Path(folder) == CHECKOUT and n not in KEPT] + ["__pycache__"])
    code = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r}, {{'editable_mode': 'strict'}})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    packages = next(tmp_path.glob("venv/lib/python*/site-packages"))
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(packages)
    (tmp_path / "mine.py").write_text("import cct_lightning\nfrom cct_lightning.callbacks import EMA\nreveal_type(cct_lightning.__version__)\n")
    python = next(tmp_path.glob("venv/*/python"))
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", tmp_path / "cache", "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r'Revealed type is "(builtins\.)?str"\nSuccess', done.stdout), done.stdout


def test_every_package_is_named():
    found = {".".join(path.parent.relative_to(CHECKOUT).parts) for path in (CHECKOUT / "cct_lightning").rglob("__init__.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found | {"cct_lightning.callbacks", "cct_lightning.recipes"}


def test_every_dependency_has_a_reason():
    lines = (CHECKOUT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    for number in range(start + 1, lines.index("]", start)):
        if lines[number].strip().startswith('"'):
            assert any(lines[n].strip().startswith("#") for n in range(number - 1, number - 5, -1)), lines[number]


def test_the_versions_agree_and_the_readme_commands_are_those_of_ci():
    readme, ci = (CHECKOUT / "README.md").read_text(), (CHECKOUT / ".ci" / "run").read_text()
    assert f"version: {PYPROJECT_VERSION}" in (CHECKOUT / "CITATION.cff").read_text()
    assert f"## {PYPROJECT_VERSION}" in (CHECKOUT / "CHANGELOG.md").read_text()
    assert re.search(r"<!-- test -->\n```\npip install uv && uv run pytest\n```", readme)
    assert "<!-- test -->" in ci


def test_links_of_the_readme_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md", "benchmarks/README.md"):
        text = (CHECKOUT / name).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((CHECKOUT / name).parent / target).exists(), f"{name}: {target}"
