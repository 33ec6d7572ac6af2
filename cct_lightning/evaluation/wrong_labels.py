"""Labels that look wrong, by what networks say of images that they have not seen: confident learning."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cct_lightning.data.files import Array
from cct_lightning.run_folder import replacing
from cct_lightning.wording import as_cells, percent, printable, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "wrong_labels.csv"


class WrongLabel(NamedTuple):
    """An image whose label looks wrong.

    Attributes:
        image: Its number among those that were looked at.
        file: Its file; empty where it comes from none.
        given: The class that it is labelled as.
        suggested: The most probable class.
        probability: Of that.
        given_probability: Of the given class.
        margin: The one less the other; the list goes by it.
    """

    image: int
    file: str
    given: str
    suggested: str
    probability: float
    given_probability: float
    margin: float


def confident_joint(probabilities: Array, targets: Array) -> Array:
    """Estimates how many images of each given class are truly of which one: (K, K), rows given, columns true; each row sums to its class.

    An image counts where a class has at least the threshold of that class, the mean of its probability over the images labelled so, and of several
    such classes for the most probable one. "Confident Learning: Estimating Uncertainty in Dataset Labels" (arXiv 1911.00068, section 3.1). A
    class of which no image counts is taken to be right.

    Args:
        probabilities: (n, K), of networks that have not seen the images.
        targets: The given classes, (n,).
    """
    k = probabilities.shape[1]
    sizes = np.bincount(targets, minlength=k)
    thresholds = np.array([probabilities[targets == label, label].mean() if size else np.inf for label, size in enumerate(sizes)])
    sure = np.where(probabilities >= thresholds - 1e-6, probabilities, -np.inf)
    counts = np.isfinite(sure).any(axis=1)
    joint = np.bincount(targets[counts] * k + sure[counts].argmax(axis=1), minlength=k * k).reshape(k, k).astype(float)
    joint[np.arange(k), np.arange(k)] += joint.sum(axis=1) == 0
    return joint / joint.sum(axis=1, keepdims=True) * sizes[:, None]  # type: ignore[no-any-return]


def find_wrong_labels(probabilities: Array, targets: Array) -> Array:
    """Finds images whose label looks wrong: of each pair of a given and another class as many as that cell of the joint says, those where the
    other one's probability is above the given one's by most.

    "Prune by noise rate" of arXiv 1911.00068, section 3.2. Unlike there an image is passed over where its given class is the most probable one, as
    cleanlab, the authors' code, does.

    Args:
        probabilities: (n, K), of networks that have not seen the images.
        targets: The given classes, (n,).

    Returns:
        Their numbers, those with the largest margin between the most probable class and the given one first.
    """
    joint = np.rint(confident_joint(probabilities, targets)).astype(int)
    given = probabilities[np.arange(len(targets)), targets]
    found: set[int] = set()
    for label, other in np.argwhere(joint > 0):
        if label != other:
            members = np.flatnonzero(targets == label)
            order = np.argsort(given[members] - probabilities[members, other], kind="stable")
            found |= set(members[order[: joint[label, other]]].tolist())
    chosen = np.array(sorted(found), int)
    chosen = chosen[probabilities[chosen].argmax(axis=1) != targets[chosen]]
    margins = probabilities[chosen].max(axis=1) - given[chosen]
    return chosen[np.argsort(-margins, kind="stable")]  # type: ignore[no-any-return]


def list_wrong_labels(probabilities: Array, targets: Array, class_names: Sequence[str], files: Sequence[str]) -> list[WrongLabel]:
    """Does so and names them.

    Args:
        probabilities: (n, K); images with what is not a number are passed over.
        targets: The given classes, (n,).
        class_names: In the order of the columns.
        files: Of the images.
    """
    known = np.flatnonzero(np.isfinite(probabilities).all(axis=1))
    rows = []
    for number in known[find_wrong_labels(probabilities[known], targets[known])].tolist():
        row, label = probabilities[number], int(targets[number])
        best = int(row.argmax())
        sure, doubted = float(row[best]), float(row[label])
        rows.append(WrongLabel(number, files[number], class_names[label], class_names[best], sure, doubted, sure - doubted))
    return rows


def write_wrong_labels(rows: Sequence[WrongLabel], folder: Path) -> None:
    """Writes wrong_labels.csv.

    Raises:
        OSError: The folder can't be written.
    """
    columns = ("image", "given", "suggested", "probability", "given_probability", "margin")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        figures = (f"{value:.6g}" for value in (row.probability, row.given_probability, row.margin))
        writer.writerow(as_cells(("path", *columns[1:]), [printable(row.file) or f"image {row.image}", row.given, row.suggested, *figures]))
    with replacing(folder / FILE) as file:
        file.write(text.getvalue().encode())


def draw_wrong_labels(rows: Sequence[WrongLabel], images: Sequence[Array]) -> "Figure":
    """Draws the first of the images whose label looks wrong, given and suggested class below each.

    Args:
        rows: All of them.
        images: Of the first ones, uint8 (H, W, 1 or 3) of any size.
    """
    from cct_lightning.evaluation.drawings import draw_sheet

    def name(text: str) -> str:
        return shortened(printable(text), 20).replace("$", r"\$")

    captions = [[name(row.given), f"→ {name(row.suggested)}", f"{percent(row.given_probability, 0)} → {percent(row.probability, 0)}"] for row in rows]
    title = "Labels that look wrong" + (f": {len(images)} of {len(rows):,}, the surest first" if len(images) < len(rows) else "")
    return draw_sheet(title, images, captions[: len(images)])
