"""What a study has found so far: compared, in tables, and in words what it can't say."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from cct_lightning.evaluation.measures import measure_of, measured
from cct_lightning.run_folder import replacing
from cct_lightning.studies.fairness import Start, compare_starts
from cct_lightning.studies.options import ALL, MATRICES, RATE, Keys, Study, told
from cct_lightning.studies.plan import Job, Plan
from cct_lightning.studies.statistics import BOOTSTRAP_FROM, Comparison, compare, seeds_needed, winner
from cct_lightning.wording import percent, table

EFFECT = 0.005  # of an accuracy: the difference that a note tells the number of seeds for
SURE = "with p < 0.05 against each, after Holm's correction over all pairs"
CSV, MARKDOWN = "results.csv", "results.md"


@dataclass(frozen=True)
class Cell:
    """One comparison: what came of all arms under equal conditions.

    Attributes:
        keys: The conditions.
        rows: Each arm beside the baseline.
        starts: What each arm began with, beside the baseline.
        jobs: The runs.
        tuned: Keys that were chosen for each arm.
        edges: Arms whose chosen value is the least or the largest that was tried.
        further: What to type so that rates beyond these edges are tried, too.
        measure: "test accuracy" or "validation accuracy", or the task's other measure.
    """

    keys: Keys
    rows: Sequence[Comparison]
    starts: Sequence[Start]
    jobs: Sequence[Job]
    tuned: Mapping[str, Keys]
    edges: Sequence[str]
    further: Sequence[str]
    measure: str

    @property
    def header(self) -> tuple[str, ...]:
        title = self.measure.partition(" ")[2]
        return ("arm", title, "n", "to the baseline", "95 % interval", "p", "tuned", "parameters", "MFLOPs", "CPU-s")

    @property
    def winner(self) -> str | None:
        return winner({row.arm: row.values for row in self.rows})

    def mean_of(self, arm: str, name: str) -> float | None:
        """Returns the mean of a figure of the summaries over an arm's runs."""
        values = [float(summary[name]) for job in self.jobs if job.arm == arm and (summary := job.summary) and summary.get(name) is not None]
        return mean(values) if values else None


def collect(plan: Plan) -> list[Cell]:
    """Reads what the runs of a study have found so far."""
    study, chosen, cells = plan.study, plan.chosen(), []
    jobs = plan.reported(chosen)
    for keys in study.cells:
        mine = [job for job in jobs if job.cell == keys]
        done = {job: summary for job in mine if (summary := job.summary) is not None}
        is_tested = any(measured(summary, "test") is not None for summary in done.values())
        scores: dict[str, dict[int, float]] = {arm: {} for arm in study.arms}
        for job, summary in done.items():
            if (found := measured(summary, "test" if is_tested else "val")) is not None:
                scores[job.arm][job.seed] = float(found)
        tuned = {arm: values for (arm, cell), values in chosen.items() if dict(cell) == dict(keys)}
        starts = compare_starts(mine, study.baseline)
        stage, title = "test" if is_tested else "validation", next((measure_of(summary).title for summary in done.values()), "accuracy")
        edges, further = _edges(study, tuned)
        cells.append(Cell(keys, compare(scores, study.baseline), starts, mine, tuned, edges, further, f"{stage} {title}"))
    return cells


def _edges(study: Study, tuned: Mapping[str, Keys]) -> tuple[list[str], list[str]]:
    """Names the arms whose chosen number is the least or the largest of those that were tried, and what to type to try rates beyond it."""
    found: set[str] = set()
    further = []
    for key, values in study.tune.items():
        tried = sorted(number for number in values if isinstance(number, int | float) and not isinstance(number, bool))
        if len(tried) < 2:
            continue
        at_low, at_high = ({arm for arm, keys in tuned.items() if keys[key] == end} for end in (tried[0], tried[-1]))
        found |= at_low | at_high
        if key in (RATE, MATRICES, ALL) and at_low | at_high:
            below, above = tried[0] ** 2 / tried[1], tried[-1] ** 2 / tried[-2]
            numbers = [*[f"{below:.4g}"] * bool(at_low), *map(str, tried), *[f"{above:.4g}"] * bool(at_high)]
            further.append(f"--tune {key}={','.join(numbers)}")
    return [arm for arm in tuned if arm in found], further


def rows_of(cell: Cell) -> list[list[str]]:
    """Returns the cells of a comparison's table, as ``Cell.header`` names them."""
    rows = []
    for row in cell.rows:
        spread = row.deviation
        accuracy = percent(row.mean, 2).removesuffix(" %") + (f" ± {100 * spread:.2f}" if spread is not None else "") + " %" if row.values else "-"
        difference = "-" if row.difference is None else f"{100 * row.difference:+.2f}"
        interval = "-" if row.low is None or row.high is None else f"{100 * row.low:+.2f} to {100 * row.high:+.2f}"
        p = "-" if row.p_holm is None else f"{row.p_holm:.3f}" if row.p_holm >= 0.001 else "<0.001"
        flops, params, cost = (cell.mean_of(row.arm, name) for name in ("flops_per_image", "num_parameters", "cpu_seconds"))
        rows.append([
            row.arm, accuracy, str(len(row.values)), difference, interval, p, told(cell.tuned[row.arm]) if cell.tuned.get(row.arm) else "-",
            "-" if params is None else f"{params:,.0f}", "-" if flops is None else f"{flops / 1e6:.1f}", "-" if cost is None else f"{cost:.0f}",
        ])  # fmt: skip
    return rows


def as_text(cell: Cell) -> list[str]:
    """Writes a comparison for a terminal."""
    heading = [f"{told(cell.keys)}:"] if cell.keys else []
    return [*heading, *table(cell.header, rows_of(cell), left=("arm", "tuned", "95 % interval")), *notes(cell)]


def as_markdown(plan: Plan, cells: Sequence[Cell]) -> str:
    """Writes all comparisons as Markdown; an arm is bold where it is above every other, p < 0.05."""
    study = plan.study
    lines = [f"# {study.name}: {study.factor}", "", f"Baseline: {study.baseline}. Recipe: {', '.join(path.stem for path in plan.recipe)}."]
    lines += [f"Expected before it was measured: {study.expected}"] if study.expected else []
    for cell in cells:
        lines += ["", f"## {told(cell.keys).capitalize()}" if cell.keys else "## Results", "", "| " + " | ".join(cell.header) + " |"]
        lines += ["|" + "---|" * len(cell.header)]
        first = cell.winner
        for row in rows_of(cell):
            lines.append("| " + " | ".join([f"**{row[0]}**" if row[0] == first else row[0], *row[1:]]) + " |")
        lines += ["", *(note.strip() for note in notes(cell))]
    return "\n".join(lines) + "\n"


def notes(cell: Cell) -> list[str]:
    """Says how the figures were found, and what they can't tell."""
    base = next((row for row in cell.rows if row.difference is None and row.values), None)
    methods = {row.method for row in cell.rows if row.method}
    parts = [f"{cell.measure}, mean ± standard deviation over the seeds; differences in points, paired over equal seeds"]
    if methods:
        how = {"t": "Student's t", "bootstrap": f"bootstrap (BCa, from {BOOTSTRAP_FROM} pairs on)"}
        found = " and ".join(how[name] for name in sorted(methods))
        parts.append(f"95 % intervals by {found}, each for itself; p by the paired t-test, after Holm's correction over the arms")
    told_notes = ["  " + "; ".join(parts) + "."]
    if base is None:
        return ["  No run of the baseline has ended: nothing can be compared yet."]
    spreads = {row.arm: row.spread for row in cell.rows if row.spread}
    if cell.winner is not None:
        told_notes.append(f"  {cell.winner} is above every other arm {SURE}.")
    elif spreads:
        told_notes.append(f"  No arm is above every other {SURE}.")
    if spreads:
        widest = max(spreads.values(), key=float)
        needed = seeds_needed(widest, EFFECT)
        count = f"{needed} seeds" if needed is not None else "more than 1,000 seeds"
        told_notes.append(f"  To see a difference of {100 * EFFECT:g} points with a probability of 80 % takes {count} where pairs spread most.")
    elif any(row.pairs == 1 for row in cell.rows):
        told_notes.append("  One seed tells no spread: no difference can be told from chance.")
    if cell.edges:
        more = f" The same with {' '.join(cell.further)} computes what is missing." if cell.further else ""
        told_notes.append(f"  At the edge of what was tried, so perhaps not at its best: {', '.join(cell.edges)}.{more}")
    if missing := [row.arm for row in cell.rows if not row.values]:
        told_notes.append(f"  Without a run that ended: {', '.join(missing)}.")
    return [*told_notes, *(f"  {start.told()}." for start in cell.starts)]


def write_tables(plan: Plan, cells: Sequence[Cell]) -> None:
    """Writes results.csv, a row for each run, and results.md into the study's folder."""
    with replacing(plan.root / CSV) as file:
        file.write(as_csv(plan, cells).encode())
    with replacing(plan.root / MARKDOWN) as file:
        file.write(as_markdown(plan, cells).encode())


def as_csv(plan: Plan, cells: Sequence[Cell]) -> str:
    """Writes a row for each run that has ended, trials included; its folder as the study's has it, wherever that is moved."""
    names = (
        "test_accuracy", "val_accuracy", "num_parameters", "flops_per_image", "epochs", "steps", "seconds", "cpu_seconds", "cpu_seconds_at_350",
        "run_dir", "measure", "test_measure", "val_measure",
    )  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study", "purpose", "cell", "arm", "seed", "tuned", *names])
    for job in [*plan.trials(), *(job for cell in cells for job in cell.jobs)]:
        if (summary := job.summary) is not None:
            purpose, values = ("trial", job.trial) if job.trial is not None else ("reported", _tuned(job, cells))
            assert job.run is not None
            figures: list[Any] = [job.run.path.relative_to(plan.root).as_posix() if name == "run_dir" else summary.get(name) for name in names]
            writer.writerow([plan.study.name, purpose, told(job.cell), job.arm, job.seed, told(values) if values else "", *figures])
    return text.getvalue()


def _tuned(job: Job, cells: Sequence[Cell]) -> Keys:
    return next((cell.tuned.get(job.arm, {}) for cell in cells if cell.keys == job.cell), {})
