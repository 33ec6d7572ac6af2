"""What a trained network does with its tokens, beyond its accuracy: measured on test images, the same of all arms.

Shapes as in encoder.py.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cct_lightning.data.module import ImageDataModule
from cct_lightning.data.preparation import normalize
from cct_lightning.errors import InputError
from cct_lightning.networks.attention_maps import entropy, look, top_share
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import ViTEncoder
from cct_lightning.networks.poolings import MeanPooling
from cct_lightning.run_folder import RunFolder, replacing
from cct_lightning.side_files import read_json
from cct_lightning.studies.plan import Job
from cct_lightning.weights.loading import load_weights
from cct_lightning.weights.trained import build, read_run

FILE = "analysis.json"  # in the run's folder
IMAGES = 1000  # of the test that are looked at, and
PROBED = 4000  # of the training for the linear probe
KEPT = (0.05, 0.1, 0.25, 0.5)  # shares of the patches that are kept, or removed
SHIFTS = (0, 1, 2, 4)  # pixels
TOKENS = 4000  # that the similarity of two networks is computed over
BATCH = 250
Measures = dict[str, float]
# What each measure is, for the reader of a table.
MEANING = {
    "entropy": "how evenly the pooling weighs the patches: 1 all alike, 0 one alone; of several heads or queries the mean of their weights is meant",
    "top_tenth": "weight that the heaviest tenth of the patches has",
    "token_moves": "how far the class token turns in a layer: 1 less the cosine of its state before and behind, mean over the layers",
    "keep": "accuracy where the layers are given so many patches alone, the heaviest; of a mean those that count most, for or against, for its class",
    "keep_random": "the same with as many that are drawn",
    "remove": "accuracy where so many patches are taken away before the layers, the heaviest",
    "remove_random": "the same with as many that are drawn",
    "shift": "accuracy where the image is shifted by so many pixels, the mean of four directions; 0 is the images as they are",
    "probe": "accuracy of a linear classifier on the mean of the last patches, whether the network reads them or not",
    "calibration_error": "of the whole test, 15 bins",
    "cka": "how alike the last patches' features are to the baseline's of the same seed: linear CKA, 1 alike",
}


def analyse(job: Job, images: "Images") -> Measures:
    """Measures a run's network; what was measured before is read.

    Args:
        job: A run that has ended.
        images: That it is measured on.

    Raises:
        InputError: The run kept no checkpoint.
    """
    run = job.run
    assert run is not None
    path = run.path / FILE
    if (found := read_json(path).get("measures")) is not None:
        return dict(found)
    model = network_of(run)
    with torch.no_grad():
        measures = {
            **_weights(model, images.test), **_token_moves(model, images.test), **_tokens_left_out(model, images), **_shifted(model, images),
            "probe": _probe(model, images),
        }  # fmt: skip
    if (error := (run.summary.get("test") or {}).get("calibration_error")) is not None:
        measures["calibration_error"] = float(error)
    with replacing(path) as file:
        file.write((json.dumps({"measures": measures, "images": len(images.test)}, indent=2) + "\n").encode())
    return measures


def network_of(run: RunFolder) -> ImageClassifier:
    """Opens a run's network with the weights that were tested, in eval mode.

    Raises:
        InputError: It kept no checkpoint.
    """
    file = run.best if run.best.is_file() else run.last
    if not file.is_file():
        raise InputError(f"{run.path} kept no checkpoint, and there is nothing to look at: leave trainer.enable_checkpointing as it is.")
    saved = read_run(file)
    model = build(saved.model, saved)
    assert saved.opened is not None
    load_weights(model, saved.opened)
    return model


class Images:
    """Test and training images of a run's data, float normalised, (n, C, H, W), with their classes: the first of a fixed order.

    Args:
        run: Whose data they are.
        test: How many of the test, at most.
        train: How many of the training.
    """

    def __init__(self, run: RunFolder, test: int = IMAGES, train: int = PROBED) -> None:
        options = {
            name: value for name, value in run.config["data"].items() if name not in ("augment", "fraction", "per_class", "sampler", "unlabelled")
        }
        data = ImageDataModule(**{**options, "cache": "host", "num_workers": 0, "image_size_schedule": None})
        if data.kind != "class":
            raise InputError("what networks do with their tokens is measured on images of one class each, and these have several labels or numbers.")
        data.setup("test")
        self.mean, self.std = data.mean, data.std
        self.test, self.test_targets = _read(data, "test" if "test" in data.splits else "val", test)
        self.train, self.train_targets = _read(data, "train", train)


def _read(data: ImageDataModule, split: str, count: int) -> tuple[Tensor, Tensor]:
    images, targets = data.take(split, count)
    return normalize(images, data.mean, data.std), targets


def _batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)  # type: ignore[no-untyped-call]


def accuracy(logits: Sequence[Tensor], targets: Tensor) -> float:
    """Returns the share of the images whose class has the largest logit."""
    return float((torch.cat(list(logits)).argmax(dim=1) == targets).float().mean())


def _weights(model: ImageClassifier, images: Tensor) -> Measures:
    """How the pooling weighs the patches; nothing of a mean, which weighs all alike."""
    if isinstance(model.pooling, MeanPooling):
        return {}
    seen = torch.cat([look(model, batch).weights for (batch,) in _batches(images)])
    return {"entropy": float(entropy(seen).mean()), "top_tenth": float(top_share(seen).mean())}


def _token_moves(model: ImageClassifier, images: Tensor) -> Measures:
    """How far the class token turns from layer to layer: a norm may set its length anew, and its mean says nothing behind one."""
    encoder = model.encoder
    if encoder.class_token == "none" or not isinstance(encoder, ViTEncoder):
        return {}
    moved = []
    for (batch,) in _batches(images):
        _, kept = encoder.intermediates(batch, range(len(encoder.blocks)), norm=False, stop_early=False)
        states = [encoder.embed(batch)[:, 0], *(tokens[:, 0] for tokens in kept)]
        centred = [state - state.mean(dim=1, keepdim=True) for state in states]
        steps = [1 - F.cosine_similarity(before, after) for before, after in pairwise(centred)]
        moved.append(torch.stack(steps).mean(dim=0))
    return {"token_moves": float(torch.cat(moved).mean())}


def heaviest(model: ImageClassifier, images: Tensor) -> Tensor:
    """Orders the patches (B, N) by their weight, the heaviest first; those of a mean by the size of their share in the predicted class's logit."""
    order: Tensor = look(model, images).weights.abs().argsort(dim=1, descending=True)
    return order


def classify_some(model: ImageClassifier, images: Tensor, patches: Tensor) -> Tensor:
    """Classifies images by some of their patches, (B, n) numbers, each at its own position: the layers are given no others. Logits (B, K)."""
    encoder = model.encoder
    assert isinstance(encoder, ViTEncoder)
    P, x = encoder.num_prefix_tokens, encoder.embed(images)
    chosen = x[:, P:].gather(1, patches[:, :, None].expand(-1, -1, x.shape[2]))
    tokens = encoder.encode(torch.cat((x[:, :P], chosen), dim=1) if P else chosen)
    logits: Tensor = model.head(model.pooling(tokens))
    return logits


def _tokens_left_out(model: ImageClassifier, images: Images) -> Measures:
    if not isinstance(model.encoder, ViTEncoder):
        return {}
    found: dict[str, list[Tensor]] = {}
    draws = torch.Generator().manual_seed(0)  # the same for all networks of as many patches
    for (batch,) in _batches(images.test):
        order = heaviest(model, batch)
        drawn = torch.rand(order.shape, generator=draws).argsort(dim=1)
        N = order.shape[1]
        for k in sorted({max(round(share * N), 1) for share in KEPT if N > 1}):
            for name, patches in (("", order), ("_random", drawn)):
                found.setdefault(f"keep{name}_{k}", []).append(classify_some(model, batch, patches[:, :k]))
                found.setdefault(f"remove{name}_{k}", []).append(classify_some(model, batch, patches[:, k:]))
    return {name: accuracy(logits, images.test_targets) for name, logits in found.items()}


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Shifts images (B, C, H, W) by whole pixels; what comes in mirrors the border."""
    side = max(abs(down), abs(right))
    H, W = images.shape[2:]
    return F.pad(images, (side,) * 4, mode="reflect")[:, :, side - down : side - down + H, side - right : side - right + W]


def _shifted(model: ImageClassifier, images: Images) -> Measures:
    found = {}
    for pixels in SHIFTS:
        if pixels >= min(images.test.shape[2:]):
            continue
        right = [
            accuracy([model(shifted(batch, down, across)) for (batch,) in _batches(images.test)], images.test_targets)
            for down, across in {(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)}
        ]
        found[f"shift_{pixels}"] = sum(right) / len(right)
    return found


def _features(model: ImageClassifier, images: Tensor) -> np.ndarray[Any, Any]:
    return torch.cat([model.encoder(batch).patches.mean(dim=1) for (batch,) in _batches(images)]).float().numpy()


def _probe(model: ImageClassifier, images: Images) -> float:
    """Accuracy of a logistic regression on the mean of the patches, whatever the network's own pooling reads."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, C=0.1))
    classifier.fit(_features(model, images.train), images.train_targets.numpy())
    return float(classifier.score(_features(model, images.test), images.test_targets.numpy()))


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Measures how alike two sets of features of the same tokens are, (n, D) and (n, D'): 1 where one is a rotation and a multiple of the other.

    "Similarity of Neural Network Representations Revisited" (arXiv 1905.00414, equation 4 with linear kernels).
    """
    a, b = (features.double() - features.double().mean(dim=0) for features in (first, second))
    shared = (a.T @ b).square().sum()
    return float(shared / ((a.T @ a).norm() * (b.T @ b).norm()).clamp(min=1e-30))


def patch_features(model: ImageClassifier, images: Tensor, count: int = TOKENS) -> Tensor:
    """Returns the finished patches of images as rows, (n, D), as many as asked at most; which are drawn, the same of all networks."""
    with torch.no_grad():
        rows = torch.cat([model.encoder(batch).patches.flatten(0, 1) for (batch,) in _batches(images)])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]
