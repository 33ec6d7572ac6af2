"""What the network is trained on: the first batch as a picture."""

from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from cct_lightning.data.loaders import Batch
from cct_lightning.errors import check_range
from cct_lightning.evaluation.pictures import denormalize, label, save_picture, show_image
from cct_lightning.tasks.needs import TellsImages
from cct_lightning.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class BatchPreview(Callback):
    """Draws the first training batch as the network sees it, augmented and mixed, into pictures/batch.png of the run: most mistakes in an
    augmentation, in the normalisation or in the classes of a folder can be seen there.

    Above each image is its class, or its labels or numbers; where MixUp or CutMix is on, its two largest classes with their shares. Below is its
    number in the data set.
    Colours are those of the file before mean and standard deviation were applied.

    Args:
        num_images: Images in the picture, at most; of the first device, where there are several.
    """

    def __init__(self, num_images: int = 32) -> None:
        check_range("BatchPreview.num_images", num_images, 1, 256)
        self.num_images = num_images

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx or trainer.current_epoch or not trainer.is_global_zero:
            return
        if not isinstance(pl_module, TellsImages):
            rank_zero_info(f"BatchPreview draws nothing: {type(pl_module).__name__} does not tell mean, std and class_names.")
        elif batch[0].ndim != 4:
            rank_zero_info("BatchPreview draws nothing: the batches hold features of the frozen backbone, no images.")
        else:
            try:
                save_picture(trainer, "batch", self._draw(pl_module, batch))
            except Exception as error:  # a picture shall stop no training
                rank_zero_warn(f"BatchPreview draws nothing: {type(error).__name__}: {error}")

    def _draw(self, pl_module: TellsImages, batch: Any) -> "Figure":
        from matplotlib.figure import Figure

        kind = pl_module.kind if isinstance(pl_module, Task) else "class"
        images, targets = batch[0][: self.num_images], batch[1][: self.num_images].cpu()
        pixels = denormalize(images, pl_module.mean, pl_module.std)
        columns = min(len(pixels), 8)
        rows = -(-len(pixels) // columns)
        width = 1.6  # of a cell, inches, and its height: the image, two lines above it and one below
        side = width - 0.15
        above, below = 0.36, 0.2
        height = side * pixels.shape[1] / pixels.shape[2] + above + below
        figure = Figure((columns * width, rows * height))
        for number, (image, target) in enumerate(zip(pixels, targets, strict=True)):
            row, column = divmod(number, columns)
            box = np.array([column * width, (rows - 1 - row) * height + below, side, height - above - below])
            axes = figure.add_axes(tuple(box / np.tile(figure.get_size_inches(), 2)))
            show_image(axes, image)
            axes.set_title(label(target, pl_module.class_names, kind), fontsize=7.5, loc="left", pad=2, linespacing=1.25, parse_math=False)
            if isinstance(batch, Batch):
                axes.set_xlabel(f"image {int(batch.indices[number])}", fontsize=6, color="gray", loc="left", labelpad=1.5)
        return figure
