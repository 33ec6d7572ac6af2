"""What a classifier learns of a teacher: what it is told of each batch, and the part of the loss that follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

import cct_lightning
from cct_lightning.errors import InputError
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.initial_values import initialise
from cct_lightning.tasks.teacher_cache import TeacherCache
from cct_lightning.training.losses import cross_entropy
from cct_lightning.training.options import DistillConfig
from cct_lightning.weights.teacher import Teacher, open_teacher


class Map(NamedTuple):
    """Sizes of a map: (D, h, w)."""

    width: int
    height: int
    across: int


class Guide(nn.Module):
    """Compares the tokens of some layers with a teacher's map: locality guidance.

    Each layer's patches pass a 1x1 convolution of their own to the map's channels, and the coarser of the two grids is resized to the finer one
    (bilinear). "Locality Guidance for Improving Vision Transformers on Tiny Datasets" (arXiv 2207.10026); here the mean square of the differences is
    divided by that of the map, so that it is 1 for a guess of zero, whatever the teacher's scale.

    Args:
        student: Its encoder's layers return tokens (B, P + N, D).
        layers: Their numbers.
        theirs: Of the teacher's map.
    """

    def __init__(self, student: ImageClassifier, layers: Sequence[int], theirs: Map) -> None:
        super().__init__()
        encoder = student.encoder
        self.theirs, self.grid, self.layers = theirs, encoder.grid_size, tuple(layers)
        self.projections = nn.ModuleList(nn.Linear(encoder.embed_dim, theirs.width) for _ in layers)
        initialise(self.projections, "guide")
        self.is_coarser = self.grid[0] * self.grid[1] < theirs.height * theirs.across
        if self.is_coarser:
            # A product, not F.interpolate, whose backward pass is not deterministic on a GPU.
            one_hot = torch.eye(self.grid[0] * self.grid[1], device="cpu").view(1, -1, *self.grid)
            matrix = F.interpolate(one_hot, (theirs.height, theirs.across), mode="bilinear")[0].flatten(1).T.contiguous()
            self.register_buffer("resizing", matrix, persistent=False)

    def forward(self, tokens: Sequence[Tensor], maps: Tensor) -> Tensor:
        """Returns the mean over the layers, ().

        Args:
            tokens: Patches of each layer, (B, N, D).
            maps: The teacher's, (B, D, h, w).
        """
        target = maps if self.is_coarser else F.interpolate(maps, self.grid, mode="bilinear")
        target = target.flatten(2).transpose(1, 2)  # (B, N, D)
        errors = []
        for projection, patches in zip(self.projections, tokens, strict=True):
            guess = projection(patches).float()
            if self.is_coarser:
                guess = self.get_buffer("resizing").to(guess.dtype) @ guess
            errors.append((guess - target).square().mean())
        return torch.stack(errors).mean() / target.square().mean().clamp(min=1e-12)


class Teaching:
    """A teacher, and how a student learns from it. No module, so that the teacher is no part of the student's weights.

    Args:
        teacher: That is looked to.
        distill: What is learned of it.
        student: The network that learns.
        class_names: Of the student; None where nobody named them.
        mean: By which the student's images are normalised; None: they are as the teacher wants them.
        std: Likewise.

    Attributes:
        guide: What is trained with the student, where the teacher's features are learned; else None.

    Raises:
        InputError: The teacher has other classes, or the two don't fit.
    """

    def __init__(
        self,
        teacher: Teacher,
        distill: DistillConfig,
        student: ImageClassifier,
        class_names: Sequence[str] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.teacher, self.distill, self.student = teacher, distill, student
        self.guide: Guide | None = None
        self._order: Tensor | None = None
        self._weight = torch.ones(())  # of a teacher's features, at this step
        self._cache: TeacherCache | None = None
        teacher.expect(mean, std)
        if distill.kind == "features":
            self.guide = self._make_guide()
        elif (order := teacher.class_order(class_names, student.num_classes)) is not None:
            self._order = torch.tensor(order)
        parameters = sum(parameter.numel() for parameter in teacher.parameters())
        rank_zero_info(
            f"learning from {teacher.source}: {distill.kind}, {parameters / 1e6:.2f} M parameters, at {'x'.join(map(str, teacher.image_size))} px"
        )

    @property
    def about(self) -> dict[str, str]:
        """What a checkpoint keeps of the teacher."""
        return {"source": self.teacher.source, "sha256": self.teacher.digest}

    @classmethod
    def open(cls, source: str, distill: DistillConfig, student: ImageClassifier, *about: Any) -> "Teaching":
        """Opens the teacher, and brings the two together; ``about`` is the rest of the arguments of the constructor."""
        return cls(open_teacher(source), distill, student, *about)

    def _make_guide(self) -> Guide:
        encoder, where = self.student.encoder, "model.distill.kind=features"
        depth = len(tuple(encoder.layers()))
        if not depth or not encoder.is_grid_known:
            raise InputError(f"{where} guides the tokens of transformer layers, and {encoder.title()} tells of none: take soft or hard.")
        if self.distill.cache is not None:
            raise InputError(f"model.distill.cache={self.distill.cache} keeps logits, and {where} learns maps: leave the cache out.")
        layers = range(depth) if self.distill.layers is None else self.distill.layers
        if not layers or not all(0 <= number < depth for number in layers) or len(set(layers)) < len(layers):
            raise InputError(f"model.distill.layers={self.distill.layers} should be some of the layers 0 to {depth - 1} of {encoder.title()}.")
        return Guide(self.student, sorted(layers), Map(*self.teacher.choose_map(encoder.grid_size)))

    def begin(self, trainer: L.Trainer, device: torch.device) -> None:
        """Puts the teacher where the student is, in its precision.

        Raises:
            InputError: The run asks for what the two can't do.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.guide is not None and getattr(data, "first_sizes", None):
            raise InputError("model.distill.kind=features compares grids of one size: leave data.image_size_schedule out.")
        self.teacher.to(device)
        if (dtype := next(self.student.parameters()).dtype) != next(self.teacher.network.parameters()).dtype:
            self.teacher.network.to(dtype)  # trainer.precision bf16-true turns the weights
        self._weight = self._weight.to(device)
        self._order = None if self._order is None else self._order.to(device)
        if self.distill.cache is not None:
            if not hasattr(data, "fingerprint"):
                raise InputError("model.distill.cache needs ImageDataModule, which tells what a batch is made of: leave it out.")
            self._cache = TeacherCache(self.distill.cache, lambda: self._about(trainer, data, device), device)

    def _about(self, trainer: L.Trainer, data: Any, device: torch.device) -> dict[str, Any]:
        """Returns all that the teacher's logits follow from, in plain values."""
        _, chosen = data.splits["train"]
        sizes = [[list(size), share] for size, share in data.first_sizes]
        return {
            "teacher": self.teacher.digest, "classes": self.student.num_classes, "order": None if self._order is None else self._order.tolist(),
            "images": data.fingerprint.digest, "chosen": TeacherCache.digest(chosen.tobytes()), "seed": data.seed,
            "augment": asdict(data.augment), "road": data.state_dict()["road"], "sampler": data.sampler, "batch_size": data.batch_size,
            "image_size": list(data.image_size), "first_sizes": [sizes, trainer.estimated_stepping_batches] if sizes else [],
            "in_chans": data.in_chans, "mean": data.mean, "std": data.std, "crop_pct": data.crop_pct,
            **({} if data.fitting.mode == "crop" else {"fit": data.fitting.mode}),
            **({} if data.value_range is None else {"value_range": list(data.value_range)}),
            "rank": trainer.global_rank, "world_size": trainer.world_size, "precision": str(trainer.precision), "device": device.type,
            "cct_lightning": cct_lightning.__version__, "torch": str(torch.__version__),
        }  # fmt: skip

    def look(self, images: Tensor, batch: Sequence[Any], done: float) -> Tensor:
        """Returns what the student is told of a batch, as rows (B, M): the teacher's logits, rounded to 11 bits (float16), or its map.

        Nothing waits for the device; with a cache, logits that are in it are not computed.

        Args:
            images: As the student sees them, augmented, mixed and normalised.
            batch: What they are of.
            done: Share of the run's steps that are taken.
        """
        if self.guide is not None:
            self._weight.fill_(self.distill.weight * max(1 - done, 0))
            return self.teacher.maps(self.teacher.prepare(images)).float().flatten(1)
        if self._cache is None:
            return self._logits(images).float()
        return self._cache.get(batch.epoch, batch.number, lambda: self._logits(images)).float()  # type: ignore[attr-defined]

    def _logits(self, images: Tensor) -> Tensor:
        logits = self.teacher.logits(self.teacher.prepare(images))
        logits = logits if self._order is None else logits[:, self._order]
        largest = torch.finfo(torch.float16).max
        return logits.clamp(-largest, largest).half()

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the student's layers whose patches ``loss`` wants to see."""
        return () if self.guide is None else self.guide.layers

    def loss(self, answer: Any, labels: Tensor, theirs: Tensor, label_smoothing: float, weights: Tensor | None) -> Tensor:
        """Computes the loss of labels and teacher, ().

        Args:
            answer: What the student makes of the images: logits (B, K), and with ``layers`` their patches.
            labels: Probabilities (B, K).
            theirs: What ``look`` returned.
            label_smoothing: Of the labels.
            weights: Of the classes, (K,).
        """
        logits, patches = answer if self.guide is not None else (answer, [])
        of_labels, distill = cross_entropy(logits, labels, label_smoothing, weights), self.distill
        if self.guide is not None:
            error: Tensor = self.guide(patches, theirs.view(-1, *self.guide.theirs))
            return of_labels + self._weight * error
        of_teacher = hard_loss(logits, theirs) if distill.kind == "hard" else soft_loss(logits, theirs, distill.temperature)
        return (1 - distill.share) * of_labels + distill.share * of_teacher

    def end_epoch(self) -> None:
        """Writes what was computed into the cache."""
        if self._cache is not None:
            self._cache.write()

    def end(self) -> None:
        """Lets go of what a training needs."""
        if self._cache is not None:
            self._cache.write()
            rank_zero_info(f"the teacher's logits: {self._cache}")
            self._cache = None


def check_same_teacher(had: Mapping[str, Any] | None, teaching: Teaching | None) -> None:
    """Refuses to go on with another teacher, with one where there was none, and without the one that there was.

    Args:
        had: What the checkpoint keeps of it.
        teaching: Of the run that goes on.

    Raises:
        InputError: It is another one.
    """
    now = None if teaching is None else teaching.about
    if (now or {}).get("sha256") == (had or {}).get("sha256"):
        return
    if had is None or now is None:
        told = f"learned from {had['source']}" if had is not None else "learned from no teacher"
        raise InputError(f"the run {told}, and would go on {'without a teacher' if now is None else 'with one'}: leave model.teacher as it was.")
    raise InputError(
        f"model.teacher={now['source']} is not what the run learned from: its sha256 is {now['sha256'][:12]}..., that of {had['source']} was "
        f"{had['sha256'][:12]}...\n  Put the file back, or say where it lies now: --model.teacher SOURCE."
    )


def soft_loss(logits: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Computes the divergence of a student's probabilities from a teacher's, mean over the batch, (): KL(teacher, student) at the temperature, times
    its square, which keeps the gradients' scale.

    "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), in the form of DeiT's equation 2 (arXiv 2012.12877).

    Args:
        logits: The student's, (B, K).
        theirs: The teacher's, (B, K).
        temperature: What both are divided by.
    """
    ours, wanted = (F.log_softmax(one.float() / temperature, dim=1) for one in (logits, theirs))
    return F.kl_div(ours, wanted, reduction="batchmean", log_target=True) * temperature**2


def hard_loss(logits: Tensor, theirs: Tensor) -> Tensor:
    """Computes the cross-entropy of the class that the teacher decides for, mean over the batch, (): DeiT's equation 3 (arXiv 2012.12877), on the one
    head that there is instead of a distillation token's.

    Args:
        logits: The student's, (B, K).
        theirs: The teacher's, (B, K).
    """
    return F.cross_entropy(logits, theirs.argmax(dim=1))
