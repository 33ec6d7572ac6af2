import csv
import json
import shutil
from pathlib import Path

import pytest

from cct_lightning.run_folder import RunFolder
from cct_lightning.side_files import mended, read_json, read_table

FROZEN = Path(__file__).with_name("frozen")


@pytest.fixture
def run(tmp_path):
    """A run that was stopped."""
    return RunFolder(Path(shutil.copytree(FROZEN / "stopped", tmp_path / "runs" / "digits" / "stopped")))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def half_a_row(data):
    return data[: data.rindex(b",", 0, -40) + 3]


def odd_bytes(data):
    lines = data.split(b"\r\n")
    return b"\r\n".join([*lines[:2], b"\xff\x00" + lines[2][2:], b"1,2", lines[4] + b",7,8,9", *lines[5:]])


DAMAGED = {
    "half a last row": (half_a_row, b'{"finished": true', "metrics.csv: 1 damaged row mended", True),
    "odd bytes": (odd_bytes, b"[1, 2]", "metrics.csv: 3 damaged rows mended", True),
    "no header": (
        lambda data: data[200:],
        b'{"finished": "yes", "epochs": {}}',
        "set aside as metrics.csv.damaged; a new one begins",
        False,
    ),
    "empty": (lambda data: b"", b"[" * 10**5, "going on from", False),
    "binary": (lambda data: b"\0\1\2" * 1000, b"\xff\xfe", "set aside as metrics.csv.damaged; a new one begins", False),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_r18_damaged_side_files_are_mended_or_set_aside_with_a_line_and_the_run_goes_on(kind, run, cct):
    damage, summary, message, keeps = DAMAGED[kind]
    before = rows_of(run.metrics_file)
    run.metrics_file.write_bytes(damage(run.metrics_file.read_bytes()))
    run.summary_file.write_bytes(summary)
    outcome = cct("resume", run.path, draws=True)
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    told = [line for line in outcome.out.splitlines() if " damaged" in line]
    assert sum("metrics.csv" in line for line in told) == (kind != "empty")
    assert sum(f"{run.summary_file} is damaged: it was set aside as summary.json.damaged" in line for line in told) == 1
    assert message in outcome.out
    assert json.loads(run.summary_file.read_text())["finished"] is True
    end, whole = rows_of(run.metrics_file), rows_of(FROZEN / "stopped_end" / "metrics.csv")
    assert {len(row) for row in end} == {len(end[0])}
    if keeps:  # as many rows as without the damage, and all that could be read is there
        assert len(end) == len(whole)
        named, found = ([{name: cell for name, cell in zip(rows[0], row, strict=True) if cell} for row in rows[1:]] for rows in (before, end))
        assert sum(row in found for row in named) >= len(named) - 3
        assert (run.path / "metrics.csv.damaged").is_file()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:3000])])
def test_r18_a_best_checkpoint_that_is_lost_does_not_hinder_the_run(damage, run, cct):
    damage(run.best)
    outcome = cct("resume", run.path, draws=True)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("the next epoch that is validated takes its place") == 1
    assert run.best.is_file()
    assert json.loads(run.summary_file.read_text())["test_accuracy"] is not None


def test_a_whole_table_is_not_touched():
    text = (FROZEN / "stopped" / "metrics.csv").read_bytes().decode()
    rows, damaged = mended(text, ("epoch", "step"))
    assert damaged == []
    assert rows == rows_of(FROZEN / "stopped" / "metrics.csv")
    assert mended("", ("step",)) == ([], [])


def test_half_a_number_is_no_number():
    assert mended("step,a,b\n1,2,3\n2,0.51", ("step",)) == ([["step", "a", "b"], ["1", "2", "3"], ["2", "", ""]], [1])
    assert mended("step,a,b\n1,2,3\n2,5,0.5", ("step",)) == ([["step", "a", "b"], ["1", "2", "3"], ["2", "5", ""]], [1])
    assert mended("step,a\n1,x\n", ("step",)) == ([["step", "a"], ["1", ""]], [0])
    for header in ("a,b\n1,2\n", "step,step\n1,2\n", "step,\n1,2\n"):
        assert mended(header, ("step",)) is None


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": ' * 10**5, "\0", "[]", "nul", ""])
def test_r18_an_odd_json_is_an_empty_one(text, tmp_path):
    (tmp_path / "summary.json").write_text(text)
    assert read_json(tmp_path / "summary.json") == RunFolder(tmp_path).summary == {}
    assert read_table(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    "change", [{"finished": 1}, {"epochs": "3"}, {"test": None}, {"val_accuracy": [1]}, {"best_checkpoint": 3}, {"run_dir": None}]
)
def test_r18_a_summary_of_other_types_is_an_empty_one(change, run):
    whole = dict(run.summary)
    assert whole
    run.write_summary({**whole, **change})
    assert RunFolder(run.path).summary == {}
