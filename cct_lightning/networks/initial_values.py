"""The initial value of every parameter: a function of the seed and the tensor's name, and of the images where those are to be whitened."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cct_lightning.randomness import generator


def _fan_in_uniform(bias: Tensor, source: torch.Generator, fan_in: int) -> None:
    nn.init.uniform_(bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=source)


def _truncated_normal(parameter: Tensor, source: torch.Generator, std: float) -> None:
    """Draws what ``nn.init.trunc_normal_`` of torch 2.15 draws: a normal, and again where it is beyond 2. Other versions of torch draw otherwise."""
    parameter.normal_(0, std, generator=source)
    while (beyond := parameter.abs() > 2).any():
        parameter.copy_(torch.where(beyond, torch.empty_like(parameter).normal_(0, std, generator=source), parameter))


# Parameters that are no layer's weight or bias, by the last part of their name.
INITIAL: dict[str, Callable[[Tensor, torch.Generator], object]] = {
    "pos_embed": lambda p, source: _truncated_normal(p, source, 0.2),  # 0.2, not 0.02, in SHI-Labs' code
    "cls_pos_embed": lambda p, source: _truncated_normal(p, source, 0.2),
    "cls_token": lambda p, source: nn.init.zeros_(p),
    "mask_token": lambda p, source: _truncated_normal(p, source, 0.02),
    "queries": lambda p, source: _truncated_normal(p, source, 0.02),
    "latent": lambda p, source: _truncated_normal(p, source, p.shape[-1] ** -0.5),
    "gamma_1": lambda p, source: None,  # LayerScale: a constant, set by its constructor
    "gamma_2": lambda p, source: None,
}


def initialise(module: nn.Module, name: str, seed: int | None = None) -> None:
    """Draws the initial value of every parameter from (seed, its full name), in place.

    Two networks that share tensors start equal there, whatever else they hold and in whatever order they were built. Linear layers
    get a normal of std 0.02 and no bias, convolutions Kaiming's normal (fan in), as in SHI-Labs/Compact-Transformers.

    Args:
        module: Its parameters belong to linear, convolution or norm layers, or are named in ``INITIAL``.
        name: Where the module stands in the whole network, for example ``encoder``.
        seed: ``torch.initial_seed()``, which ``torch.manual_seed`` and ``seed_everything`` set, where it is None.

    Raises:
        TypeError: A parameter has no rule. Every tensor of ours has one, so that none is drawn from the global generator.
    """
    seed = torch.initial_seed() if seed is None else seed
    for path, layer in module.named_modules(prefix=name):
        for leaf, parameter in layer.named_parameters(recurse=False):
            if parameter.is_meta:
                continue  # only its shape is asked for
            source = generator(seed, "initial", f"{path}.{leaf}")
            with torch.no_grad():
                match layer:
                    case nn.Linear() if leaf == "weight":
                        _truncated_normal(parameter, source, 0.02)
                    case nn.Linear():
                        nn.init.zeros_(parameter)
                    case nn.Conv2d() if leaf == "weight":
                        nn.init.kaiming_normal_(parameter, generator=source)
                    case nn.Conv2d():
                        _fan_in_uniform(parameter, source, layer.weight[0].numel())
                    case nn.LayerNorm():
                        nn.init.ones_(parameter) if leaf == "weight" else nn.init.zeros_(parameter)
                    case _ if leaf in INITIAL:
                        INITIAL[leaf](parameter, source)
                    case _:
                        raise TypeError(f"{path}.{leaf} ({type(layer).__name__}) has no initial value: add {leaf!r} to initial_values.INITIAL.")


WHITENING_FLOOR = 0.01  # added to the variances, which are about 1 in all for normalised images: noise is not blown up
WHITENED_PIXELS = 2_000_000  # of images to look at
WHITENED_PATCHES = 300_000  # at least, where the images have so many


@torch.no_grad()
def whiten(convolution: nn.Conv2d, images: Tensor) -> None:
    """Has a first convolution begin with filters whose outputs are uncorrelated and of about equal variance on these images.

    They are the principal components of the images' patches, each over the root of its variance, the largest variances first, and the same
    with the opposite sign, since a ReLU follows. Filters beyond twice the number of components keep their values. As in "94% on CIFAR-10 in 3.29
    Seconds on a Single GPU" (arXiv 2404.00498).

    Args:
        convolution: Its weight (out, C, k, k) is changed in place.
        images: (B, C, H, W), float normalised.
    """
    weight = convolution.weight
    size = weight[0].numel()
    step = max(math.isqrt(images[:, 0].numel() // WHITENED_PATCHES), 1)
    patches = F.unfold(images.to("cpu", torch.float32), convolution.kernel_size, stride=step).transpose(1, 2).reshape(-1, size).double()
    variances, components = torch.linalg.eigh(patches.T.cov())
    filters = (components / (variances + WHITENING_FLOOR).sqrt()).T.flip(0)[: len(weight) // 2]
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    filters = (filters * largest.sign()).view(-1, *weight.shape[1:]).to(weight)  # eigenvectors have no sign of their own
    weight[: 2 * len(filters)] = torch.cat((filters, -filters))
