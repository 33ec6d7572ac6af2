"""What the network looks at: maps of the pooling's weights and of the positions, as pictures and as curves."""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from cct_lightning.attention_maps import Look, attention_layers, check_grid, entropy, look, position_similarity, top_share
from cct_lightning.augment.batch import normalize
from cct_lightning.encoders import Encoder
from cct_lightning.errors import InputError, check_range
from cct_lightning.images import Array
from cct_lightning.module import LitClassifier
from cct_lightning.pictures import save_picture
from cct_lightning.pooling import ClassAttentionPooling, ClassTokenPooling, MapPooling, MaskedClassTokenPooling, MeanPooling, Pooling, SeqPool

from .batch_preview import class_name, denormalize, show_image

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
}


ADDED = "added to the logit of the predicted class"


class FixedImages:
    """Picks images out of batches as they come by: of evenly spaced classes the first ones, of each as many as of the others.

    Args:
        number: How many. Where a class does not have enough, the first images of others fill up.
        num_classes: K.
    """

    def __init__(self, number: int, num_classes: int) -> None:
        self.number = number
        self._wanted = Counter(i * num_classes // number for i in range(number))
        self._taken: list[tuple[int, Tensor]] = []
        self._spare: list[tuple[int, Tensor]] = []

    @property
    def is_complete(self) -> bool:
        return len(self._taken) == self.number

    def look_at(self, images: Tensor, targets: Tensor) -> None:
        """Keeps what is wanted of images (B, C, H, W) and classes (B,), on the host."""
        for image, target in zip(images, targets.tolist(), strict=True):
            is_wanted = self._wanted[target] > 0
            kept = self._taken if is_wanted else self._spare
            if len(kept) < self.number:
                self._wanted[target] -= is_wanted
                kept.append((target, image.detach().to("cpu", copy=True)))

    def get(self) -> tuple[Tensor, Tensor]:
        """Returns the images and their classes, ordered by class."""
        kept = sorted((self._taken + self._spare)[: self.number], key=lambda pair: pair[0])
        return torch.stack([image for _, image in kept]), torch.tensor([target for target, _ in kept])


class PoolingMaps(Callback):
    """Draws what the network looks at, over the same validation images each time, into pictures/pooling-epochNNN.png of the run: beside each
    image how much every patch counts.

    For pooling seqpool, map and class_attention these are the pooling's weights, of map each head's, too; for class_token and
    masked_class_token the class token's attention in the last layer; for mean what each patch adds to the logit of the predicted class.
    Where positions are learned, pictures/positions-epochNNN.png shows how alike they are. The curves pooling/entropy (1: all patches count
    alike, 0: one has all) and pooling/top10_share (what the top tenth of the patches has) are means over the same images.

    The weights are those that were validated, with EMA the average. Nothing is computed in other epochs.

    Args:
        every_n_epochs: Epochs from one picture to the next; the end of the training always has one.
        num_images: Validation images in the picture, of evenly spaced classes; of the first device, where there are several.
        rollout: Show attention roll-out, too: the weights followed back through the layers, since a late token is a mixture of many patches.
            It leaves norms and MLPs aside, and with model.residual_norm, the published block, it is only an approximation.
    """

    def __init__(self, every_n_epochs: int = 10, num_images: int = 8, rollout: bool = False) -> None:
        check_range("PoolingMaps.every_n_epochs", every_n_epochs, 1)
        check_range("PoolingMaps.num_images", num_images, 1, 64)
        self.every_n_epochs, self.num_images, self.rollout = every_n_epochs, num_images, rollout
        self._draws, self._follows = True, rollout  # until a network is seen that does not allow it
        self._begin()

    def _begin(self) -> None:
        self._watched: FixedImages | None = None
        self._images: tuple[Tensor, Tensor] | None = None  # with their classes, once a validation is through
        self._drawn = -1  # step of the last picture

    def _stop(self, reason: str) -> None:
        self._draws = False
        rank_zero_info(f"PoolingMaps draws nothing: {reason}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says why nothing will be drawn, where that is known."""
        self._draws, self._follows = trainer.is_global_zero, self.rollout
        self._begin()
        if not self._draws:
            return
        if reason := self._obstacle(trainer, pl_module):
            self._stop(reason)
        elif self.rollout:
            try:
                attention_layers(pl_module.model.encoder)  # type: ignore[union-attr,arg-type]
            except InputError as error:
                self._follows = False
                rank_zero_info(f"PoolingMaps draws no roll-out: {error}")

    @staticmethod
    def _obstacle(trainer: Trainer, pl_module: LightningModule) -> str:
        if not isinstance(pl_module, LitClassifier):
            return f"{type(pl_module).__name__} is no LitClassifier."
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            return "the weights are sharded over devices."
        if not trainer.enable_validation:
            return "there are no validation images."
        try:
            check_grid(pl_module.model.encoder)
            if isinstance(pl_module.model.pooling, ClassTokenPooling):
                attention_layers(pl_module.model.encoder)
        except InputError as error:
            return str(error)
        return ""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._draws or self._images is not None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        assert isinstance(pl_module, LitClassifier)
        images, targets = batch[0], batch[1]
        if images.ndim != 4:
            self._stop("the batches hold features of the frozen backbone, no images.")
            return
        if self._watched is None:
            self._watched = FixedImages(self.num_images, pl_module.model.num_classes)
        if not self._watched.is_complete:
            self._watched.look_at(images, targets if targets.ndim == 1 else targets.argmax(dim=1))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._draws or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self._images is None and self._watched is not None:
            self._images, self._watched = self._watched.get(), None
        done = trainer.current_epoch + 1
        # A validation every few epochs may miss the n-th: then the next one draws.
        is_due = done % self.every_n_epochs < (trainer.check_val_every_n_epoch or 1)
        if is_due or done == trainer.max_epochs or trainer.global_step == trainer.max_steps:
            self._draw(trainer, pl_module, done)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the end of a training that stopped before its last epoch; the network then holds EMA's average, where there is one."""
        if not self._draws:
            return
        if self._images is None:
            self._stop("no validation took place.")
        elif self._drawn != trainer.global_step:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        assert isinstance(pl_module, LitClassifier)
        assert self._images is not None
        self._drawn = trainer.global_step
        images, targets = self._images
        was_training = pl_module.training
        try:
            with torch.inference_mode(False):  # which Lightning validates in, and whose tensors take no gradient
                if images.dtype == torch.uint8:
                    images = normalize(images, pl_module.mean or (), pl_module.std or ())  # the validation has refused them without
                pl_module.eval()
                with trainer.precision_plugin.forward_context():
                    at = next(pl_module.model.parameters())
                    seen = look(pl_module.model, images.to(at.device, at.dtype), self._follows).cpu()
                shares = seen.weights.abs() / seen.weights.abs().sum(dim=1, keepdim=True).clamp(min=1e-30)  # a new head may give nothing to any
                if trainer.validating:
                    for name, values in (("entropy", entropy(shares)), ("top10_share", top_share(shares))):
                        pl_module.log(f"pooling/{name}", values.mean(), rank_zero_only=True)
                save_picture(trainer, f"pooling-epoch{epoch:03d}", draw_maps(seen, images, targets, pl_module, epoch))
                if (similarity := position_similarity(pl_module.model.encoder)) is not None:
                    figure = draw_positions(similarity.cpu().numpy(), pl_module.model.encoder, epoch)
                    save_picture(trainer, f"positions-epoch{epoch:03d}", figure)
        except Exception as error:  # a picture shall stop no training
            self._draws = False
            rank_zero_warn(f"PoolingMaps draws no more: {type(error).__name__}: {error}")
        finally:
            if was_training:
                pl_module.train()


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


def draw_maps(seen: Look, images: Tensor, targets: Tensor, pl_module: LitClassifier, epoch: int) -> "Figure":
    """Draws each image with its maps beside it, in as many columns as are readable, and a colour bar for each scale."""
    from matplotlib.figure import Figure

    model = pl_module.model
    panels = _panels(seen, model.encoder.grid_size)
    pixels = denormalize(images, pl_module.mean, pl_module.std)
    probabilities, predicted = seen.logits.softmax(dim=1).max(dim=1)
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
    for number in range(len(pixels)):
        row, column = divmod(number, columns)
        left, bottom = column * width, (rows - 1 - row) * height + below
        right = int(predicted[number]) == int(targets[number])
        axes = figure.add_axes(box(left, bottom, side, panel_height))
        show_image(axes, pixels[number])
        told = f"predicted: {class_name(pl_module.class_names, int(predicted[number]), 28)} ({100 * probabilities[number]:.0f} %)"
        axes.set_title(
            f"true: {class_name(pl_module.class_names, int(targets[number]), 28)}\n{told}",
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
