"""What lies beside a run's checkpoints and may be damaged without anything being lost: read as far as it can be, mended, or set aside."""

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DAMAGED = ".damaged"
MAX_BYTES = 64 * 2**20  # of a JSON file; a million rows of metrics.csv are more


def read_text(path: Path) -> str:
    """Returns the text of a file, nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """Returns the dictionary of a JSON file, nothing where there is none or a damaged one."""
    try:
        found = json.loads(read_text(path)) if path.stat().st_size < MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file by the names of their columns, none where there is no file or a damaged one."""
    try:
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error:
        return []


def to_number(text: object) -> float:
    """Returns a number that a file holds as text, NaN where it is none."""
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def set_aside(path: Path) -> str:
    """Renames a damaged file, so that a new one can take its place; returns what to say of it."""
    aside = path.with_name(path.name + DAMAGED)
    os.replace(path, aside)
    return f"{path} is damaged: it was set aside as {aside.name}"


def mended(text: str, needed: Sequence[str]) -> tuple[list[list[str]], list[int]] | None:
    """Reads a table of numbers that may be damaged, with as many rows as it has.

    Args:
        text: The file's.
        needed: Columns that it must have.

    Returns:
        Header and rows, each as long as the header, with empty cells where there is no number; and the places of the rows that were mended.
        The last cell of a file that does not end with a line's end may be a part of a number, and is emptied. None where the header is damaged.
    """
    try:
        rows = list(csv.reader(io.StringIO(text.replace("\0", "\ufffd"), newline="")))
    except csv.Error:
        return None
    if not rows:
        return ([], []) if not text else None
    header, *rows = rows
    if len(set(header)) < len(header) or "" in header or "\ufffd" in "".join(header) or not set(needed) <= set(header):
        return None
    if rows and not text.endswith(("\n", "\r")):
        rows[-1] = [*rows[-1][:-1], ""][: len(header) - 1]  # shorter than the header, so that it counts as damaged
    whole = [[cell if _is_number(cell) else "" for cell in (*row[: len(header)], *[""] * (len(header) - len(row)))] for row in rows]
    return [header, *whole], [place for place, (before, after) in enumerate(zip(rows, whole, strict=True)) if before != after]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
