"""Layers that encoders and poolings share, in plain torch. Tensors, initial values, draws and results are those of timm's layers of the same name."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them, on tokens (..., D); dropout behind each.

    "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1).

    Args:
        embed_dim: D.
        hidden_dim: Width between the layers.
        drop: Probability with which a value becomes 0 and the others are scaled up.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))
        return out


class DropPath(nn.Module):
    """Leaves a residual branch out, for each sample on its own, and scales what is kept, so that the mean stays; in training alone.

    "Deep Networks with Stochastic Depth" (arXiv 1603.09382), with the scale in training instead of in the evaluation.

    Args:
        drop_prob: Probability of leaving a sample's branch out.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Returns the branch (B, ...), zero for the samples that are drawn; one draw for each sample."""
        if self.drop_prob == 0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept / keep if keep else kept)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"
