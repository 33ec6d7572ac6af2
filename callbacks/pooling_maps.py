"""What the network looks at: maps of the pooling's weights and of the positions, as pictures and as curves."""

from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from cct_lightning.data.preparation import normalize
from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.map_drawings import draw_maps, draw_positions
from cct_lightning.evaluation.pictures import denormalize, save_picture
from cct_lightning.networks.attention_maps import attention_layers, check_grid, entropy, look, position_similarity, top_share
from cct_lightning.networks.outputs import Output
from cct_lightning.networks.poolings import ClassTokenPooling
from cct_lightning.tasks.labelled import Labelled
from cct_lightning.tasks.needs import TellsImages, classifier_of

from .cadence import is_due


class FixedImages:
    """Picks images out of batches as they come by: of evenly spaced classes the first ones, of each as many as of the others.

    Args:
        number: How many. Where a class does not have enough, the first images of others fill up.
        num_classes: K.
    """

    def __init__(self, number: int, num_classes: int) -> None:
        self.number = number
        self._wanted = Counter(i * num_classes // number for i in range(number))
        self._taken: list[tuple[int, Tensor, Tensor]] = []
        self._spare: list[tuple[int, Tensor, Tensor]] = []

    @property
    def is_complete(self) -> bool:
        return len(self._taken) == self.number

    def look_at(self, images: Tensor, targets: Tensor) -> None:
        """Keeps what is wanted of images (B, C, H, W) and classes (B,), on the host; of labels or numbers (B, K) the largest stands for a class."""
        classes = (targets if targets.ndim == 1 else targets.argmax(dim=1)).tolist()
        for image, target, told in zip(images, classes, targets, strict=True):
            is_wanted = self._wanted[target] > 0
            kept = self._taken if is_wanted else self._spare
            if len(kept) < self.number:
                self._wanted[target] -= is_wanted
                kept.append((target, image.detach().to("cpu", copy=True), told.detach().to("cpu", copy=True)))

    def get(self) -> tuple[Tensor, Tensor]:
        """Returns the images and their targets, ordered by class."""
        kept = sorted((self._taken + self._spare)[: self.number], key=lambda found: found[0])
        return torch.stack([image for _, image, _ in kept]), torch.stack([told for _, _, told in kept])


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
        elif self.rollout and (model := classifier_of(pl_module)) is not None:
            try:
                attention_layers(model.encoder)
            except InputError as error:
                self._follows = False
                rank_zero_info(f"PoolingMaps draws no roll-out: {error}")

    @staticmethod
    def _obstacle(trainer: Trainer, pl_module: LightningModule) -> str:
        if (model := classifier_of(pl_module)) is None:
            return f"{type(pl_module).__name__} has no ImageClassifier as its model."
        if not isinstance(pl_module, TellsImages):
            return f"{type(pl_module).__name__} does not tell mean, std and class_names."
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            return "the weights are sharded over devices."
        if not trainer.enable_validation:
            return "there are no validation images."
        try:
            check_grid(model.encoder)
            if isinstance(model.pooling, ClassTokenPooling):
                attention_layers(model.encoder)
        except InputError as error:
            return str(error)
        return ""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._draws or self._images is not None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        images, targets = batch[0], batch[1]
        if images.ndim != 4:
            self._stop("the batches hold features of the frozen backbone, no images.")
            return
        if self._watched is None:
            model = classifier_of(pl_module)
            assert model is not None
            self._watched = FixedImages(self.num_images, model.num_classes)
        if not self._watched.is_complete:
            self._watched.look_at(images, targets)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._draws or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self._images is None and self._watched is not None:
            self._images, self._watched = self._watched.get(), None
        if is_due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the end of a training that stopped before its last epoch; the network then holds EMA's average, where there is one."""
        if not self._draws:
            return
        if self._images is None:
            self._stop("no validation took place.")
        elif self._drawn != trainer.global_step:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        model = classifier_of(pl_module)
        assert model is not None
        assert isinstance(pl_module, TellsImages)
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
                    at = next(model.parameters())
                    seen = look(model, images.to(at.device, at.dtype), self._follows).cpu()
                shares = seen.weights.abs() / seen.weights.abs().sum(dim=1, keepdim=True).clamp(min=1e-30)  # a new head may give nothing to any
                if trainer.validating:
                    for name, values in (("entropy", entropy(shares)), ("top10_share", top_share(shares))):
                        pl_module.log(f"pooling/{name}", values.mean(), rank_zero_only=True)
                pixels = denormalize(images, pl_module.mean, pl_module.std)
                output = pl_module.output if isinstance(pl_module, Labelled) else Output()
                drawn = draw_maps(seen, pixels, targets, model, pl_module.class_names, epoch, output)
                save_picture(trainer, f"pooling-epoch{epoch:03d}", drawn)
                if (similarity := position_similarity(model.encoder)) is not None:
                    figure = draw_positions(similarity.cpu().numpy(), model.encoder, epoch)
                    save_picture(trainer, f"positions-epoch{epoch:03d}", figure)
        except Exception as error:  # a picture shall stop no training
            self._draws = False
            rank_zero_warn(f"PoolingMaps draws no more: {type(error).__name__}: {error}")
        finally:
            if was_training:
                pl_module.train()
