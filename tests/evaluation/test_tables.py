import csv
import json

from cct_lightning.evaluation.outcomes import ClassRow, Confusion, Mistake, Report
from cct_lightning.evaluation.tables import write_report

FORMULA = '=HYPERLINK("http://x","y")'


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_r21_names_of_classes_and_files_are_no_formulas(tmp_path):
    classes = [ClassRow(FORMULA, 3, 0.5, None, 0.25), ClassRow("-1", 2, 1.0, 1.0, 1.0)]
    confusions = [Confusion(FORMULA, "@x", 3, 1.0), Confusion("-1", "+1", 2, 1.0)]
    mistakes = [Mistake(0, "=x/a.png", "-x", "+y", 0.5, 0.25), Mistake(1, "", "-1", "cat", 0.5, 0.25)]
    write_report(Report(5, {"accuracy": 0.5}, classes, confusions, confusions, mistakes, [], "test"), tmp_path, {"class": FORMULA})
    assert [row["name"] for row in rows_of(tmp_path / "classes.csv")] == [f"'{FORMULA}", "-1"]
    assert [(row["true"], row["predicted"]) for row in rows_of(tmp_path / "confusion.csv")] == [(f"'{FORMULA}", "'@x"), ("-1", "+1")]
    first, second = rows_of(tmp_path / "mistakes.csv")
    assert (first["file"], first["true"], first["predicted"]) == ("./=x/a.png", "'-x", "'+y")
    assert (second["file"], second["true"], float(second["probability"])) == ("", "-1", 0.5)
    assert float(rows_of(tmp_path / "classes.csv")[0]["precision"]) == 0.5
    assert json.loads((tmp_path / "measures.json").read_text())["class"] == FORMULA
