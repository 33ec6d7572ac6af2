"""The parts of report.html: pictures, tables, figures."""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from cct_lightning.evaluation.measures import measure_of, measured
from cct_lightning.run_folder import RunFolder
from cct_lightning.side_files import read_table, to_number
from cct_lightning.wording import percent

LARGE = 250_000  # bytes of a PNG from which on it is worth packing anew
DPI_SHARE = 96 / 120  # the pictures have 120 pixels an inch, a page 96
OPEN_ROWS = 30  # rows of a table that is shown unasked
LISTED = 20  # confusions and mistakes in words
TEST_PICTURES = {
    "confusion": "A row holds the images of a class, a column those taken for it. Right answers lie on the diagonal.",
    "reliability": "A network is calibrated where the bars end at the dashed line: of the images it is 80 % sure of, 80 % are right.",
    "classes": "Precision: how many of the images taken for a class are of it. Recall: how many of its images were found. F1: between the two.",
    "mistakes": "Wrong answers that the network was surest of, or numbers that are furthest off. Some may be wrong labels.",
}
CAPTIONS = {**TEST_PICTURES, "scatter": "An image is a dot. At the dashed line the number is told as it is."}
DRAWN = {"accuracy": ("confusion", "reliability", "classes", "mistakes"), "mAP": ("classes", "mistakes"), "r2": ("scatter", "mistakes")}  # by measure
TITLES = {
    "confusion": "Confusion matrix", "reliability": "Reliability diagram", "scatter": "Predicted over true",
    "classes": "F1, precision and recall of each class",
    "mistakes": "Worst mistakes", "batch": "The first training batch, as the network saw it", "pooling": "What the pooling looks at",
    "positions": "Position embeddings",
}  # fmt: skip
HALF = 600  # pixels up to which two pictures stand side by side


def _percent(value: Any, digits: int = 2) -> str:
    return percent(to_number(value), digits, missing="–")


def interval(share: float, n: int) -> tuple[float, float]:
    """Returns where the true share lies with a probability of 95 %: "Probable Inference" (Wilson, 1927)."""
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def document(title: str, parts: Iterable[str]) -> str:
    """Makes a page of its parts: one file, with no script and nothing from elsewhere."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{Path(__file__).with_name("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{"".join(parts)}</main>
</body>
</html>
"""


def escape(value: object) -> str:
    """Escapes a value; what a file's name may hold that is no text is shown as a question mark."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def picture(path: Path, room: int) -> tuple[str, int]:
    """Returns a PNG as an img element, and the bytes it takes; empty where there is no room for it, or it is damaged."""
    try:
        data, kind = path.read_bytes(), "png"
        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if len(data) > LARGE:  # photographs: a third, or less
                packed = io.BytesIO()
                image.convert("RGB").save(packed, "WEBP", quality=88)
                data, kind = min((data, "png"), (packed.getvalue(), "webp"), key=lambda pair: len(pair[0]))
    except (OSError, SyntaxError, ValueError):
        return "", 0
    if len(data) > room:
        return "", 0
    size = f'width="{round(width * DPI_SHARE)}" height="{round(height * DPI_SHARE)}"'
    return f'<img alt="{escape(_title(path))}" {size} src="data:image/{kind};base64,{base64.b64encode(data).decode()}">', len(data)


def _title(path: Path) -> str:
    kind, _, epoch = path.stem.partition("-epoch")
    return TITLES.get(kind, kind.replace("_", " ").capitalize()) + (f", after epoch {int(epoch)}" if epoch.isdigit() else "")


def figure(image: str, caption: str) -> str:
    width = int(image.split('width="')[1].split('"')[0])
    broad = ' class="broad"' if width > HALF else ""
    return f"<figure{broad}>{image}\n<figcaption>{escape(caption)}</figcaption></figure>\n"


def _test(run: RunFolder, room: int) -> tuple[str, int]:
    """The pictures and tables of the test, and how many bytes of pictures there still is room for."""
    if measured(run.summary, "test") is None:
        return "", room
    drawn, missing = [], []
    for name in DRAWN[measure_of(run.summary).name]:
        image, size = picture(run.pictures / f"{name}.png", room)
        room -= size
        if image:
            drawn.append(figure(image, CAPTIONS[name]))
        else:
            missing.append(f"pictures/{name}.png")
    told = f'<p class="soft">Not there or not readable: {escape(", ".join(missing))}.</p>\n' if missing else ""
    return f'<section id="test"><h2>Test</h2>\n<div class="pictures">\n{"".join(drawn)}</div>\n{told}{_tables(run)}</section>\n', room


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """Makes a table whose first ``words`` columns are words, and the others numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["" if number < words else ' class="number"' for number in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>\n"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n<thead>\n{line("th", header)}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def _tables(run: RunFolder) -> str:
    if run.tables is None:
        return '<p class="soft">The tables of the test are missing, or of a later one with other settings.</p>\n'
    if (name := measure_of(run.summary).name) != "accuracy":
        return _tables_of_labels(run.tables) if name == "mAP" else _tables_of_numbers(run.tables)
    classes, mistakes = read_table(run.tables / "classes.csv"), read_table(run.tables / "mistakes.csv")
    confusions = [row for row in read_table(run.tables / "confusion.csv") if row["true"] != row["predicted"]]
    confusions.sort(key=lambda row: (-to_number(row["n"]), -to_number(row["share"])))
    classes.sort(key=lambda row: (to_number(row["f1"] or "2"), -to_number(row["n"])))
    tables = []
    if classes:
        rows = [(row["name"], row["n"], *(_percent(row[name], 1) for name in ("precision", "recall", "f1"))) for row in classes]
        table = html_table(("class", "images", "precision", "recall", "F1"), rows, words=1)
        tables.append(details(f"Each class, the worst first ({len(rows):,})", table, len(rows) <= OPEN_ROWS))
    if confusions:
        rows = [(row["true"], row["predicted"], row["n"], _percent(row["share"], 1)) for row in confusions[:LISTED]]
        table = html_table(("class", "taken for", "images", "of the class"), rows, words=2)
        tables.append(details(_some("Most frequent confusions", len(rows), len(confusions)), table, is_open=False))
    if mistakes:
        rows = [(row["true"], row["predicted"], row["file"] or f"image {row['image']}", _percent(row["probability"], 1)) for row in mistakes[:LISTED]]
        table = html_table(("class", "taken for", "image", "probability"), rows, words=3)
        tables.append(details(_some("Worst mistakes", len(rows), len(mistakes)), table, is_open=False))
    return "".join(tables)


def _tables_of_labels(folder: Path) -> str:
    classes, mistakes, tables = read_table(folder / "classes.csv"), read_table(folder / "mistakes.csv"), []
    classes.sort(key=lambda row: (to_number(row["f1"] or "2"), -to_number(row["n"])))
    if classes:
        shares = ("precision", "recall", "f1", "ap")
        rows = [(row["name"], row["n"], *(_percent(row[name], 1) for name in shares), f"{to_number(row['threshold']):.3f}") for row in classes]
        table = html_table(("label", "images", "precision", "recall", "F1", "average precision", "threshold"), rows, words=1)
        tables.append(details(f"Each label, the worst first ({len(rows):,})", table, len(rows) <= OPEN_ROWS))
    if mistakes:
        found = [(row, row["file"] or f"image {row['image']}") for row in mistakes[:LISTED]]
        rows = [(row["true"], row["predicted"], place, row["label"], _percent(row["probability"], 1)) for row, place in found]
        table = html_table(("labels", "predicted", "image", "surest wrong", "probability"), rows, words=4)
        tables.append(details(_some("Worst mistakes", len(rows), len(mistakes)), table, is_open=False))
    return "".join(tables)


def _tables_of_numbers(folder: Path) -> str:
    numbers, mistakes, tables = read_table(folder / "numbers.csv"), read_table(folder / "mistakes.csv"), []
    if numbers:
        errors = [[f"{to_number(row[name]):.4g}" for name in ("mae", "rmse")] for row in numbers]
        spread = [f"{to_number(row['mean']):.4g} ± {to_number(row['std']):.4g}" for row in numbers]
        rows = [(row["name"], row["n"], *found, _percent(row["r2"], 1), true) for row, found, true in zip(numbers, errors, spread, strict=True)]
        table = html_table(("number", "images", "mean error", "root mean square", "R²", "true values"), rows, words=1)
        tables.append(details(f"Each number ({len(rows):,})", table, len(rows) <= OPEN_ROWS))
    if mistakes:
        rows = [(row["name"], row["file"] or f"image {row['image']}", row["true"], row["predicted"]) for row in mistakes[:LISTED]]
        table = html_table(("number", "image", "true", "predicted"), rows, words=2)
        tables.append(details(_some("Furthest off", len(rows), len(mistakes)), table, is_open=False))
    return "".join(tables)


def _some(title: str, shown: int, there: int) -> str:
    return f"{title} ({shown} of {there:,})" if shown < there else f"{title} ({there})"


def details(title: str, content: str, is_open: bool) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>\n{content}</details>\n"


def more_pictures(run: RunFolder, room: int) -> str:
    """Pictures of other callbacks: the newest of each kind, earlier epochs behind a line to click, as long as there is room."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted((run.pictures).glob("*.png"), key=lambda path: (len(path.stem), path.stem), reverse=True):
        if path.stem not in CAPTIONS:
            kinds.setdefault(path.stem.partition("-epoch")[0], []).append(path)
    kinds = dict(sorted(kinds.items()))
    shown, left_out = {}, []
    for path in [paths[0] for paths in kinds.values()] + [path for paths in kinds.values() for path in paths[1:]]:
        shown[path], size = picture(path, room)
        room -= size
        left_out += [path.name] * (not shown[path])
    newest, earlier = [], []
    for paths in kinds.values():
        images = [figure(shown[path], _title(path)) for path in paths if shown[path]]
        newest += images[:1]
        if images[1:]:
            title = f"{TITLES.get(kind := paths[0].stem.partition('-epoch')[0], kind)}: {len(images) - 1} earlier"
            earlier.append(details(title, f'<div class="pictures">\n{"".join(images[1:])}</div>\n', is_open=False))
    told = f"{len(left_out)} more in the folder pictures, such as {left_out[0]}: too large for this page, or not readable." if left_out else ""
    if not kinds:
        return ""
    content = f'<div class="pictures">\n{"".join(newest)}</div>\n{"".join(earlier)}' + (f'<p class="soft">{escape(told)}</p>\n' if told else "")
    return f'<section id="pictures"><h2>Pictures of the training</h2>\n{content}</section>\n'
