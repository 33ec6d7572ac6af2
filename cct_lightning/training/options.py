"""How a network is trained, in plain values: importing this needs no torch."""

from dataclasses import dataclass
from typing import Literal

from cct_lightning.errors import check_range


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer.

    Args:
        name: Any optimizer of timm's, by its name there: adamw, sgd, lamb, lion, ...; muon is our own, see muon_lr.
        lr: Highest learning rate.
        muon_lr: Highest learning rate of the matrices in transformer layers and poolings, and of all convolutions but the first, where name is
            muon; lr is that of AdamW for all the rest.
        momentum: Of muon, sgd and others that have one.
        betas: Decay rates of the averages of AdamW and its kin; null: the optimizer's own, 0.9 and 0.999 for AdamW.
        weight_decay: Weight decay of matrices and convolutions; norms and biases never decay.
        layer_decay: Factor on the learning rate from each layer to the one below; null: the same everywhere.
        clip_norm: Largest norm of the gradient; null: not clipped.
    """

    name: str = "adamw"
    lr: float = 5.5e-4
    muon_lr: float = 0.02
    momentum: float = 0.9
    betas: tuple[float, float] | None = None
    weight_decay: float = 0.06
    layer_decay: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_range("optim.lr", self.lr, 0, exclusive="low")
        check_range("optim.muon_lr", self.muon_lr, 0, exclusive="low")
        check_range("optim.momentum", self.momentum, 0, 1, exclusive="high")
        for beta in self.betas or ():
            check_range("optim.betas", beta, 0, 1, exclusive="high")
        check_range("optim.weight_decay", self.weight_decay, 0)
        check_range("optim.layer_decay", 1 if self.layer_decay is None else self.layer_decay, 0, 1, exclusive="low")
        check_range("optim.clip_norm", 1 if self.clip_norm is None else self.clip_norm, 0, exclusive="low")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run: a linear warm-up, a decay, a cool-down at the end.

    Args:
        name: Form of the decay: cosine, linear or constant.
        per: step sets the rate anew for every step, epoch once an epoch, as timm and the published recipes do.
        warmup_epochs: Length of the warm-up.
        warmup_lr: Rate at its start.
        min_lr: Rate at the end of the decay and through the cool-down.
        cooldown_epochs: Last epochs of the run, at min_lr.
    """

    name: Literal["cosine", "linear", "constant"] = "cosine"
    per: Literal["step", "epoch"] = "step"
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
            check_range(f"schedule.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class LossConfig:
    """The loss.

    Args:
        class_weights: balanced weighs every image by n / (K * images of its class), so that all classes count the same.
    """

    class_weights: Literal["none", "balanced"] = "none"


@dataclass(frozen=True)
class LabelsLossConfig:
    """The loss of several labels.

    Args:
        name: binary is binary cross-entropy, asymmetric the same with less weight for what is easy, above all for labels that are not there (task
            multilabel); mse the squared error, smooth_l1 the error, squared where it is small (task regression).
        class_weights: balanced weighs each label where it is there by the images without it over those with it, so that both count the same.
        gamma_neg: By how much an absent label counts less the surer it is told, of the asymmetric loss.
        gamma_pos: The same of a label that is there.
        clip: Probability up to which an absent label costs nothing, of the asymmetric loss.
    """

    name: Literal["binary", "asymmetric"] = "binary"
    class_weights: Literal["none", "balanced"] = "none"
    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        check_range("loss.gamma_neg", self.gamma_neg, 0)
        check_range("loss.gamma_pos", self.gamma_pos, 0)
        check_range("loss.clip", self.clip, 0, 1, exclusive="high")


@dataclass(frozen=True)
class NumbersLossConfig:
    """The loss of numbers, each less its mean over the training images and over their deviation.

    Args:
        name: mse is the squared error, smooth_l1 the error, squared where it is small.
        beta: Error, in deviations, from which on smooth_l1 is no longer squared.
    """

    name: Literal["mse", "smooth_l1"] = "mse"
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_range("loss.beta", self.beta, 0, exclusive="low")


@dataclass(frozen=True)
class DistillConfig:
    """What is learned of ``model.teacher``.

    Args:
        kind: soft: its probabilities; hard: the class that it takes an image for; features: its map of the image, by the tokens of the layers.
        share: Share of the loss that is the teacher's with soft and hard; the labels' is the rest.
        temperature: What the logits of both are divided by with soft: higher ones tell more of the classes that it thinks unlikely.
        weight: Factor of the teacher's part of the loss with features, at the start; it falls linearly to 0 at the end of the run.
        layers: Numbers, from 0, of the transformer layers that learn its map with features; null: all.
        cache: Folder in which the teacher's logits are kept: a later run with the same teacher, images, seed and augmentation reads them instead of
            computing them. An epoch takes 2 bytes for each image and class.
    """

    kind: Literal["soft", "hard", "features"] = "soft"
    share: float = 0.5
    temperature: float = 3.0
    weight: float = 1.0
    layers: list[int] | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        check_range("distill.share", self.share, 0, 1, exclusive="low")
        check_range("distill.temperature", self.temperature, 0, exclusive="low")
        check_range("distill.weight", self.weight, 0, exclusive="low")


Engine = Literal["auto", "eager", "compile", "graph"]
Whiten = Literal["none", "start", "frozen"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What the training of every network is told, whatever it learns.

    Args:
        class_names: Names of the classes, in the order of the logits; come from the data.
        mean: Mean of each channel, 0..1, for uint8 images; comes from the data.
        std: Standard deviation of each channel, 0..1; comes from the data.
        optim: The optimizer.
        schedule: The learning rate over the run.
        engine: How a step runs: eager; compile (torch.compile); graph, compiled and replayed as one CUDA graph of forward, backward and
            optimizer; auto: compile on a GPU in runs of 5,000 steps and more, else eager.
        whiten: start begins the first convolution of a CCT with filters that whiten patches of the training images; frozen keeps them, which saves
            its part of the backward pass; none: random values.
    """

    class_names: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: Engine = "auto"
    whiten: Whiten = "none"
