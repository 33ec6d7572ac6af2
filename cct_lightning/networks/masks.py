"""Which patches of an image are masked, and the blocks of pixels that they stand for.

Shapes as in encoder.py; S is the number of values of a block: the pixels of a patch, times C.
"""

import torch
from torch import Tensor

from cct_lightning.randomness import bits


def draw_order(stream: int, epoch: int, indices: Tensor, grid: tuple[int, int], block: int = 1) -> Tensor:
    """Draws an order of the patches for each image, of which the first are masked: a function of (stream, epoch, index) alone.

    Args:
        stream: What the draws are for, ``key(seed, "purpose")``.
        epoch: Number of the epoch.
        indices: Of the images in the data set, (B,) int64, on the device of the result.
        grid: (h, w) of the patches.
        block: Side of the squares of patches that come one after the other; divides h and w.

    Returns:
        Numbers of patches, row by row, (B, N) int64.
    """
    w = grid[1] // block
    order = bits(stream, epoch, indices, grid[0] // block * w).argsort(dim=1)
    if block == 1:
        return order
    side = torch.arange(block, device=indices.device)
    inside = (side[:, None] * grid[1] + side).flatten()
    corners = (order // w * grid[1] + order % w) * block
    return (corners[:, :, None] + inside).flatten(1)


def to_blocks(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cuts images (B, C, H, W) into the blocks of pixels of a grid (h, w): (B, N, S), of each block row by row, pixel by pixel, C values each."""
    B, C, H, W = images.shape
    h, w = grid
    return images.reshape(B, C, h, H // h, w, W // w).permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, -1)


def to_images(blocks: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Puts blocks (B, N, S) of a grid (h, w) together again: images (B, C, H, W) of this size (H, W)."""
    h, w = grid
    cut = blocks.reshape(len(blocks), h, w, size[0] // h, size[1] // w, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(blocks), -1, *size)


def take(values: Tensor, numbers: Tensor) -> Tensor:
    """Takes rows out of values (B, N, ...): those of these numbers (B, n), (B, n, ...)."""
    return values.gather(1, numbers[:, :, None].expand(-1, -1, values.shape[2]))


def put(blocks: Tensor, numbers: Tensor, values: Tensor) -> Tensor:
    """Replaces blocks (B, N, S) of these numbers (B, n) by values (B, n, S)."""
    return blocks.scatter(1, numbers[:, :, None].expand(-1, -1, blocks.shape[2]), values)
