import ast
from pathlib import Path

import lightning.pytorch as lightning

ROOT = Path(__file__).parents[2]
LIGHTNING = Path(lightning.__file__).parent
OTHER = {"_detect_anomaly"}  # a setting of the Trainer's without a public name, and no state of its loops


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined(path: Path) -> set[str]:
    """Returns the private names that a file's classes give themselves: attributes and methods."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if _is_private(name)}


def _reached_for(path: Path) -> set[str]:
    """Returns the private names that a file asks of others than ``self``, ``cls`` and ``super()``; as text for getattr and setattr, too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr", "delattr"):
            names |= {part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return {name for name in names if _is_private(name)}


def test_lightnings_private_loop_state_is_known_in_one_file():
    trainer = LIGHTNING / "trainer"
    theirs = set().union(*map(_defined, [*(LIGHTNING / "loops").rglob("*.py"), *(trainer / "connectors").rglob("*.py"), trainer / "trainer.py"]))
    assert {"_batches_that_stepped", "_should_accumulate", "_logger_connector", "_signal_connector", "_combined_loader", "_restarting"} <= theirs
    ours = [*(ROOT / "cct_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): names for path in ours if (names := _reached_for(path) & theirs - OTHER)}
    assert set(found) == {"cct_lightning/runs/lightning_private.py"}, found
