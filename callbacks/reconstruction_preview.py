"""What a network fills in for patches that it does not see, as a picture."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from cct_lightning.data.preparation import normalize
from cct_lightning.errors import check_range
from cct_lightning.evaluation.pictures import denormalize, save_picture, show_image
from cct_lightning.tasks.masked import MaskedPatches

from .cadence import is_due

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cct_lightning.data.files import Array

ROWS = ("image", "masked", "filled in")


class ReconstructionPreview(Callback):
    """Draws validation images as they are, masked, and filled in by the network, into pictures/reconstruction-epochNNN.png of the run: the same
    images with the same masks each time, those of the validation's loss.

    Masked pixels have the images' mean colour, as the network sees them; of mpp's patches some are others' or left as they are. What mae predicts
    less mean and deviation of a patch is drawn with the patch's true ones. The weights are those that were validated, with EMA the average.

    Args:
        every_n_epochs: Epochs from one picture to the next; the end of the training always has one.
        num_images: Validation images in the picture, evenly spaced; of the first device, where there are several.
    """

    def __init__(self, every_n_epochs: int = 10, num_images: int = 8) -> None:
        check_range("ReconstructionPreview.every_n_epochs", every_n_epochs, 1)
        check_range("ReconstructionPreview.num_images", num_images, 1, 64)
        self.every_n_epochs, self.num_images = every_n_epochs, num_images
        self._draws = True  # until something is seen that does not allow it
        self._begin()

    def _begin(self) -> None:
        self._taken: list[tuple[Tensor, Tensor]] = []  # images and the orders of their patches, on the host
        self._is_taken = False
        self._drawn = -1  # step of the last picture

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says why nothing will be drawn, where that is known."""
        self._begin()
        reason = ""
        if not isinstance(pl_module, MaskedPatches):
            reason = f"{type(pl_module).__name__} fills in no masked patches."
        elif isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            reason = "the weights are sharded over devices."
        elif not trainer.enable_validation:
            reason = "there are no validation images."
        if reason:
            rank_zero_info(f"ReconstructionPreview draws nothing: {reason}")
        self._draws = trainer.is_global_zero and not reason

    def _is_off(self, trainer: Trainer) -> bool:
        return not self._draws or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_off(trainer) or self._is_taken:
            return
        assert isinstance(pl_module, MaskedPatches)
        batches = int(sum(trainer.num_val_batches))
        wanted = (batch_idx + 1) * self.num_images // batches - batch_idx * self.num_images // batches
        images, order = batch.images[:wanted], pl_module.order(batch, "mask val")[:wanted]
        self._taken.append((images.detach().to("cpu", copy=True), order.to("cpu", copy=True)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_off(trainer):
            return
        self._is_taken = True
        if is_due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the end of a training that stopped before its last epoch; the network then holds EMA's average, where there is one."""
        if self._draws and self._is_taken and self._drawn != trainer.global_step:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        assert isinstance(pl_module, MaskedPatches)
        self._drawn = trainer.global_step
        was_training = pl_module.training
        try:
            pl_module.eval()
            images, order = (torch.cat(parts) for parts in zip(*self._taken, strict=True))
            if images.dtype == torch.uint8:
                images = normalize(images, pl_module.mean or (), pl_module.std or ())  # the validation has refused them without
            model = pl_module.model
            at = next(model.parameters())
            images, order = images.to(at.device, at.dtype), order.to(at.device)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                loss = model.losses(model.predict(images, order), images, order).mean()
                shown = [images, model.mask(images, order), model.fill_in(images, order)]
            pixels = [denormalize(rows, pl_module.mean, pl_module.std) for rows in shown]
            save_picture(trainer, f"reconstruction-epoch{epoch:03d}", _figure(pixels, f"epoch {epoch}, {model.target}, loss {loss:.3g}"))
        except Exception as error:  # a picture shall stop no training
            self._draws = False
            rank_zero_warn(f"ReconstructionPreview draws no more: {type(error).__name__}: {error}")
        finally:
            if was_training:
                pl_module.train()


def _figure(pixels: "list[Array]", title: str) -> "Figure":
    from matplotlib.figure import Figure

    side, columns = 1.4, len(pixels[0])  # of a cell, inches
    figure = Figure((columns * side, len(ROWS) * side * pixels[0].shape[1] / pixels[0].shape[2] + 0.3), layout="constrained")
    for row, (name, images) in enumerate(zip(ROWS, pixels, strict=True)):
        for column, image in enumerate(images):
            axes = figure.add_subplot(len(ROWS), columns, row * columns + column + 1)
            show_image(axes, image)
            if not column:
                axes.set_ylabel(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure
