"""Pictures of what a test found: confusions, calibration, classes, mistakes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from cct_lightning.data.files import Array
from cct_lightning.evaluation.labels import LabelMistake, LabelReport, LabelRow
from cct_lightning.evaluation.numbers import NumberMistake, NumberReport
from cct_lightning.evaluation.outcomes import ClassRow, Mistake, Report
from cct_lightning.evaluation.reports import AnyReport
from cct_lightning.wording import percent, printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter


BLUE, ORANGE, INK, GREY, PALE = "#0072b2", "#d55e00", "#22262d", "#767c85", "#e4e7eb"  # Okabe and Ito's: told apart by the colour-blind, too
NUMBERED = 20  # classes up to which the confusion matrix has a number in each cell
SHOWN = 30  # classes up to which all have a bar; of more the worst and the best
NAME_WIDTH = 24
FEW = 10  # images of a bin, below which its accuracy is not to be trusted
COLUMNS = 6  # of the grid of mistakes
PIXELS = 256  # longest side of an image in it


def _shown(name: str, width: int = NAME_WIDTH) -> str:
    """Cuts the middle out of a long name, and keeps matplotlib from reading formulas in it."""
    return shortened(printable(name), width).replace("$", r"\$")


def _figure(width: float, height: float, title: str) -> tuple["Figure", "Axes"]:
    """Makes axes of exactly this size, inches. Names stand outside; ``save_picture`` makes room for them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_title(title, loc="left", color=INK, fontsize=11, pad=12)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _percents() -> "Formatter":
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1, 0, " %")


def _legend(axes: "Axes", samples: Sequence[Any], labels: Sequence[str]) -> None:
    """Puts the legend between title and axes, where it hides nothing."""
    axes.legend(
        samples, labels, ncols=len(labels), frameon=False, fontsize=8, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2,
        borderpad=0.2, handlelength=1.4, columnspacing=1.4,
    )  # fmt: skip
    axes.set_title(axes.get_title(loc="left"), loc="left", color=INK, fontsize=11, pad=26)


def draw_confusion(report: Report) -> "Figure":
    """Draws which classes are taken for which: a row for each true class, coloured by shares of it; with few classes also the numbers."""
    from matplotlib.colors import PowerNorm

    names = [row.name for row in report.classes]
    number_of, k = {name: number for number, name in enumerate(names)}, len(names)
    shares, few = np.zeros((k, k)), k <= NUMBERED
    for confusion in report.confusions:
        shares[number_of[confusion.true], number_of[confusion.predicted]] = confusion.share
    side = k * min(max(0.42, 4.2 / k), 1.3) if few else 8.0
    figure, axes = _figure(side, side, f"Confusion matrix: {percent(report.measures['accuracy'], 2)} of {report.n:,} images right")
    # Of many classes each mistake is a small share of its row: the root tells 1 % from nothing.
    norm = PowerNorm(1.0 if few else 0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest" if few else "auto")
    step = -(-k // 56)  # names that have room
    ticks, labels = range(0, k, step), [_shown(name) for name in names[::step]]
    size = 9 if k <= 12 else 8 if few else 6.5
    turned = max(map(len, labels)) * size / 110 > side / k * step  # inches
    axes.set_xticks(ticks, labels, fontsize=size, rotation=(45 if few else 90) * turned, ha="right" if few and turned else "center")
    axes.set_yticks(ticks, labels, fontsize=size)
    if few and turned:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
    axes.set_xlabel("predicted", color=GREY, fontsize=9)
    axes.set_ylabel("true", color=GREY, fontsize=9)
    bar = figure.colorbar(image, cax=figure.add_axes((1 + 0.25 / side, 0, 0.14 / side, 1)), format=_percents())
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.set_label("of the true class", color=GREY, fontsize=9)
    if few:
        axes.set_xticks(np.arange(0.5, k - 1), minor=True)
        axes.set_yticks(np.arange(0.5, k - 1), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for confusion in report.confusions:
            row, column = number_of[confusion.true], number_of[confusion.predicted]
            colour = "white" if confusion.share > 0.55 else INK
            axes.text(column, row, f"{confusion.n:,}", ha="center", va="center", color=colour, fontsize=9 if k <= 12 else 7.5)
    else:
        left_out = f"one class in {step} is named; " if step > 1 else ""
        axes.text(0, 1.01, f"{left_out}the most frequent confusions are in confusion.csv", transform=axes.transAxes, color=GREY, fontsize=8)
        axes.set_title(axes.get_title(loc="left"), loc="left", color=INK, fontsize=11, pad=24)
    return figure


def draw_reliability(report: Report) -> "Figure":
    """Draws the accuracy of images of about the same confidence, the probability of the predicted class, and how many there are."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(4.6, 3.4, f"Reliability: calibration error {percent(report.measures['calibration_error'], 2)}")
    below = figure.add_axes((0, -0.3, 1, 0.22), sharex=axes)
    for bin in report.calibration:
        middle, width = (bin.low + bin.high) / 2, 0.9 * (bin.high - bin.low)
        below.bar(middle, bin.n, width, color=GREY)
        if bin.accuracy is not None:
            axes.bar(middle, bin.accuracy, width, color=BLUE, alpha=0.85 if bin.n >= FEW else 0.3)
        if bin.accuracy is not None and bin.confidence is not None:
            axes.plot([bin.confidence] * 2, sorted((bin.accuracy, bin.confidence)), color=ORANGE, linewidth=2.5, solid_capstyle="butt", zorder=4)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    samples: list[Any] = [axes.bar(-1, 0, color=BLUE, alpha=0.85), *axes.plot([], color=ORANGE, linewidth=2.5)]
    samples += axes.plot([], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    _legend(axes, samples, [f"accuracy (pale: under {FEW} images)", "gap to confidence", "as sure as right"])
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_ylabel("accuracy", color=GREY, fontsize=9)
    below.set_ylabel("images", color=GREY, fontsize=9)
    below.set_xlabel("confidence", color=GREY, fontsize=9)
    for part in (axes, below):
        part.tick_params(length=0, labelsize=8, colors=INK, labelbottom=part is below)
        part.set_axisbelow(True)
        part.grid(color=PALE, linewidth=0.8)
        for name, spine in part.spines.items():
            spine.set(visible=name == "bottom", color=GREY, linewidth=0.8)
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axis in (axes.yaxis, below.xaxis):
        axis.set_major_formatter(_percents())
    return figure


def draw_classes(report: Report | LabelReport) -> "Figure":
    """Draws F1, precision and recall of each class, the worst first; of many classes the worst and the best."""
    rows = sorted((row for row in report.classes if row.f1 is not None), key=lambda row: (row.f1 or 0.0, -row.n))
    rest = len(report.classes) - len(rows)
    places: list[tuple[float, ClassRow | LabelRow]] = [(float(place), row) for place, row in enumerate(rows)]
    between = len(rows) - SHOWN
    if between > 0:
        half = SHOWN // 2
        places = [(float(place), row) for place, row in enumerate(rows[:half])]
        places += [(half + 1.0 + place, row) for place, row in enumerate(rows[-half:])]
    length = places[-1][0] + 1
    mean = f"mean F1 {percent(report.measures['f1'], 2)}"
    title = f"Classes: {mean}" if between <= 0 else f"The {SHOWN // 2} worst and the {SHOWN // 2} best of {len(rows)} classes: {mean}"
    figure, axes = _figure(4.8, 0.26 * length, title)
    y = [place for place, _ in places]
    axes.barh(y, [row.f1 or 0.0 for _, row in places], 0.62, color=BLUE, alpha=0.85, label="F1")
    for label, values, marker, fill, edge in (
        ("precision", [row.precision for _, row in places], "D", ORANGE, "white"),
        ("recall", [row.recall for _, row in places], "o", "white", INK),
    ):
        x = [np.nan if value is None else value for value in values]
        axes.scatter(x, y, s=26, marker=marker, linewidth=0.9, zorder=3, clip_on=False, label=label, facecolor=fill, edgecolor=edge)
    for right, heading, texts in (
        (1.13, "F1", [percent(row.f1) for _, row in places]),
        (1.24, "images", [f"{row.n:,}" for _, row in places]),
    ):
        axes.text(right, -0.9, heading, transform=axes.get_yaxis_transform(), ha="right", va="center", color=GREY, fontsize=8)
        for place, text in zip(y, texts, strict=True):
            axes.text(right, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", color=INK, fontsize=8)
    if between > 0:
        axes.text(0.5, SHOWN // 2, f"{between:,} classes between these", ha="center", va="center", color=GREY, fontsize=8)
    axes.set_yticks(y, [_shown(row.name) for _, row in places])
    axes.set(xlim=(0, 1), ylim=(length - 0.5, -0.5))
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.xaxis.set_major_formatter(_percents())
    if rest:
        axes.set_xlabel(f"{rest:,} more: no image of the class, and none taken for it", color=GREY, fontsize=8)
    _legend(axes, *axes.get_legend_handles_labels())
    return figure


def draw_scatter(report: NumberReport) -> "Figure":
    """Draws the predicted numbers over the true ones, an image a dot, and a line where both are the same; a field for each number."""
    from matplotlib.figure import Figure

    columns, side, gap = min(len(report.classes), 3), 3.2, 0.9  # inches
    rows = -(-len(report.classes) // columns)
    figure = Figure((columns * side + (columns - 1) * gap, rows * side + (rows - 1) * gap))
    for k, row in enumerate(report.classes):
        axes = figure.add_subplot(rows, columns, k + 1)
        true, predicted = report.values[:, k], report.predicted[:, k]
        ends = [float(min(true.min(), np.nanmin(predicted))), float(max(true.max(), np.nanmax(predicted)))]
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        axes.scatter(true, predicted, s=9, color=BLUE, alpha=max(0.15, min(0.8, 60 / len(true))), linewidth=0, rasterized=True, zorder=2)
        axes.set_title(f"{_shown(row.name)}: R² {row.r2:.3f}, mean error {row.mae:.4g}", loc="left", color=INK, fontsize=9)
        axes.set_xlabel("true", color=GREY, fontsize=8)
        axes.set_ylabel("predicted", color=GREY, fontsize=8)
        axes.tick_params(length=0, labelsize=8, colors=INK)
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set(visible=name in ("bottom", "left"), color=GREY, linewidth=0.8)
    figure.subplots_adjust(wspace=0.35, hspace=0.4)
    return figure


def draw_mistakes(report: AnyReport, images: Sequence[Array]) -> "Figure":
    """Draws images that were taken for another class, or whose labels or numbers are others, the surest or furthest off first.

    Args:
        report: Its mistakes are those of the images.
        images: Of the first mistakes, uint8 (H, W, 1 or 3) of any size.
    """
    worst: Sequence[Mistake | LabelMistake | NumberMistake] = report.mistakes[: len(images)]
    if not worst:
        figure, axes = _figure(5.0, 0.5, "Mistakes")
        axes.set_axis_off()
        axes.text(0, 0.5, f"None: all {report.n:,} images were classified right.", color=INK, fontsize=10, va="center")
        return figure
    some = f"Worst mistakes: {len(worst)} of {len(report.mistakes):,}, the surest first"
    title = some if len(worst) < len(report.mistakes) else f"All {len(worst)} mistakes, the surest first" if len(worst) > 1 else "The only mistake"
    lines = 3 if any(max(len(mistake.true), len(mistake.predicted)) > 12 for mistake in worst) else 2
    captions = []
    for mistake in worst:
        told, sure = [_shown(mistake.true, 20), f"→ {_shown(mistake.predicted, 18)}"], _shown(mistake.told)
        captions.append([*told, sure] if lines == 3 else [told[0], f"{told[1]}, {sure}"])
    return draw_sheet(title, images, captions)


def draw_sheet(title: str, images: Sequence[Array], captions: Sequence[Sequence[str]]) -> "Figure":
    """Draws images in rows, some lines of words below each, the second in orange.

    Args:
        title: Above them.
        images: uint8 (H, W, 1 or 3) of any size.
        captions: Of each image as many lines.
    """
    lines = max(map(len, captions))
    columns = min(COLUMNS, len(images))
    rows, cell, line = -(-len(images) // columns), 1.5, 0.14  # inches
    height = cell + line * lines + 0.12
    figure, axes = _figure(columns * cell, rows * height, title)
    axes.set(xlim=(0, columns * cell), ylim=(rows * height, 0))
    axes.set_axis_off()
    for place, (told, image) in enumerate(zip(captions, images, strict=True)):
        row, column = divmod(place, columns)
        part = axes.inset_axes((column * cell, row * height, cell - 0.1, cell - 0.1), transform=axes.transData, anchor="SW")
        part.imshow(_small(image), cmap="gray", vmin=0, vmax=255)
        part.set_axis_off()
        for number, text in enumerate(told):
            y = row * height + cell - 0.05 + number * line
            axes.text(column * cell, y, text, color=ORANGE if number == 1 else INK, fontsize=8, va="top")
    return figure


def _small(image: Array) -> Array:
    """Shrinks an image to what the grid has room for; grey loses its channel."""
    plain = image[..., 0] if image.shape[-1] == 1 else image
    picture = PIL.Image.fromarray(np.ascontiguousarray(plain))
    picture.thumbnail((PIXELS, PIXELS), PIL.Image.Resampling.LANCZOS)
    return np.asarray(picture)
