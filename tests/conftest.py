"""The command line, run in this process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cct_lightning.__main__ import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``cct WORDS`` in this process and in an empty folder: importing Lightning for each command would take minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("CCT_RUN_DIR", raising=False)  # of a test that made a folder itself

    def run(*words: object, draws: bool = False) -> Outcome:
        words = tuple(map(str, words))
        if words[:1] in (("fit",), ("finetune",)) and "-c" in words and not draws:
            # The recipes' pictures take seconds to draw; test_recipes draws them. What a test names itself is added behind.
            behind = len(words) - words[::-1].index("-c") + 1
            words = (*words[:behind], "--trainer.callbacks", "null", *words[behind:])
        elif words[:1] == ("finetune",) and len(words) > 2 and not draws:
            words = (*words[:2], "--trainer.callbacks", "null", *words[2:])
        monkeypatch.setattr(sys, "argv", ["cct", *words])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        return Outcome(code, *capfd.readouterr())

    return run
