"""Folds: images are parted so that each is tested by a network that has not seen it, by their labels, their groups and a seed alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cct_lightning.data.files import Array
from cct_lightning.data.folders import Split
from cct_lightning.errors import InputError
from cct_lightning.randomness import generator


def assign_folds(targets: Array, groups: Array | None, folds: int, seed: int) -> Array:
    """Parts images into folds with an equal share of every class; each group lies in one fold.

    Without groups the images of a class are shuffled and dealt, one class after the other, so that neither a class nor the whole differs by more
    than one image between folds. With groups the largest comes first, each into the fold that has the least of its classes: the one for which the
    sum over the classes of the squared shares of all folds stays smallest. scikit-learn's StratifiedGroupKFold weighs deviations instead of squares.

    Args:
        targets: Classes, (n,).
        groups: What each image belongs to, (n,); None: each to itself.
        folds: Their number.
        seed: Of the division.

    Returns:
        The fold of each image, (n,), 0 to folds - 1.
    """
    placed, dealt = np.zeros(len(targets), int), 0
    if groups is None:
        for label in np.unique(targets):
            members = _shuffled(np.flatnonzero(targets == label), seed, int(label))
            placed[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
        return placed
    names, of_group = np.unique(groups, return_inverse=True)
    weight = 1.0 / np.bincount(targets).clip(1) ** 2  # of a class: shares of it count, not images
    counts = np.zeros((folds, len(weight)))
    members_of = np.split(np.argsort(of_group, kind="stable"), np.cumsum(np.bincount(of_group))[:-1])
    for number in sorted(_shuffled(np.arange(len(names)), seed, "groups"), key=lambda group: -len(members_of[group])):
        labels, n = np.unique(targets[members_of[number]], return_counts=True)
        cost = counts[:, labels] @ (n * weight[labels])
        fold = np.lexsort((np.arange(folds), counts.sum(axis=1), np.round(cost, 12)))[0]  # of equal ones the smallest
        counts[fold, labels] += n
        placed[members_of[number]] = fold
    return placed


def _shuffled(members: Array, seed: int, what: object) -> Array:
    order: Array = torch.randperm(len(members), generator=generator(seed, "fold", what)).numpy()
    return members[order]  # type: ignore[no-any-return]


def check_folds(targets: Array, groups: Array | None, folds: int, class_names: Sequence[str], root: str) -> None:
    """Refuses folds that images are too few for.

    Args:
        targets: Classes of the labelled images, (n,).
        groups: As in ``assign_folds``.
        folds: Their number.
        class_names: In the order of the targets; empty where these are no classes, see ``Split``, and need not be in every fold.
        root: For the message.

    Raises:
        InputError: There are fewer groups than folds, or a class has fewer images than folds.
    """
    if groups is not None and (found := len(np.unique(groups))) < folds:
        raise InputError(
            f"data.root={root}: {folds} folds of {found} group(s) can't be made, since a group lies in one fold: give fewer folds, at most {found},\n"
            "  or tell the images apart further in the column group."
        )
    counts = np.bincount(targets, minlength=len(class_names))
    if class_names and groups is None and (few := [f"{class_names[label]} {n}" for label, n in enumerate(counts.tolist()) if n < folds]):
        raise InputError(
            f"data.root={root}: {folds} folds need {folds} images of each class, one to test on in each; there are fewer of {len(few)} class(es): "
            f"{', '.join(few[:5])}.\n  Give fewer folds, or more images."
        )


def check_classes_left(targets: Array, placed: Array, folds: int, class_names: Sequence[str], root: str) -> None:
    """Refuses folds of groups where a network would be tested on a class that it has not seen.

    Raises:
        InputError: Names the class.
    """
    for fold in range(folds if class_names else 0):
        if absent := sorted(set(targets.tolist()) - set(targets[placed != fold].tolist())):
            raise InputError(
                f"data.root={root}: all images of {class_names[absent[0]]} are in fold {fold + 1} of {folds}, since their groups are few: a network "
                "would be tested on\n  a class that it has not seen. Add groups with images of it, or leave the class out."
            )


def take_fold(targets: Array, groups: Array | None, among: Array, fold: tuple[int, int], seed: int, class_names: Sequence[str], root: str) -> Array:
    """Returns the images of one fold, sorted.

    Args:
        targets: Classes of all images, (n,).
        groups: Likewise what they belong to; None: each to itself.
        among: Which of them have labels.
        fold: Which of how many, counted from 1.
        seed: Of the division.
        class_names: In the order of the targets; empty where these are no classes, see ``Split``, and need not be in every fold.
        root: For errors.

    Raises:
        InputError: Images or groups are too few.
    """
    number, folds = fold
    theirs = None if groups is None else groups[among]
    check_folds(targets[among], theirs, folds, class_names, root)
    placed = assign_folds(targets[among], theirs, folds, seed)
    check_classes_left(targets[among], placed, folds, class_names, root)
    chosen: Array = among[placed == number - 1]
    return chosen


def groups_aside(targets: Array, groups: Array, among: Array, share: float, seed: int, root: str, purpose: str = "val") -> Array:
    """Returns about a share of the images, whole groups, that leaves images of every class to train on, sorted.

    Args:
        targets: Classes of all images, (n,).
        groups: Likewise what they belong to.
        among: Which of them have labels.
        share: 0..1.
        seed: Of the division.
        root: For errors.
        purpose: val or test, likewise.

    Raises:
        InputError: There is none.
    """
    targets, groups = targets[among], groups[among]
    parts = min(max(round(1 / share), 2), len(np.unique(groups)))
    placed = assign_folds(targets, groups, parts, seed)
    tries = [placed == part for part in range(parts if parts > 1 else 0)]
    left = [_without_all_of_a_class(targets, groups, aside) for aside in tries]
    # Rather a part that need give nothing back
    for aside in [*(aside for aside, rest in zip(tries, left, strict=True) if np.array_equal(aside, rest)), *left]:
        if aside.any():
            return among[aside]  # type: ignore[no-any-return]
    way = "trains without, and keeps the last epoch." if purpose == "val" else "tests on none."
    raise InputError(
        f"data.root={root}: no group can be set aside for {purpose}, since each has all images of a class that are left:\n"
        f"  --data.{purpose}_fraction 0 {way}"
    )


def _without_all_of_a_class(targets: Array, groups: Array, aside: Array) -> Array:
    """Gives back the groups that have all images of a class."""
    while len(lost := np.setdiff1d(targets, targets[~aside])):
        aside = aside & ~np.isin(groups, groups[aside & np.isin(targets, lost)])
    return aside


def heap_of(train: Split, val: Split | None) -> Split:
    """Joins the training images and a val folder's into what is parted into folds."""
    if val is None:
        return train
    targets = np.concatenate([train.targets, val.targets])
    groups = None if train.groups is None or val.groups is None else np.concatenate([train.groups, val.groups])
    values = None if train.values is None or val.values is None else np.concatenate([train.values, val.values])
    joined = replace(train, targets=targets, groups=groups, values=values)
    if isinstance(train.images, np.ndarray) and isinstance(val.images, np.ndarray):
        return replace(joined, images=np.concatenate([train.images, val.images]))
    return replace(joined, images=[*train.images, *val.images])
