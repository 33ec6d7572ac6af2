"""The README's examples in Python: each that stands behind ``<!-- run -->`` is run, with two batches in the place of an epoch."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# The title it stands under, and the code.
EXAMPLES = [
    (re.findall(r"^##+ (.*)", README[: found.start()], re.M)[-1], found[1])
    for found in re.finditer(r"^<!-- run -->\n```python\n(.*?)^```", README, re.M | re.S)
]


def test_every_mark_has_its_example():
    assert len(EXAMPLES) == README.count("<!-- run -->") >= 2


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_runs_as_it_is_written(title, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["example.py"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    # Lightning's own way to arguments of the Trainer that a program does not give.
    tiny = {"limit_train_batches": 2, "limit_val_batches": 2, "limit_test_batches": 2, "accelerator": "cpu", "enable_progress_bar": False}
    for name, value in tiny.items():
        monkeypatch.setenv(f"PL_TRAINER_{name.upper()}", str(value))
    exec(compile(code, f"README.md, {title}", "exec"), {"__name__": "__main__"})
