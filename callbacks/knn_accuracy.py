"""How well a network's features tell classes apart while it learns something else."""

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from cct_lightning.data.module import ImageDataModule
from cct_lightning.data.preparation import normalize
from cct_lightning.errors import check_range
from cct_lightning.tasks.task import Task

from .cadence import is_due

CHUNK = 1024  # images that are compared with all labelled ones at a time


def vote(bank: Tensor, labels: Tensor, features: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Classifies features by those of labelled images: each of the k nearest votes for its class, with the weight exp(cosine / temperature).

    Args:
        bank: Features of labelled images (n, D).
        labels: Their classes (n,).
        features: (B, D).
        k: Fewer vote where there are fewer.
        temperature: The lower, the more the nearest count.
        num_classes: K.

    Returns:
        Classes (B,).

    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978, section 3.4), as DINO measures itself (arXiv
    2104.14294).
    """
    cosines, nearest = (F.normalize(features) @ F.normalize(bank).T).topk(min(k, len(bank)), dim=1)
    weights = ((cosines - 1) / temperature).exp()  # -1 changes no comparison, and nothing overflows
    return torch.zeros(len(features), num_classes, device=features.device).scatter_add_(1, labels[nearest], weights).argmax(dim=1)


class KNNAccuracy(Callback):
    """Logs val/knn: the share of the validation images whose class their nearest labelled training images tell, by the mean of the encoder's tokens.

    Labels are looked at for this alone: nothing is drawn or changed of the training. Where no training image has a label, nothing is measured.

    Args:
        every_n_epochs: Measured after each so many epochs, and after the last.
        k: Neighbours that vote.
        temperature: Of their weights, exp(cosine / temperature).
        max_images: Labelled training images, and validation images, that are looked at, at most: of each class as many, the same every time.
    """

    def __init__(self, every_n_epochs: int = 10, k: int = 20, temperature: float = 0.07, max_images: int = 5000) -> None:
        check_range("KNNAccuracy.every_n_epochs", every_n_epochs, 1)
        check_range("KNNAccuracy.k", k, 1)
        check_range("KNNAccuracy.temperature", temperature, 0, exclusive="low")
        check_range("KNNAccuracy.max_images", max_images, 1)
        self.every_n_epochs, self.k, self.temperature, self.max_images = every_n_epochs, k, temperature, max_images

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if why := self._why_not(trainer, pl_module):
            rank_zero_info(f"KNNAccuracy measures nothing: {why}")

    def _why_not(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Says why nothing can be measured; the empty string where it can."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, Task) or not isinstance(data, ImageDataModule):
            return "it needs a task and a data module of cct-lightning."
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            return "the network is sharded, and its encoder can't be run by itself."
        if data.kind != "class":
            return "the images have several labels or numbers, and neighbours tell one class each."
        if "val" not in data.splits:
            return "there are no validation images."
        fewest = min(data.num_labelled(stage) for stage in ("train", "val"))
        return "" if fewest >= trainer.world_size else "there are no labelled images."

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if is_due(trainer, self.every_n_epochs) and not self._why_not(trainer, pl_module):
            assert isinstance(pl_module, Task)
            pl_module.log("val/knn", self._measure(trainer, pl_module, trainer.datamodule), prog_bar=True)  # type: ignore[attr-defined]

    def _measure(self, trainer: Trainer, task: Task, data: ImageDataModule) -> Tensor:
        bank, labels = _joined(*self._encode(trainer, task, data, "train"), trainer.world_size)
        features, targets = self._encode(trainer, task, data, "val")
        found = [vote(bank, labels, part, self.k, self.temperature, data.num_classes) for part in torch.split(features, CHUNK)]
        right = torch.cat(found) == targets
        counts: Tensor = trainer.strategy.reduce(torch.stack((right.sum(), right.new_tensor(len(right), dtype=torch.long))), reduce_op="sum")
        return counts[0] / counts[1]

    @torch.no_grad()
    def _encode(self, trainer: Trainer, task: Task, data: ImageDataModule, stage: str) -> tuple[Tensor, Tensor]:
        """Returns features (n, D) and classes (n,) of this device's share of a stage's labelled images."""
        features, targets = [], []
        dtype = next(task.model.parameters()).dtype
        for batch in data.labelled_images(stage, self.max_images):
            images = normalize(batch.images.to(task.device), data.mean, data.std).to(dtype)
            with trainer.precision_plugin.forward_context():
                features.append(task.encoder(images).patches.mean(dim=1).float())
            targets.append(batch.targets.to(task.device))
        return torch.cat(features), torch.cat(targets)


def _joined(features: Tensor, targets: Tensor, world_size: int) -> tuple[Tensor, Tensor]:
    """Returns what all devices have, on each of them."""
    if world_size == 1:
        return features, targets
    parts: list[tuple[Tensor, Tensor]] = [(features, targets)] * world_size  # the devices have different numbers of images
    torch.distributed.all_gather_object(parts, (features.cpu(), targets.cpu()))
    return torch.cat([part[0] for part in parts]).to(features.device), torch.cat([part[1] for part in parts]).to(targets.device)
