"""How images are divided: shares of each class are set aside, and subsets taken, by their labels and a seed alone.

Images without labels are divided as if they were a class of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cct_lightning.data.files import Array
from cct_lightning.data.folders import UNLABELLED, Split
from cct_lightning.data.folds import groups_aside, take_fold
from cct_lightning.errors import InputError
from cct_lightning.randomness import generator

Splits = dict[str, tuple[Split, Array]]  # by what they are for: images, and which of them are meant


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


def count_classes(split: Split, chosen: Array, num_classes: int) -> list[int]:
    """Returns how many of the chosen images are of each class, or have each label; where they are told by numbers, all count for each."""
    if split.values is None:
        targets = split.targets[chosen]
        counts = np.bincount(targets[targets != UNLABELLED], minlength=num_classes)
    else:
        counts = split.values[chosen].sum(axis=0) if split.kind == "labels" else np.full(num_classes, len(chosen))
    return counts.tolist()  # type: ignore[no-any-return]


def divide(
    read: Mapping[str, Split | None],
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    fraction: float,
    per_class: int | None,
    root: str,
    fold: tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
) -> Splits:
    """Says which images are for what: the set's own splits, and what is set aside of its training images where it brings none.

    No image without a label is for the test, and no group of images is parted. ``fraction`` and ``per_class`` choose among the labelled images,
    ``fraction`` among all where none is.

    Args:
        read: train, and val and test where the set has them.
        val_fraction: Share of the training images for validation.
        test_fraction: Share for the test before that, where the set is one heap.
        split_seed: Of these shares and of the subset.
        fraction: Share of the training images that is used.
        per_class: Most training images of a class; None is all.
        root: For errors.
        fold: Which of how many folds is the test, counted from 1; the set's own test images are for nothing then. None: no folds.
        class_names: In the order of the labels, for errors of folds.

    Returns:
        For each of test, val and train that there is, images and which of them are meant.

    Raises:
        InputError: No image can be set aside, or folds can't be made.
    """

    def taken(share: float, purpose: str, among: Array) -> tuple[Array, Array]:
        if groups is not None:
            out = groups_aside(targets, groups, among[targets[among] != UNLABELLED], share, split_seed, root, purpose)
        elif not len(out := set_aside(targets, among, share, purpose, split_seed)[0]):
            raise InputError(f"data.root={root}: no class has two images, so none can be set aside for {purpose}; give a {purpose} folder.")
        return out, np.setdiff1d(kept, out)

    train = read["train"]
    assert train is not None
    targets, kept, groups = train.targets, np.arange(len(train)), train.groups
    labelled = kept[targets != UNLABELLED]
    splits: Splits = {}
    if fold is not None:
        splits["test"] = train, take_fold(targets, groups, labelled, fold, split_seed, class_names, root)
        kept = np.setdiff1d(kept, splits["test"][1])
    elif read["val"] is None and read["test"] is None and test_fraction and len(labelled):
        test, kept = taken(test_fraction, "test", labelled)
        splits["test"] = train, test
    splits |= {name: (own, np.arange(len(own))) for name in ("val", "test") if fold is None and (own := read[name]) is not None}
    if val_fraction and "val" not in splits:
        val, kept = taken(val_fraction, "val", kept)
        splits["val"] = train, val
    further = kept[targets[kept] == UNLABELLED] if len(labelled) else kept[:0]
    chosen = subset(targets, np.setdiff1d(kept, further), fraction, per_class, split_seed)
    splits["train"] = train, np.union1d(chosen, further)
    return splits


def hide_labels(read: Mapping[str, Split | None], splits: Splits) -> tuple[dict[str, Split | None], Splits]:
    """Forgets the labels of all images of ``read["train"]`` that are for nothing yet, and takes these for training.

    Args:
        read: As in ``divide``.
        splits: What that returned.

    Returns:
        The same without the labels.
    """
    train = read["train"]
    assert train is not None
    known = np.isin(np.arange(len(train)), np.concatenate([chosen for split, chosen in splits.values() if split is train]))
    hidden = replace(train, targets=np.where(known, train.targets, UNLABELLED))
    chosen_of = {**splits, "train": (train, np.union1d(splits["train"][1], np.flatnonzero(~known)))}
    return {**read, "train": hidden}, {name: (hidden if split is train else split, chosen) for name, (split, chosen) in chosen_of.items()}
