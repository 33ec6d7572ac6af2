"""Several trained networks in one file, and any file's network with its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cct_lightning.errors import InputError
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.ensemble import Ensemble
from cct_lightning.run_folder import replacing
from cct_lightning.weights.files import KEY, Opened, open_weights, unwrap
from cct_lightning.weights.loading import load_weights
from cct_lightning.weights.trained import Saved, build


def write_ensemble(path: Path, checkpoints: Sequence[Path]) -> None:
    """Writes the networks of runs that differ in their images alone as one checkpoint, which predicts by the mean of their probabilities.

    Args:
        path: The file; what was there is replaced once it is whole.
        checkpoints: Of the runs; what the first says of classes and images counts.

    Raises:
        InputError: One can't be read.
        OSError: The folder can't be written.
    """
    members = [open_weights(checkpoint) for checkpoint in checkpoints]
    about = members[0].about
    assert about is not None
    recipe = about["recipe"] and {**about["recipe"], "data": {**about["recipe"]["data"], "fold": None}}
    state = {f"members.{number}.{name}": tensor for number, one in enumerate(members) for name, tensor in unwrap(one.content, one.name).items()}
    with replacing(path) as file:
        torch.save({"state_dict": state, KEY: {**about, "recipe": recipe, "members": len(members)}}, file)


def build_network(saved: Saved, changes: Mapping[str, Any] | None = None) -> ImageClassifier | Ensemble:
    """Builds what a file holds, one network or an ensemble, with its weights, in eval mode.

    Args:
        saved: What is known of the file.
        changes: Options of the network that shall differ from what it says.

    Raises:
        InputError: The weights don't fit.
    """
    assert saved.opened is not None
    if saved.members == 1:
        network = build({**saved.model, **(changes or {})}, saved)
        load_weights(network, saved.opened)
        return network
    return Ensemble([_member(saved, number, changes or {}) for number in range(saved.members)]).eval()


def _member(saved: Saved, number: int, changes: Mapping[str, Any]) -> ImageClassifier:
    assert saved.opened is not None
    prefix, opened = f"members.{number}.", saved.opened
    state = {name.removeprefix(prefix): tensor for name, tensor in unwrap(opened.content, opened.name).items() if name.startswith(prefix)}
    if not state:
        raise InputError(f"{opened.name} says that it holds {saved.members} networks, and has no weights of number {number + 1}: it was changed.")
    network = build({**saved.model, **changes}, saved)
    about = {name: value for name, value in (opened.about or {}).items() if name != "members"}
    load_weights(network, Opened(opened.name, opened.path, {"state_dict": state, KEY: about}))
    return network
