import math
import subprocess
import sys

import pytest

from cct_lightning.wording import as_cells, clock, duration, part_epochs, percent, printable, reason, shortened, some, table


@pytest.mark.parametrize(("share", "options", "text"), [
    (0.875, {}, "87.5 %"), (0.87654, {"digits": 2}, "87.65 %"), (1.0, {"digits": 0}, "100 %"), (0.0, {}, "0.0 %"),
    (None, {}, "-"), (math.nan, {}, "-"), (math.inf, {"missing": "–"}, "–"),
])  # fmt: skip
def test_shares_are_written_in_percent(share, options, text):
    assert percent(share, **options) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0.04, "0.0 s"), (34.12, "34.1 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (123.4, "2 min 03 s"), (3599, "59 min 59 s"), (3720, "1 h 02 min"),
    (90_000, "25 h 00 min"),
])  # fmt: skip
def test_durations_are_written_as_in_a_text(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00"), (86_399, "23:59:59")])
def test_durations_are_written_as_clocks(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(("epochs", "steps", "per_epoch", "text"), [
    (0, 610, 750, "0.8 epochs"), (12, 9375, 750, "12.5 epochs"), (0, 2, 1000, "0.002 epochs"),
    (60, 1200, 20, ""), (0, 0, 20, ""), (0, 610, None, ""), (0, 1, 0, ""),
])  # fmt: skip
def test_an_epoch_that_was_not_ended_counts_in_parts(epochs, steps, per_epoch, text):
    assert part_epochs(epochs, steps, per_epoch) == text


def test_what_can_not_be_shown_becomes_its_escape():
    assert printable("two\nlines") == "two\\nlines"
    assert printable("half \udcff") == "half \\udcff"
    assert printable("ñandú 猫") == "ñandú 猫"


@pytest.mark.parametrize("width", range(3, 12))
def test_a_long_name_keeps_both_ends_and_fills_the_width(width):
    name = "abcdefghijkl"
    short = shortened(name, width)
    begin, end = short.split("…")
    assert len(short) == width
    assert name.startswith(begin)
    assert name.endswith(end)
    assert 0 <= len(begin) - len(end) <= 1
    assert shortened(name[:width], width) == name[:width]


def test_some_names_stand_for_many():
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(list("abcde")) == "a, b, c and 2 more"


def test_columns_are_aligned():
    assert table(("name", "n"), [("cat", "1,000"), ("a dog", "2")], left=("name",)) == ["  name       n", "  cat    1,000", "  a dog      2"]


def test_the_reason_of_an_error_is_a_line():
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(ValueError("first\nsecond"), whole=True) == "first second"
    assert reason(ValueError("\n  first  ")) == "first"
    assert reason(KeyError()) == reason(KeyError(), whole=True) == "KeyError"
    assert reason(ValueError("x" * 300), 120) == "x" * 120


def test_importing_it_costs_nothing():
    code = "import sys, cct_lightning.wording; print(sorted({'torch', 'numpy', 'lightning'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("text", "cell"), [
    ("=1+1", "'=1+1"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("-2+3", "'-2+3"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"),
    ("＝1", "'＝1"),
    ("cat", "cat"), ("", ""), ("-1", "-1"), ("+0.5", "+0.5"), ("-1e-3", "-1e-3"), ("a=b", "a=b"), ("'quoted", "'quoted"), ("-", "'-"),
])  # fmt: skip
def test_r21_no_cell_is_a_formula_and_a_number_stays_one(text, cell):
    assert as_cells(["class"], [text]) == [cell]
    assert as_cells(["path"], [text]) == [cell.replace("'", "./", 1) if cell != text else text]
    assert as_cells(["a", "b", "c"], [1, -0.5, None]) == [1, -0.5, None]
