"""Poolings turn tokens into one feature per image: queries that read the tokens, and differ in when and how they read.

To add one: a class here, and a line of ``POOLINGS``. Shapes as in encoder.py.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.attention import attend
from cct_lightning.networks.encoder import Tokens
from cct_lightning.networks.initial_values import initialise
from cct_lightning.networks.layers import Mlp
from cct_lightning.networks.options import ClassToken


class Pooling(nn.Module, ABC):
    """Turns ``Tokens`` into features (B, D).

    Args:
        embed_dim: D.
        num_heads: Heads of the encoder's attention, for poolings that attend.

    Attributes:
        class_token: What the pooling needs of the encoder. ``none`` reads the patches alone, so an encoder with a class token that
            takes part in every layer will do as well.
    """

    class_token: ClassVar[ClassToken] = "none"

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor: ...

    @abstractmethod
    def weights(self, tokens: Tokens) -> Tensor:
        """Returns how much each token counts in what is read, (B, P + N): prefix first, not negative, each row's sum 1."""


def _on_patches(weights: Tensor, tokens: Tokens) -> Tensor:
    """Puts zeros for the prefix tokens before weights (B, N) of the patches."""
    return torch.cat((weights.new_zeros(tokens.prefix.shape[:2]), weights), dim=1)


class ClassTokenPooling(Pooling):
    """Takes the class token, which read in every layer and was read by the patches: BERT's and ViT's way.

    "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1); ``token`` in timm.
    """

    class_token: ClassVar[ClassToken] = "full"

    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.prefix[:, 0]

    def weights(self, tokens: Tokens) -> Tensor:
        weights = tokens.patches.new_zeros(tokens.patches.shape[0], tokens.prefix.shape[1] + tokens.patches.shape[1])
        weights[:, 0] = 1
        return weights


class MaskedClassTokenPooling(ClassTokenPooling):
    """Takes a class token that read in every layer, but that no patch has ever seen: it collects and cannot serve as a scratch pad."""

    class_token: ClassVar[ClassToken] = "read_only"


class ClassAttentionPooling(Pooling):
    """Lets a learned token read the finished patches in two layers of its own: CaiT's class attention.

    "Going deeper with Image Transformers" (arXiv 2103.17239, section 2.2), with LayerScale 0.1 as there for networks of up to 18 layers.
    """

    def __init__(self, embed_dim: int, num_heads: int, depth: int = 2) -> None:
        super().__init__(embed_dim, num_heads)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.blocks = nn.ModuleList(ClassAttentionBlock(embed_dim, num_heads, layer_scale=0.1) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        initialise(self, "pooling")

    def forward(self, tokens: Tokens) -> Tensor:
        token = self.cls_token.expand(tokens.patches.shape[0], -1, -1)
        for block in self.blocks:
            token = block(tokens.patches, token)
        feature: Tensor = self.norm(token)[:, 0]
        return feature

    def weights(self, tokens: Tokens) -> Tensor:
        """Returns the last layer's attention, mean over the heads, without the share that the token gives to itself."""
        token = self.cls_token.expand(tokens.patches.shape[0], -1, -1)
        *before, last = self.blocks
        for block in before:
            token = block(tokens.patches, token)
        query, key, _ = last.attn.split(last.norm1(torch.cat((token, tokens.patches), dim=1)))  # type: ignore[operator,union-attr]
        row = _attention(query, key).mean(dim=1)[:, 0, 1:]  # (B, N)
        return _on_patches(row / row.sum(dim=1, keepdim=True), tokens)


class ClassAttention(nn.Module):
    """Attention of the first token alone to all of them, itself included, through ``attend``; has the tensors of timm's ``ClassAttn``.

    "Going deeper with Image Transformers" (arXiv 2103.17239, section 2.2), without biases but the projection's.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim, bias=False)
        self.k = nn.Linear(embed_dim, embed_dim, bias=False)
        self.v = nn.Linear(embed_dim, embed_dim, bias=False)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = (x.shape[0], -1, self.num_heads, x.shape[2] // self.num_heads)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in (self.q(x[:, :1]), self.k(x), self.v(x)))
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (B, T, D), the reading one first, to what it read, (B, 1, D)."""
        out: Tensor = self.proj(attend(*self.split(x)).transpose(1, 2).flatten(2))
        return out


class ClassAttentionBlock(nn.Module):
    """One layer of class attention: a token reads the patches, then passes an MLP, each times learned factors for each channel (LayerScale).

    "Going deeper with Image Transformers" (arXiv 2103.17239, sections 2.1 and 2.2); has the tensors of timm's ``LayerScaleBlockClassAttn``.

    Args:
        embed_dim: D.
        num_heads: Heads of the attention.
        layer_scale: Initial value of the factors.
    """

    def __init__(self, embed_dim: int, num_heads: int, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = ClassAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, 4 * embed_dim)
        self.gamma_1 = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((embed_dim,), layer_scale))

    def forward(self, patches: Tensor, token: Tensor) -> Tensor:
        """Maps patches (B, N, D) and the token (B, 1, D) to the next token (B, 1, D)."""
        token = token + self.gamma_1 * self.attn(self.norm1(torch.cat((token, patches), dim=1)))
        out: Tensor = token + self.gamma_2 * self.mlp(self.norm2(token))
        return out


class Probe(nn.Module):
    """A learned query that attends to the patches once, with heads, and passes an MLP; has the tensors of timm's ``AttentionPoolLatent``."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, 4 * embed_dim)

    def split(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = patches.shape
        query = self.q(self.latent.expand(B, -1, -1)).reshape(B, 1, self.num_heads, -1).transpose(1, 2)
        key, value = self.kv(patches).reshape(B, N, 2, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def forward(self, patches: Tensor) -> Tensor:
        """Maps patches (B, N, D) to a feature (B, D)."""
        feature = self.proj(attend(*self.split(patches)).transpose(1, 2).flatten(2))  # (B, 1, D)
        out: Tensor = (feature + self.mlp(self.norm(feature)))[:, 0]
        return out


class MapPooling(Pooling):
    """Lets a learned probe attend to the patches once, with heads, followed by an MLP: multihead attention pooling.

    "Scaling Vision Transformers" (arXiv 2106.04560, section 3.2) and SigLIP; timm's ``AttentionPoolLatent``.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__(embed_dim, num_heads)
        self.pool = Probe(embed_dim, num_heads)
        initialise(self, "pooling")

    def forward(self, tokens: Tokens) -> Tensor:
        feature: Tensor = self.pool(tokens.patches)
        return feature

    def weights(self, tokens: Tokens) -> Tensor:
        """Returns the probe's attention, mean over the heads."""
        query, key, _ = self.pool.split(tokens.patches)
        return _on_patches(_attention(query, key).mean(dim=1)[:, 0], tokens)


def _attention(query: Tensor, key: Tensor) -> Tensor:
    """Returns attention weights (B, heads, queries, tokens), which ``attend`` does not keep."""
    scores: Tensor = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    return scores.softmax(dim=-1)


class SeqPool(Pooling):
    """Averages the patches with weights from one linear score: attention of one head, one query, and no projections.

    Sequence pooling of "Escaping the Big Data Paradigm with Compact Transformers" (arXiv 2104.05704, section 3.2);
    ``attention_pool`` in SHI-Labs' code, with a bias there that the softmax cancels. It is kept so that weights load. Attention-based pooling of
    multiple-instance learning (AbMILP) with a linear score is the same thing.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__(embed_dim, num_heads)
        self.score = nn.Linear(embed_dim, 1)
        initialise(self, "pooling")

    def forward(self, tokens: Tokens) -> Tensor:
        weights: Tensor = self.score(tokens.patches).softmax(dim=1)  # (B, N, 1)
        return (weights * tokens.patches).sum(dim=1)

    def weights(self, tokens: Tokens) -> Tensor:
        return _on_patches(self.score(tokens.patches)[..., 0].softmax(dim=1), tokens)


class MeanPooling(Pooling):
    """Averages the patches, never the prefix tokens; ``avg`` in timm."""

    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.patches.mean(dim=1)

    def weights(self, tokens: Tokens) -> Tensor:
        B, N, _ = tokens.patches.shape
        return _on_patches(tokens.patches.new_full((B, N), 1 / N), tokens)


class ClassTokenMeanPooling(MeanPooling):
    """Averages the patches of an encoder whose class token takes part in every layer, and is not read: a scratch pad alone.

    ``avg`` of timm's networks that keep their class token, such as its ``vit_base_patch16_224`` trained with global average pooling.
    """

    class_token: ClassVar[ClassToken] = "full"


class MultiQueryPooling(Pooling):
    """Lets several learned queries read the patches, each its own part of the channels; neither queries nor keys are projected.

    Efficient probing of "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency" (arXiv 2506.10178), ``EfficientProbing`` in
    billpsomas/efficient-probing: 32 queries, one linear map for the values, whose channels they share out. With one query and no map of the values it
    is sequence pooling, but for the scale of the scores.

    Args:
        embed_dim: D.
        num_heads: Not used.
        num_queries: How many, each for D / num_queries channels; None: as many of 32 as divide D evenly.

    Raises:
        InputError: They don't divide D.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_queries: int | None = None) -> None:
        super().__init__(embed_dim, num_heads)
        self.num_queries = math.gcd(32, embed_dim) if num_queries is None else num_queries
        if embed_dim % self.num_queries:
            low = next(count for count in range(self.num_queries, 0, -1) if embed_dim % count == 0)
            raise InputError(f"num_queries={num_queries} does not divide embed_dim={embed_dim}, of which each reads an equal part: take {low}.")
        self.queries = nn.Parameter(torch.zeros(1, self.num_queries, embed_dim))
        self.v = nn.Linear(embed_dim, embed_dim, bias=False)
        initialise(self, "pooling")

    def _scores(self, patches: Tensor) -> Tensor:
        scores: Tensor = (self.queries * self.embed_dim**-0.5 @ patches.transpose(1, 2)).softmax(dim=2)
        return scores  # (B, queries, N)

    def forward(self, tokens: Tokens) -> Tensor:
        B, N, D = tokens.patches.shape
        values = self.v(tokens.patches).view(B, N, self.num_queries, D // self.num_queries)
        scores = self._scores(tokens.patches).to(values.dtype)  # autocast has the softmax in float32
        return torch.einsum("bqn,bnqd->bqd", scores, values).reshape(B, D)

    def weights(self, tokens: Tokens) -> Tensor:
        """Returns the queries' attention, mean over all of them."""
        return _on_patches(self._scores(tokens.patches).mean(dim=1), tokens)


POOLINGS: dict[str, type[Pooling]] = {
    "class_token": ClassTokenPooling,
    "masked_class_token": MaskedClassTokenPooling,
    "class_attention": ClassAttentionPooling,
    "map": MapPooling,
    "seqpool": SeqPool,
    "mean": MeanPooling,
    "class_token_mean": ClassTokenMeanPooling,
    "multi_query": MultiQueryPooling,
}
