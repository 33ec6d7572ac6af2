"""What a network looks at: how much each patch counts in a decision, how attention flows through the layers, which positions are alike.

Shapes as in encoder.py; T = P + N tokens.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.attention import SelfAttention
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import Encoder, Tokens
from cct_lightning.networks.poolings import ClassTokenPooling, MapPooling, MeanPooling

if TYPE_CHECKING:
    from timm.layers import Attention as TimmAttention

    Attention = SelfAttention | TimmAttention


class Look(NamedTuple):
    """What a network made of images.

    Attributes:
        logits: (B, K).
        weights: (B, N), how much each patch counts: not negative, each row's sum 1. With ``is_signed`` contributions to the logit of the
            predicted class instead.
        is_signed: Whether weights are contributions.
        heads: (B, heads, N), the weights of each head, for the pooling with heads; else None.
        rollout: (B, N), the weights followed back through the layers to the patches that the encoder began with, each row's sum 1, or None.
    """

    logits: Tensor
    weights: Tensor
    is_signed: bool
    heads: Tensor | None = None
    rollout: Tensor | None = None

    def cpu(self) -> "Look":
        """Returns it on the host."""
        heads, rollout = (None if values is None else values.cpu() for values in (self.heads, self.rollout))
        return Look(self.logits.cpu(), self.weights.cpu(), self.is_signed, heads, rollout)


@torch.no_grad()
def look(model: ImageClassifier, images: Tensor, rollout: bool = False) -> Look:
    """Looks inside a network in eval mode. The network stays as it was: hooks are there while the encoder runs, and what is compiled is left aside.

    The weights are, for pooling class_token and masked_class_token, the class token's attention to the patches in the last layer, mean over
    the heads; for mean, each patch's share in the logit of the predicted class; for all others, ``Pooling.weights`` of the patches.

    Args:
        model: The network.
        images: Float normalised, (B, C, H, W).
        rollout: Follow the weights through the layers, too.

    Raises:
        InputError: The weights, or the roll-out, need attention that can't be computed again, see ``attention_layers``.
    """
    encoder, pooling = model.encoder, model.pooling
    P = encoder.num_prefix_tokens
    read_only = P if encoder.class_token == "read_only" else 0
    needed = attention_layers(encoder) if rollout or isinstance(pooling, ClassTokenPooling) else []
    with inputs_of(needed if rollout else needed[-1:]) as inputs:
        tokens = encoder(images)
    logits = model.head(pooling(tokens))
    heads, is_signed = None, False
    read = pooling.weights(tokens).float()  # (B, T), where the roll-out begins
    if isinstance(pooling, ClassTokenPooling):
        weights = attention(needed[-1], inputs[needed[-1]], read_only, queries=1).float().mean(dim=1)[:, 0, P:]
    elif isinstance(pooling, MeanPooling):
        weights, is_signed = contributions(model, tokens), True
    else:
        weights = read[:, P:]
        if isinstance(pooling, MapPooling):
            heads = probe_attention(pooling, tokens.patches).float()
    flow = None
    if rollout:
        layers = (mean_attention(layer, inputs[layer], read_only) for layer in reversed(needed))
        flow = _shares(follow(read, layers)[:, P:])
    return Look(logits.float(), weights if is_signed else _shares(weights), is_signed, heads, flow)


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)


def _is_attention(module: nn.Module) -> "TypeGuard[Attention]":
    """Tells ours and timm's apart from all that compute attention otherwise; where nobody has imported timm, there is none of it."""
    timms = sys.modules.get("timm.layers")
    return type(module) is SelfAttention or (timms is not None and type(module) is timms.Attention)


def attention_layers(encoder: Encoder) -> "list[Attention]":
    """Returns the attention of each layer, first to last.

    Raises:
        InputError: A layer computes its attention otherwise than as softmax(query keyᵀ / sqrt(d)), as EVA's with rotary positions does, or the
            encoder does not tell its layers.
    """
    found: list[Attention] = []
    for layer in encoder.layers():
        known = [module for module in layer.modules() if _is_attention(module)]
        if len(known) != 1:
            name = next((type(module).__name__ for module in layer.modules() if "Attention" in type(module).__name__), type(layer).__name__)
            raise InputError(f"the attention of {encoder.title()} can't be shown: {name} computes it in a way of its own.")
        found += known
    if not found:
        raise InputError(f"the attention of {encoder.title()} can't be shown: it does not tell its layers.")
    return found


def check_grid(encoder: Encoder) -> None:
    """Refuses an encoder whose patches can't be laid out over the image.

    Raises:
        InputError: The network does not tell its grid; ``TimmEncoder`` then takes the patches for one row.
    """
    if not encoder.is_grid_known:
        raise InputError(f"{encoder.title()} does not tell the grid of its patches.")


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[Mapping[nn.Module, Tensor]]:
    """Keeps what each module is given while the context is open, by the module; the hooks that do so go with it, whatever happens."""
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[module] = given[0]

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def attention(layer: "Attention", x: Tensor, read_only_prefix: int = 0, queries: int | None = None) -> Tensor:
    """Computes the attention weights (B, heads, T, T) that a layer's fused kernel does not keep, without dropout.

    Args:
        layer: timm's, or ours with its read-only prefix.
        x: What the layer is given, (B, T, D).
        read_only_prefix: Tokens at the beginning that only they themselves read.
        queries: Compute the rows of so many first tokens alone, (B, heads, queries, T).
    """
    B, T, _ = x.shape
    query, key, _ = layer.qkv(x).reshape(B, T, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    query = query[:, :, :queries]
    if not isinstance(layer, SelfAttention):
        query, key = layer.q_norm(query), layer.k_norm(key)
    scores: Tensor = query * layer.scale @ key.transpose(-2, -1)
    scores[:, :, read_only_prefix:, :read_only_prefix] = -torch.inf
    return scores.softmax(dim=-1)


def mean_attention(layer: "Attention", x: Tensor, read_only_prefix: int = 0) -> Tensor:
    """Computes the mean of a layer's attention weights over its heads, (B, T, T); image by image, for all heads of all would take much memory."""
    return torch.cat([attention(layer, image, read_only_prefix).float().mean(dim=1) for image in x.split(1)])  # type: ignore[no-untyped-call]


def probe_attention(pooling: MapPooling, patches: Tensor) -> Tensor:
    """Computes how each head of the probe weighs the patches, (B, heads, N); ``MapPooling.weights`` is their mean."""
    B, N, D = patches.shape
    pool, heads = pooling.pool, pooling.num_heads
    query = pool.q(pool.latent).reshape(1, heads, 1, D // heads)
    key = pool.kv(patches)[..., :D].reshape(B, N, heads, D // heads).transpose(1, 2)
    scores: Tensor = query * (D // heads) ** -0.5 @ key.transpose(-2, -1)
    return scores.softmax(dim=-1)[:, :, 0]


def contributions(model: ImageClassifier, tokens: Tokens) -> Tensor:
    """Computes how much each patch adds to the logit of the predicted class, (B, N), where the pooling is the mean.

    It is the patch times the logit's gradient, over N. With a linear head the sum is the logit less its bias; with a hidden layer it is so to
    first order.
    """
    with torch.enable_grad():
        feature = model.pooling(tokens).detach().requires_grad_()
        predicted = model.head(feature).max(dim=1).values
        (gradient,) = torch.autograd.grad(predicted.sum(), feature)
    added: Tensor = tokens.patches.float() * gradient[:, None].float()
    return added.sum(dim=2) / tokens.patches.shape[1]


def follow(weights: Tensor, layers: Iterable[Tensor]) -> Tensor:
    """Follows weights (B, T) of the finished tokens back through the layers: attention roll-out.

    Each layer takes half of a token from the token itself and half from what it read: weights (A + I) / 2, the rows of which sum to 1.
    "Quantifying Attention Flow in Transformers" (arXiv 2005.00928, section 3). Norms and MLPs are left aside, and in a block with
    ``residual_norm`` the norm itself scales the residual stream: there it is an approximation.

    Args:
        weights: Of the tokens behind the last layer; a single one there gives its row of the roll-out.
        layers: Attention (B, T, T), mean over the heads, the last layer first.
    """
    for mean in layers:
        weights = (weights + (weights[:, None] @ mean)[:, 0]) / 2
    return weights


def entropy(weights: Tensor) -> Tensor:
    """Measures how evenly weights (B, N) are spread, (B,): 1 where all are equal, 0 where one patch has all. Entropy over log N."""
    total: Tensor = torch.special.entr(weights).sum(dim=1)
    return total / math.log(max(weights.shape[1], 2))


def top_share(weights: Tensor, share: float = 0.1) -> Tensor:
    """Sums the largest of the weights (B, N), as many as are nearest to the share, at least one: (B,), the share itself where all are equal."""
    return weights.topk(max(round(share * weights.shape[1]), 1), dim=1).values.sum(dim=1)


def position_similarity(encoder: Encoder) -> Tensor | None:
    """Compares the learned positions of the patches, (N, N): cosine similarity of their embeddings; the prefix tokens' are left out.

    "An Image is Worth 16x16 Words" (arXiv 2010.11929, figure 7).

    Returns:
        None where positions are not learned, one for each patch, or the grid is a line.
    """
    N = encoder.grid_size[0] * encoder.grid_size[1]
    table = encoder.learned_positions()
    if table is None or table.ndim != 3 or table.shape[1] not in (N, N + encoder.num_prefix_tokens) or min(encoder.grid_size) < 2:
        return None
    patches = nn.functional.normalize(table.detach()[0, -N:].float(), dim=1)
    return patches @ patches.T
