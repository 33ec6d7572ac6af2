"""Muon for matrices, AdamW for the rest, in one optimizer."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from cct_lightning.training.options import OptimConfig


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
        orthogonal = orthogonalise(torch.cat([cut for _, _, cut in alike]))
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


def orthogonalise(matrices: Tensor) -> Tensor:
    """Takes matrices (n, rows, columns) to orthogonal ones near them: singular values between 0.7 and 1.2, the same singular vectors.

    Five Newton-Schulz iterations x -> a x + b (x xᵀ) x + c (x xᵀ)² x in bfloat16, with the coefficients and the way to begin of
    kellerjordan.github.io/posts/muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x  # the products are then of the shorter side
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).contiguous()  # singular values up to 1
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


# Layers, poolings, inner convolutions, and the stages of timm's networks of convolutions.
INSIDE = r"\bblocks\.\d+\..*weight$|^pooling\..*weight$|\bconvs\.[1-9]\d*\.weight$|^encoder\.model\.(?:layer|stages\.|s)\d.*weight$"
PARTS = {"qkv": 3, "kv": 2}  # matrices in one


def muon_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Divides the trainable parameters: matrices of layers and poolings (queries, keys and values apart), inner convolutions, the rest."""
    groups: dict[str, dict[str, Any]] = {
        "decay": {},
        "no_decay": {"weight_decay": 0.0},
        **{name: {"muon": True, "parts": parts, "lr": config.muon_lr} for name, parts in PARTS.items()},
        "matrix": {"muon": True, "lr": config.muon_lr},
    }
    skip: set[str] = getattr(model, "no_weight_decay", set)()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = re.search(INSIDE, name) is not None
        if inside and parameter.ndim >= 2 and len(parameter) > 1:  # a single row, such as the score of sequence pooling, is a vector
            last = name.split(".")[-2]
            kind = last if last in PARTS and len(parameter) % PARTS[last] == 0 else "matrix"  # in some of timm's networks qkv holds two
        else:
            kind = "no_decay" if parameter.ndim < 2 or name.endswith(".bias") or name in skip else "decay"
        groups[kind].setdefault("params", []).append(parameter)
    return [group for group in groups.values() if "params" in group]
