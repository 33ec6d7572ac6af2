"""Attention, by the road that is fastest for a device, a dtype and a length, and the layer of the transformers that uses it."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# How attention is computed: the first row whose device, dtype and length fit. Stated, never timed at start-up: a resumed run must
# choose the same road. benchmarks/attention.py measures the rows.
ROADS: tuple[tuple[str, torch.dtype | None, int | None, Literal["sdpa", "matmul"]], ...] = (
    # device, dtype (None: any), longest sequence (None: any), road
    ("cpu", torch.bfloat16, 2048, "matmul"),  # 2 to 7 times faster than the fused kernel; longer was not measured, and needs much memory
    ("any", None, None, "sdpa"),
)


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Computes softmax(query keyᵀ / sqrt(d)) value by the road that ``ROADS`` names.

    Args:
        query: (B, heads, queries, d).
        key: (B, heads, tokens, d).
        value: (B, heads, tokens, d).
        dropout: Probability with which a weight becomes 0 and the others are scaled up.

    Returns:
        (B, heads, queries, d).
    """
    length = key.shape[-2]
    road = next(
        road
        for device, dtype, longest, road in ROADS
        if device in ("any", query.device.type) and dtype in (None, query.dtype) and (longest is None or length <= longest)
    )
    if road == "matmul":
        read: Tensor = _MatmulAttention.apply(query, key, value, dropout)
        return read
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


class _MatmulAttention(torch.autograd.Function):
    """Attention by batched matrix products, with a dropout that costs a fifth of torch's on a CPU.

    A dropped weight is blanked by an integer ``and`` with a mask of 0 or all bits set, made from as many random bits as a weight has, less
    one. In bfloat16 the probability is thus a multiple of 2^-15: 0.1 becomes 0.10001.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        shape = query.shape
        q, k, v = (part.flatten(0, 1) for part in (query, key, value))
        weights = _scaled_product(q, k.transpose(1, 2), shape[-1] ** -0.5).softmax(dim=-1)
        mask, used = None, weights
        if dropout:
            v = v / (1 - dropout)
            mask = _random_mask(weights, 1 - dropout)
            used = _masked(weights, mask)
        ctx.save_for_backward(q, k, v, weights, mask)
        ctx.dropout = dropout
        return (used @ v).view(*shape[:-1], value.shape[-1])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights, mask = ctx.saved_tensors
        heads, grad = grad.shape[:2], grad.flatten(0, 1)
        grad_weights = grad @ v.transpose(1, 2)
        if mask is None:
            grad_value = weights.transpose(1, 2) @ grad
        else:
            grad_value = _masked(weights, mask).transpose(1, 2) @ grad / (1 - ctx.dropout)
            grad_weights.view(mask.dtype).bitwise_and_(mask)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_query = _scaled_product(grad_scores, k, q.shape[-1] ** -0.5)
        grad_key = _scaled_product(grad_scores.transpose(1, 2), q, q.shape[-1] ** -0.5)
        grads = (part.unflatten(0, heads) for part in (grad_query, grad_key, grad_value))
        return *grads, None  # type: ignore[return-value]


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)  # beta=0: what is added is not even read


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def _random_mask(like: Tensor, keep: float) -> Tensor:
    """Draws integers of the shape and width of ``like``: all bits set with probability ``keep``, else 0."""
    size, bits = like.element_size(), 8 * like.element_size() - 1
    count = -(-like.numel() * size // 8)
    if torch.compiler.is_compiling():  # which can't trace random_, and draws otherwise anyway
        words = torch.randint(0, 2**63 - 1, (count,), device=like.device)
    else:
        words = torch.empty(count, dtype=torch.int64, device=like.device).random_()  # 63 random bits: never negative
    draws = words.view(INTEGERS[size])[: like.numel()].view(like.shape).bitwise_and_(2**bits - 1)
    return draws.sub_(round(keep * 2**bits)).bitwise_right_shift_(bits)  # the sign bit, spread: set where draw < keep


def _masked(weights: Tensor, mask: Tensor) -> Tensor:
    return (weights.view(mask.dtype) & mask).view(weights.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention on tokens (B, N, D), through ``attend``, with prefix tokens that patches need not see.

    "Attention Is All You Need" (arXiv 1706.03762, section 3.2.2), queries, keys and values from one projection without a bias. Tensors, initial
    values and results are those of timm's ``Attention``.

    Args:
        embed_dim: D.
        num_heads: Heads; divides D.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout behind the projection.
    """

    def __init__(self, embed_dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, read_only_prefix: int = 0) -> Tensor:
        """Lets every token read all tokens, but the first ``read_only_prefix``, which only the prefix reads.

        Two fused attentions instead of one with a mask: the prefix reads everything, the patches read the patches.
        """
        B, N, D = x.shape
        query, key, value = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop.p if self.training else 0.0
        if read_only_prefix:
            n = read_only_prefix
            prefix = attend(query[:, :, :n], key, value, dropout)
            patches = attend(query[:, :, n:], key[:, :, n:], value[:, :, n:], dropout)
            read = torch.cat((prefix, patches), dim=2)
        else:
            read = attend(query, key, value, dropout)
        out: Tensor = self.proj_drop(self.proj(read.transpose(1, 2).reshape(B, N, D)))
        return out
