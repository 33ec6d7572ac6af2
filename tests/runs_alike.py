"""A run short enough to be stopped and resumed in a test, and whether two of them came to the same, bit by bit."""

import csv
import json

import torch

# Three epochs of four steps, with dropout, drop path, shifts and MixUp.
SMALL = (
    "--data.per_class", 7, "--data.batch_size", 16, "--trainer.max_epochs", 3, "--trainer.precision", "32-true", "--trainer.log_every_n_steps", 2,
    "--model.attn_drop", 0.1, "--trainer.enable_progress_bar", "false",
)  # fmt: skip


def different(one, two, name=""):
    """Returns the names of what differs between two checkpoints, bit by bit."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [found for key in one for found in different(one[key], two[key], f"{name}/{key}")]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [found for i in range(len(one)) for found in different(one[i], two[i], f"{name}/{i}")]
    equal = torch.equal(one, two) if torch.is_tensor(one) and torch.is_tensor(two) else type(one) is type(two) and one == two
    return [] if equal else [name]


# Paths, clocks and how often it was resumed; the loop of validation counts batches that a stop had it see twice.
MAY_DIFFER = ("dirpath", "model_path", "best_k_models", "seconds", "sitting/number", "val_loop")


def measured(run):
    """Returns the rows of metrics.csv as they are written, but for clocks."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in csv.DictReader(file)]


def assert_same(run, reference):
    assert measured(run) == measured(reference)
    files = {path.name for path in (reference / "checkpoints").iterdir()}
    assert {path.name for path in (run / "checkpoints").iterdir()} == files
    for name in files & {"best.ckpt", "last.ckpt"}:
        one, two = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (run, reference))
        assert [found for found in different(one, two) if not any(text in found for text in MAY_DIFFER)] == []
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (run, reference))
    for key in ("val_accuracy", "val_accuracy_last", "test", "epochs", "steps", "finished", "recipe", "seed"):
        assert one[key] == two[key], key
