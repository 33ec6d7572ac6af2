"""Pictures of what a network looks at."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from cct_lightning.data.files import Array
from cct_lightning.evaluation.pictures import class_name, label, show_image
from cct_lightning.networks.attention_maps import Look
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import Encoder
from cct_lightning.networks.outputs import Output
from cct_lightning.networks.poolings import (
    ClassAttentionPooling,
    ClassTokenMeanPooling,
    ClassTokenPooling,
    MapPooling,
    MaskedClassTokenPooling,
    MeanPooling,
    MultiQueryPooling,
    Pooling,
    SeqPool,
)
from cct_lightning.wording import percent, shortened

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure


TITLES: dict[type[Pooling], str] = {
    ClassTokenPooling: "class token: its attention to the patches in the last layer, mean over the heads",
    MaskedClassTokenPooling: "masked class token: its attention to the patches in the last layer, mean over the heads",
    ClassAttentionPooling: "class attention: attention of its last layer to the patches, mean over the heads",
    MapPooling: "multihead attention pooling: attention of the probe to the patches",
    SeqPool: "sequence pooling: weights of the patches",
    MeanPooling: "mean of the patches: what each adds to the logit of the predicted class",
    ClassTokenMeanPooling: "mean of the patches beside a class token: what each adds to the logit of the predicted class",
    MultiQueryPooling: "several queries: their attention to the patches, mean over all of them",
}
ADDED = "added to the logit of the predicted class"


def tile(maps: Array, columns: int) -> Array:
    """Lays maps (n, h, w) out row by row in one array with lines of NaN between them, about a sixteenth of a map wide."""
    fine = max(16 // max(maps.shape[1:]), 1)
    maps = maps.repeat(fine, axis=1).repeat(fine, axis=2)
    n, h, w = maps.shape
    whole = np.full((-(-n // columns) * (h + 1), columns * (w + 1)), np.nan)
    for number, values in enumerate(maps):
        top, left = number // columns * (h + 1), number % columns * (w + 1)
        whole[top : top + h, left : left + w] = values
    return whole[:-1, :-1]


class Panel(NamedTuple):
    """One map beside each image: its caption, the colour bar it belongs to, and values (B, height, width); those of ``tile`` have gaps."""

    caption: str
    scale: str
    maps: Array


def _panels(seen: Look, grid_size: tuple[int, int]) -> list[Panel]:
    """Lays out as maps what was seen; weights that sum to 1 as multiples of the average."""
    N = seen.weights.shape[1]
    relative = f"times the average weight, 1/{N}"

    def maps(weights: Tensor, factor: int = N) -> Array:
        grids: Array = (weights * factor).numpy().reshape(-1, *grid_size)
        return grids

    panels = [Panel("contributions", ADDED, maps(seen.weights, 1)) if seen.is_signed else Panel("weights", relative, maps(seen.weights))]
    if seen.heads is not None:
        panels = [Panel("mean of the heads", relative, panels[0].maps)]
        columns = math.ceil(seen.heads.shape[1] ** 0.5)
        panels.append(Panel(f"{seen.heads.shape[1]} heads", relative, np.stack([tile(maps(heads), columns) for heads in seen.heads])))
    if seen.rollout is not None:
        panels.append(Panel("roll-out", f"roll-out, {relative}", maps(seen.rollout)))
    return panels


def _scale(name: str, panels: list[Panel]) -> dict[str, Any]:
    """Chooses colours that all images share, so that all but the largest hundredth of the values differ: for contributions from blue over
    white (0) to red. Weights that are nearly equal look so."""
    values = np.concatenate([panel.maps.ravel() for panel in panels if panel.scale == name])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.ones(1)  # of a network that diverged
    if name == ADDED:
        end = max(float(np.quantile(np.abs(values), 0.99)), 1e-9)
        return {"cmap": "RdBu_r", "vmin": -end, "vmax": end}
    return {"cmap": "viridis", "vmin": min(float(np.quantile(values, 0.01)), 0.8), "vmax": max(float(np.quantile(values, 0.99)), 1.25)}


def _answers(logits: Tensor, targets: Tensor, names: Sequence[str] | None, output: Output) -> list[tuple[str, str, bool]]:
    """Tells of each image what is true, what is predicted, and whether that is right; numbers are never wrong."""
    found = output.read(logits)
    if output.kind == "numbers":
        return [(_line(true, names, "numbers"), _line(told, names, "numbers"), True) for true, told in zip(targets, found, strict=True)]
    if output.kind == "labels":
        marks = (found.double() >= found.new_tensor(output.thresholds).double()).float()
        return [(_line(true, names, "labels"), _line(told, names, "labels"), bool((true > 0.5).equal(told > 0.5)))
                for true, told in zip(targets, marks, strict=True)]  # fmt: skip
    classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
    told = [f"{class_name(names, number, 28)} ({percent(share, 0)})" for share, number in zip(*(v.tolist() for v in found.max(dim=1)), strict=True)]
    return [(class_name(names, true, 28), predicted, true == number)
            for true, predicted, number in zip(classes.tolist(), told, found.argmax(dim=1).tolist(), strict=True)]  # fmt: skip


def _line(target: Tensor, names: Sequence[str] | None, kind: str) -> str:
    return shortened(label(target, names, kind).replace("\n", "; "), 34)


def draw_maps(
    seen: Look, pixels: Array, targets: Tensor, model: ImageClassifier, class_names: Sequence[str] | None, epoch: int, output: Output | None = None
) -> "Figure":
    """Draws each image with its maps beside it, in as many columns as are readable, and a colour bar for each scale.

    Args:
        seen: What the network made of the images.
        pixels: The images, (B, H, W, C), 0..1.
        targets: Their classes, (B,), or labels or numbers, (B, K).
        model: The network.
        class_names: In the order of the logits; None: numbers.
        epoch: For the title.
        output: What the logits mean; None: classes.
    """
    from matplotlib.figure import Figure

    panels = _panels(seen, model.encoder.grid_size)
    answers = _answers(seen.logits, targets, class_names, output or Output())
    columns = min(8 // (1 + len(panels)), len(pixels))
    rows = -(-len(pixels) // columns)
    side, gap, above, below, head = 1.5, 0.1, 0.36, 0.2, 0.25  # inches: a panel, what parts it from the next, text above and below, the title
    panel_height = side * pixels.shape[1] / pixels.shape[2]
    width, height = (1 + len(panels)) * (side + gap) + gap, panel_height + above + below
    figure = Figure((columns * width, rows * height + head))

    def box(left: float, bottom: float, wide: float, high: float) -> tuple[float, float, float, float]:
        across, up = figure.get_size_inches()
        return left / across, bottom / up, wide / across, high / up

    scales = {panel.scale: _scale(panel.scale, panels) for panel in panels}
    bars: dict[str, ScalarMappable] = {}
    for number, (true, told, right) in enumerate(answers):
        row, column = divmod(number, columns)
        left, bottom = column * width, (rows - 1 - row) * height + below
        axes = figure.add_axes(box(left, bottom, side, panel_height))
        show_image(axes, pixels[number])
        axes.set_title(
            f"true: {true}\npredicted: {told}",
            fontsize=7.5,
            loc="left",
            pad=2,
            linespacing=1.25,
            color="black" if right else "firebrick",
            parse_math=False,
        )
        for place, panel in enumerate(panels, 1):
            axes = figure.add_axes(box(left + place * (side + gap), bottom, side, panel_height), anchor="N")
            values = panel.maps[number]
            h, w = (length * edge / tokens for length, edge, tokens in zip(values.shape, pixels.shape[1:3], model.encoder.grid_size, strict=True))
            bars[panel.scale] = axes.imshow(values, extent=(0, w, h, 0), interpolation="nearest", **scales[panel.scale])
            axes.axis("off")
            if len(panels) > 1:
                axes.set_title(panel.caption, y=0, va="top", pad=-3, fontsize=6, color="gray")
    for place, (name, shown) in enumerate(bars.items()):
        space = figure.add_axes(box(columns * width + 0.1 + place * 0.9, below, 0.12, min(rows * height - above - below, 4)))
        figure.colorbar(shown, cax=space, extend="both").set_label(name, fontsize=7)
        space.tick_params(labelsize=6)
    title = TITLES.get(type(model.pooling), f"{type(model.pooling).__name__}: weights of the patches")
    figure.text(0, 1, f"{title}; after epoch {epoch}", fontsize=9, va="top", parse_math=False)
    return figure


def draw_positions(similarity: Array, encoder: Encoder, epoch: int) -> "Figure":
    """Draws for some positions of the grid, at most 7 x 7, how like all others are to it: a map each, laid out as the positions are."""
    from matplotlib.figure import Figure

    h, w = encoder.grid_size
    rows, columns = (np.unique(np.linspace(0, size - 1, min(size, 7)).round().astype(int)) for size in (h, w))
    chosen = (rows[:, None] * w + columns).ravel()
    end = max(float(np.quantile(np.abs(similarity[~np.eye(len(similarity), dtype=bool)]), 0.99)), 1e-9)
    height, width = (7 * edge / max(encoder.image_size) for edge in encoder.image_size)
    figure = Figure((width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    whole = tile(similarity[chosen].reshape(-1, h, w), len(columns))
    shown = axes.imshow(whole, cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest", aspect="auto")
    for ticks, chosen_along, length in ((axes.set_xticks, columns, whole.shape[1]), (axes.set_yticks, rows, whole.shape[0])):
        ticks((np.arange(len(chosen_along)) + 0.5) * (length + 1) / len(chosen_along) - 1, [str(place + 1) for place in chosen_along])
    axes.set_xlabel("column of the position", fontsize=8)
    axes.set_ylabel("row of the position", fontsize=8)
    axes.tick_params(labelsize=7, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"similarity of position embeddings, of each to all others; after epoch {epoch}", fontsize=9, loc="left")
    bar = figure.colorbar(shown, cax=figure.add_axes((1 + 0.2 / width, 0, 0.12 / width, 1)), extend="both")
    bar.set_label("cosine similarity; 1 with itself", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
