"""As many weights for every arm: what a factor brings of its own is then no advantage of size."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from cct_lightning.data.options import DataOptions
from cct_lightning.data.sets import find_set
from cct_lightning.errors import InputError
from cct_lightning.networks.build import create_network
from cct_lightning.networks.options import NetworkOptions
from cct_lightning.networks.presets import VARIANTS
from cct_lightning.studies.options import Keys, Study, told
from cct_lightning.tasks.options import ClassificationOptions

STEPS = 40  # of the search: a key is found to a millionth
MOST = 64.0  # times its value, beyond which a key is not raised


def padding(study: Study, recipe: Mapping[str, Any]) -> dict[str, Keys]:
    """Finds the value of the key ``study.pad`` with which each smaller arm has the weights of the largest, or the nearest number below.

    Args:
        study: Whose arms are compared.
        recipe: Keys of the recipe, by their dotted names.

    Returns:
        The key with its value for each arm that is raised.

    Raises:
        InputError: The key does not change how many weights a network has, or has another value in each of the comparisons.
    """
    found = [_of_cell(study, recipe, cell) for cell in study.cells]
    if other := next((cell for cell, keys in zip(study.cells, found, strict=True) if keys != found[0]), None):
        raise InputError(f"pad={study.pad}: {told(other)} takes other values than {told(study.cells[0])}. Make a study of each, without across.")
    return found[0]


def _of_cell(study: Study, recipe: Mapping[str, Any], cell: Keys) -> dict[str, Keys]:
    assert study.pad is not None
    keys = {arm: {**recipe, **cell, **own} for arm, own in study.arms.items()}
    sizes = {arm: num_parameters(found) for arm, found in keys.items()}
    largest = max(sizes.values())
    return {arm: {study.pad: _raised(study.pad, keys[arm], largest)} for arm, size in sizes.items() if size < largest}


def _raised(key: str, keys: Mapping[str, Any], wanted: int) -> Any:
    start = keys.get(key)
    if start is None:
        start = getattr(VARIANTS.get(str(keys.get("model.arch", ClassificationOptions.arch))), key.removeprefix("model."), None)
    if not isinstance(start, int | float):
        raise InputError(f"pad={key}: it takes a key that is a number and changes how many weights a network has, such as model.mlp_ratio.")
    low, high = float(start), float(start) * MOST
    if num_parameters({**keys, key: _as(start, high)}) <= num_parameters(keys):
        raise InputError(f"pad={key} does not change how many weights a network has: model.mlp_ratio and model.head_hidden_dim do.")
    for _ in range(STEPS):
        middle = (low + high) / 2
        if num_parameters({**keys, key: _as(start, middle)}) <= wanted:
            low = middle
        else:
            high = middle
    return _as(start, low)


def _as(start: float, value: float) -> float:
    return int(value) if isinstance(start, int) else round(value, 6)


def _network(keys: Mapping[str, Any]) -> torch.nn.Module:
    about = find_set(str(keys.get("data.dataset", DataOptions.dataset)))
    names = {option.name for option in fields(NetworkOptions)}
    options = {key.removeprefix("model."): value for key, value in keys.items() if key.startswith("model.") and key.removeprefix("model.") in names}
    size = keys.get("data.image_size") or about.image_size
    options = {
        "arch": ClassificationOptions.arch,
        **options,
        "image_size": size,
        "in_chans": keys.get("data.in_chans") or len(about.mean),
        "num_classes": about.num_classes or 10,
    }
    with torch.device("meta"):
        return create_network(NetworkOptions(**options))


def num_parameters(keys: Mapping[str, Any]) -> int:
    """Counts the weights of the network that a recipe's keys describe; of folders of the user's with ten classes."""
    return sum(p.numel() for p in _network(keys).parameters())
