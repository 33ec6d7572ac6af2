"""What the networks of a study do with their tokens: a table of all arms, and their maps of the same images side by side."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
import torch

from cct_lightning.errors import InputError
from cct_lightning.evaluation.drawings import INK
from cct_lightning.evaluation.pictures import denormalize, show_image
from cct_lightning.networks.attention_maps import look
from cct_lightning.run_folder import replacing
from cct_lightning.studies.analysis import IMAGES, MEANING, Images, Measures, analyse, linear_cka, network_of, patch_features
from cct_lightning.studies.options import slug, told
from cct_lightning.studies.pictures import save
from cct_lightning.studies.plan import Job, Plan
from cct_lightning.studies.results import Cell
from cct_lightning.wording import printable, shortened, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV = "analysis.csv"
SHOWN = 8  # images whose maps are drawn
NOTE = f"means over the seeds; accuracies are those of up to {IMAGES:,} test images, each with a standard error of up to 1.6 points"


@dataclass(frozen=True)
class Found:
    """What was measured of a comparison's networks.

    Attributes:
        cell: The comparison.
        measures: By arm and seed.
        left_out: Arms that can't be looked at, and why.
        picture: The maps; None where none could be drawn.
    """

    cell: Cell
    measures: Mapping[tuple[str, int], Measures]
    left_out: Mapping[str, str]
    picture: Path | None


def look_at(plan: Plan, cells: Sequence[Cell]) -> list[Found]:
    """Measures the networks of all runs that have ended, draws their maps, and writes analysis.csv; what was measured before is read."""
    found = [_cell(plan, cell) for cell in cells]
    with replacing(plan.root / CSV) as file:
        file.write(as_csv(found).encode())
    return found


def _cell(plan: Plan, cell: Cell) -> Found:
    measures: dict[tuple[str, int], Measures] = {}
    left_out: dict[str, str] = {}
    features: dict[tuple[str, int], torch.Tensor] = {}
    first: dict[str, Job] = {}
    images: Images | None = None
    for job in cell.jobs:
        run = job.run
        if job.summary is None or run is None:
            continue
        try:
            images = images or Images(run)
            measures[job.arm, job.seed] = analyse(job, images)
            features[job.arm, job.seed] = patch_features(network_of(run), images.test)
            first.setdefault(job.arm, job)
        except InputError as error:
            left_out[job.arm] = str(error).splitlines()[0]
    base = plan.study.baseline
    for (arm, seed), rows in features.items():
        other = features.get((base, seed))
        if arm != base and other is not None and len(other) == len(rows):
            measures[arm, seed]["cka"] = linear_cka(rows, other)
    picture = None
    if images is not None and first:
        picture = save(draw_maps(first, images), plan.root / "pictures" / f"maps-{slug(told(cell.keys))}.png")
    return Found(cell, measures, left_out, picture)


def draw_maps(jobs: Mapping[str, Job], images: Images) -> "Figure":
    """Draws what each arm's network looks at, of its first seed: a row for each arm below the images.

    Weights are shown as shares of the heaviest patch's, contributions of a mean to the logit by their size.
    """
    from matplotlib.figure import Figure

    chosen = spread(images.test, SHOWN)
    pixels = denormalize(chosen, images.mean, images.std)
    side, left, gap = 1.0, 1.7, 0.06
    figure = Figure((left + len(chosen) * (side + gap), (1 + len(jobs)) * (side + gap) + 0.3))
    wide, high = figure.get_size_inches()

    def place(row: int, column: int) -> tuple[float, float, float, float]:
        top = high - 0.3 - (row + 1) * (side + gap)
        return (left + column * (side + gap)) / wide, top / high, side / wide, side / high

    for column, image in enumerate(pixels):
        axes = figure.add_axes(place(0, column))
        show_image(axes, image)
        for spine in axes.spines.values():
            spine.set_visible(False)
    for row, (arm, job) in enumerate(jobs.items(), 1):
        assert job.run is not None
        model = network_of(job.run)
        weights = look(model, chosen).weights.abs()
        maps = (weights / weights.amax(dim=1, keepdim=True).clamp(min=1e-30)).view(-1, *model.encoder.grid_size).numpy()
        _, bottom, _, tall = place(row, 0)
        figure.text((left - 0.12) / wide, bottom + tall / 2, _name(arm), ha="right", va="center", fontsize=9, color=INK)
        for column, values in enumerate(maps):
            axes = figure.add_axes(place(row, column))
            axes.imshow(np.asarray(values), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.axis("off")
    figure.text(0.01, 1 - 0.06 / high, "A patch's weight over the heaviest one's, of each arm's first seed", va="top", fontsize=10, color=INK)
    return figure


def spread(images: torch.Tensor, count: int) -> torch.Tensor:
    """Returns so many images from all places: they often lie class by class, and the first would be of one class."""
    count = min(count, len(images))
    return images[[place * len(images) // count for place in range(count)]]


def _name(arm: str) -> str:
    return shortened(printable(arm), 24).replace("$", r"\$")


def means(found: Found) -> dict[str, dict[str, float]]:
    """Returns the mean over the seeds of each measure, by arm."""
    result: dict[str, dict[str, float]] = {}
    for row in found.cell.rows:
        mine = [measures for (arm, _), measures in found.measures.items() if arm == row.arm]
        names = dict.fromkeys(name for measures in mine for name in measures)
        result[row.arm] = {name: mean(measures[name] for measures in mine if name in measures) for name in names}
    return {arm: measures for arm, measures in result.items() if measures}


def table_of(found: Found) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: a measure each, a column for each arm, means over the seeds."""
    values = means(found)
    names = sorted({name for measures in values.values() for name in measures}, key=_order)
    rows = [[name, *(_written(measures.get(name)) for measures in values.values())] for name in names]
    return ["measure", *values], rows


def _order(name: str) -> tuple[int, float]:
    share = name.rpartition("_")[2]
    return list(MEANING).index(_kind(name)), float(share) if _kind(name) != name else 0.0


def _kind(name: str) -> str:
    """Returns the measure that a figure is of: "keep" of "keep_0.1"."""
    return name if name in MEANING else name.rpartition("_")[0]


def _written(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def as_text(found: Found) -> list[str]:
    """Writes the measures for a terminal, and what each is."""
    header, rows = table_of(found)
    if not rows:
        return []
    kinds = dict.fromkeys(_kind(row[0]) for row in rows)
    heading = f"what the networks do with their tokens{f', {told(found.cell.keys)}' if found.cell.keys else ''}, {NOTE}:"
    lines = [heading, *table(header, rows, left=("measure",)), *(f"  {kind}: {MEANING[kind]}" for kind in kinds)]
    return lines + [f"  {arm} can't be looked at: {why}" for arm, why in found.left_out.items()]


def as_csv(found: Sequence[Found]) -> str:
    """Writes a row for each measure of each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "arm", "seed", "measure", "value"])
    for one in found:
        for (arm, seed), measures in one.measures.items():
            for name, value in measures.items():
                writer.writerow([told(one.cell.keys), arm, seed, name, value])
    return text.getvalue()
