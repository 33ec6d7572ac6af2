"""Any network of timm that returns tokens, or a map of them, as an encoder."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.encoder import Encoder, Tokens
from cct_lightning.networks.options import ClassToken
from cct_lightning.randomness import key as randomness_key
from cct_lightning.wording import reason

OF_IMAGES = ("interpolation", "crop_pct", "crop_mode", "mean", "std")  # what timm's description of a network says of its images
NOT_OF_ALL = ("img_size", "attn_drop_rate")  # options of timm's that a convolutional network has no use for


class TimmEncoder(Encoder):
    """Any timm network that returns a sequence of tokens (ViT, DeiT, DINOv2, EVA and their kin) or a map (ResNet, RegNet, EfficientNet, ...).

    Its class token, where it has one, is used as timm's network uses it, and registers are prefix tokens behind it. The places of a map
    (B, D, h, w) are the patches: ``mean`` then computes what timm's own network does whose head is an average and a linear layer, as ResNet's
    is; what else stands between the two, such as ConvNeXt's norm, acts on each place.

    Args:
        model: Made with ``timm.create_model(name, num_classes=0, global_pool="")``.
        class_token: ``full`` refuses a network that has none. A read-only class token can't be had from timm.
        image_size: (H, W), pixels, of a network that can't be told when it is made; None: what it was made for.

    Raises:
        InputError: The network returns neither tokens nor a map, takes no images of this size, or has not the class token that was asked.
    """

    def __init__(self, model: nn.Module, class_token: ClassToken = "none", image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        name = type(model).__name__
        in_chans, *usual_size = model.pretrained_cfg["input_size"]  # type: ignore[index,misc]
        patch_embed = getattr(model, "patch_embed", None)
        self.image_size = tuple(getattr(patch_embed, "img_size", None) or image_size or usual_size)
        first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
        self.in_chans = first.in_channels if first is not None else int(in_chans)
        patch = getattr(patch_embed, "patch_size", None) or (1, 1)
        if any(pixels % side for pixels, side in zip(self.image_size, patch, strict=True)):
            raise InputError(f"image_size={self.image_size[0]}x{self.image_size[1]} is not a multiple of patch_size={patch[0]} of timm's {name}.")
        self.num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        self.model = model
        self.returns_map = False
        self.further_sizes: frozenset[tuple[int, int]] = frozenset()
        features = self._try(self.image_size)
        self.returns_map = isinstance(features, Tensor) and features.ndim == 4
        if self.returns_map:
            features = self._try(self.image_size)  # with what timm's network does to its map
        if not isinstance(features, Tensor) or features.ndim != (4 if self.returns_map else 3):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"timm's {name} returns features of shape {shape}, neither tokens (B, N, D) nor a map (B, D, h, w): take another.")
        has_class_token = bool(getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None))
        if class_token == "read_only" or (class_token == "full" and not has_class_token):
            raise InputError(
                f"class_token={class_token} asked of timm's {name}, which has {'one that all tokens see' if has_class_token else 'none'}: "
                "use a pooling that needs no class token, such as seqpool."
            )
        self.class_token = "full" if has_class_token else "none"
        heads = [number for layer in model.modules() if isinstance(number := getattr(layer, "num_heads", None), int)]
        self.num_heads = heads[0] if heads else 1
        self.norm: nn.Module = nn.Identity()
        if self.returns_map:
            self.grid_size, self.embed_dim = (features.shape[2], features.shape[3]), features.shape[1]
            return
        self.grid_size = tuple(getattr(patch_embed, "grid_size", None) or (1, features.shape[1] - self.num_prefix_tokens))
        self.is_grid_known = getattr(patch_embed, "grid_size", None) is not None
        self.embed_dim = features.shape[2]
        # Networks trained with average pooling keep their final norm behind the pool; our poolings take normed tokens.
        self.norm = getattr(model, "fc_norm", self.norm)
        model.fc_norm = nn.Identity()
        model.head = nn.Identity()

    @classmethod
    def create(cls, name: str, class_token: ClassToken = "none", **options: Any) -> "TimmEncoder":
        """Builds timm's network of this name without its head; options go to ``timm.create_model``.

        Of those that the network does not take, the image's size is tried on it instead, and rates are left out that are 0, or of attention that
        it has not.

        Raises:
            InputError: timm has no network of this name, or refuses an option.
        """
        if not timm.is_model(name):
            close = timm.list_models(f"*{name.split('_')[0]}*")
            raise InputError(f"arch=timm/{name}: timm {timm.__version__} has no network {name!r}. Some that it has: {', '.join(close[:6])}.")
        seed, taken = torch.initial_seed(), dict(options)
        while True:
            try:
                with torch.random.fork_rng(devices=[]):  # timm draws from the global generator: give it one that depends on the name alone
                    torch.manual_seed(randomness_key(seed, "initial", name))
                    model = timm.create_model(name, num_classes=0, global_pool="", **taken)
                return cls(model, class_token, options.get("img_size"))
            except (TypeError, AssertionError, RuntimeError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if unknown is not None and unknown[1] in taken and (unknown[1] in NOT_OF_ALL or taken[unknown[1]] == 0):
                    del taken[unknown[1]]
                    continue
                if unknown is not None and unknown[1] in taken:
                    key = unknown[1].removesuffix("_rate")
                    raise InputError(f"{key}={taken[unknown[1]]:g} can't be had of arch=timm/{name}, which has none: give {key}=0.") from None
                why = f"{type(error).__name__}: {str(error)[:120]}"
                raise InputError(f"arch=timm/{name} can't be built with {options} ({why}): does it return tokens, or a map?") from None

    @torch.no_grad()
    def _try(self, size: tuple[int, int]) -> Any:
        """Returns what the network makes of an image of zeros.

        Raises:
            InputError: It takes none of this size.
        """
        modes = {module: module.training for module in self.model.modules()}
        try:
            return self._features(torch.zeros(1, self.in_chans, *size, device=next(self.model.parameters()).device), self.model.eval())
        except (RuntimeError, ValueError, AssertionError) as error:
            name = type(self.model).__name__
            raise InputError(f"image_size={size[0]}x{size[1]} is none that timm's {name} takes ({reason(error, 100)}): give a larger one.") from None
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _features(self, images: Tensor, model: Any) -> Any:
        """Returns tokens (B, P + N, D), or a map (B, D, h, w)."""
        if not self.returns_map:
            return model.forward_features(images)
        found = model(images)
        return found.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else found

    def title(self) -> str:
        return f"timm's {type(self.model).__name__}"

    def layers(self) -> Iterable[nn.Module]:
        return getattr(self.model, "blocks", ())  # type: ignore[no-any-return]

    def group_matcher(self, coarse: bool) -> dict[str, Any] | None:
        theirs: Any = getattr(self.model, "group_matcher", None)
        if not self.returns_map or theirs is None:
            return None

        def ours(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return rf"^encoder\.model\.(?:{pattern.replace('^', '')})"
            return [(ours(one), behind) for one, behind in pattern]

        return {part: ours(pattern) for part, pattern in theirs(coarse=coarse).items()}

    def no_weight_decay(self) -> set[str]:
        names: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {f"model.{name}" for name in names}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator]

    def learned_positions(self) -> Tensor | None:
        return self.model._parameters.get("pos_embed")

    def describe_images(self) -> dict[str, Any]:
        known: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        return super().describe_images() | {key: known[key] for key in OF_IMAGES if known.get(key) is not None}

    def intermediates(self, images: Tensor, taken: Sequence[int], norm: bool, stop_early: bool) -> tuple[Tensor, list[Tensor]]:
        if self.returns_map or not hasattr(self.model, "forward_intermediates"):
            return super().intermediates(images, taken, norm, stop_early)
        has_prefix = {"return_prefix_tokens": True} if self.num_prefix_tokens else {}  # not every network of timm's knows the word
        last, found = self.model.forward_intermediates(  # type: ignore[operator]
            images, list(taken), norm=norm, stop_early=stop_early, output_fmt="NLC", **has_prefix
        )
        kept = [torch.cat((pair[1], pair[0]), dim=1) if has_prefix else pair for pair in found]
        return self.norm(last), [self.norm(tokens) for tokens in kept] if norm else kept

    def take_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Takes images of further sizes as well where the network returns a map.

        Raises:
            InputError: It returns tokens, or can't take one of these.
        """
        if not self.returns_map:
            return super().take_sizes(sizes)
        self.further_sizes = frozenset(sizes) - {self.image_size}
        for size in self.further_sizes:
            self._try(size)

    def forward(self, images: Tensor) -> Tokens:
        """Encodes images (B, C, H, W).

        Raises:
            InputError: A network that returns a map is given another size than it was built for, which it would take without a word.
        """
        if self.returns_map:
            size = (images.shape[2], images.shape[3])
            if size != self.image_size and size not in self.further_sizes:
                raise InputError(
                    f"images of {size[0]}x{size[1]} pixels given to a network built for {self.image_size[0]}x{self.image_size[1]}: resize them."
                )
            x = self._features(images, self.model).flatten(2).transpose(1, 2)  # (B, h * w, D)
            return Tokens(x[:, :0], x)
        x = self.norm(self.model.forward_features(images))  # type: ignore[operator]
        return Tokens(x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :])
