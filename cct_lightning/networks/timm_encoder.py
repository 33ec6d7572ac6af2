"""Any ViT of timm as an encoder."""

from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.encoder import Encoder, Tokens
from cct_lightning.networks.options import ClassToken
from cct_lightning.randomness import key as randomness_key

OF_IMAGES = ("interpolation", "crop_pct", "crop_mode", "mean", "std")  # what timm's description of a network says of its images


class TimmEncoder(Encoder):
    """Any timm network that returns a sequence of tokens: ViT, DeiT, DINOv2, EVA and their kin.

    Its class token, where it has one, is used as timm's network uses it, and registers are prefix tokens behind it.

    Args:
        model: Made with ``timm.create_model(name, num_classes=0, global_pool="")``.
        class_token: ``full`` refuses a network that has none. A read-only class token can't be had from timm.

    Raises:
        InputError: The network returns no token sequence, or not the class token that was asked.
    """

    def __init__(self, model: nn.Module, class_token: ClassToken = "none") -> None:
        super().__init__()
        name = type(model).__name__
        in_chans, *image_size = model.pretrained_cfg["input_size"]  # type: ignore[index,misc]
        patch_embed = getattr(model, "patch_embed", None)
        self.image_size = tuple(getattr(patch_embed, "img_size", None) or image_size)
        first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
        self.in_chans = first.in_channels if first is not None else int(in_chans)
        patch = getattr(patch_embed, "patch_size", None) or (1, 1)
        if any(pixels % side for pixels, side in zip(self.image_size, patch, strict=True)):
            raise InputError(f"image_size={self.image_size[0]}x{self.image_size[1]} is not a multiple of patch_size={patch[0]} of timm's {name}.")
        self.num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        with torch.no_grad():
            was_training = model.training
            features = model.eval().forward_features(torch.zeros(1, self.in_chans, *self.image_size))  # type: ignore[operator]
            model.train(was_training)
        if not isinstance(features, Tensor) or features.ndim != 3:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"timm's {name} returns features of shape {shape}, not a token sequence (B, N, D): take a ViT of timm's.")
        has_class_token = bool(getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None))
        if class_token == "read_only" or (class_token == "full" and not has_class_token):
            raise InputError(
                f"class_token={class_token} asked of timm's {name}, which has {'one that all tokens see' if has_class_token else 'none'}: "
                "use a pooling that needs no class token, such as seqpool."
            )
        self.class_token = "full" if has_class_token else "none"
        self.grid_size = tuple(getattr(patch_embed, "grid_size", None) or (1, features.shape[1] - self.num_prefix_tokens))
        self.is_grid_known = getattr(patch_embed, "grid_size", None) is not None
        self.embed_dim = features.shape[2]
        heads = [number for layer in model.modules() if isinstance(number := getattr(layer, "num_heads", None), int)]
        self.num_heads = heads[0] if heads else 1
        # Networks trained with average pooling keep their final norm behind the pool; our poolings take normed tokens.
        self.norm = getattr(model, "fc_norm", nn.Identity())
        model.fc_norm = nn.Identity()
        model.head = nn.Identity()
        self.model = model

    @classmethod
    def create(cls, name: str, class_token: ClassToken = "none", **options: object) -> "TimmEncoder":
        """Builds timm's network of this name without its head; options go to ``timm.create_model``.

        Raises:
            InputError: timm has no network of this name, or refuses an option.
        """
        if not timm.is_model(name):
            close = timm.list_models(f"*{name.split('_')[0]}*")
            raise InputError(f"arch=timm/{name}: timm {timm.__version__} has no network {name!r}. Some that it has: {', '.join(close[:6])}.")
        seed = torch.initial_seed()
        try:
            with torch.random.fork_rng(devices=[]):  # timm draws from the global generator: give it one that depends on the name alone
                torch.manual_seed(randomness_key(seed, "initial", name))
                model = timm.create_model(name, num_classes=0, global_pool="", **options)  # type: ignore[arg-type]
        except (TypeError, AssertionError, RuntimeError, ValueError) as error:
            why = f"{type(error).__name__}: {str(error)[:120]}"
            raise InputError(f"arch=timm/{name} can't be built with {options} ({why}): is it a ViT that returns tokens?") from None
        return cls(model, class_token)

    def title(self) -> str:
        return f"timm's {type(self.model).__name__}"

    def layers(self) -> Iterable[nn.Module]:
        return getattr(self.model, "blocks", ())  # type: ignore[no-any-return]

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
        if not hasattr(self.model, "forward_intermediates"):
            return super().intermediates(images, taken, norm, stop_early)
        has_prefix = {"return_prefix_tokens": True} if self.num_prefix_tokens else {}  # not every network of timm's knows the word
        last, found = self.model.forward_intermediates(  # type: ignore[operator]
            images, list(taken), norm=norm, stop_early=stop_early, output_fmt="NLC", **has_prefix
        )
        kept = [torch.cat((pair[1], pair[0]), dim=1) if has_prefix else pair for pair in found]
        return self.norm(last), [self.norm(tokens) for tokens in kept] if norm else kept

    def forward(self, images: Tensor) -> Tokens:
        x = self.norm(self.model.forward_features(images))  # type: ignore[operator]
        return Tokens(x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :])
