"""How figures and names are written, once: on the screen, in pictures, in pages and in messages. Importing this costs nothing."""

import math
from collections.abc import Sequence


def percent(share: float | None, digits: int = 1, missing: str = "-") -> str:
    """Writes a share as "87.5 %".

    Args:
        share: 0..1.
        digits: Behind the point.
        missing: What stands for None and for what is not finite.
    """
    return f"{100 * share:.{digits}f} %" if share is not None and math.isfinite(share) else missing


def duration(seconds: float) -> str:
    """Writes a duration as a text does: "34.1 s", "2 min 03 s", "1 h 02 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """Writes a duration as a clock does, for a line that is drawn anew all the time: "2:03", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def part_epochs(epochs: int, steps: int, steps_per_epoch: int | None) -> str:
    """Writes how long a training was that ended inside an epoch: "0.8 epochs", "0.002 epochs"; the empty string where it ended with one.

    Args:
        epochs: Whole ones.
        steps: All that were taken.
        steps_per_epoch: None where that is not known.
    """
    if not steps_per_epoch or steps == epochs * steps_per_epoch:
        return ""
    length = steps / steps_per_epoch
    return f"{length:.1f} epochs" if length >= 0.1 else f"{length:.1g} epochs"


def printable(text: str) -> str:
    """Turns what a terminal can't show, such as a line's end or half a character of a file's name, into its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# What a spreadsheet computes begins with one of these, also in a CSV; the last four are their full-width forms.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
PLACES = ("path", "file", "other")  # columns of files


def as_cells(columns: Sequence[str], row: Sequence[object]) -> list[object]:
    """Writes a row for a CSV in which no cell is a formula, whatever the names of files and classes are.

    Text that begins with =, +, -, @, a tab or a line's end gets an apostrophe before it, by which spreadsheets take it for text, and a path ``./``,
    by which it stays one. A number stays as it is, also as text, such as a class of the name -1.

    Args:
        columns: Their names.
        row: As many values.
    """
    return [_as_cell(value, name in PLACES) if isinstance(value, str) else value for name, value in zip(columns, row, strict=True)]


def _as_cell(text: str, is_path: bool) -> str:
    if not text.startswith(FORMULAS):
        return text
    try:
        float(text)
    except ValueError:
        return f"./{text}" if is_path else f"'{text}"
    return text


def shortened(name: str, width: int) -> str:
    """Cuts the middle out of a name that is wider than ``width`` characters: names of one kind begin alike."""
    return name if len(name) <= width else f"{name[: width // 2]}…{name[width // 2 - width + 1 :]}"


def some(names: Sequence[str]) -> str:
    """Lists up to three names and says how many more there are: "cat, dog, owl and 7 more"."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> list[str]:
    """Aligns columns: numbers to the right, those named in ``left`` to the left."""
    columns = []
    for title, *cells in zip(header, *rows, strict=True):
        width = max(map(len, (title, *cells)))
        columns.append([cell.ljust(width) if title in left else cell.rjust(width) for cell in (title, *cells)])
    return [f"  {'  '.join(row)}".rstrip() for row in zip(*columns, strict=True)]


def reason(error: BaseException, length: int = 200, whole: bool = False) -> str:
    """Returns what an error of others says, for a message of ours; its class's name where it says nothing.

    Args:
        error: Whatever was raised.
        length: Characters, at most.
        whole: Joins all its lines into one, for errors whose first line tells little.
    """
    text = str(error)
    line = " ".join(text.split()) if whole else next(iter(text.strip().splitlines()), "")
    return line[:length].strip() or type(error).__name__
