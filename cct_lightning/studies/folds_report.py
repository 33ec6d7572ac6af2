"""The tables, pictures and page of folds."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cct_lightning.data.files import Array, decode
from cct_lightning.evaluation.drawings import draw_classes, draw_confusion, draw_mistakes, draw_reliability
from cct_lightning.evaluation.outcomes import LABELS, Report
from cct_lightning.evaluation.tables import write_report as write_tables
from cct_lightning.evaluation.wrong_labels import FILE as WRONG
from cct_lightning.evaluation.wrong_labels import WrongLabel, draw_wrong_labels, write_wrong_labels
from cct_lightning.inference.items import Item
from cct_lightning.run_folder import ENSEMBLE, replacing
from cct_lightning.runs.page_parts import TEST_PICTURES, details, document, escape, figure, html_table, interval, picture
from cct_lightning.studies.folds import FoldsSummary, OutOfFold, options_of
from cct_lightning.wording import percent, printable, reason, shortened, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOM = 4_000_000  # bytes of all pictures of the page
SHOWN = 24  # images of a contact sheet
LISTED = 20  # mistakes in words
HEADER = ("fold", "images", "accuracy", "run")
FILES = ("summary.json", "results.csv", WRONG, "classes.csv", "confusion.csv", "mistakes.csv", "report.html", ENSEMBLE)


def rows_of(found: OutOfFold) -> list[list[str]]:
    """Returns a row for each fold, as ``HEADER`` names them."""
    counts = [int((found.known & (found.fold == number)).sum()) for number in range(1, len(found.runs) + 1)]
    return [
        [str(number), f"{count:,}", percent(accuracy, 2), str(run.path)]
        for number, (count, accuracy, run) in enumerate(zip(counts, found.accuracies, found.runs, strict=True), start=1)
    ]


def as_text(found: OutOfFold, summary: FoldsSummary, wrong: Sequence[WrongLabel]) -> list[str]:
    """Writes what was found for a terminal."""
    low, high = interval(summary.pooled["accuracy"], summary.n)
    lines = [f"{summary.n:,} images, each tested once, by the network that has not seen it", *table(HEADER, rows_of(found), left=("run",))]
    lines.append(f"  accuracy  {told_accuracy(summary)} (mean and standard deviation of the {summary.folds} folds)")
    others = ", ".join(f"{LABELS.get(name, name)} {percent(value, 2)}" for name, value in summary.pooled.items() if name != "accuracy")
    reach = f"95 % interval {percent(low)} to {percent(high)}"
    lines.append(f"  together  {percent(summary.pooled['accuracy'], 2)} of all images right, {reach}; {others}")
    if summary.test_accuracy is not None:
        lines.append(
            f"  test      {percent(summary.test_accuracy, 2)} by all networks together, on {summary.num_tested:,} test images, which are in no fold"
        )
    if wrong:
        lines += [f"labels that look wrong: {len(wrong):,} of {summary.n:,}, by what networks say that have not seen the image ({WRONG})"]
        rows = [
            (printable(row.file) or f"image {row.image}", _short(row.given), _short(row.suggested), percent(row.probability)) for row in wrong[:5]
        ]
        lines += table(("image", "given", "suggested", "probability"), rows, left=("image", "given", "suggested"))
    return lines + ([f"  left out  {summary.left_out} image(s) that can't be read"] if summary.left_out else [])


def _short(name: str) -> str:
    return shortened(printable(name), 28)


def told_accuracy(summary: FoldsSummary) -> str:
    """Writes mean and deviation: "87.43 ± 2.10 %"."""
    return f"{percent(summary.accuracy, 2).removesuffix(' %')} ± {100 * summary.deviation:.2f} %"


def save(root: Path, name: str, draw: Callable[[], "Figure"]) -> Path | None:
    """Draws a picture into the folder's pictures; what befalls it is a warning, since the folds are worth more."""
    path = root / "pictures" / f"{name}.png"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # of a script that no font here has: boxes are drawn instead
            path.parent.mkdir(parents=True, exist_ok=True)
            draw().savefig(path, dpi=120, bbox_inches="tight", facecolor="white")
    except Exception as error:
        warnings.warn(f"{path} could not be made: {reason(error)}", stacklevel=2)
        return None
    return path


def images_of(found: OutOfFold, numbers: Sequence[int]) -> list[Any]:
    """Reads images for a contact sheet as the runs did, uint8 (H, W, C), of other channels than 1 and 3 their mean."""
    options = options_of(dict(found.runs[0].config))

    def pixels_of(item: Item) -> Array:
        file: Any = Path(item) if isinstance(item, str) else item
        pixels = decode(file, options.in_chans or 3, options.max_megapixels, options.value_range)
        return pixels if pixels.shape[2] in (1, 3) else pixels.mean(axis=2, keepdims=True).astype(np.uint8)

    return [pixels_of(found.items[number]) for number in numbers]


def write_report(root: Path, found: OutOfFold, report: Report, wrong: Sequence[WrongLabel], summary: FoldsSummary, about: dict[str, Any]) -> None:
    """Writes results.csv, the tables of all images together, their pictures, and report.html of all that; one file that opens anywhere.

    Args:
        root: The folder of the folds.
        found: What the networks say.
        report: The same, counted.
        wrong: Images whose label looks wrong.
        summary: The same, summed up.
        about: Facts for the head of the page, by name.

    Raises:
        OSError: The folder can't be written.
    """
    found.write(root)
    write_wrong_labels(wrong, root)
    write_tables(report, root, {"folds": summary.folds, "accuracies": summary.accuracies, "runs": summary.runs})
    worst = [mistake.image for mistake in report.mistakes[:SHOWN]]
    drawings: dict[str, Callable[[], Figure]] = {
        "confusion": lambda: draw_confusion(report), "classes": lambda: draw_classes(report), "reliability": lambda: draw_reliability(report),
        "mistakes": lambda: draw_mistakes(report, images_of(found, worst)),
    }  # fmt: skip
    room, shown = ROOM, []
    for name, draw in drawings.items():
        if (path := save(root, name, draw)) is not None:
            image, size = picture(path, room)
            room -= size
            shown += [figure(image, TEST_PICTURES[name])] if image else []
    mistakes = [
        (m.true, m.predicted, m.file or f"image {m.image}", str(int(found.fold[m.image])), percent(m.probability)) for m in report.mistakes[:LISTED]
    ]
    listed = details(
        f"Worst mistakes ({len(mistakes)} of {len(report.mistakes):,})",
        html_table(("class", "taken for", "image", "fold", "probability"), mistakes, words=3), is_open=False,
    )  # fmt: skip
    pooled = f'<section><h2>All images together</h2>\n<div class="pictures">\n{"".join(shown)}</div>\n{listed if mistakes else ""}</section>\n'
    with replacing(root / "report.html") as file:
        file.write(document(f"{root.name}: folds", [_head(root, found, summary, about), pooled, _wrong(root, found, wrong, room)]).encode())


def _wrong(root: Path, found: OutOfFold, wrong: Sequence[WrongLabel], room: int) -> str:
    """Labels that look wrong: some of the images, and more in words."""
    heading = "<h2>Labels that look wrong</h2>\n"
    if not wrong:
        return f'<section id="labels">{heading}<p class="soft">None.</p>\n</section>\n'
    rule = (
        f"{len(wrong):,} images ({WRONG}), by confident learning (arXiv 1911.00068) on what the networks say that have not seen them. Where the "
        "networks are often wrong, many of these labels are right: look before you change one."
    )
    path = save(root, "wrong_labels", lambda: draw_wrong_labels(wrong, images_of(found, [row.image for row in wrong[:SHOWN]])))
    image = picture(path, room)[0] if path is not None else ""
    rows = [
        (
            row.file or f"image {row.image}",
            row.given,
            row.suggested,
            str(int(found.fold[row.image])),
            percent(row.given_probability),
            percent(row.probability),
        )
        for row in wrong[:LISTED]
    ]
    listed = html_table(("image", "given", "suggested", "fold", "probability of the given", "of the suggested"), rows, words=3)
    shown = f'<div class="pictures">\n{figure(image, "Given class, suggested class, and the probability of each.")}</div>\n' if image else ""
    title = f"The surest of them ({len(rows)} of {len(wrong):,})"
    return f'<section id="labels">{heading}<p class="soft">{escape(rule)}</p>\n{shown}{details(title, listed, is_open=False)}</section>\n'


def _head(root: Path, found: OutOfFold, summary: FoldsSummary, about: dict[str, Any]) -> str:
    low, high = interval(summary.pooled["accuracy"], summary.n)
    cards = [
        ("Accuracy", told_accuracy(summary), f"mean and standard deviation of {summary.folds} folds", "main"),
        ("All images together", percent(summary.pooled["accuracy"], 2), f"{summary.n:,} images; 95 % interval {percent(low)} to {percent(high)}", ""),
        ("F1", percent(summary.pooled["f1"], 2), "mean of the classes", ""),
        ("Calibration error", percent(summary.pooled["calibration_error"], 2), "of the networks as they are", ""),
    ]
    if summary.test_accuracy is not None:
        cards.append(("Test folder", percent(summary.test_accuracy, 2), f"all networks together, {summary.num_tested:,} images in no fold", ""))
    told = "".join(
        f'<div class="card {kind}"><p>{escape(title)}</p><p class="figure">{escape(value)}</p><p class="soft">{escape(below)}</p></div>\n'
        for title, value, below, kind in cards
    ).replace(" %", "&nbsp;%")
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in about.items() if value)
    rule = (
        "Every image was tested once, by the network that has not seen it; its validation images, by which the epoch was chosen, were others again."
    )
    return (
        f'<header>\n<p class="kind">Folds</p>\n<h1>{escape(root.name)}</h1>\n</header>\n<section>\n<div class="cards">\n{told}</div>\n'
        f'<dl>\n{facts}</dl>\n<p class="soft">{rule}</p>\n{html_table(HEADER, rows_of(found), 0)}</section>\n'
    )
