"""``cct_lightning.load``: a trained network with all that turns images into classes, one at a time or as a stream."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from cct_lightning.data.files import Array, Found, decode, find_images, is_glob
from cct_lightning.data.options import Preprocessing
from cct_lightning.data.preparation import fit, normalize
from cct_lightning.errors import InputError, check_range

Item = str | Path | PIL.Image.Image | Array
Network = Callable[[Tensor], Tensor]


class Prediction(NamedTuple):
    """The class of one image and how probable it is, or why there is none; ``top`` lists the most probable classes, best first."""

    path: str | None
    class_name: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


class Predictor:
    """Classifies images; ``load`` makes it.

    Attributes:
        class_names: In the order of the logits.
        preprocessing: How images become what the network takes.
        device: Where images are normalised.
        device_name: What the network is computed by.
        batch_size: Images at a time; smaller than at the beginning once some did not fit into memory.
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
    ) -> None:
        self.class_names, self.preprocessing, self.device = class_names, preprocessing, device
        self.device_name = device_name or (torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}")
        self.batch_size = batch_size or (32 if device.type == "cpu" else 256)
        self._network, self._precision = network, precision

    def logits(self, images: Tensor) -> Tensor:
        """Classifies images (B, C, H, W), float normalised: logits (B, K), float32."""
        with ExitStack() as contexts:
            contexts.enter_context(torch.inference_mode())
            if self._precision != "32-true":
                half = torch.bfloat16 if self._precision == "bf16-mixed" else torch.float16
                contexts.enter_context(torch.autocast(self.device.type, half))
            elif self.device.type == "cuda":  # left alone, convolutions would round to the 10 bits of TF32
                contexts.enter_context(torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False))
            return self._network(images.to(self.device)).float()

    def probabilities(self, images: Array) -> Array:
        """Classifies uint8 images (B, H, W, C) of the network's size: probabilities (B, K), float32.

        Raises:
            InputError: The images have another shape or dtype, or not even one fits into memory.
        """
        height, width, channels = expected = (*self.preprocessing.image_size, self.preprocessing.in_chans)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise InputError(f"images {images.shape} of {images.dtype} given; the network takes uint8 (B, {height}, {width}, {channels}).")
        done, start = [np.zeros((0, len(self.class_names)), np.float32)], 0
        while start < len(images):
            batch = images[start : start + self.batch_size]
            try:
                done.append(self._classify(batch))
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise InputError(
                        f"Not even one image of {height}x{width} pixels fits into the memory of {self.device}: "
                        "give a smaller data.image_size, or trainer.accelerator=cpu."
                    ) from None
                self.batch_size = len(batch) // 2
            else:
                start += len(batch)
        return np.concatenate(done)

    def _classify(self, images: Array) -> Array:
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device).permute(0, 3, 1, 2)  # channels_last as it lies there
        with torch.inference_mode():
            logits = self.logits(normalize(batch, self.preprocessing.mean, self.preprocessing.std))
            probabilities: Array = logits.softmax(dim=1).cpu().numpy()
        return probabilities

    @overload
    def predict(self, what: Item, top_k: int = 1) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is an Iterable[str], too

    @overload
    def predict(self, what: Iterable[Item], top_k: int = 1) -> Iterator[Prediction]: ...

    def predict(self, what: Item | Iterable[Item], top_k: int = 1) -> Prediction | Iterator[Prediction]:
        """Classifies one image, or a stream of them.

        Args:
            what: A file, a PIL image or a uint8 array (H, W, C); or an iterable of these, of folders and of globs, which is read as the
                predictions are taken, two batches ahead at most.
            top_k: Length of ``Prediction.top``.

        Returns:
            For one image its prediction. For an iterable an iterator in the same order, in which an image that can't be read is a
            prediction with an error.

        Raises:
            InputError: top_k is out of range, or the one image can't be read.
        """
        check_range("top_k", top_k, 1, len(self.class_names))
        if not isinstance(what, str | Path | PIL.Image.Image | np.ndarray):
            return (prediction for batch in self.batches(what, top_k) for prediction in batch)
        item: Found | PIL.Image.Image | Array
        if isinstance(what, str | Path):
            if os.path.isdir(what) or is_glob(os.fspath(what)):
                raise InputError(f"{what} is not one image: predict([{str(what)!r}]) goes through all that are in it.")
            item = next(find_images([what]))
        else:
            item = what
        path, pixels = self._read(item)
        if isinstance(pixels, str):
            raise InputError(f"{path or 'the image'}: {pixels}.")
        return self._predictions([(path, pixels)], top_k)[0]

    def batches(self, items: Iterable[Item], top_k: int = 1) -> Iterator[list[Prediction]]:
        """Classifies a stream a batch at a time; never more than two batches of it are in memory."""
        waiting: deque[Future[tuple[str | None, Array | str]]] = deque()
        source = self._expand(items)
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())

        def read_ahead() -> None:
            while len(waiting) < self.batch_size and (item := next(source, None)) is not None:
                waiting.append(pool.submit(self._read, item))

        try:
            read_ahead()
            while waiting:
                batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
                read_ahead()  # decoded while this batch is classified
                yield self._predictions([future.result() for future in batch], top_k)
        finally:
            pool.shutdown(cancel_futures=True)

    @staticmethod
    def _expand(items: Iterable[Item]) -> Iterator[Found | PIL.Image.Image | Array]:
        for item in items:
            if isinstance(item, str | Path):
                yield from find_images([item])
            elif isinstance(item, PIL.Image.Image | np.ndarray):
                yield item
            else:
                raise InputError(f"predict takes paths, PIL images and uint8 arrays (H, W, C), no {type(item).__name__}.")

    def _read(self, item: Found | PIL.Image.Image | Array) -> tuple[str | None, Array | str]:
        """Returns the path, and pixels of the network's size, uint8 (H, W, C), or why there are none."""
        path, error = item if isinstance(item, Found) else (None, None)
        if error is not None:
            return path, error
        about = self.preprocessing
        try:
            return path, fit(_to_pixels(item, about.in_chans), about.image_size, about.crop_pct)
        except Exception as damage:  # what a damaged file raises inside a decoder is not known beforehand
            # decode names the file, which the prediction does, too, and speaks to someone who trains.
            said = str(damage).removeprefix(f"{path} ").removesuffix(": mend it or move it out of the data set.")
            return path, " ".join(said.split()) or type(damage).__name__

    def _predictions(self, read: list[tuple[str | None, Array | str]], top_k: int) -> list[Prediction]:
        images = [pixels for _, pixels in read if not isinstance(pixels, str)]
        rows = iter(self.probabilities(np.stack(images)) if images else ())
        return [Prediction(path, error=p) if isinstance(p, str) else self._prediction(path, next(rows), top_k) for path, p in read]

    def _prediction(self, path: str | None, probabilities: Array, top_k: int) -> Prediction:
        if not np.isfinite(probabilities).all():
            return Prediction(path, error="the network's output is not a number")
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        top = tuple((self.class_names[label], float(probabilities[label])) for label in best)
        return Prediction(path, *top[0], top)


def _to_pixels(image: Found | PIL.Image.Image | Array, in_chans: int) -> Array:
    """Returns an image as uint8 (H, W, C)."""
    if isinstance(image, Found):
        return decode(Path(image.path), in_chans)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise InputError(f"an array {image.shape} of {image.dtype} is no image: uint8 (H, W) or (H, W, C) with 1, 3 or 4 channels is one")
        if image.ndim == 3 and image.shape[2] == in_chans:
            return image
        image = PIL.Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
        raise InputError(f"an image of mode {image.mode} has more than 8 bits: give the file, or convert it")
    pixels = np.asarray(PIL.ImageOps.exif_transpose(image).convert("L" if in_chans == 1 else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels
