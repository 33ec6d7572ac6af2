"""``cct_lightning.load``: a trained network with all that turns images into classes, one at a time or as a stream."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from cct_lightning.data.files import Array, Found, find_images, is_glob
from cct_lightning.data.members import Own, Packed
from cct_lightning.data.options import MAX_MEGAPIXELS, Preprocessing
from cct_lightning.data.preparation import normalize
from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.calibration import Calibration
from cct_lightning.evaluation.options import Tta, check_tta
from cct_lightning.evaluation.rejection import Answered, scored
from cct_lightning.evaluation.views import mean_logits
from cct_lightning.inference.calibration import calibrate
from cct_lightning.inference.items import KINDS, NONE, Embedding, Item, Prediction, check_given
from cct_lightning.inference.reading import Seen, read_batches, read_image
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.ensemble import Ensemble
from cct_lightning.networks.options import RejectBy, Rejection
from cct_lightning.networks.outputs import Output
from cct_lightning.weights.trained import Saved

Network = Callable[[Tensor], Tensor]
NO_NUMBER = "the network's output is not a number"


class Predictor:
    """Classifies images; ``load`` makes it.

    Attributes:
        class_names: In the order of the logits.
        preprocessing: How images become what the network takes.
        device: Where images are normalised.
        device_name: What the network is computed by.
        batch_size: Images at a time; smaller than at the beginning once some did not fit into memory.
        saved: The file behind it, None where there is none.
        temperature: That logits are divided by before they become probabilities, see ``calibrate``; 1 leaves them as they are.
        rejection: Threshold below which an answer is ``none``, see ``reject``; None: every image is answered.
        max_megapixels: Files of more are refused.
        output: What the logits mean: a class, several labels with their thresholds, or numbers.
        network: Maps images (B, C, H, W), float normalised, to logits (B, K).
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        class_names: list[str],
        device: torch.device,
        batch_size: int | None = None,
        precision: str = "32-true",
        device_name: str | None = None,
        saved: Saved | None = None,
        temperature: float = 1.0,
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> None:
        self.class_names, self.preprocessing, self.device = class_names, preprocessing, device
        self.device_name = device_name or (torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}")
        self.batch_size = batch_size or (32 if device.type == "cpu" else 256)
        self.saved = saved and replace(saved, opened=None)  # its tensors are the network's by now, and a checkpoint holds an optimizer's, too
        self.temperature, self.max_megapixels = temperature, max_megapixels
        self.output = saved.output if saved is not None else Output()
        self.rejection: Rejection | None = None
        self.network, self._precision = network, precision

    def __repr__(self) -> str:
        about, names = self.preprocessing, [repr(name)[1:-1] for name in self.class_names]
        source = f"{self.saved.weights}: {self.saved.model['arch']}" if self.saved else type(self.network).__name__
        classes = ", ".join(names if len(names) < 6 else [*names[:3], "...", names[-1]])
        size, channels = "x".join(map(str, about.image_size)), f"{about.in_chans} channel{'s' * (about.in_chans > 1)}"
        told = f"images of {size} pixels and {channels}, on {self.device_name}"
        return f"<Predictor {source}, {len(names)} classes ({classes}), {told}{f', temperature {self.temperature:.3g}' * (self.temperature != 1)}>"

    def logits(self, images: Tensor) -> Tensor:
        """Classifies images (B, C, H, W), float normalised: logits (B, K), float32, as the network gives them, before any temperature."""
        return self._run(self.network, images)

    def _run(self, function: Network, inputs: Tensor) -> Tensor:
        """Computes on the device, in the precision asked for; returns float32."""
        with ExitStack() as contexts:
            contexts.enter_context(torch.inference_mode())
            if self._precision != "32-true":
                half = torch.bfloat16 if self._precision == "bf16-mixed" else torch.float16
                contexts.enter_context(torch.autocast(self.device.type, half))
            elif self.device.type == "cuda":  # left alone, convolutions would round to the 10 bits of TF32
                contexts.enter_context(torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False))
            return function(inputs.to(self.device)).float()

    def probabilities(self, images: Array, tta: Tta = "none") -> Array:
        """Classifies uint8 images (B, H, W, C) of the network's size: probabilities (B, K), float32; of a network that tells numbers these.

        Args:
            images: Them.
            tta: What is seen of each: ``mirror`` and ``shift`` see 2 and 6 views (``evaluation.views``), as many forward passes; their mean counts.

        Raises:
            InputError: The images have another shape or dtype, or not even one fits into memory.
        """
        self._check_batch(images)
        check_tta(tta)
        return self._compute(images, lambda seen: self._told(mean_logits(self.logits, seen, tta, self.output.kind)), len(self.class_names))

    def _told(self, logits: Tensor) -> Tensor:
        return self.output.read(logits / self.temperature if self.output.kind == "class" else logits)

    def features(self, images: Array) -> tuple[Array, Array]:
        """Encodes uint8 images (B, H, W, C) of the network's size.

        Returns:
            Features (B, D), the pooling's output, and the probabilities (B, K) that the head makes of them, both float32.

        Raises:
            InputError: As ``probabilities``, and where the network is a graph, which computes logits alone.
        """
        network = self._with_features()
        self._check_batch(images)

        def compute(normalised: Tensor) -> Tensor:
            feature = self._run(lambda batch: network.pooling(network.encoder(batch)), normalised)
            return torch.cat([feature, self._told(self._run(network.head, feature))], dim=1)

        both = self._compute(images, compute, network.num_features + len(self.class_names))
        return both[:, : network.num_features], both[:, network.num_features :]

    def calibrate(
        self, images: str | Path | Iterable[Item], targets: Sequence[int | str] | Array | None = None, *, keep: bool = True, tta: Tta = "none"
    ) -> Calibration:
        """Fits the temperature to images that were not trained on, so that of what is predicted to 80 %, about 80 % are right.

        Predicted classes stay as they are. ``evaluation.calibration.fit_temperature`` tells how it is done and after whom.

        Args:
            images: A folder of class folders with the network's classes; or images, with targets.
            targets: Of each image its class, by name or index.
            keep: Write it beside the checkpoint (best.calibration.json), where ``load``, `cct predict` and `cct export` find it.
            tta: What is seen of each, as it shall be when it is predicted.

        Raises:
            InputError: An image can't be read, targets or classes don't fit; or it can't be kept, since this is an export, or was opened with
                other preprocessing than the checkpoint's.
        """
        return calibrate(self, images, targets, keep, tta)

    def reject(
        self, images: str | Path | Iterable[Item], targets: Sequence[int | str] | Array | None = None, share: float = 0.95,
        by: RejectBy = "energy", *, keep: bool = True, tta: Tta = "none",
    ) -> Answered:  # fmt: skip
        """Chooses a threshold below which an answer is ``none``, on images that were not trained on, so that ``share`` of the right ones are kept.

        Args:
            images: As in ``calibrate``, like the targets; fit a temperature first, since ``probability`` is one after it.
            targets: Of each image its class.
            share: More than 0 and at most 1.
            by: ``energy`` or ``probability``; see ``evaluation.rejection.score``.
            keep: Write it beside the checkpoint, as ``calibrate`` does.
            tta: What is seen of each, as it shall be when it is predicted.

        Raises:
            InputError: As ``calibrate``; no answer is right, or a class is named ``none``.
        """
        from cct_lightning.inference.rejection import choose_rejection  # which imports this

        return choose_rejection(self, images, targets, share, by, keep, tta)

    def _with_features(self) -> ImageClassifier:
        if isinstance(self.network, ImageClassifier):
            return self.network
        if isinstance(self.network, Ensemble):
            where = f"{self.saved.weights} is an ensemble" if self.saved else "this is an ensemble"
            raise InputError(f"{where} of {len(self.network.members)} networks, each with features of its own: give the run of a fold.")
        source = f"{self.saved.weights} is a graph ({self.saved.format})" if self.saved else "this network is a function"
        raise InputError(f"{source}: it computes logits and tells no features. Give the run's checkpoint, or export with --format safetensors.")

    def _check_batch(self, images: Array) -> None:
        height, width, channels = expected = (*self.preprocessing.image_size, self.preprocessing.in_chans)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise InputError(f"images {images.shape} of {images.dtype} given; the network takes uint8 (B, {height}, {width}, {channels}).")

    def _compute(self, images: Array, function: Network, width: int) -> Array:
        """Normalises uint8 images and gives them to a function that returns (B, width), by half as many wherever they don't fit into memory."""
        done, start = [np.zeros((0, width), np.float32)], 0
        while start < len(images):
            batch = images[start : start + self.batch_size]
            try:
                pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self.device)
                with torch.inference_mode():  # channels_last, as the images lie there
                    outputs = function(normalize(pixels.permute(0, 3, 1, 2), self.preprocessing.mean, self.preprocessing.std))
                done.append(outputs.cpu().numpy())
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    height, width, _ = images.shape[1:]
                    raise InputError(
                        f"Not even one image of {height}x{width} pixels fits into the memory of {self.device}: "
                        "give a smaller data.image_size, or trainer.accelerator=cpu."
                    ) from None
                self.batch_size = len(batch) // 2
            else:
                start += len(batch)
        return np.concatenate(done)

    @overload
    def predict(self, what: Item, top_k: int = 1, tta: Tta = "none") -> Prediction: ...  # type: ignore[overload-overlap]  # a str is an Iterable[str], too

    @overload
    def predict(self, what: Iterable[Item], top_k: int = 1, tta: Tta = "none") -> Iterator[Prediction]: ...

    def predict(self, what: Item | Iterable[Item], top_k: int = 1, tta: Tta = "none") -> Prediction | Iterator[Prediction]:
        """Classifies one image, or a stream of them.

        Args:
            what: A file, a PIL image or a uint8 array (H, W, C); or an iterable of these, of folders and of globs, which is read as the
                predictions are taken, two batches ahead at most.
            top_k: Length of ``Prediction.top``.
            tta: As in ``probabilities``.

        Returns:
            For one image its prediction. For an iterable an iterator in the same order, in which an image that can't be read is a
            prediction with an error.

        Raises:
            InputError: top_k is out of range, the one image can't be read, or something else is given, such as a tensor or an array of float.
                Of an iterable that is no list or tuple, this is found out when its turn comes.
        """
        check_range("top_k", top_k, 1, len(self.class_names))
        check_tta(tta)
        check_given(what)
        if not isinstance(what, KINDS):
            return (prediction for batch in self.batches(what, top_k, tta) for prediction in batch)
        item: Found | Packed | Own | PIL.Image.Image | Array
        if isinstance(what, str | Path):
            if os.path.isdir(what) or is_glob(os.fspath(what)):
                raise InputError(f"{what} is not one image: predict([{str(what)!r}]) goes through all that are in it.")
            item = next(find_images([what]))
        else:
            item = what
        path, pixels = self._read(item)
        if isinstance(pixels, str):
            raise InputError(f"{path or 'the image'}: {pixels}.")
        return self._predictions([(path, pixels)], top_k, tta)[0]

    def batches(self, items: Iterable[Item], top_k: int = 1, tta: Tta = "none") -> Iterator[list[Prediction]]:
        """Classifies a stream a batch at a time; never more than two batches of it are in memory."""
        return (self._predictions(read, top_k, tta) for read in self._batches_read(items))

    def embed(self, what: Item | Iterable[Item]) -> Array:
        """Encodes images, in order: features (n, D), float32, as ``Embedding.feature`` describes them.

        Args:
            what: As in ``predict``, a folder or a glob included. All features are kept in memory, n * D * 4 bytes; ``embeddings`` is the same as
                a stream, and tells which file is which.

        Raises:
            InputError: An image can't be read, something else is given, or the network is a graph, which computes logits alone.
        """
        network, features = self._with_features(), []
        check_given(what)
        for embedding in self.embeddings([what] if isinstance(what, KINDS) else what):
            if embedding.feature is None:
                reason = f"{embedding.path or 'an image'}: {embedding.error}."
                raise InputError(f"{reason}\n  `embeddings` goes on behind it: it gives one image after the other, this one with its error.")
            features.append(embedding.feature)
        return np.stack(features) if features else np.zeros((0, network.num_features), np.float32)

    def embeddings(self, items: Iterable[Item]) -> Iterator[Embedding]:
        """Encodes a stream, in order; never more than two batches of it are in memory. An image that can't be read is told with its error.

        Raises:
            InputError: As ``embed``, at once.
        """
        self._with_features()
        check_given(items)
        return (embedding for read in self._batches_read(items) for embedding in self._embeddings(read))

    def logits_of(self, items: Iterable[Item], tta: Tta = "none") -> Iterator[Array]:
        """Classifies a stream, in order: logits (K,) of each image, as ``logits`` gives them, or of its views as ``mean_logits`` does.

        Raises:
            InputError: An image can't be read, or something else is given.
        """
        check_given(items)
        check_tta(tta)
        for read in self._batches_read(items):
            for path, pixels in read:
                if isinstance(pixels, str):
                    raise InputError(f"{path or 'an image'}: {pixels}.")
            images = np.stack([pixels for _, pixels in read])
            yield from self._compute(images, lambda seen: mean_logits(self.logits, seen, tta, self.output.kind), len(self.class_names))

    def _embeddings(self, read: list[Seen]) -> Iterator[Embedding]:
        images = [pixels for _, pixels in read if not isinstance(pixels, str)]
        rows = zip(*self.features(np.stack(images)), strict=True) if images else iter(())
        for path, pixels in read:
            if isinstance(pixels, str):
                yield Embedding(path, error=pixels)
                continue
            feature, probabilities = next(rows)
            if np.isfinite(feature).all() and np.isfinite(probabilities).all():
                label = int(probabilities.argmax())
                numbers = self.output.kind == "numbers"
                yield Embedding(path, feature, -1 if numbers else label, math.nan if numbers else float(probabilities[label]))
            else:
                yield Embedding(path, error=NO_NUMBER)

    def _batches_read(self, items: Iterable[Item]) -> Iterator[list[Seen]]:
        return read_batches(items, lambda: self.batch_size, self._read)

    def _read(self, item: Found | Packed | Own | PIL.Image.Image | Array) -> Seen:
        return read_image(item, self.preprocessing, self.max_megapixels)

    def _predictions(self, read: list[Seen], top_k: int, tta: Tta) -> list[Prediction]:
        images = [pixels for _, pixels in read if not isinstance(pixels, str)]
        rows = iter(self._answers(np.stack(images), tta) if images else ())
        return [Prediction(path, error=p) if isinstance(p, str) else self._prediction(path, next(rows), top_k) for path, p in read]

    def _answers(self, images: Array, tta: Tta) -> Array:
        """Returns probabilities, and where there is a threshold behind them the score that is compared with it: (B, K) or (B, K + 1)."""
        if (rejection := self.rejection) is None:
            return self.probabilities(images, tta)

        by, width = rejection.by, len(self.class_names) + 1
        return self._compute(images, lambda normalised: scored(self.logits, self._told, normalised, tta, by), width)

    def _prediction(self, path: str | None, row: Array, top_k: int) -> Prediction:
        if not np.isfinite(row).all():
            return Prediction(path, error=NO_NUMBER)
        told = [(name, float(value)) for name, value in zip(self.class_names, row.tolist(), strict=False)]  # a score may follow
        if self.output.kind == "numbers":
            return Prediction(path, values=tuple(told))
        order = np.argsort(-row[: len(told)], kind="stable").tolist()
        top = tuple(told[label] for label in order[:top_k])
        if self.output.kind == "labels":
            return Prediction(path, top=top, labels=tuple(told[label] for label in order if told[label][1] >= self.output.thresholds[label]))
        if self.rejection is None:
            return Prediction(path, top[0][0], top[0][1], top)
        reached = float(row[-1])
        name, probability = top[0] if reached >= self.rejection.threshold else (NONE, None)
        return Prediction(path, name, probability, top, score=reached)
