"""The rows that ``cct predict`` writes, and the place they go to."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cct_lightning.errors import RunError
from cct_lightning.wording import as_cells

if TYPE_CHECKING:
    from cct_lightning.inference.items import Prediction


@contextmanager
def opened_for_rows(out: Path | None) -> Iterator[IO[str]]:
    """Opens the file, or the screen; names of files that are no UTF-8 come out as they are.

    Raises:
        RunError: There is no room for the file.
    """
    place = out if out is not None else sys.stdout.fileno()
    try:
        with open(place, "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=out is not None) as file:
            yield file
    except BrokenPipeError:
        sys.exit(0)  # the reader (head, less) has gone
    except OSError as error:
        if error.filename:  # of an image, say: what a write raises has no name
            raise
        where = "the screen or pipe" if out is None else f"--out {out}"
        raise RunError(f"{where} can't be written to its end: {error.strerror}. It holds the predictions up to there.") from error


def row_writer(
    file: IO[str], kind: str, top_k: int, told: str = "class", names: Sequence[str] = (), scored: bool = False
) -> Callable[["Prediction"], None]:
    """Returns what writes a prediction as a row of CSV, whose header it writes at once, or as a line of JSON.

    Args:
        file: Where to.
        kind: csv or jsonl.
        top_k: Length of ``Prediction.top``.
        told: What the network tells: class, labels or numbers.
        names: Of the numbers.
        scored: Whether each has a score, by which it may be none of the classes; the classes then follow ``none``.
    """
    if kind == "jsonl":
        return lambda prediction: print(_json_line(prediction, top_k), file=file)
    if told == "numbers":
        return _table_writer(file, ["path", *names, "error"], lambda prediction: [f"{value:.7g}" for _, value in prediction.values or ()])
    if told == "labels":
        more = [name for place in range(1, top_k + 1) for name in (f"class_{place}", f"probability_{place}")] if top_k > 1 else []
        return _table_writer(file, ["path", "labels", "probabilities", *more, "error"], lambda prediction: _label_cells(prediction, top_k))
    rows = csv.writer(file, lineterminator="\n")
    more = [name for place in range(2, top_k + 1) for name in (f"class_{place}", f"probability_{place}")]
    columns = ["path", "class", "probability", *more, *(["score"] if scored else []), "error"]
    rows.writerow(columns)

    def write(prediction: "Prediction") -> None:
        rejected = [(prediction.class_name, "")] if prediction.error is None and prediction.probability is None else []
        told = [*rejected, *((name, f"{probability:.6g}") for name, probability in prediction.top)][:top_k]
        cells = [cell for pair in told for cell in pair] or [""] * (2 + len(more))
        cells += ["" if prediction.score is None else f"{prediction.score:.6g}"] * scored
        rows.writerow(as_cells(columns, [prediction.path, *cells, prediction.error or ""]))

    return write


def _table_writer(file: IO[str], columns: list[str], cells_of: Callable[["Prediction"], list[str]]) -> Callable[["Prediction"], None]:
    """Returns what writes a row between its path and its error."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(as_cells([""] * len(columns), columns))

    def write(prediction: "Prediction") -> None:
        cells = [""] * (len(columns) - 2) if prediction.error is not None else cells_of(prediction)
        rows.writerow(as_cells(columns, [prediction.path, *cells, prediction.error or ""]))

    return write


def _label_cells(prediction: "Prediction", top_k: int) -> list[str]:
    labels = prediction.labels or ()
    more = [cell for name, probability in prediction.top for cell in (name, f"{probability:.6g}")] if top_k > 1 else []
    return [";".join(name for name, _ in labels), ";".join(f"{probability:.6g}" for _, probability in labels), *more]


def _json_line(prediction: "Prediction", top_k: int) -> str:
    if prediction.error is not None:
        return json.dumps({"path": prediction.path, "error": prediction.error})
    if prediction.values is not None:
        return json.dumps({"path": prediction.path, "values": {name: float(f"{value:.7g}") for name, value in prediction.values}}, allow_nan=False)
    if prediction.labels is not None:
        found, best = ([{"class": name, "probability": float(f"{p:.6g}")} for name, p in pairs] for pairs in (prediction.labels, prediction.top))
        return json.dumps({"path": prediction.path, "labels": found, **({"top": best} if top_k > 1 else {})}, allow_nan=False)
    top = [{"class": name, "probability": float(f"{probability:.6g}")} for name, probability in prediction.top]
    if prediction.score is None:
        return json.dumps({"path": prediction.path, **top[0], "top": top}, allow_nan=False)
    answer = top[0] if prediction.probability is not None else {"class": prediction.class_name, "probability": None}
    return json.dumps({"path": prediction.path, **answer, "score": float(f"{prediction.score:.6g}"), "top": top}, allow_nan=False)
