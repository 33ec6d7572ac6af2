"""Tokenizers turn images into a grid of embeddings. B, C, H, W: images; D: width of a token; h, w: the grid."""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError


class Tokenizer(nn.Module, ABC):
    """Turns images (B, C, H, W), float and normalised, into embeddings (B, D, h, w).

    Attributes:
        in_chans: C.
        embed_dim: D.
    """

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.embed_dim = embed_dim

    @abstractmethod
    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns (h, w) for images of (H, W) pixels.

        Raises:
            InputError: The tokenizer can't take images of this size.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...


class ConvTokenizer(Tokenizer):
    """Convolutions, each followed by ReLU and a 3x3 max-pool of stride 2: the tokenizer of CCT.

    "Escaping the Big Data Paradigm with Compact Transformers" (arXiv 2104.05704, section 3.3); ``Tokenizer`` in SHI-Labs' code.

    Args:
        in_chans: Channels of the images.
        embed_dim: Channels of the last convolution.
        kernel_size: Side of the square kernels, pixels.
        stride: Step of the convolutions, pixels; the published networks use max(1, kernel_size // 2 - 1), the value for None.
        padding: Zeros around the image, pixels; the published networks use max(1, kernel_size // 2), the value for None.
        num_conv_layers: How many convolutions.
        hidden_channels: Channels of all convolutions but the last.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        kernel_size: int = 3,
        stride: int | None = None,
        padding: int | None = None,
        num_conv_layers: int = 1,
        hidden_channels: int = 64,
    ) -> None:
        super().__init__(in_chans, embed_dim)
        self.kernel_size = kernel_size
        self.stride = max(1, kernel_size // 2 - 1) if stride is None else stride
        self.padding = max(1, kernel_size // 2) if padding is None else padding
        channels = [in_chans, *[hidden_channels] * (num_conv_layers - 1), embed_dim]
        self.convs = nn.ModuleList(nn.Conv2d(c_in, c_out, kernel_size, self.stride, self.padding, bias=False) for c_in, c_out in pairwise(channels))
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns (h, w) for images of (H, W) pixels; images smaller than the kernels are refused."""

        def tokens(pixels: int) -> int:
            for _ in self.convs:
                pixels = (pixels + 2 * self.padding - self.kernel_size) // self.stride + 1
                if pixels < 1:
                    raise InputError(
                        f"image_size={image_size[0]}x{image_size[1]} is too small for {len(self.convs)} convolution(s) of kernel_size="
                        f"{self.kernel_size}, stride={self.stride}: nothing is left of it. Use larger images or a smaller kernel."
                    )
                pixels = (pixels - 1) // 2 + 1
            return pixels

        return tokens(image_size[0]), tokens(image_size[1])

    def forward(self, images: Tensor) -> Tensor:
        for conv in self.convs:
            # ReLU after the pool is exactly ReLU before it (both are monotonic) and works on a quarter of the values.
            images = self._pooled(conv(images)).relu_()
        return images

    def _pooled(self, images: Tensor) -> Tensor:
        """Pools; of grey images, which convolutions keep channel by channel, torch 2.15 does so ten times as fast on a CPU once they are not.

        The values, the pixels they are taken from and the layout stay what they are, and so does all that follows, to the bit.
        """
        aside = images.device.type == "cpu" and images.is_contiguous() and not torch.compiler.is_compiling()
        pooled: Tensor = self.pool(images.contiguous(memory_format=torch.channels_last) if aside else images)
        return pooled.contiguous() if aside else pooled


class PatchTokenizer(Tokenizer):
    """Square patches that do not overlap, each projected by one linear map: the tokenizer of ViT, ViT-Lite and CVT.

    "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1); ``PatchEmbed`` in timm.

    Args:
        in_chans: Channels of the images.
        embed_dim: Width of a token.
        patch_size: Side of a patch, pixels.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int) -> None:
        super().__init__(in_chans, embed_dim)
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns (h, w) for images of (H, W) pixels, which must be multiples of the patch size."""
        for pixels in image_size:
            if pixels % self.patch_size or pixels < self.patch_size:
                low = max(pixels // self.patch_size, 1) * self.patch_size
                raise InputError(
                    f"image_size={pixels} is not a multiple of patch_size={self.patch_size}; the nearest that are: {low} and {low + self.patch_size}."
                )
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.proj(images)
        return grid
