"""Curves as SVG inside a page: they take its colours, light or dark, and its letters."""

import io
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

# matplotlib writes colours as numbers: these stand for those of the page.
COLOURS = {"blue": ("#010203", "var(--blue)"), "orange": ("#010204", "var(--orange)"), "grey": ("#010205", "var(--soft)"),
           "ink": ("#010206", "var(--ink)"), "line": ("#010207", "var(--line)")}  # fmt: skip
INCHES = (4.2, 2.7)


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        label: Its name in the legend.
        x: Places of its points.
        y: Values; one that is not finite leaves a gap.
        colour: blue, orange or grey.
        dashed: Whether the line is broken.
        dot: Number of a point that is marked.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False
    dot: int | None = None


def draw_curves(title: str, lines: Sequence[Series], axis: str, is_share: bool = False) -> str:
    """Draws lines over epochs or steps.

    Args:
        title: What is drawn; for those who can't see it, and to tell the parts of several drawings on a page apart.
        lines: With a legend where there are several.
        axis: Name of the places.
        is_share: Values are 0..1 and shown in per cent.

    Returns:
        An svg element.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    code = {name: number for name, (number, _) in COLOURS.items()}
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        alone = sum(map(math.isfinite, line.y)) == 1
        (drawn,) = axes.plot(line.x, line.y, color=code[line.colour], linewidth=1.8, label=line.label, marker="o" if alone else "", markersize=5)
        drawn.set_linestyle("none" if alone else (0, (4, 3)) if line.dashed else "-")
        if line.dot is not None:
            axes.plot(line.x[line.dot], line.y[line.dot], "o", color=code[line.colour], markersize=7)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, None, " %") if is_share else FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(axis, color=code["grey"], fontsize=11)
    axes.tick_params(length=0, labelsize=11, labelcolor=code["grey"], pad=6)
    axes.grid(axis="y", color=code["line"], linewidth=1)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", color=code["line"])
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=11, labelcolor=code["ink"], loc="best")
    written = io.StringIO()
    # Only these settings have text written as text, and names of parts that are the same each time and differ between charts.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _in_page(written.getvalue(), title)


def _in_page(svg: str, title: str) -> str:
    """Takes out what belongs to a file of its own: head, size, fonts, names that nothing refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r'font: ([\d.]+px)[^;"]*', r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for number, name in COLOURS.values():
        svg = svg.replace(number, name)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg {box[0]} xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{title}">'
    return re.sub(r"^<svg[^>]*>", head, svg)
