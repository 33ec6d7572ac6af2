"""Optimizers, parameter groups and learning-rate schedules. Weight decay skips norms and biases; schedules are pure functions of the step."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import timm.optim
import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from cct_lightning.errors import InputError, check_range, did_you_mean


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer.

    Args:
        name: Any optimizer of timm's, by its name there: adamw, sgd, lamb, lion, ...; muon is our own, see muon_lr.
        lr: Highest learning rate.
        muon_lr: Highest learning rate of the matrices inside the transformer layers, and of all convolutions but the first, where name is muon;
            lr is that of AdamW for all the rest.
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


def learning_rate(at: float, total: float, lr: float, config: ScheduleConfig, unit: float = 1.0) -> float:
    """Returns the learning rate ``at`` steps (or epochs) from the start.

    The cosine runs over the whole run less the cool-down and is not shifted by the warm-up, as timm's ``CosineLRScheduler`` and with it
    the published recipes; the linear decay begins at the end of the warm-up.

    Args:
        at: Steps or epochs since the start.
        total: Length of the run in the same unit.
        lr: Highest rate.
        config: Form and lengths.
        unit: Steps (or epochs) in an epoch, by which the lengths of the configuration are multiplied.
    """
    warmup, decay_end = config.warmup_epochs * unit, total - config.cooldown_epochs * unit
    if at < warmup:
        return config.warmup_lr + at * (lr - config.warmup_lr) / warmup
    if at >= decay_end:
        return config.min_lr
    match config.name:
        case "cosine":
            return config.min_lr + 0.5 * (lr - config.min_lr) * (1 + math.cos(math.pi * at / decay_end))
        case "linear":
            return lr + (config.min_lr - lr) * (at - warmup) / (decay_end - warmup)
        case "constant":
            return lr


def fit_schedule(config: ScheduleConfig, epochs: float) -> tuple[ScheduleConfig, str | None]:
    """Shortens warm-up and cool-down for a run that has no room for them; returns a sentence that says so, or None."""
    if config.warmup_epochs + config.cooldown_epochs < epochs:
        return config, None
    short = ScheduleConfig(config.name, config.per, epochs / 10, config.warmup_lr, config.min_lr, 0.0)
    cooldown = f" and cooldown_epochs={config.cooldown_epochs:g}" if config.cooldown_epochs else ""
    told = f"the run of {epochs:g} epochs has no room for warmup_epochs={config.warmup_epochs:g}{cooldown}: warming up for a tenth of it"
    told += ", no cool-down" if cooldown else ""
    return short, told


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices, AdamW for everything else, in one optimizer.

    The momentum of a matrix is replaced by the nearest orthogonal matrix, found to a few percent by five Newton-Schulz iterations in
    bfloat16: "Muon: An optimizer for hidden layers in neural networks" (Keller Jordan, kellerjordan.github.io/posts/muon). Matrices of equal
    shape are iterated together, so a step takes a few products however deep the network is; timm's ``Muon`` takes one matrix at a time.

    Args:
        params: Groups; in those with ``muon: True`` a parameter of shape (rows, ...) is ``parts`` matrices of (rows / parts, columns).
        lr: Learning rate of groups that name none. A Muon group's update has spectral norm lr * sqrt(max(1, rows / columns)).
        momentum: Of Muon, with Nesterov's form.
        betas: Decay rates of AdamW's averages.
        weight_decay: Decoupled, for both.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "muon": False, "parts": 1}
        super().__init__(params, {**defaults, "fused": True})  # fused: load_state_dict then puts the step counters on the device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices: dict[tuple[int, ...], list[tuple[Tensor, dict[str, Any], Tensor]]] = {}
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not group["muon"]:
                self._step_adamw(parameters, group)
                continue
            grads = [p.grad for p in parameters if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            for p, update in zip(parameters, torch._foreach_lerp(grads, buffers, group["momentum"]), strict=True):
                cut = update.reshape(group["parts"], p.shape[0] // group["parts"], -1)
                matrices.setdefault((*cut.shape[1:], p.device.index or 0), []).append((p, group, cut))
        for alike in matrices.values():
            self._step_muon(alike)
        return loss

    @staticmethod
    def _step_muon(alike: list[tuple[Tensor, dict[str, Any], Tensor]]) -> None:
        orthogonal = zeropower_via_newtonschulz(torch.cat([cut for _, _, cut in alike]), 5, [(3.4445, -4.7750, 2.0315)])
        start = 0
        for p, group, cut in alike:
            update = orthogonal[start : start + len(cut)].reshape(p.shape).to(p.dtype)
            start += len(cut)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(update * (group["lr"] * math.sqrt(max(1, cut.shape[1] / cut.shape[2]))))  # lr may be a tensor: a recorded step reads it anew

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        states = [self.state[p] for p in parameters]
        averages, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        grads = [p.grad for p in parameters if p.grad is not None]
        beta1, beta2 = group["betas"]
        adamw(
            parameters, grads, averages, squares, [], steps, fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=1e-8, maximize=False, capturable=group.get("capturable", False),
        )  # fmt: skip


def _muon_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Divides the trainable parameters: matrices of the layers (queries, keys and values apart), inner convolutions, the rest."""
    groups: dict[str, dict[str, Any]] = {
        "decay": {},  # first: what is logged as the learning rate is the first group's
        "no_decay": {"weight_decay": 0.0},
        "qkv": {"muon": True, "parts": 3, "lr": config.muon_lr},
        "matrix": {"muon": True, "lr": config.muon_lr},
    }
    skip: set[str] = getattr(model, "no_weight_decay", set)()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = re.search(r"\bblocks\.\d+\..*weight$|\bconvs\.[1-9]\d*\.weight$", name) is not None
        if inside and parameter.ndim >= 2:
            kind = "qkv" if name.endswith("qkv.weight") else "matrix"
        else:
            kind = "no_decay" if parameter.ndim < 2 or name.endswith(".bias") or name in skip else "decay"
        groups[kind].setdefault("params", []).append(parameter)
    return [group for group in groups.values() if "params" in group]


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds the optimizer over the trainable parameters: our ``Muon``, or timm's of this name with layer-wise rates folded into each ``lr``.

    Adam and AdamW use torch's fused kernels.

    Raises:
        InputError: timm has no optimizer of this name, it does not take the betas, nothing is trainable, or muon is asked for layer_decay or
            given weights that are sharded over devices.
    """
    names = [str(name) for name in timm.optim.list_optimizers()]
    name = config.name.lower()
    if name not in names:
        raise InputError(f"optim.name={config.name!r} is no optimizer of timm {timm.__version__}.{did_you_mean(config.name, names)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("No parameter is trainable: freeze=backbone leaves the pooling and the head, and this network has neither.")
    betas: dict[str, Any] = {} if config.betas is None else {"betas": config.betas}
    if name == "muon":
        if config.layer_decay is not None:
            raise InputError(f"optim.layer_decay={config.layer_decay} can't be had with optim.name=muon: use adamw, or leave layer_decay out.")
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise InputError(
                "optim.name=muon takes whole matrices, and the weights are sharded over devices: use adamw, or leave out the overlay fsdp."
            )
        return Muon(_muon_groups(model, config), config.lr, config.momentum, weight_decay=config.weight_decay, **betas)
    info = timm.optim.get_optimizer_info(name)
    if betas and not info.has_betas:
        raise InputError(f"optim.betas={config.betas} given to optim.name={config.name}, which has none: leave it out.")
    fused: dict[str, Any] = {"fused": True} if name in ("adam", "adamw") else {}  # sharded weights (FSDP2) have no other fused kernels
    optimizer = timm.optim.create_optimizer_v2(
        model, opt=name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, layer_decay=config.layer_decay, **betas, **fused
    )
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_scale", 1.0)  # timm's own schedulers read lr_scale, torch's don't
    # A fused optimizer would unscale fp16 gradients itself, so Lightning 2.6 refuses to clip them before; the scaler can do it as well.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def create_scheduler(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, lr: float, epochs: float, steps_per_epoch: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Builds the schedule, to be stepped once a step or once an epoch as ``config.per`` says; each group's rate keeps its share of ``lr``."""
    unit = steps_per_epoch if config.per == "step" else 1.0
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: learning_rate(at, epochs * unit, lr, config, unit) / lr)
