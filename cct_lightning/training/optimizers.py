"""Optimizers, parameter groups and learning-rate schedules. Weight decay skips norms and biases; schedules are pure functions of the step."""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from cct_lightning.errors import InputError
from cct_lightning.training.muon import Muon, muon_groups
from cct_lightning.training.optimizer_names import check_optimizer
from cct_lightning.training.optimizer_states import check_state
from cct_lightning.training.options import OptimConfig


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds the optimizer over the trainable parameters: our ``Muon``, or timm's of this name with layer-wise rates folded into each ``lr``.

    Adam and AdamW use torch's fused kernels. What is loaded into the optimizer is looked at by ``check_state``.

    Raises:
        InputError: timm has no optimizer of this name, it does not take the betas, nothing is trainable, or muon is asked for layer_decay or
            given weights that are sharded over devices.
    """
    import timm.optim  # takes three times as long as torch, and predictions need no optimizer

    check_optimizer(config.name, [str(name) for name in timm.optim.list_optimizers()])
    name = config.name.lower()
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
        muon = Muon(muon_groups(model, config), config.lr, config.momentum, weight_decay=config.weight_decay, **betas)
        muon.register_load_state_dict_pre_hook(check_state)
        return muon
    info = timm.optim.get_optimizer_info(name)
    if betas and not info.has_betas:
        raise InputError(f"optim.betas={config.betas} given to optim.name={config.name}, which has none: leave it out.")
    fused: dict[str, Any] = {"fused": True} if name in ("adam", "adamw") else {}  # sharded weights (FSDP2) have no other fused kernels
    optimizer = timm.optim.create_optimizer_v2(
        model, opt=name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, layer_decay=config.layer_decay, **betas, **fused
    )
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_scale", 1.0)  # timm's own schedulers read lr_scale, torch's don't
    optimizer.register_load_state_dict_pre_hook(check_state)
    # A fused optimizer would unscale fp16 gradients itself, so Lightning 2.6 refuses to clip them before; the scaler can do it as well.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
