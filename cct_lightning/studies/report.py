"""The page and the pictures of a study."""

from collections.abc import Sequence
from pathlib import Path

from cct_lightning.run_folder import replacing
from cct_lightning.runs.page_parts import details, document, escape, figure, html_table, picture
from cct_lightning.studies.analysis import MEANING
from cct_lightning.studies.looking import NOTE, Found, table_of
from cct_lightning.studies.options import slug, told
from cct_lightning.studies.pictures import draw_across, draw_seeds, draw_training, save
from cct_lightning.studies.plan import Plan
from cct_lightning.studies.results import Cell, notes, rows_of
from cct_lightning.wording import some

ROOM = 4_000_000  # bytes of all pictures of the page
WORDS = 1  # columns of the table that are words; the others are numbers


def write_report(plan: Plan, cells: Sequence[Cell], found: Sequence[Found] = ()) -> Path:
    """Draws the pictures of a study and writes report.html of them, its tables and what it can't say; one file that opens anywhere.

    Returns:
        The page.

    Raises:
        OSError: The folder can't be written.
    """
    room, sections = ROOM, []
    for cell in cells:
        name = slug(told(cell.keys))
        shown = []
        for kind, drawing, caption in (
            ("seeds", draw_seeds(cell), "Each dot is a run; the bar holds the mean difference with a probability of 95 %."),
            ("training", draw_training(cell), "Validation accuracy on the way, the mean over the seeds."),
        ):
            if drawing is not None:
                image, size = picture(save(drawing, plan.root / "pictures" / f"{kind}-{name}.png"), room)
                room -= size
                shown += [figure(image, caption)] if image else []
        sections.append(_section(cell, "".join(shown)))
    if (drawing := draw_across(cells)) is not None:
        image, _ = picture(save(drawing, plan.root / "pictures" / "across.png"), room)
        sections.append(f'<section><h2>Over the conditions</h2>\n<div class="pictures">{figure(image, "Mean and every seed.")}</div></section>\n')
    sections += [_looked(one, room) for one in found]
    page = plan.root / "report.html"
    with replacing(page) as file:
        file.write(document(f"{plan.study.name}: study", [_head(plan, cells), *sections, _tail(plan)]).encode())
    return page


def _head(plan: Plan, cells: Sequence[Cell]) -> str:
    study, done = plan.study, sum(job.summary is not None for cell in cells for job in cell.jobs)
    recipe = ", ".join(path.stem for path in plan.recipe)
    facts = [("Differs", study.factor), ("Arms", some(list(study.arms))), ("Baseline", study.baseline), ("Recipe", recipe)]
    facts += [("Runs reported", str(done))]
    facts += [("Chosen for each arm", ", ".join(study.tune))] if study.tune else []
    facts += [("Expected before it was measured", study.expected)] if study.expected else []
    told_facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in facts)
    return f'<header>\n<p class="kind">Study</p>\n<h1>{escape(study.name)}</h1>\n</header>\n<section>\n<dl>\n{told_facts}</dl>\n</section>\n'


def _section(cell: Cell, pictures: str) -> str:
    heading = escape(told(cell.keys).capitalize() if cell.keys else "Results")
    said = "".join(f"<li>{escape(note.strip())}</li>\n" for note in notes(cell))
    return (f'<section><h2>{heading}</h2>\n<div class="pictures">\n{pictures}</div>\n{html_table(cell.header, rows_of(cell), WORDS)}'
            f"<ul class=\"soft\">\n{said}</ul>\n</section>\n")  # fmt: skip


def _looked(found: Found, room: int) -> str:
    """What was found beyond accuracy."""
    header, rows = table_of(found)
    image = picture(found.picture, room)[0] if found.picture is not None else ""
    heading = f"What the networks look at{f', {told(found.cell.keys)}' if found.cell.keys else ''}"
    kinds = f"<li>{escape(NOTE)}</li>\n" + "".join(f"<li>{escape(name)}: {escape(said)}</li>\n" for name, said in MEANING.items())
    kinds += "".join(f"<li>{escape(arm)} can't be looked at: {escape(why)}</li>\n" for arm, why in found.left_out.items())
    shown = f'<div class="pictures">{figure(image, "The same test images, a row for each arm.")}</div>\n' if image else ""
    return f'<section><h2>{escape(heading)}</h2>\n{shown}{html_table(header, rows, WORDS)}<ul class="soft">\n{kinds}</ul>\n</section>\n'


def _tail(plan: Plan) -> str:
    recipes = "".join(details(path.name, f"<pre>{escape(path.read_text(encoding='utf-8'))}</pre>", is_open=False) for path in plan.recipe)
    fixed = ", ".join(f"{key}: {value}" for key, value in plan.study.fixed.items()) or "nothing"
    told_fixed = f"Set over the recipe for all: {escape(fixed)}. Each run is a row of results.csv."
    return f'<section><h2>The runs</h2>\n<p class="soft">{told_fixed}</p>\n{recipes}</section>\n'
