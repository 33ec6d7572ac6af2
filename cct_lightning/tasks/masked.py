"""Masked patches: images teach a network without labels, by what is missing of them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from cct_lightning.data.loaders import Batch
from cct_lightning.errors import InputError
from cct_lightning.networks.build import create_network
from cct_lightning.networks.encoder import ViTEncoder
from cct_lightning.networks.masked import MaskedAutoencoder
from cct_lightning.networks.masks import draw_order
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.options import keywords_of
from cct_lightning.randomness import key
from cct_lightning.tasks.divergence import MeanLoss
from cct_lightning.tasks.options import MaskedOptions, to_config
from cct_lightning.tasks.task import Stage, Task
from cct_lightning.training.options import TrainingOptions
from cct_lightning.weights.files import KEY


class MaskedPatches(Task):
    """Trains an encoder to fill in masked patches; a fine-tuning then starts from it by ``pretrained``.

    Batches are ``Batch``: which patches of an image are masked follows from the run's seed, the epoch and the image's index, whatever else is in its
    batch; of a validation from seed and index alone, so that epochs compare. Targets are not looked at.
    """

    is_tested: ClassVar[bool] = False  # what is trained next shall be
    options: ClassVar[type[TrainingOptions]] = MaskedOptions

    @keywords_of(MaskedOptions)
    def __init__(self, options: MaskedOptions) -> None:
        """Builds the network.

        Raises:
            InputError: An argument that the network can't honour.
        """
        super().__init__(**{option.name: getattr(options, option.name) for option in fields(TrainingOptions)})
        if options.optim.layer_decay is not None:
            raise InputError(f"optim.layer_decay={options.optim.layer_decay} is for weights that are trained already: leave it out.")
        described = {option.name: getattr(options, option.name) for option in fields(NetworkOptions)}
        encoder = create_network(NetworkOptions(**{**described, "num_classes": 0})).encoder
        self.model: MaskedAutoencoder = MaskedAutoencoder(
            encoder, options.target, options.mask_ratio, options.mask_block, options.decoder_dim, options.decoder_depth, options.decoder_heads,
            options.normalize_target, self.mean, self.std,
        )  # fmt: skip
        # Without a head: num_classes 0 tells it, and no class is known.
        own = {"image_size": list(encoder.image_size), "num_classes": 0, "class_names": None}
        self.model_config: dict[str, Any] = to_config(options, MaskedOptions) | own
        if isinstance(encoder, ViTEncoder):
            self.model_config["position"] = encoder.position
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()

    def order(self, batch: Sequence[Any], purpose: str = "mask") -> Tensor:
        """Draws the order of a batch's patches (B, N), of which the first are masked; for another purpose than "mask" the same in all epochs.

        Raises:
            InputError: The batch does not say which images it holds.
        """
        if not isinstance(batch, Batch):
            raise InputError(f"Masked patches follow from each image's index, which a {type(batch).__name__} lacks: take an ImageDataModule.")
        epoch = batch.epoch if purpose == "mask" else 0
        return draw_order(key(self.seed, purpose), epoch, batch.indices, self.model.grid(batch.images), self.model.mask_block)

    def step_inputs(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Takes the images out of a batch, and in the place of targets the order of their patches (B, N)."""
        return batch[0], self.order(batch)

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the mean loss of a batch; ``targets`` are the orders of its patches."""
        loss: Tensor = self(images, targets).mean()
        return loss

    def evaluate(self, batch: Sequence[Any], stage: Stage) -> None:
        """Keeps the loss of each image."""
        (self.val_loss if stage == "val" else self.test_loss).update(self(batch[0], self.order(batch, f"mask {stage}")))

    def on_fit_start(self) -> None:
        """Takes the sizes of ``data.image_size_schedule``, then as every task.

        Raises:
            InputError: The network does not take a size; images would be drawn by labels.
        """
        if getattr(self.trainer.datamodule, "sampler", "") == "balanced":  # type: ignore[attr-defined]
            raise InputError("data.sampler=balanced draws images by their labels, which task=masked shall not see: leave it out.")
        super().on_fit_start()
        try:
            self.model.take_sizes(size for size, _ in getattr(self.trainer.datamodule, "first_sizes", ()))  # type: ignore[attr-defined]
        except InputError as error:
            raise InputError(f"data.image_size_schedule: {error}") from None

    def on_validation_epoch_end(self) -> None:
        self._log_loss("val", self.val_loss)

    def on_test_epoch_end(self) -> None:
        self._log_loss("test", self.test_loss)

    def _log_loss(self, stage: Stage, loss: MeanLoss) -> None:
        """Logs the mean over all images of all ranks. Lightning's own mean over ranks takes no account of how many each has."""
        self.log(f"{stage}/loss", loss.compute(), prog_bar=True)
        loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every task, but that no classes are named: no head tells them."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["class_names"] = None
