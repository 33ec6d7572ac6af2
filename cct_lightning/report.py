"""report.html: what a run did, in one file that any browser shows without a network."""

import base64
import html
import io
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import PIL.Image

from cct_lightning.curves import Series, draw_curves
from cct_lightning.run_folder import Run, read_json, read_table, to_number

PICTURE_BYTES = 3_500_000  # of all pictures together: base64 makes 4.7 MB of them
LARGE = 250_000  # bytes of a PNG from which on it is worth packing anew
DPI_SHARE = 96 / 120  # the pictures have 120 pixels an inch, a page 96
OPEN_ROWS = 30  # rows of a table that is shown unasked
LISTED = 20  # confusions and mistakes in words
TEST_PICTURES = {
    "confusion": "A row holds the images of a class, a column those taken for it. Right answers lie on the diagonal.",
    "reliability": "A network is calibrated where the bars end at the dashed line: of the images it is 80 % sure of, 80 % are right.",
    "classes": "Precision: how many of the images taken for a class are of it. Recall: how many of its images were found. F1: between the two.",
    "mistakes": "Wrong answers that the network was surest of. Some may be wrong labels.",
}
TITLES = {
    "confusion": "Confusion matrix", "reliability": "Reliability diagram", "classes": "F1, precision and recall of each class",
    "mistakes": "Worst mistakes", "batch": "The first training batch, as the network saw it", "pooling": "What the pooling looks at",
    "positions": "Position embeddings",
}  # fmt: skip
HALF = 600  # pixels up to which two pictures stand side by side
PACKAGES = ("cct-lightning", "torch", "lightning", "timm")


def _percent(value: Any, digits: int = 2) -> str:
    return "–" if value in (None, "") or not math.isfinite(number := to_number(value)) else f"{100 * number:.{digits}f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _interval(share: float, n: int) -> tuple[float, float]:
    """Returns where the true share lies with a probability of 95 %: "Probable Inference" (Wilson, 1927)."""
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def _e(value: object) -> str:
    """Escapes a value; what a file's name may hold that is no text is shown as a question mark."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def write_html(run_dir: Path) -> Path:
    """Writes report.html into a run's folder, of what lies there: results, curves, pictures, tables, configuration, and how to repeat it.

    Args:
        run_dir: A folder that ``cct fit`` made; a file that is missing or damaged is told in the page.

    Returns:
        The file: of up to 5 MB, with no script and nothing from elsewhere.

    Raises:
        OSError: The folder can't be written.
    """
    run = Run.read(run_dir)
    name = str(run.summary.get("recipe") or run_dir.resolve().parent.name)
    test, room = _test(run, PICTURE_BYTES)
    parts = (_head(run, name), _notes(run), _curves(run), test, _more_pictures(run, room), _configuration(run))
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_e(name)}: training report</title>
<style>
{Path(__file__).with_suffix(".css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{"".join(parts)}</main>
</body>
</html>
"""
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _head(run: Run, name: str) -> str:
    summary, told = run.summary, []
    arch = summary.get("arch") or run.key("model.arch")
    when = re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)", run.folder.resolve().name)
    told = [arch, run.key("data.dataset"), "{}-{}-{} {}:{}".format(*when.groups()) if when else None]
    line = " · ".join(_e(value) for value in told if value)
    facts = "".join(f"<div><dt>{_e(name)}</dt><dd>{_e(value)}</dd></div>\n" for name, value in _facts(run))
    command = f"cct fit -c {shlex.quote(str(run.folder / 'config.yaml'))}"
    return f"""<header>
<p class="kind">Training report</p>
<h1>{_e(name)}</h1>
<p class="soft">{line}</p>
</header>
<section id="results" aria-label="Results">
<div class="cards">
{_cards(run)}</div>
<dl>
{facts}</dl>
<h3>Repeat this run</h3>
<pre class="command">{_e(command)}</pre>
</section>
"""


def _cards(run: Run) -> str:
    """The few numbers that count, large."""
    summary, cards = run.summary, []
    test = summary.get("test") or {}
    accuracy, n = summary.get("test_accuracy"), read_json(run.tables / "measures.json").get("n") if run.tables else None
    below = ""
    if accuracy is not None and n:
        low, high = _interval(accuracy, n)
        below = f"{n:,} images; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    cards.append(("Test accuracy", _percent(accuracy), below or ("not measured" if accuracy is None else ""), "main"))
    best, last, raw = summary.get("val_accuracy"), summary.get("val_accuracy_last"), summary.get("val_accuracy_raw")
    if raw is None and (found := run.column("val/accuracy_raw")):
        raw = found[-1][1]
    told = ["of the kept weights" if summary.get("best_checkpoint") else "", f"last {_percent(last)}" if last is not None else "not measured"]
    told += [f"without EMA {_percent(raw)}" if raw is not None else ""]
    cards.append(("Validation accuracy", _percent(best if best is not None else last), "; ".join(filter(None, told)), ""))
    for key, title, below in (
        ("f1", "F1", "of the test; mean of the classes"), ("top5", "Top-5", "of the test"), ("calibration_error", "Calibration error", "of the test"),
    ):  # fmt: skip
        if key in test:
            cards.append((title, _percent(test[key]), below, ""))
    return "".join(
        f'<div class="card {kind}"><p>{_e(title)}</p><p class="figure">{_e(value)}</p><p class="soft">{_e(below)}</p></div>\n'
        for title, value, below, kind in cards
    ).replace(" %", "&nbsp;%")


def _facts(run: Run) -> list[tuple[str, str]]:
    """What the run was, by name and value; what is not known is left out."""
    summary = run.summary
    size = run.key("data.image_size")
    sides = f"{size} px" if isinstance(size, int) else " × ".join(map(str, size)) + " px" if isinstance(size, list) else ""
    epochs, steps = summary.get("epochs"), summary.get("steps")
    device, devices, sittings = summary.get("device"), summary.get("devices") or 1, 1 + (summary.get("resumed") or 0)
    flops, speed, seconds = summary.get("flops_per_image"), summary.get("images_per_second"), summary.get("seconds")
    checkpoint = summary.get("best_checkpoint") or summary.get("last_checkpoint")
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # a checkout that is not installed
            continue
    facts = [
        ("Network", ", ".join(filter(None, [summary.get("arch") or run.key("model.arch"), summary.get("pooling")]))),
        ("Parameters", f"{summary['num_parameters']:,}" if "num_parameters" in summary else ""),
        ("Compute", f"{flops / 1e9:,.2f} GFLOPs per image" if flops and flops >= 1e9 else f"{flops / 1e6:,.1f} MFLOPs per image" if flops else ""),
        ("Data", ", ".join(filter(None, [str(run.key("data.dataset") or ""), sides]))),
        ("Trained", f"{epochs:,} epochs, {steps:,} steps" if epochs is not None and steps is not None else ""),
        ("Duration", _duration(seconds) + (f", {sittings} sittings" if sittings > 1 else "") if seconds else ""),
        ("Speed", f"{speed:,.0f} images/s" if speed else ""),
        ("Hardware", f"{devices} × {device}" if device and devices > 1 else str(device or "")),
        ("Precision", str(run.key("trainer.precision") or "")),
        ("Seed", str(summary.get("seed", run.key("seed_everything")))),
        ("Weights", f"checkpoints/{Path(checkpoint).name}" if checkpoint else ""),
        ("Versions", ", ".join(versions)),
    ]
    return [(name, value) for name, value in facts if value]


def _notes(run: Run) -> str:
    """What is missing or went wrong, in words."""
    summary, notes = run.summary, []
    if not summary:
        notes.append("There is no summary.json that can be read: the run is still going on, or was killed.")
    elif not summary.get("finished", True):
        way = f" `cct resume {shlex.quote(str(run.folder))}` goes on with it." if summary.get("last_checkpoint") else ""
        notes.append(f"The run was interrupted after {summary.get('epochs', 0):,} epochs and {summary.get('steps', 0):,} steps.{way}")
    if not run.metrics:
        notes.append("There is no metrics.csv with values: nothing was logged.")
    for name, what in (("train/loss_epoch", "training"), ("val/loss", "validation")):
        if bad := [row for row, value in run.column(name) if not math.isfinite(value)]:
            first = round(bad[0].get("epoch", 0)) + 1
            notes.append(f"The {what} loss was no number, first in epoch {first}: the training diverged. Try a lower model.optim.lr.")
    if run.metrics and not run.column("val/loss"):
        notes.append("There was no validation: no image was set aside for it, or no epoch came to its end.")
    if summary and summary.get("test_accuracy") is None:
        why = "a run that is interrupted is not tested." if not summary.get("finished", True) else "there are no test images, or they were left out."
        notes.append(f"The test images were not looked at: {why}")
    if not run.config_text:
        notes.append("There is no config.yaml: the command above has nothing to read.")
    items = "".join(f"<li>{_e(note)}</li>\n" for note in notes)
    items = re.sub(r"`(.*?)`", r"<code>\1</code>", items)
    return f'<section id="notes" class="notes" aria-label="Notes">\n<ul>\n{items}</ul>\n</section>\n' if notes else ""


def _curves(run: Run) -> str:
    """Losses, accuracies and learning rate over the epochs, as drawings in the page."""
    ends = run.column("train/loss_epoch")
    per_epoch = (ends[-1][0].get("step", 0) + 1) / (ends[-1][0].get("epoch", 0) + 1) if ends else 1.0
    axis = "epoch" if ends else "step"

    def series(label: str, name: str, colour: str, dashed: bool = False, dot: int | None = None) -> Series:
        found = [(row, value) for row, value in run.column(name) if "step" in row]
        return Series(label, [(row["step"] + 1) / per_epoch for row, _ in found], [value for _, value in found], colour, dashed, dot)

    accuracy, best = [value for row, value in run.column("val/accuracy") if "step" in row], run.summary.get("val_accuracy")
    chosen = next((i for i in reversed(range(len(accuracy))) if accuracy[i] == best), None)
    charts = [
        ("Loss", False, [series("training", "train/loss_epoch" if ends else "train/loss", "orange"), series("validation", "val/loss", "blue")]),
        ("Validation accuracy", True, [
            series("without EMA", "val/accuracy_raw", "grey", dashed=True),
            series("validation", "val/accuracy", "blue", dot=chosen),
        ]),
        ("Learning rate", False, [series("learning rate", "train/lr", "blue")]),
    ]  # fmt: skip
    if run.column("pooling/entropy"):
        lines = [series("entropy", "pooling/entropy", "blue"), series("share of the top tenth", "pooling/top10_share", "orange")]
        charts.append(("Weights of the pooling", True, lines))
    drawn = []
    for title, is_share, lines in charts:
        lines = [line for line in lines if sum(map(math.isfinite, line.y)) > (title == "Learning rate")]  # one rate tells nothing
        picture = draw_curves(title, lines, axis, is_share) if lines else f'<p class="soft">{_why_no_curve(run, title)}</p>'
        drawn.append(f"<figure><h3>{_e(title)}</h3>\n{picture}</figure>\n")
    note = "The training loss is that of augmented images, with dropout and smoothed labels; the validation loss is without them."
    if chosen is not None and run.summary.get("best_checkpoint"):
        note += " The dot marks the weights that are kept as the best."
    return f'<section id="curves"><h2>Curves</h2>\n<div class="charts">\n{"".join(drawn)}</div>\n<p class="soft">{note}</p>\n</section>\n'


def _why_no_curve(run: Run, title: str) -> str:
    if title == "Learning rate" and run.metrics:
        return "Not logged twice: the run has too few steps for trainer.log_every_n_steps, which is 50 unless it is set."
    return "Not measured."


def _picture(path: Path, room: int) -> tuple[str, int]:
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
    return f'<img alt="{_e(_title(path))}" {size} src="data:image/{kind};base64,{base64.b64encode(data).decode()}">', len(data)


def _title(path: Path) -> str:
    kind, _, epoch = path.stem.partition("-epoch")
    return TITLES.get(kind, kind.replace("_", " ").capitalize()) + (f", after epoch {int(epoch)}" if epoch.isdigit() else "")


def _figure(image: str, caption: str) -> str:
    width = int(image.split('width="')[1].split('"')[0])
    broad = ' class="broad"' if width > HALF else ""
    return f"<figure{broad}>{image}\n<figcaption>{_e(caption)}</figcaption></figure>\n"


def _test(run: Run, room: int) -> tuple[str, int]:
    """The pictures and tables of the test, and how many bytes of pictures there still is room for."""
    if run.summary.get("test_accuracy") is None:
        return "", room
    drawn, missing = [], []
    for name, caption in TEST_PICTURES.items():
        image, size = _picture(run.folder / "pictures" / f"{name}.png", room)
        room -= size
        if image:
            drawn.append(_figure(image, caption))
        else:
            missing.append(f"pictures/{name}.png")
    told = f'<p class="soft">Not there or not readable: {_e(", ".join(missing))}.</p>\n' if missing else ""
    return f'<section id="test"><h2>Test</h2>\n<div class="pictures">\n{"".join(drawn)}</div>\n{told}{_tables(run)}</section>\n', room


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """Makes a table whose first ``words`` columns are words, and the others numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["" if number < words else ' class="number"' for number in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{kind}>{_e(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>\n"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n<thead>\n{line("th", header)}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def _tables(run: Run) -> str:
    if run.tables is None:
        return '<p class="soft">The tables of the test are missing.</p>\n'
    classes, mistakes = read_table(run.tables / "classes.csv"), read_table(run.tables / "mistakes.csv")
    confusions = [row for row in read_table(run.tables / "confusion.csv") if row["true"] != row["predicted"]]
    confusions.sort(key=lambda row: (-to_number(row["n"]), -to_number(row["share"])))
    classes.sort(key=lambda row: (to_number(row["f1"] or "2"), -to_number(row["n"])))
    tables = []
    if classes:
        rows = [(row["name"], row["n"], *(_percent(row[name], 1) for name in ("precision", "recall", "f1"))) for row in classes]
        table = _table(("class", "images", "precision", "recall", "F1"), rows, words=1)
        tables.append(_details(f"Each class, the worst first ({len(rows):,})", table, len(rows) <= OPEN_ROWS))
    if confusions:
        rows = [(row["true"], row["predicted"], row["n"], _percent(row["share"], 1)) for row in confusions[:LISTED]]
        table = _table(("class", "taken for", "images", "of the class"), rows, words=2)
        tables.append(_details(_some("Most frequent confusions", len(rows), len(confusions)), table, is_open=False))
    if mistakes:
        rows = [(row["true"], row["predicted"], row["file"] or f"image {row['image']}", _percent(row["probability"], 1)) for row in mistakes[:LISTED]]
        table = _table(("class", "taken for", "image", "probability"), rows, words=3)
        tables.append(_details(_some("Worst mistakes", len(rows), len(mistakes)), table, is_open=False))
    return "".join(tables)


def _some(title: str, shown: int, there: int) -> str:
    return f"{title} ({shown} of {there:,})" if shown < there else f"{title} ({there})"


def _details(title: str, content: str, is_open: bool) -> str:
    return f"<details{' open' if is_open else ''}><summary>{_e(title)}</summary>\n{content}</details>\n"


def _more_pictures(run: Run, room: int) -> str:
    """Pictures of other callbacks: the newest of each kind, earlier epochs behind a line to click, as long as there is room."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted((run.folder / "pictures").glob("*.png"), key=lambda path: (len(path.stem), path.stem), reverse=True):
        if path.stem not in TEST_PICTURES:
            kinds.setdefault(path.stem.partition("-epoch")[0], []).append(path)
    kinds = dict(sorted(kinds.items()))
    shown, left_out = {}, []
    for path in [paths[0] for paths in kinds.values()] + [path for paths in kinds.values() for path in paths[1:]]:
        shown[path], size = _picture(path, room)
        room -= size
        left_out += [path.name] * (not shown[path])
    newest, earlier = [], []
    for paths in kinds.values():
        images = [_figure(shown[path], _title(path)) for path in paths if shown[path]]
        newest += images[:1]
        if images[1:]:
            title = f"{TITLES.get(kind := paths[0].stem.partition('-epoch')[0], kind)}: {len(images) - 1} earlier"
            earlier.append(_details(title, f'<div class="pictures">\n{"".join(images[1:])}</div>\n', is_open=False))
    told = f"{len(left_out)} more in the folder pictures, such as {left_out[0]}: too large for this page, or not readable." if left_out else ""
    if not kinds:
        return ""
    content = f'<div class="pictures">\n{"".join(newest)}</div>\n{"".join(earlier)}' + (f'<p class="soft">{_e(told)}</p>\n' if told else "")
    return f'<section id="pictures"><h2>Pictures of the training</h2>\n{content}</section>\n'


def _configuration(run: Run) -> str:
    content = f"<pre>{_e(run.config_text)}</pre>\n" if run.config_text else '<p class="soft">config.yaml is missing.</p>\n'
    return f'<section id="configuration"><h2>Configuration</h2>\n{_details("config.yaml", content, is_open=False)}</section>\n'
