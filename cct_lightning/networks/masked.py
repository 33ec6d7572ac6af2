"""Networks that learn from images without labels by filling in patches that are masked.

Shapes as in encoder.py; M of the N patches are masked, S is the number of values of a block: the pixels of a patch, times C.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cct_lightning.errors import InputError, check_range
from cct_lightning.networks.encoder import Block, Encoder, Tokens, ViTEncoder, sine_table
from cct_lightning.networks.initial_values import initialise
from cct_lightning.networks.masks import put, take, to_blocks, to_images
from cct_lightning.networks.options import MaskedTarget

RATIOS: dict[MaskedTarget, float] = {"mae": 0.75, "simmim": 0.6, "mpp": 0.5}  # share that is masked, as in the papers
BINS = 8  # of each channel's mean, 3 bits, in mpp
TOKEN_SHARE, SWAPPED_SHARE = 0.8, 0.1  # of what mpp masks: mask tokens, and other patches; the rest is left as it is
EPSILON = 1e-6  # added to the variance of a block, as in MAE


class Decoder(nn.Module):
    """Fills in masked patches from the encoded others: a few transformer layers of their own width, with a mask token and positions of their own.

    "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377, section 3). The positions are fixed sines of row and column.

    Args:
        encoder: Whose tokens are decoded.
        width: Of the decoder's tokens.
        depth: Number of layers.
        num_heads: Heads of the attention; divides the width.
        out_dim: Values predicted of each patch.
    """

    def __init__(self, encoder: Encoder, width: int, depth: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        if width % num_heads:
            raise InputError(f"decoder_heads={num_heads} does not divide decoder_dim={width}: every head needs the same width.")
        self.num_prefix_tokens = encoder.num_prefix_tokens
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, 4.0, residual_norm=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_dim)
        self.take_grid(encoder.grid_size)

    def take_grid(self, grid: tuple[int, int]) -> None:
        """Makes the positions of a grid (h, w), (1, N, width): the row in the first half of the columns, the column in the second."""
        h, w = grid
        width = self.mask_token.shape[2]
        rows, columns = sine_table(h, width - width // 2)[0], sine_table(w, width // 2)[0]
        table = torch.cat((rows[:, None].expand(-1, w, -1), columns.expand(h, -1, -1)), dim=2).view(1, h * w, width)
        self.register_buffer(f"positions_{h}x{w}", table.to(self.mask_token.device, self.mask_token.dtype), persistent=False)

    def forward(self, encoded: Tokens, order: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predicts the masked patches, (B, M, S), from the others, which come in the order (B, N) as well, behind the masked."""
        B, seen = encoded.patches.shape[:2]
        masked = order.shape[1] - seen
        x = self.embed(torch.cat(encoded, dim=1) if self.num_prefix_tokens else encoded.patches)
        positions = take(self.get_buffer(f"positions_{grid[0]}x{grid[1]}").expand(B, -1, -1), order)
        # Attention does not ask for an order, so the patches stay in the drawn one.
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        x = torch.cat((self.mask_token + positions[:, :masked], patches + positions[:, masked:], prefix), dim=1)
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.head(self.norm(x[:, :masked]))
        return predicted


class LinearDecoder(nn.Module):
    """Reads masked patches off the tokens in their places by one linear layer, and holds the mask token that stood there before the encoder.

    Args:
        encoder: Whose tokens are read. One whose embeddings can't be replaced has no mask token: it sees pixels of 0, the images' mean, instead.
        out_dim: Values predicted of each patch.
    """

    def __init__(self, encoder: Encoder, out_dim: int) -> None:
        super().__init__()
        if isinstance(encoder, ViTEncoder):
            self.mask_token = nn.Parameter(torch.zeros(1, encoder.embed_dim, 1, 1))
        self.head = nn.Linear(encoder.embed_dim, out_dim)


class MaskedAutoencoder(nn.Module):
    """An encoder, and a decoder that tells from its tokens what was masked of the images.

    Pixels are masked before the encoder sees them, in the blocks of its grid, so no token tells of them, however far the kernels of its tokenizer
    reach. Targets:

    - ``mae``: the pixels of the masked blocks, by default less each block's mean and over its deviation. The encoder is given the other tokens
      alone. "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377).
    - ``simmim``: the pixels, mean absolute error; mask tokens stand in the places of what the tokenizer made of the masked blocks. "SimMIM: A Simple
      Framework for Masked Image Modeling" (arXiv 2111.09886).
    - ``mpp``: the mean colour of the blocks, each channel in 3 bits, as one of 8^C classes. Of what is masked 80 % are mask tokens, 10 % are another
      patch, 10 % are left. "An Image is Worth 16x16 Words" (arXiv 2010.11929, appendix B.1.2). There another patch's embedding is put in; here its
      pixels are, before the tokenizer, which is the same for patches that do not overlap: embeddings of overlapping kernels would leave the
      pixels that were replaced in the neighbours' tokens. The other patch is one that is not masked, so that none is shown in a wrong place.

    Args:
        encoder: Its grid must be known, and divide the images into equal blocks; mae takes a ``ViTEncoder``, the others any.
        target: What is predicted.
        mask_ratio: Share of the patches that is masked; None: 0.75 for mae, 0.6 for simmim, 0.5 for mpp.
        mask_block: Side of the square blocks of patches that are masked together; divides the grid.
        decoder_dim: Width of mae's decoder.
        decoder_depth: Its layers.
        decoder_heads: Its heads.
        normalize_target: Whether mae predicts each block less its mean and over its deviation.
        mean: Of each channel, 0..1: what mpp turns normalised images into colours with.
        std: Likewise.

    Raises:
        InputError: The encoder does not suit the target, or the grid the images.
    """

    colour_mean: Tensor
    colour_std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        target: MaskedTarget = "mae",
        mask_ratio: float | None = None,
        mask_block: int = 1,
        decoder_dim: int = 128,
        decoder_depth: int = 1,
        decoder_heads: int = 4,
        normalize_target: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.target, self.mask_block, self.normalize_target = encoder, target, mask_block, normalize_target
        self.mask_ratio = RATIOS[target] if mask_ratio is None else mask_ratio
        check_range("mask_ratio", self.mask_ratio, 0, 1, exclusive="low high")
        if not encoder.is_grid_known:
            raise InputError(f"{encoder.title()} does not tell the grid of its patches, and without it no patch can be masked: take another arch.")
        self._check_grid(encoder.image_size, encoder.grid_size)
        self.grids = {encoder.image_size: encoder.grid_size}  # by size
        self.sides = encoder.image_size[0] // encoder.grid_size[0], encoder.image_size[1] // encoder.grid_size[1]
        C, pixels = encoder.in_chans, self.sides[0] * self.sides[1]
        if target == "mae":
            if not isinstance(encoder, ViTEncoder):
                raise InputError(f"target=mae has the encoder see some patches alone, which {encoder.title()} does not offer: take simmim or mpp.")
            self.decoder: Decoder | LinearDecoder = Decoder(encoder, decoder_dim, decoder_depth, decoder_heads, pixels * C)
        elif target == "simmim":
            self.decoder = LinearDecoder(encoder, pixels * C)
        else:
            if mean is None or std is None or C > 4:
                what = f"{C} channels are too many for it" if C > 4 else "it needs mean and std of the images"
                raise InputError(f"target=mpp predicts colours, in {BINS}^C classes, and {what}: take simmim or mae.")
            self.decoder = LinearDecoder(encoder, BINS**C)
            self.register_buffer("colour_mean", torch.tensor(mean).view(1, 1, 1, C), persistent=False)
            self.register_buffer("colour_std", torch.tensor(std).view(1, 1, 1, C), persistent=False)
        if isinstance(encoder, ViTEncoder) and encoder.class_token == "read_only" and target != "mae":
            for name, parameter in encoder.named_parameters(recurse=False):
                if name in ("cls_token", "cls_pos_embed"):
                    parameter.requires_grad_(False)  # nobody reads the token: it keeps its initial value
        initialise(self.decoder, "decoder")

    def _check_grid(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Refuses what can't be cut into equal blocks of pixels, or of patches."""
        told = f"image_size={size[0]}x{size[1]} makes a grid of {grid[0]}x{grid[1]} patches"
        if size[0] % grid[0] or size[1] % grid[1]:
            tokenizer = getattr(self.encoder, "tokenizer", None)
            sides = (
                []
                if tokenizer is None
                else [side for side in range(size[0] // 2 + 1, 2 * size[0]) if side % tokenizer.grid_size((side, side))[0] == 0]
            )
            near = sorted(sides, key=lambda side: abs(side - size[0]))[:2]
            raise InputError(f"{told}, which does not divide it, so no patch can be masked by its pixels: take {' or '.join(map(str, near))}.")
        block = self.mask_block
        if grid[0] % block or grid[1] % block:
            raise InputError(f"{told}, and mask_block={block} does not divide it: take 1, or other images.")
        if grid[0] * grid[1] < 2 * block**2:
            raise InputError(f"{told}, and there must be two blocks of {block}x{block} or more, one to mask and one to see: take larger images.")

    def take_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Takes images of further sizes, (H, W) in pixels, that the encoder was told of as well.

        Raises:
            InputError: A size that its grid does not divide into blocks of as many pixels as at the built size.
        """
        for size in sizes:
            assert isinstance(self.encoder, ViTEncoder)  # the others refuse further sizes
            grid = self.encoder.tokenizer.grid_size(size)
            self._check_grid(size, grid)
            if (size[0] // grid[0], size[1] // grid[1]) != self.sides:
                raise InputError(f"image_size={size[0]}x{size[1]} makes patches of another size than {self.sides[0]}x{self.sides[1]} pixels.")
            self.grids[size] = grid
            if isinstance(self.decoder, Decoder):
                self.decoder.take_grid(grid)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Returns the grid (h, w) of images (B, C, H, W).

        Raises:
            InputError: The network was not built for their size.
        """
        size = (images.shape[2], images.shape[3])
        if size not in self.grids:
            known = ", ".join(f"{H}x{W}" for H, W in self.grids)
            raise InputError(f"images of {size[0]}x{size[1]} pixels given to a network built for {known}: resize them, or build it with their size.")
        return self.grids[size]

    def num_masked(self, num_patches: int) -> int:
        """Returns M: how many of N patches are masked; at least one block of them is, and one is not."""
        units = num_patches // self.mask_block**2
        return min(max(round(self.mask_ratio * units), 1), units - 1) * self.mask_block**2

    def _num_tokens(self, num_patches: int) -> int:
        """Returns how many of the masked patches are mask tokens."""
        masked = self.num_masked(num_patches)
        return max(round(TOKEN_SHARE * masked), 1) if self.target == "mpp" else masked

    def mask(self, images: Tensor, order: Tensor) -> Tensor:
        """Masks the pixels of the first patches of an order (B, N) with 0, the images' mean; for mpp some are replaced by other patches.

        Args:
            images: (B, C, H, W), float normalised.
            order: (B, N), see ``draw_order``.
        """
        grid, N = self.grid(images), order.shape[1]
        masked, tokens = self.num_masked(N), self._num_tokens(N)
        blocks = to_blocks(images, grid)
        if self.target == "mpp" and (swapped := round(SWAPPED_SHARE * masked)):
            others = order[:, masked:].repeat(1, -(-swapped // (N - masked)))[:, :swapped]
            blocks = put(blocks, order[:, tokens : tokens + swapped], take(blocks, others))
        blocks = put(blocks, order[:, :tokens], blocks.new_zeros(()).expand(len(blocks), tokens, blocks.shape[2]))
        return to_images(blocks, grid, (images.shape[2], images.shape[3]))

    def predict(self, images: Tensor, order: Tensor) -> Tensor:
        """Predicts what is masked, (B, M, S), for mpp logits of its colours (B, M, 8^C), from the rest."""
        grid, N = self.grid(images), order.shape[1]
        masked, seen = self.num_masked(N), self.mask(images, order)
        encoder, decoder = self.encoder, self.decoder
        if isinstance(decoder, Decoder):
            assert isinstance(encoder, ViTEncoder)
            P, x = encoder.num_prefix_tokens, encoder.embed(seen)
            visible = take(x[:, P:], order[:, masked:])
            predicted: Tensor = decoder(encoder.encode(torch.cat((x[:, :P], visible), dim=1) if P else visible), order, grid)
            return predicted
        if isinstance(encoder, ViTEncoder):
            embedded = encoder.tokenize(seen)
            is_token = order.new_zeros(order.shape, dtype=torch.bool).scatter(1, order[:, : self._num_tokens(N)], True)
            embedded = torch.where(is_token.view(-1, 1, *grid), decoder.mask_token.to(embedded.dtype), embedded)
            tokens = encoder.encode(encoder.place(embedded))
        else:
            tokens = encoder(seen)
        predicted = decoder.head(take(tokens.patches, order[:, :masked]))
        return predicted

    def _colours(self, blocks: Tensor) -> Tensor:
        """Tells the mean colour of normalised blocks (B, n, S), as a class of 8^C: (B, n)."""
        means = blocks.view(*blocks.shape[:2], -1, self.encoder.in_chans).mean(dim=2).float()
        bins = ((means * self.colour_std[0] + self.colour_mean[0]) * BINS).long().clamp(0, BINS - 1)
        classes: Tensor = sum(bins[:, :, channel] * BINS**channel for channel in range(bins.shape[2]))  # type: ignore[assignment]
        return classes

    def losses(self, predicted: Tensor, images: Tensor, order: Tensor) -> Tensor:
        """Computes how far off predictions (B, M, ...) are, (B,), the mean over the masked patches of each image."""
        blocks = take(to_blocks(images, self.grid(images)), order[:, : predicted.shape[1]]).float()
        predicted = predicted.float()
        if self.target == "mpp":
            return F.cross_entropy(predicted.flatten(0, 1), self._colours(blocks).flatten(), reduction="none").view(order.shape[0], -1).mean(dim=1)
        if self.target == "simmim":
            return (predicted - blocks).abs().mean(dim=(1, 2))
        if self.normalize_target:
            variance, mean = torch.var_mean(blocks, dim=2, keepdim=True)
            blocks = (blocks - mean) / (variance + EPSILON).sqrt()
        return (predicted - blocks).square().mean(dim=(1, 2))

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Fills in masked patches.

        Args:
            images: (B, C, H, W), float normalised.
            order: Of the patches, (B, N); the first of them are masked, see ``draw_order``.

        Returns:
            The loss of each image, (B,), float32.
        """
        return self.losses(self.predict(images, order), images, order)

    @torch.no_grad()
    def fill_in(self, images: Tensor, order: Tensor) -> Tensor:
        """Returns the images (B, C, H, W) with the masked patches as they are predicted, for mpp in their most probable colour.

        What mae predicts less mean and deviation of a block is shown with the block's true ones, as its authors do.
        """
        grid = self.grid(images)
        blocks, predicted = to_blocks(images, grid).float(), self.predict(images, order).float()
        numbers = order[:, : predicted.shape[1]]
        if self.target == "mpp":
            C = self.encoder.in_chans
            classes = predicted.argmax(dim=2)
            colours = torch.stack([classes // BINS**channel % BINS for channel in range(C)], dim=2)
            normalised = ((colours + 0.5) / BINS - self.colour_mean[0]) / self.colour_std[0]
            predicted = normalised.repeat(1, 1, blocks.shape[2] // C)
        elif self.target == "mae" and self.normalize_target:
            variance, mean = torch.var_mean(take(blocks, numbers), dim=2, keepdim=True)
            predicted = predicted * (variance + EPSILON).sqrt() + mean
        return to_images(put(blocks, numbers, predicted), grid, (images.shape[2], images.shape[3])).to(images.dtype)

    def no_weight_decay(self) -> set[str]:
        """Names parameters that never decay: the encoder's choice."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
