"""Pictures of a study: every seed a dot, accuracy over the training, accuracy over the conditions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from cct_lightning.evaluation.drawings import BLUE, GREY, INK, ORANGE, PALE
from cct_lightning.evaluation.measures import measure_of
from cct_lightning.studies.options import told
from cct_lightning.studies.results import Cell
from cct_lightning.studies.statistics import Comparison
from cct_lightning.wording import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, in an order in which neighbours differ in lightness, too.
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#b8a800")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # of more arms than colours


def _axes(width: float, height: float, title: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _styled(figure.add_subplot(), title)


def _styled(axes: "Axes", title: str) -> "Axes":
    axes.set_title(title, loc="left", color=INK, fontsize=11, pad=10)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", color=GREY, linewidth=0.8)
    return axes


def _percents(axes: "Axes", of: str) -> None:
    from matplotlib.ticker import PercentFormatter

    (axes.xaxis if of == "x" else axes.yaxis).set_major_formatter(PercentFormatter(1, None, " %"))
    axes.grid(axis="x" if of == "x" else "y", color=PALE, linewidth=0.8)


def _name(arm: str) -> str:
    return shortened(printable(arm), 28).replace("$", r"\$")


def _titled(text: str) -> str:
    return text[:1].upper() + text[1:]


def draw_seeds(cell: Cell) -> "Figure":
    """Draws a row for each arm: every seed a dot, and the mean; beside it each seed's difference to the baseline, and where their mean lies."""
    from matplotlib.figure import Figure

    rows = [row for row in cell.rows if row.values]
    base = next((row for row in rows if row.difference is None), None)
    is_paired = base is not None and len(rows) > 1
    figure = Figure(figsize=(9.2 if is_paired else 6.4, 1.1 + 0.42 * len(rows)), layout="constrained")
    left, *right = figure.subplots(1, 1 + is_paired, sharey=True, squeeze=False)[0]
    _styled(left, f"{_titled(cell.measure)}{f', {told(cell.keys)}' if cell.keys else ''}: every seed, and the mean")
    for place, row in enumerate(rows):
        _dots(left, place, list(row.values.values()), row.mean)
    _percents(left, "x")
    for axes in right:
        _differences(_styled(axes, f"Above {_name(base.arm) if base else ''}, in points, with 95 % interval"), rows, base)
    left.set_yticks(range(len(rows)), [_name(row.arm) for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _differences(axes: "Axes", rows: Sequence[Comparison], base: Comparison | None) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.axvline(0, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, row in enumerate(rows):
        if base is None or row.difference is None:
            continue
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=BLUE, linewidth=5, alpha=0.25, solid_capstyle="butt", zorder=2)
        _dots(axes, place, [value - base.values[seed] for seed, value in row.values.items() if seed in base.values], row.difference)
    axes.tick_params(labelleft=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if abs(value) > 1e-9 else "0"))
    axes.grid(axis="x", color=PALE, linewidth=0.8)


def _dots(axes: "Axes", place: int, values: Sequence[float], middle: float) -> None:
    axes.plot([middle] * 2, [place - 0.26, place + 0.26], color=BLUE, linewidth=2, zorder=3)
    axes.scatter(values, [place] * len(values), s=20, facecolor="white", edgecolor=INK, linewidth=0.9, zorder=4)


def draw_training(cell: Cell) -> "Figure | None":
    """Draws the validation accuracy over the training, the mean of the seeds of each arm; None where none was measured on the way."""
    curves = {row.arm: _curve(cell, row.arm) for row in cell.rows}
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    title = _titled(f"validation {cell.measure.partition(' ')[2]} over the training")
    figure, axes = _axes(6.4, 3.6, f"{title}{f', {told(cell.keys)}' if cell.keys else ''}: means of the seeds")
    for number, (arm, curve) in enumerate(curves.items()):
        if curve:
            axes.plot(list(curve), list(curve.values()), label=_name(arm), **_line(number))
    axes.set_xlim(left=0)
    axes.set_xlabel("steps", color=GREY, fontsize=9)
    _percents(axes, "y")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right", ncols=1 + (len(curves) > 6))
    return figure


def _line(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)], "linewidth": 1.6}


def _curve(cell: Cell, arm: str) -> Mapping[float, float]:
    """Returns the mean over the seeds by step, of those steps that all runs of the arm measured."""
    runs = [job.run for job in cell.jobs if job.arm == arm and job.summary is not None and job.run is not None]
    columns = [run.column(f"val/{measure_of(run.summary).name}") for run in runs]
    measured = [{row["step"]: value for row, value in column if "step" in row and math.isfinite(value)} for column in columns]
    shared = set.intersection(*map(set, measured)) if measured else set()
    return {step: mean(values[step] for values in measured) for step in sorted(shared)}


def draw_across(cells: Sequence[Cell]) -> "Figure | None":
    """Draws each arm's accuracy over the values of the one number that the comparisons differ in; None where they don't."""
    keys = {key for cell in cells for key in cell.keys}
    values: list[Any] = [next(iter(cell.keys.values()), None) for cell in cells]
    if len(keys) != 1 or len(cells) < 2 or not all(isinstance(value, int | float) for value in values):
        return None
    (key,) = keys
    figure, axes = _axes(6.4, 3.6, f"{_titled(cells[0].measure)} over {key}: mean and every seed")
    for number, row in enumerate(cells[0].rows):
        found = [next((other for other in cell.rows if other.arm == row.arm), None) for cell in cells]
        places = [(value, one) for value, one in zip(values, found, strict=True) if one is not None and one.values]
        line = _line(number)
        axes.plot([value for value, _ in places], [one.mean for _, one in places], label=_name(row.arm), **line)
        for value, one in places:
            axes.scatter([value] * len(one.values), list(one.values.values()), s=9, color=line["color"], alpha=0.5, linewidth=0)
    if min(values) > 0 and max(values) >= 10 * min(values):
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.set_xlabel(key, color=GREY, fontsize=9)
    _percents(axes, "y")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    return figure


def save(figure: "Figure", path: Path) -> Path:
    """Writes a picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor="white")
    return path
