"""Encoders turn images into tokens.

The letters of every shape in this project: B images in a batch; C channels, H x W pixels of an image; N patch tokens, laid out as a
grid of h x w; P prefix tokens (class token, registers) before them; D width of a token; K classes. Images are float and normalised
unless a docstring says uint8 (0..255).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cct_lightning.errors import InputError
from cct_lightning.networks.attention import SelfAttention
from cct_lightning.networks.initial_values import initialise
from cct_lightning.networks.layers import DropPath, Mlp
from cct_lightning.networks.options import ClassToken, Position
from cct_lightning.networks.presets import describe_images
from cct_lightning.networks.tokenizers import Tokenizer


class Tokens(NamedTuple):
    """What an encoder makes of images: prefix tokens (B, P, D), where P may be 0, and patch tokens (B, N, D)."""

    prefix: Tensor
    patches: Tensor


class Encoder(nn.Module, ABC):
    """Turns images (B, C, H, W) into ``Tokens`` of one width.

    An encoder of your own needs ``forward`` and the attributes; ``layers`` where it shall be sharded layer by layer. ``ViTEncoder`` offers its two
    halves as well, ``embed`` and ``encode``, for what hides or drops patches between them.

    Attributes:
        image_size: (H, W), pixels; images of another size are refused, but for those that ``take_sizes`` was told.
        in_chans: C.
        grid_size: (h, w) of the patch tokens.
        embed_dim: D.
        num_heads: Heads of the attention, which poolings take over.
        num_prefix_tokens: P.
        class_token: ``none``; ``full``, the first prefix token takes part in every layer; ``read_only``, it reads but is not read.
        is_grid_known: Whether ``grid_size`` is how the patches lie over the image, and not one row for want of knowledge.
    """

    image_size: tuple[int, int]
    in_chans: int
    grid_size: tuple[int, int]
    embed_dim: int
    num_heads: int
    num_prefix_tokens: int
    class_token: ClassToken
    is_grid_known: bool = True

    @abstractmethod
    def forward(self, images: Tensor) -> Tokens: ...

    def title(self) -> str:
        """Returns what messages call it."""
        return type(self).__name__

    def layers(self) -> Iterable[nn.Module]:
        """Returns the transformer layers, each of which FSDP shards on its own; none where it is not known."""
        return ()

    def no_weight_decay(self) -> set[str]:
        """Names its parameters that never decay, beside norms and biases, which the optimizer leaves out."""
        return set()

    def group_matcher(self, coarse: bool) -> dict[str, Any] | None:
        """Groups the parameters of the network around it by depth, as ``ImageClassifier.group_matcher`` does; None: they have its names."""
        return None

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: activations inside a layer are computed again in the backward pass.

        Raises:
            InputError: The encoder does not offer it.
        """
        raise InputError(f"{self.title()} does not offer gradient checkpointing.")

    def learned_positions(self) -> Tensor | None:
        """Returns the learned table of positions, (1, N, D) or with the prefix tokens' first (1, P + N, D); None where there is none."""
        return None

    def intermediates(self, images: Tensor, taken: Sequence[int], norm: bool, stop_early: bool) -> tuple[Tensor, list[Tensor]]:
        """Encodes images and keeps what some layers return.

        Args:
            images: (B, C, H, W), float normalised.
            taken: The layers' numbers, from 0.
            norm: Whether what is kept passes the final norm.
            stop_early: Whether to leave out the layers behind the last that is taken.

        Returns:
            All tokens (B, P + N, D) of the last layer that was computed, after the final norm; and for each layer taken, in the order of the
            layers, all tokens.

        Raises:
            InputError: The encoder does not offer it.
        """
        raise InputError(f"{self.title()} does not offer the tokens of its layers.")

    def take_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Takes images of further sizes as well, (H, W) in pixels: a training may begin with smaller ones.

        Raises:
            InputError: The encoder takes one size alone, or can't take one of these.
        """
        raise InputError(f"{self.title()} takes images of one size: leave it out.")

    def describe_images(self) -> dict[str, Any]:
        """Describes the images it takes in the words of timm's ``pretrained_cfg``."""
        return describe_images(self.in_chans, self.image_size)


class Block(nn.Module):
    """One transformer layer on tokens (B, N, D): attention, then an MLP with exact GELU, each with drop path.

    With ``residual_norm`` the second norm's output replaces the residual stream, ``y = x + attn(norm1(x)); z = norm2(y);
    out = z + mlp(z)``: the block of SHI-Labs/Compact-Transformers, which all published weights need. Without it the block is the
    standard pre-norm one, as ``Block`` in timm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float,
        residual_norm: bool = True,
        drop_path: float = 0.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual_norm = residual_norm
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = SelfAttention(embed_dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, read_only_prefix: int = 0) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), read_only_prefix))
        z = self.norm2(x)
        out: Tensor = (z if self.residual_norm else x) + self.drop_path(self.mlp(z))
        return out


def sine_table(num_tokens: int, embed_dim: int) -> Tensor:
    """Makes the fixed position table (1, N, D) over the flattened index: angle p / 10000^(2 (i // 2) / D), sine for even i, cosine for odd.

    "Attention Is All You Need" (arXiv 1706.03762, section 3.5), interleaved as in SHI-Labs' code.
    """
    column = torch.arange(embed_dim, dtype=torch.float64)
    angles = torch.arange(num_tokens, dtype=torch.float64)[:, None] / 10000 ** (2 * (column // 2) / embed_dim)
    return torch.where(column % 2 == 0, angles.sin(), angles.cos()).float()[None]


def _resizing(grid: tuple[int, int]) -> str:
    """Names the buffer that makes positions of this grid."""
    return f"positions_{grid[0]}x{grid[1]}"


class ViTEncoder(Encoder):
    """Tokenizer, positions, transformer layers, final norm: ViT, and with the tokenizer and block of CCT the published networks.

    Args:
        tokenizer: Makes the grid of embeddings; a square grid is not needed.
        image_size: (H, W), pixels.
        depth: Number of layers.
        num_heads: Heads of the attention; divides the tokenizer's embed_dim.
        mlp_ratio: Width of the MLP's hidden layer over D.
        class_token: Whether a learned token goes before the patches, and whether they see it.
        class_token_position: Whether the class token has a position. Only the sum of the two is ever seen, so without one nothing
            is lost: a position can be folded into the token. It is how reference weights are laid out.
        position: ``learned`` adds a trained table, ``sine`` a fixed one, ``none`` nothing.
        residual_norm: The block of the published weights (True) or standard pre-norm (False).
        drop_path: Probability of dropping the last layer's branches; rises linearly from 0 at the first.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout behind positions, projections and in the MLP.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_size: tuple[int, int],
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        class_token: ClassToken = "none",
        class_token_position: bool = True,
        position: Position = "learned",
        residual_norm: bool = True,
        drop_path: float = 0.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_size, self.in_chans = image_size, tokenizer.in_chans
        self.grid_size = tokenizer.grid_size(image_size)
        self.embed_dim, self.num_heads = tokenizer.embed_dim, num_heads
        if self.embed_dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide embed_dim={self.embed_dim}: every head needs the same width.")
        self.class_token, self.num_prefix_tokens = class_token, int(class_token != "none")
        self.class_token_position = class_token_position and class_token != "none" and position != "none"
        self.tokenizer = tokenizer
        if class_token != "none":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.position: Position = position
        num_patches = self.grid_size[0] * self.grid_size[1]
        if position == "learned":
            # Two tensors, not one table with a first row: networks that differ in the class token alone share pos_embed.
            self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, self.embed_dim))
            if self.class_token_position:
                self.cls_pos_embed = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        elif position == "sine":
            # The class token is position 0 where it has one, so with one the patches' rows begin at 1. Saved, though it follows from the
            # shape, so that weights say which positions they were trained with.
            table = sine_table(self.class_token_position + num_patches, self.embed_dim)
            self.register_buffer("pos_embed", table[:, int(self.class_token_position) :])
            if self.class_token_position:
                self.register_buffer("cls_pos_embed", table[:, :1])
        self.pos_drop = nn.Dropout(proj_drop)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(self.embed_dim, num_heads, mlp_ratio, residual_norm, rate, attn_drop, proj_drop) for rate in rates)
        self.norm = nn.LayerNorm(self.embed_dim)
        self.grad_checkpointing = False
        self.further_sizes: frozenset[tuple[int, int]] = frozenset()
        initialise(self, "encoder")

    def layers(self) -> Iterable[nn.Module]:
        return self.blocks

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def learned_positions(self) -> Tensor | None:
        return self.pos_embed if self.position == "learned" else None

    def learn_positions(self, pos_embed: Tensor, cls_pos_embed: Tensor | None) -> None:
        """Replaces the position table by trained values, (1, N, D) and (1, 1, D), which then are parameters."""
        self.position = "learned"
        for name, table in (("pos_embed", pos_embed), ("cls_pos_embed", cls_pos_embed)):
            self._buffers.pop(name, None)
            if table is not None:
                self.register_parameter(name, nn.Parameter(table.clone()))

    def take_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Takes images of further sizes as well, (H, W) in pixels; their positions are interpolated (bilinear, averaged where the grid is coarser).

        Raises:
            InputError: The tokenizer can't take one of them.
        """
        self.further_sizes = frozenset(sizes) - {self.image_size}
        for size in self.further_sizes:
            grid = self.tokenizer.grid_size(size)
            if self.position != "none" and grid != self.grid_size:
                # A product, not F.interpolate, whose backward pass is not deterministic on a GPU.
                table = self.pos_embed
                one_hot = torch.eye(len(table[0]), device="cpu").view(1, -1, *self.grid_size)
                matrix = F.interpolate(one_hot, grid, mode="bilinear", antialias=True)[0].flatten(1).T
                self.register_buffer(_resizing(grid), matrix.to(table.device, table.dtype), persistent=False)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Returns the positions of a grid, (1, h * w, D)."""
        if grid == self.grid_size:
            return self.pos_embed
        with torch.autocast(self.pos_embed.device.type, enabled=False):
            resized: Tensor = self.get_buffer(_resizing(grid)) @ self.pos_embed
            return resized

    def forward(self, images: Tensor) -> Tokens:
        """Encodes images (B, C, H, W) of the built size.

        Raises:
            InputError: The images have another size or another number of channels.
        """
        return self.encode(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """Turns images (B, C, H, W) into what the first layer reads, (B, P + N, D): the class token, then the patches row by row, with positions.

        Each token carries its position from here on, so any patches may be left out before ``encode``. A patch knows the pixels of its own
        kernel's field: with overlapping kernels, as a CCT's, also some of its neighbours'.

        Raises:
            InputError: The images have another size or another number of channels.
        """
        return self.place(self.tokenize(images))

    def tokenize(self, images: Tensor) -> Tensor:
        """Does the first half of ``embed``: the grid of embeddings (B, D, h, w), without positions; raises what it raises."""
        size = (images.shape[2], images.shape[3])
        if images.shape[1] != self.in_chans or (size != self.image_size and size not in self.further_sizes):
            raise InputError(
                f"images of shape {tuple(images.shape)} given to a network built for (B, {self.in_chans}, {self.image_size[0]}, "
                f"{self.image_size[1]}): resize the images, or build it with image_size={tuple(images.shape[2:])}, in_chans={images.shape[1]}."
            )
        embedded: Tensor = self.tokenizer(images)
        return embedded

    def place(self, embedded: Tensor) -> Tensor:
        """Does the second half of ``embed``: gives a grid (B, D, h, w) its positions and the class token, (B, P + N, D)."""
        x = embedded.flatten(2).transpose(1, 2)  # (B, N, D)
        if self.position != "none":
            x = x + self._positions((embedded.shape[2], embedded.shape[3]))
        if self.class_token != "none":
            token = self.cls_token + self.cls_pos_embed if self.class_token_position else self.cls_token
            x = torch.cat((token.expand(x.shape[0], -1, -1).to(x.dtype), x), dim=1)
        dropped: Tensor = self.pos_drop(x)
        return dropped

    def encode(self, x: Tensor) -> Tokens:
        """Runs the layers and the final norm.

        Args:
            x: What ``embed`` made, (B, P + n, D): all prefix tokens first, then any n <= N of the patches in any order, the same number for
                each image.

        Returns:
            As many tokens, in the same order.
        """
        for block in self.blocks:
            x = self._through(block, x)
        x = self.norm(x)
        # A slice, even of everything, is a copy in the backward pass.
        return Tokens(x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :] if self.num_prefix_tokens else x)

    def _through(self, block: nn.Module, x: Tensor) -> Tensor:
        read_only_prefix = self.num_prefix_tokens if self.class_token == "read_only" else 0
        if self.grad_checkpointing and self.training:
            return checkpoint(block, x, read_only_prefix, use_reentrant=False)  # type: ignore[no-any-return]
        out: Tensor = block(x, read_only_prefix)
        return out

    def intermediates(self, images: Tensor, taken: Sequence[int], norm: bool, stop_early: bool) -> tuple[Tensor, list[Tensor]]:
        x, kept = self.embed(images), []
        for number, block in enumerate(self.blocks[: max(taken) + 1] if stop_early else self.blocks):
            x = self._through(block, x)
            if number in taken:
                kept.append(self.norm(x) if norm else x)
        return self.norm(x), kept
