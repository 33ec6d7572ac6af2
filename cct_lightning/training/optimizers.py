"""Optimizers, parameter groups and learning-rate schedules. Weight decay skips norms and biases; schedules are pure functions of the step."""

from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from cct_lightning.errors import InputError
from cct_lightning.training.hardware import is_sharded
from cct_lightning.training.muon import Muon, muon_groups
from cct_lightning.training.optimizer_names import check_optimizer
from cct_lightning.training.optimizer_states import check_state
from cct_lightning.training.options import OptimConfig

ADAMS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
OWN = {"muon", *ADAMS}  # made without timm


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divides the trainable parameters in the order of timm's ``param_groups_weight_decay``: those that never decay, then the others."""
    skip: set[str] = getattr(model, "no_weight_decay", set)()
    still: list[nn.Parameter] = []
    decaying: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            never = not weight_decay or parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in skip)
            (still if never else decaying).append(parameter)
    groups = [{"params": still, "weight_decay": 0.0}, {"params": decaying, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]


def shown_rate(optimizer: torch.optim.Optimizer) -> float:
    """Returns the rate that is told of an optimizer: that of the part which ``optim.lr`` is for, not of a lower layer or of Muon's matrices."""
    return max((float(group["lr"]) for group in optimizer.param_groups if not group.get("muon")), default=float(optimizer.param_groups[0]["lr"]))


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds the optimizer over the trainable parameters: our ``Muon``, or timm's of this name with layer-wise rates folded into each ``lr``.

    Adam and AdamW use torch's fused kernels, and are what timm would make, without its import. What is loaded into the optimizer is looked at by
    ``check_state``.

    Raises:
        InputError: timm has no optimizer of this name, it does not take the betas, nothing is trainable, or muon is asked for layer_decay or
            given weights that are sharded over devices.
    """
    name = config.name.lower()
    if name not in OWN:
        import timm.optim  # takes as long as torch: as do wandb and torchvision, which it imports

        check_optimizer(config.name, [str(known) for known in timm.optim.list_optimizers()])
        if name == "adahessian":
            raise InputError("optim.name=adahessian needs gradients of gradients, which a training here does not compute: take another one.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("No parameter is trainable: freeze=backbone leaves the pooling and the head, and this network has neither.")
    given: dict[str, Any] = {} if config.betas is None else {"betas": config.betas}
    if name == "muon":
        if config.layer_decay is not None:
            raise InputError(f"optim.layer_decay={config.layer_decay} can't be had with optim.name=muon: use adamw, or leave layer_decay out.")
        if any(is_sharded(parameter) for parameter in model.parameters()):
            raise InputError(
                "optim.name=muon takes whole matrices, and the weights are sharded over devices: use adamw, or leave out the overlay fsdp."
            )
        muon = Muon(muon_groups(model, config), config.lr, config.momentum, weight_decay=config.weight_decay, **given)
        muon.register_load_state_dict_pre_hook(check_state)
        return muon
    if (kind := ADAMS.get(name)) is not None:
        given["fused"] = True  # sharded weights (FSDP2) have no other fused kernels
    optimizer: torch.optim.Optimizer
    if kind is not None and config.layer_decay is None:
        optimizer = kind(decay_groups(model, config.weight_decay), lr=config.lr, weight_decay=0.0, **given)
    else:
        import timm.optim

        if given and not timm.optim.get_optimizer_info(name).has_betas:
            raise InputError(f"optim.betas={config.betas} given to optim.name={config.name}, which has none: leave it out.")
        try:
            optimizer = timm.optim.create_optimizer_v2(
                model, opt=name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, layer_decay=config.layer_decay, **given
            )
        except (AssertionError, ImportError) as error:
            raise InputError(f"optim.name={config.name} can't be had here: {error or 'it needs a GPU or a package that is not there'}.") from None
        except ValueError as error:
            way = " optim.name=momentum is sgd without it." if name in ("sgd", "nesterov") else ""
            raise InputError(f"optim.name={config.name} can't be had with momentum={config.momentum:g}, lr={config.lr:g}: {error}.{way}") from None
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_scale", 1.0)  # timm's own schedulers read lr_scale, torch's don't
    optimizer.register_load_state_dict_pre_hook(check_state)
    # A fused optimizer would unscale fp16 gradients itself, so Lightning 2.6 refuses to clip them before; the scaler can do it as well.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
