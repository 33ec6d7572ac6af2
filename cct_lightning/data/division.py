"""How labelled images are divided: shares of each class are set aside, and subsets taken, by their labels and a seed alone."""

import numpy as np
import torch

from cct_lightning.data.files import Array
from cct_lightning.randomness import generator


def _in_order(targets: Array, kept: Array, label: int, purpose: str, seed: int) -> Array:
    """Shuffles the images of a class, the same way for every size of a subset, so that small ones lie in larger ones."""
    members = kept[targets[kept] == label]
    order: Array = torch.randperm(len(members), generator=generator(seed, purpose, label)).numpy()
    return members[order]  # type: ignore[no-any-return]


def set_aside(targets: Array, kept: Array, share: float, purpose: str, seed: int) -> tuple[Array, Array]:
    """Takes the share of each class out of ``kept``; returns (taken, left), sorted. At least one image of each class stays left.

    Args:
        targets: Classes of all images, (n,).
        kept: Which of them are divided.
        share: 0..1.
        purpose: val or test.
        seed: Of the division.
    """
    taken = []
    for label in np.unique(targets[kept]):
        members = _in_order(targets, kept, int(label), purpose, seed)
        taken.append(members[: min(max(round(share * len(members)), 1), len(members) - 1)])
    out = np.sort(np.concatenate(taken))
    return out, np.setdiff1d(kept, out)


def subset(targets: Array, kept: Array, fraction: float, per_class: int | None, seed: int) -> Array:
    """Returns a share of each class of ``kept``, and no more than ``per_class`` of it, sorted.

    Args:
        targets: Classes of all images, (n,).
        kept: Which of them are chosen from.
        fraction: 0..1.
        per_class: None is all that the share leaves.
        seed: Of the choice.
    """
    if fraction == 1.0 and per_class is None:
        return kept
    chosen = []
    for label in np.unique(targets[kept]):
        members = _in_order(targets, kept, int(label), "subset", seed)
        chosen.append(members[: min(max(round(fraction * len(members)), 1), per_class or len(members))])
    return np.sort(np.concatenate(chosen))
