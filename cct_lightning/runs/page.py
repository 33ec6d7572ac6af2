"""report.html: what a run did, in one file that any browser shows without a network."""

import math
import re
import shlex
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cct_lightning.evaluation.calibration import how_to_calibrate, why_uncalibrated
from cct_lightning.evaluation.measures import measure_of, measured
from cct_lightning.evaluation.options import PASSES
from cct_lightning.evaluation.rejection import Answered, Outliers, describe_answered, describe_outliers
from cct_lightning.run_folder import RunFolder, replacing
from cct_lightning.runs.curves import Series, draw_curves
from cct_lightning.runs.page_parts import _percent, _test, details, document, escape, interval, more_pictures
from cct_lightning.side_files import read_json
from cct_lightning.weights.trained import kept_beside
from cct_lightning.wording import duration, part_epochs, percent, reason

PICTURE_BYTES = 3_500_000  # of all pictures together: base64 makes 4.7 MB of them
PACKAGES = ("cct-lightning", "torch", "lightning", "timm")


def write_html(run_dir: Path) -> Path:
    """Writes report.html into a run's folder, of what lies there: results, curves, pictures, tables, configuration, and how to repeat it.

    Args:
        run_dir: A folder that ``cct fit`` made; a file that is missing or damaged is told in the page.

    Returns:
        The file: of up to 5 MB, with no script and nothing from elsewhere.

    Raises:
        OSError: The folder can't be written.
    """
    run = RunFolder(run_dir)
    name = str(run.summary.get("recipe") or run.recipe)
    test, room = _test(run, PICTURE_BYTES)
    parts = (_head(run, name), _notes(run), _curves(run), test, more_pictures(run, room), _configuration(run))
    page = document(f"{name}: training report", parts)
    with replacing(run.page) as file:
        file.write(page.encode())
    return run.page


def write_page(run_dir: Path) -> None:
    """Writes the page at the end of a run, which what may befall it shall not fail: that is a warning."""
    try:
        write_html(run_dir)
    except Exception as error:  # whatever it is, the run is done and its figures are worth more than a page
        warnings.warn(f"report.html could not be written: {reason(error)}", stacklevel=2)


def _head(run: RunFolder, name: str) -> str:
    summary, told = run.summary, []
    arch = summary.get("arch") or run.key("model.arch")
    when = re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)", run.path.resolve().name)
    told = [arch, run.key("data.dataset"), "{}-{}-{} {}:{}".format(*when.groups()) if when else None]
    line = " · ".join(escape(value) for value in told if value)
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in _facts(run))
    command = f"cct fit -c {shlex.quote(str(run.config_file))}"
    return f"""<header>
<p class="kind">Training report</p>
<h1>{escape(name)}</h1>
<p class="soft">{line}</p>
</header>
<section id="results" aria-label="Results">
<div class="cards">
{_cards(run)}</div>
<dl>
{facts}</dl>
<h3>Repeat this run</h3>
<pre class="command">{escape(command)}</pre>
</section>
"""


def _cards(run: RunFolder) -> str:
    """The few numbers that count, large."""
    summary, cards = run.summary, []
    test, measure = summary.get("test") or {}, measure_of(summary)
    found, n = measured(summary, "test"), read_json(run.tables / "measures.json").get("n") if run.tables else None
    below = ""
    if found is not None and n and measure.name == "accuracy":
        low, high = interval(found, n)
        below = f"{n:,} images; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    elif n:
        below = f"{n:,} images"
    cards.append((f"Test {measure.title}", _percent(found), below or ("not measured" if found is None else ""), "main"))
    best, last, raw = (measured(summary, what) for what in ("val", "val_last", "val_raw"))
    if raw is None and (column := run.column(f"val/{measure.name}_raw")):
        raw = column[-1][1]
    told = ["of the kept weights" if summary.get("best_checkpoint") else "", f"last {_percent(last)}" if last is not None else "not measured"]
    told += [f"without EMA {_percent(raw)}" if raw is not None else ""]
    cards.append((f"Validation {measure.title}", _percent(best if best is not None else last), "; ".join(filter(None, told)), ""))
    for key, title, below in (
        ("exact", "Exactly right", "of the test; images without a wrong label"),
        ("f1", "F1", "of the test; mean of the classes"),
        ("top5", "Top-5", "of the test"),
        ("calibration_error", "Calibration error", "of the test"),
    ):
        if key in test:
            cards.append((title, _percent(test[key]), below, ""))
    return "".join(
        f'<div class="card {kind}"><p>{escape(title)}</p><p class="figure">{escape(value)}</p><p class="soft">{escape(below)}</p></div>\n'
        for title, value, below, kind in cards
    ).replace(" %", "&nbsp;%")


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What the run was, by name and value; what is not known is left out."""
    summary = run.summary
    size = run.key("data.image_size")
    sides = f"{size} px" if isinstance(size, int) else " × ".join(map(str, size)) + " px" if isinstance(size, list) else ""
    epochs, steps = summary.get("epochs"), summary.get("steps")
    trained = ""
    if epochs is not None and steps is not None:
        trained = f"{part_epochs(epochs, steps, summary.get('steps_per_epoch')) or f'{epochs:,} epochs'}, {steps:,} steps"
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
        ("Trained", trained),
        ("Duration", duration(seconds) + (f", {sittings} sittings" if sittings > 1 else "") if seconds else ""),
        ("Speed", f"{speed:,.0f} images/s" if speed else ""),
        ("Hardware", f"{devices} × {device}" if device and devices > 1 else str(device or "")),
        ("Precision", str(run.key("trainer.precision") or "")),
        ("Test images seen", f"{tta}: {PASSES[tta]} forward passes each" if (tta := summary.get("tta", "none")) in PASSES and tta != "none" else ""),
        ("Seed", str(summary.get("seed", run.key("seed_everything")))),
        ("Weights", f"checkpoints/{Path(checkpoint).name}" if checkpoint else ""),
        *_answers(run),
        ("Versions", ", ".join(versions)),
    ]
    return [(name, value) for name, value in facts if value]


def _beside(run: RunFolder) -> dict[str, Any]:
    """What `cct test --calibrate` and `--reject` kept of the run's weights."""
    checkpoint = run.summary.get("best_checkpoint") or run.summary.get("last_checkpoint")
    path = run.checkpoints / Path(checkpoint).name if checkpoint else None
    return kept_beside(path) if path and path.is_file() else {}


def _answers(run: RunFolder) -> Iterator[tuple[str, str]]:
    """How the network answers, as far as it was set after the training."""
    about = _beside(run)
    if (temperature := about.get("temperature", 1)) != 1:
        errors = [percent(about[when]["calibration_error"], 1) for when in ("before", "after") if when in about]
        yield "Temperature", f"{temperature:.4g}; calibration error of the validation images {' → '.join(errors)}"
    if reject := about.get("reject"):
        share = percent(reject["kept"], 0)
        yield "Answers none", f"where the {reject['by']} is below {reject['threshold']:.4g}, which {share} of the right answers reach"
        for name in ("validation", "test"):
            if name in reject:
                yield f"Answered, {name}", describe_answered(Answered(**reject[name]), name).partition(": ")[2]
        if told := reject.get("outliers"):
            outliers = {key: value for key, value in told.items() if key != "of"}
            beside = "test" if "test" in reject else "validation"
            yield "Outliers", describe_outliers(Outliers(**outliers), Path(told["of"]).name, beside).strip()


def _notes(run: RunFolder) -> str:
    """What is missing or went wrong, in words."""
    summary, notes = run.summary, []
    if not summary:
        notes.append("There is no summary.json that can be read: the run is still going on, or was killed.")
    elif not summary.get("finished", True):
        way = f" `cct resume {shlex.quote(str(run.path))}` goes on with it." if summary.get("last_checkpoint") else ""
        notes.append(f"The run was interrupted after {summary.get('epochs', 0):,} epochs and {summary.get('steps', 0):,} steps.{way}")
    if not run.metrics:
        notes.append("There is no metrics.csv with values: nothing was logged.")
    for name, what in (("train/loss_epoch", "training"), ("val/loss", "validation")):
        if bad := [row for row, value in run.column(name) if not math.isfinite(value)]:
            first = round(bad[0].get("epoch", 0)) + 1
            notes.append(f"The {what} loss was no number, first in epoch {first}: the training diverged. Try a lower model.optim.lr.")
    if run.metrics and not run.column("val/loss"):
        notes.append("There was no validation: no image was set aside for it, or no epoch came to its end.")
    if summary and measured(summary, "test") is None:
        why = "a run that is interrupted is not tested." if not summary.get("finished", True) else "there are no test images, or they were left out."
        notes.append(f"The test images were not looked at: {why}")
    if (why := why_uncalibrated(summary)) and _beside(run).get("temperature", 1) == 1:
        way = how_to_calibrate(summary)
        notes.append(f"{why[0].upper()}{why[1:]}.{f' A temperature mends it: `{way}`.' if way else ''}")
    if not run.config_text:
        notes.append("There is no config.yaml: the command above has nothing to read.")
    items = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    items = re.sub(r"`(.*?)`", r"<code>\1</code>", items)
    return f'<section id="notes" class="notes" aria-label="Notes">\n<ul>\n{items}</ul>\n</section>\n' if notes else ""


def _curves(run: RunFolder) -> str:
    """Losses, accuracies and learning rate over the epochs, as drawings in the page."""
    ends = run.column("train/loss_epoch")
    per_epoch = (ends[-1][0].get("step", 0) + 1) / (ends[-1][0].get("epoch", 0) + 1) if ends else 1.0
    axis = "epoch" if ends else "step"

    def series(label: str, name: str, colour: str, dashed: bool = False, dot: int | None = None) -> Series:
        found = [(row, value) for row, value in run.column(name) if "step" in row]
        return Series(label, [(row["step"] + 1) / per_epoch for row, _ in found], [value for _, value in found], colour, dashed, dot)

    measure, best = measure_of(run.summary), measured(run.summary, "val")
    found = [value for row, value in run.column(f"val/{measure.name}") if "step" in row]
    chosen = next((i for i in reversed(range(len(found))) if found[i] == best), None)
    charts = [
        ("Loss", False, [series("training", "train/loss_epoch" if ends else "train/loss", "orange"), series("validation", "val/loss", "blue")]),
        (f"Validation {measure.title}", True, [
            series("without EMA", f"val/{measure.name}_raw", "grey", dashed=True),
            series("validation", f"val/{measure.name}", "blue", dot=chosen),
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
        drawn.append(f"<figure><h3>{escape(title)}</h3>\n{picture}</figure>\n")
    note = "The training loss is that of augmented images, with dropout and smoothed labels; the validation loss is without them."
    if chosen is not None and run.summary.get("best_checkpoint"):
        note += " The dot marks the weights that are kept as the best."
    return f'<section id="curves"><h2>Curves</h2>\n<div class="charts">\n{"".join(drawn)}</div>\n<p class="soft">{note}</p>\n</section>\n'


def _why_no_curve(run: RunFolder, title: str) -> str:
    if title == "Learning rate" and run.metrics:
        return "Not logged twice: the run has too few steps for trainer.log_every_n_steps, which is 50 unless it is set."
    return "Not measured."


def _configuration(run: RunFolder) -> str:
    content = f"<pre>{escape(run.config_text)}</pre>\n" if run.config_text else '<p class="soft">config.yaml is missing.</p>\n'
    return f'<section id="configuration"><h2>Configuration</h2>\n{details("config.yaml", content, is_open=False)}</section>\n'
