"""What a search has found so far: as a table, as a line to type, in pictures and in a page."""

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cct_lightning.evaluation.drawings import BLUE, GREY, INK, ORANGE
from cct_lightning.inference.card import SHARES
from cct_lightning.run_folder import replacing
from cct_lightning.runs.page_parts import details, document, escape, figure, html_table, picture
from cct_lightning.studies.pictures import _axes, _percents, save
from cct_lightning.studies.space import Numbers, plain
from cct_lightning.studies.tuning import FIRST, SPARED, STEPS, Outcome, Search
from cct_lightning.wording import as_cells, duration, percent, printable, shortened, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSV, PAGE = "trials.csv", "report.html"
SHOWN = 5  # trials in the terminal
ROOM = 3_000_000  # bytes of the page's pictures
WORDS = 2  # columns of its table that are words
PANELS = 3  # keys beside each other in the picture


def value_of(search: Search, value: float | None) -> str:
    """Writes what trials are judged by: accuracies in per cent."""
    if value is None:
        return "-"
    return percent(value, 2) if _is_share(search) else f"{value:.4f}"


def _is_share(search: Search) -> bool:
    return search.monitor.rpartition("/")[2] in SHARES


def line(search: Search, outcome: Outcome, trials: int, is_best: bool) -> str:
    """Tells what came of a trial: "[3/20] lr 0.00213, weight_decay 0.031: 98.61 %, the best so far, 21.4 s"."""
    head = f"[{outcome.number + 1}/{trials}] {told(outcome)}"
    match outcome.state:
        case "finished":
            return f"{head}: {value_of(search, outcome.value)}{', the best so far' * is_best}, {duration(outcome.seconds)}"
        case "stopped early":
            return f"{head}: {value_of(search, outcome.value)}, stopped early after {percent(outcome.share, 0)}, {duration(outcome.seconds)}"
        case "failed":
            return f"{head}: FAILED, {outcome.error} ({search.root / 'trials' / f'{outcome.number + 1:04}' / 'log.txt'})"
    return f"{head}: stopped, it goes on from there"


def told(outcome: Outcome) -> str:
    """Names a trial by what it tries."""
    return ", ".join(f"{key.rpartition('.')[2]} {plain(value)}" for key, value in outcome.keys.items())


def command(search: Search, outcome: Outcome) -> str:
    """Returns what trains a trial's values on, test images included, as it is typed."""
    words = [word for name in search.names for word in ("-c", name)]
    for key, value in {**search.fixed, **outcome.keys}.items():
        words += [f"--{key}", plain(value)]
    return shlex.join(["cct", "fit", *words, *search.allowed])


def as_text(search: Search) -> list[str]:
    """Writes the best trials for a terminal, what they can't say, and what to type."""
    ranked, outcomes = search.ranked(), search.outcomes
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("finished", "stopped early", "failed", "unfinished")}
    how = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [f"{len(outcomes)} trials by {search.monitor}: {how}"]
    if not ranked:
        return [*lines, "  none came to its end: there is nothing to choose from yet"]
    header = ("trial", search.monitor, *search.space, "time")
    rows = [_cells(search, outcome) for outcome in ranked[:SHOWN]]
    return [*lines, *table(header, rows, left=()), *(f"  {note}" for note in notes(search)), f"  {command(search, ranked[0])}"]


def _cells(search: Search, outcome: Outcome) -> list[str]:
    return [
        f"{outcome.number + 1}", value_of(search, outcome.value), *(printable(plain(outcome.keys.get(key))) for key in search.space),
        duration(outcome.seconds),
    ]  # fmt: skip


def notes(search: Search) -> list[str]:
    """Says how the trials were judged, and what that can't tell."""
    ranked, found = search.ranked(), []
    best = ranked[0]
    if (first := _usual(search)) is not None and first.state == "finished":
        place = next(number for number, outcome in enumerate(ranked, 1) if outcome.number == first.number)
        found.append(f"The recipe's own values are trial {first.number + 1}: {value_of(search, first.value)}, number {place} of {len(ranked)}.")
    if importance := search.importance():
        shares = ", ".join(f"{key} {percent(share, 0)}" for key, share in importance.items())
        found.append(f"Of what the {len(ranked)} finished trials differ in comes from (fANOVA): {shares}.")
    if edges := [key for key, values in search.space.items() if isinstance(values, Numbers) and values.is_edge(best.keys[key])]:
        found.append(f"At the edge of what was tried, so perhaps not at its best: {', '.join(edges)}.")
    seed = f"All trials trained with seed {search.seed}"
    found.append(f"{seed}; the best of {len(ranked)} on the same validation images flatters. The test images were not looked at; this does, once:")
    return found


def _usual(search: Search) -> Outcome | None:
    """Returns the trial of the recipe's own values."""
    same = (outcome for outcome in search.outcomes if all(plain(outcome.keys.get(key)) == plain(search.usual.get(key)) for key in search.space))
    return next(same, None)


def write_report(search: Search) -> None:
    """Writes trials.csv, pictures and report.html into the search's folder."""
    with replacing(search.root / CSV) as file:
        file.write(as_csv(search).encode())
    outcomes, shown, room = search.outcomes, [], ROOM
    if any(outcome.value is not None for outcome in outcomes):
        for name, drawing, caption in (
            ("history", draw_history(search, outcomes), "Each dot is a trial, the line the best so far."),
            ("keys", draw_keys(search, outcomes), "What was tried of each key; orange is the best."),
        ):
            image, size = picture(save(drawing, search.root / "pictures" / f"{name}.png"), room)
            room -= size
            shown += [figure(image, caption)] if image else []
    with replacing(search.root / PAGE) as file:
        file.write(_page(search, outcomes, "".join(shown)).encode())


def as_csv(search: Search) -> str:
    """Writes a row for each trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["trial", "state", search.monitor, *search.space, "share", "seconds", "run_dir", "error"]
    writer.writerow(columns)
    for one in search.outcomes:
        value = "" if one.value is None else f"{one.value:.6g}"
        tried = [plain(one.keys[key]) if key in one.keys else "" for key in search.space]
        row = [one.number + 1, one.state, value, *tried, f"{one.share:g}", f"{one.seconds:.1f}", str(one.run_dir or ""), one.error]
        writer.writerow(as_cells(columns, row))
    return text.getvalue()


def draw_history(search: Search, outcomes: Sequence[Outcome]) -> "Figure":
    """Draws every trial in its order, and the best so far."""
    drawing, axes = _axes(6.4, 3.4, f"{search.monitor} of the trials, and the best so far")
    best: list[float] = []
    for outcome in outcomes:
        known = [*best[-1:], *([outcome.value] if outcome.state == "finished" and outcome.value is not None else [])]
        best.append((max if search.mode == "max" else min)(known) if known else math.nan)
    axes.step([outcome.number + 1 for outcome in outcomes], best, where="post", color=ORANGE, linewidth=1.6, zorder=1)
    _dots(axes, outcomes, {outcome.number: outcome.number + 1 for outcome in outcomes})
    axes.set_xlabel("trial; hollow: stopped early", color=GREY, fontsize=9)
    if _is_share(search):
        _percents(axes, "y")
    return drawing


def _dots(axes: "Axes", outcomes: Sequence[Outcome], places: Mapping[int, Any], best: int | None = None) -> None:
    for outcome in outcomes:
        if outcome.value is not None and outcome.number in places:
            edge = ORANGE if outcome.number == best else BLUE if outcome.state == "finished" else GREY
            face = edge if outcome.state == "finished" else "white"
            place = 4 if outcome.number == best else 3
            axes.scatter([places[outcome.number]], [outcome.value], s=22, facecolor=face, edgecolor=edge, linewidth=0.9, zorder=place)


def draw_keys(search: Search, outcomes: Sequence[Outcome]) -> "Figure":
    """Draws the measure over what was tried of each key."""
    from matplotlib.figure import Figure

    ranked = search.ranked()
    best = ranked[0].number if ranked else None
    columns = min(PANELS, len(search.space))
    rows = -(-len(search.space) // columns)
    drawing = Figure(figsize=(max(2.6 * columns, 4.0), 2.5 * rows), layout="constrained")
    for place, (key, values) in enumerate(search.space.items(), 1):
        axes = drawing.add_subplot(rows, columns, place)
        tried = {outcome.number: outcome.keys[key] for outcome in outcomes if key in outcome.keys}
        if isinstance(values, Numbers):
            axes.set_xscale("log" if values.log else "linear")
            _dots(axes, outcomes, tried, best)
        else:
            names = [plain(value) for value in values.values]
            axes.set_xticks(range(len(names)), [shortened(printable(name), 14).replace("$", r"\$") for name in names])
            axes.set_xlim(-0.5, len(names) - 0.5)
            _dots(axes, outcomes, {number: names.index(plain(value)) for number, value in tried.items()}, best)
        axes.set_title(shortened(key, 34), loc="left", color=INK, fontsize=9)
        axes.tick_params(length=0, labelsize=8, colors=INK)
        if _is_share(search):
            _percents(axes, "y")
        for name, spine in axes.spines.items():
            spine.set(visible=name == "bottom", color=GREY, linewidth=0.8)
    return drawing


def _page(search: Search, outcomes: Sequence[Outcome], pictures: str) -> str:
    ranked = search.ranked()
    early = f"below the median of the others, from {FIRST} finished trials and {percent(SPARED / STEPS, 0)} of a training on"
    facts = [("Judged by", f"{search.monitor}, validation images alone"), ("Recipe", ", ".join(path.stem for path in search.recipes))]
    facts += [("Trials", f"{len(outcomes)}, of which {len(ranked)} finished"), ("Seed", str(search.seed)), ("Stopped early", early)]
    facts += [(key, str(values)) for key, values in search.space.items()]
    told_facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in facts)
    head = f'<header>\n<p class="kind">Search</p>\n<h1>{escape(search.root.name)}</h1>\n</header>\n<section>\n<dl>\n{told_facts}</dl>\n</section>\n'
    rest = [outcome for outcome in outcomes if outcome.state != "finished"]
    rows = [[f"{one.number + 1}", one.state, *_cells(search, one)[1:]] for one in (*ranked, *rest)]
    body = f'<section><h2>Trials</h2>\n<div class="pictures">\n{pictures}</div>\n'
    body += html_table(("trial", "state", search.monitor, *search.space, "time"), rows, WORDS)
    if ranked:
        said = "".join(f"<li>{escape(note)}</li>\n" for note in notes(search))
        body += f'<ul class="soft">\n{said}</ul>\n<pre class="command">{escape(command(search, ranked[0]))}</pre>\n'
    fixed = ", ".join(f"{key}: {plain(value)}" for key, value in search.fixed.items()) or "nothing"
    recipes = "".join(details(path.name, f"<pre>{escape(path.read_text(encoding='utf-8'))}</pre>", is_open=False) for path in search.recipes)
    tail = f'<section><h2>The runs</h2>\n<p class="soft">Set over the recipe for all: {escape(fixed)}.</p>\n{recipes}</section>\n'
    return document(f"{search.root.name}: search", [head, f"{body}</section>\n", tail])
