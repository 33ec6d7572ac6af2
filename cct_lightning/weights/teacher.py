"""A trained network that another one learns from: opened from what names it, looking at the other one's images in its own way."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cct_lightning.errors import InputError
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import ViTEncoder
from cct_lightning.weights.ensemble import build_network
from cct_lightning.weights.files import Opened, open_weights, read_checkpoint, unwrap
from cct_lightning.weights.inspection import describe
from cct_lightning.weights.loading import create_model
from cct_lightning.weights.sources import locate, sha256
from cct_lightning.weights.trained import read_saved
from cct_lightning.wording import reason, some

GREY = (0.299, 0.587, 0.114)  # as Pillow weighs colours


class Teacher(nn.Module):
    """A network in eval mode, none of whose parameters is trained.

    Args:
        network: Maps images (B, C, H, W), normalised its way, to logits (B, K).
        source: What it was asked for by.
        digest: SHA-256 of its file, or of its tensors where timm fetched them by name; in hexadecimal.
        class_names: In the order of the logits; None where nobody named them.
        num_classes: K; 0: it has no head.
        image_size: (H, W), pixels, that images are resized to.
        mean: Of each of its channels, 0..1; None: the images come as it wants them.
        std: Likewise.
    """

    given_mean: Tensor
    given_std: Tensor
    own_mean: Tensor
    own_std: Tensor
    grey: Tensor

    def __init__(
        self,
        network: nn.Module,
        source: str,
        digest: str,
        class_names: Sequence[str] | None,
        num_classes: int,
        image_size: tuple[int, int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.source, self.digest, self.class_names, self.num_classes, self.image_size = source, digest, class_names, num_classes, image_size
        known = mean is not None and std is not None
        self.mean = tuple(mean) if mean is not None and known else None
        self.std = tuple(std) if std is not None and known else None
        self._level: int | None = None  # number of the map that is taken of timm's networks
        self._adapts = False  # whether images come normalised otherwise
        self.eval()

    def expect(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Says how the images that it will see are normalised, as ``mean`` and ``std`` of itself; None: they are taken as they are.

        Raises:
            InputError: They have other channels, and are not grey where its own are coloured or the other way round.
        """
        if None in (self.mean, self.std, mean, std) or (self.mean, self.std) == (tuple(mean or ()), tuple(std or ())):
            return
        channels = len(self.mean or ()), len(mean or ())
        if channels[0] != channels[1] and set(channels) != {1, 3}:
            raise InputError(
                f"model.teacher={self.source} was trained on images of {channels[0]} channels, and these have {channels[1]} (data.in_chans):\n"
                "  take a teacher of such images; only grey ones are made coloured, and coloured ones grey."
            )
        self._adapts = True
        for name, values in {"own_mean": self.mean, "own_std": self.std, "given_mean": mean, "given_std": std, "grey": GREY}.items():
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def class_order(self, names: Sequence[str] | None, count: int) -> list[int] | None:
        """Finds the logits of a run's classes among its own, by their names where both know them.

        Args:
            names: Of the run's classes; None where nobody named them.
            count: Of the run's classes.

        Returns:
            For each class of the run the number of its logit; None where all stand in order.

        Raises:
            InputError: A class is none of its own, or names are not known and the counts differ.
        """
        ours = f"this run has {count} classes"
        if names and self.class_names:
            if missing := [name for name in names if name not in self.class_names]:
                raise InputError(
                    f"model.teacher={self.source} does not know the class{'es' * (len(missing) > 1)} {some(missing)}: it was trained on "
                    f"{some(self.class_names)}.\n  Train one on these classes, or learn its features alone: --model.distill.kind features."
                )
            order = [list(self.class_names).index(name) for name in names]
            return None if order == list(range(self.num_classes)) else order
        if self.num_classes != count:
            raise InputError(
                f"model.teacher={self.source} has {self.num_classes} classes, whose names are not known on both sides, and {ours}.\n"
                "  Take one of these classes, or learn its features alone: --model.distill.kind features."
            )
        return None

    def prepare(self, images: Tensor) -> Tensor:
        """Turns images (B, C, H, W), float and normalised as ``expect`` was told, into its own: normalisation, channels, size."""
        if self._adapts:
            images = images * self.given_std + self.given_mean
            if images.shape[1] > self.own_mean.shape[1]:
                images = (images * self.grey).sum(dim=1, keepdim=True)
            images = (images - self.own_mean) / self.own_std  # grey images become coloured ones by themselves
        if tuple(images.shape[2:]) != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        return images.to(next(self.network.parameters()).dtype)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Classifies images that were prepared: logits (B, K)."""
        found: Tensor = self.network(images)
        return found

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """Encodes images that were prepared: a map (B, D, h, w)."""
        network = self.network
        if isinstance(network, ImageClassifier) and self._level is None:
            grid = network.encoder.grid_size
            return network.encoder(images).patches.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]
        (found,) = self._timms().forward_intermediates(images, [self._level], stop_early=True, intermediates_only=True)
        return cast(Tensor, found)

    def choose_map(self, grid: tuple[int, int]) -> tuple[int, int, int]:
        """Chooses the map for a student with a grid (h, w): of a network of convolutions the deepest at least half as fine, of a ViT its last tokens.

        Returns:
            (D, h, w) of the map.

        Raises:
            InputError: It has no map.
        """
        network = self.network
        if isinstance(network, ImageClassifier) and not network.encoder.is_grid_known:
            raise InputError(
                f"model.teacher={self.source} does not tell how its tokens lie over the image, as kind=features needs: take soft or hard."
            )
        channels = next(layer.in_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
        images = torch.zeros(1, channels, *self.image_size)
        if not (isinstance(network, ImageClassifier) and isinstance(network.encoder, ViTEncoder)):
            inner = self._timms()
            if not hasattr(inner, "forward_intermediates"):
                raise InputError(f"model.teacher={self.source} offers no maps of its layers, as kind=features needs: take soft or hard.")
            with torch.no_grad():
                sizes = [found.shape for found in inner.forward_intermediates(images, intermediates_only=True)]
            fine = [number for number, size in enumerate(sizes) if 2 * size[2] >= grid[0] and 2 * size[3] >= grid[1]]
            self._level = fine[-1] if fine else 0
        shape = self.maps(images).shape
        return shape[1], shape[2], shape[3]

    def _timms(self) -> Any:
        """Returns timm's network, also where it is an encoder of ours."""
        return self.network.encoder.model if isinstance(self.network, ImageClassifier) else self.network  # type: ignore[union-attr]


def open_teacher(source: str) -> Teacher:
    """Opens a trained network to learn from; nothing is drawn from the global generators.

    Args:
        source: A checkpoint or folder of a run, an exported folder, a file or the name of SHI-Labs' published weights; timm/NAME@FILE, or timm/NAME
            where there is a network.

    Raises:
        InputError: There is no such network, or its file can't be read.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return _of_timm(source) if source.startswith("timm/") else _of_ours(source)
    except InputError as error:
        if str(error).startswith("model.teacher"):
            raise
        raise InputError(f"model.teacher={source} can't be learned from: {error}") from None


def _of_ours(source: str) -> Teacher:
    path = locate(source)
    alone = path.suffix not in (".json", ".onnx", ".pt2") and not (path.suffix == ".safetensors" and path.with_name("config.json").is_file())
    opened = open_weights(path, source) if alone else None
    if opened is not None and opened.about is None:
        return _of_others(opened)
    saved = read_saved(opened or path)
    if saved.opened is None:
        raise InputError(f"{saved.weights} is a graph to predict with: give the run's checkpoint, or an export of another format.")
    network = build_network(saved)
    if saved.output.kind != "class":
        raise InputError(f"model.teacher={source} tells several labels or numbers, and a teacher of classes is needed.")
    names = (saved.opened.about or {}).get("class_names")
    preprocessing, size = saved.preprocessing, network.encoder.image_size
    return Teacher(network, source, sha256(saved.weights), names, network.num_classes, size, preprocessing["mean"], preprocessing["std"])


def _of_others(opened: Opened) -> Teacher:
    """Builds the network that the tensors of a file of SHI-Labs' code or of vit-pytorch tell of."""
    keys, state = describe(opened), unwrap(opened.content, opened.name)
    data = keys["data"]
    head = state.get("classifier.fc.weight", state.get("head.weight", ()))
    size = {"image_size": data["image_size"]} if "image_size" in data else {}
    about = {**keys["model"], **size, "in_chans": data["in_chans"], "num_classes": len(head)}
    network = create_model(**about, drop_path=0.0, attn_drop=0.0, pretrained=opened)
    return Teacher(network, opened.name, sha256(opened.path), None, len(head), network.encoder.image_size, data.get("mean"), data.get("std"))


def _of_timm(source: str) -> Teacher:
    """Builds timm's own network, head and all, and loads a file of its weights, or those that timm fetches."""
    import timm

    from cct_lightning.weights.timm_weights import fetch_timm

    name, _, file = source.removeprefix("timm/").partition("@")
    if not timm.is_model(name):
        raise InputError(f"timm {timm.__version__} has no network {name!r}.")
    state: Mapping[str, Tensor]
    if file:
        path = Path(file).expanduser()
        state, digest = unwrap(read_checkpoint(path), file), sha256(path)
    else:
        try:
            state = fetch_timm(source)
        except InputError as error:
            first = str(error).splitlines()[0].removeprefix(f"{source}: ")
            raise InputError(f"{first}\n  Without a network give a file of them: --model.teacher {source}@FILE") from None
        digest = _digest(state)
    about: Any = timm.models.get_pretrained_cfg(name)
    head = state.get(f"{about.classifier if isinstance(about.classifier, str) else about.classifier[0]}.weight", ())
    network = timm.create_model(name, num_classes=len(head))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{file or source} does not fit timm's {name}: {reason(error, whole=True)}") from None
    _, height, width = about.input_size
    return Teacher(network, source, digest, None, len(head), (height, width), about.mean, about.std)


def _digest(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of tensors, with their names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)} {state[name].dtype}\n".encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
