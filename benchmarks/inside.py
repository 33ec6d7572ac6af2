"""Puts the weights of a run inside the package, with a card: python -m benchmarks.inside RUN [--name cct_2_3x2_32_cifar10] [--note TEXT]

RUN is the folder of a run that was tested on all test images, as `cct fit` does at its end and `cct test` does anew. Its best weights, else its
last, are written by `cct export` into cct_lightning/weights/inside/NAME, and what the card says is read from the run: recipe, keys that differ from
it, seed, steps, test accuracy, CPU-seconds, and the file's sha256. TEXT is a line of the card for what a run can't know, such as how settings were
chosen.
"""

import argparse
import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cct_lightning.commands.keys import flatten, known_keys
from cct_lightning.commands.recipes import read_recipe, recipe_paths
from cct_lightning.inference.export import export
from cct_lightning.run_folder import RunFolder, find_network, tables_beside
from cct_lightning.weights.sources import INSIDE, sha256
from cct_lightning.weights.trained import build

MAX_BYTES = 1_500_000  # of a folder
# What says where and how a run was watched, not what it is.
ELSEWHERE = (
    "data.root", "data.cache", "data.num_workers", "trainer.default_root_dir", "trainer.logger", "trainer.callbacks", "trainer.enable_progress_bar",
    "trainer.accelerator", "trainer.devices", "trainer.enable_model_summary", "trainer.limit_test_batches",
)  # fmt: skip
LICENCES = {
    "cifar10": """CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009): 50,000 images in ten classes. Its authors
state no licence, and ask that the report be cited. The images were collected from the web for 80 Million Tiny Images, a larger set that its makers
withdrew in 2020 because of offensive labels and pictures in it. None of the images is in this package.""",
}


def changed_keys(config: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Returns the keys of a run that are not as its recipe says, or where that says nothing not as they are by default."""
    said = read_recipe(recipe_paths()[recipe], True) if recipe in recipe_paths() else {}
    found = {}
    for key, value in flatten(config).items():
        if key in ELSEWHERE or key.startswith(("wandb.", "checkpoint.")) or key in ("task", "seed_everything"):
            continue
        usual = said[key] if key in said else _default(key)
        if _plain(value) != _plain(usual):
            found[key] = value
    return found


def _default(key: str) -> Any:
    try:
        return ast.literal_eval(known_keys()[key].default)
    except (KeyError, ValueError, SyntaxError):
        return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def card_text(says: dict[str, Any], summary: Mapping[str, Any], note: str) -> str:
    """Writes the card: its values as YAML, then the same for people."""
    keys = "".join(f" --{key} {json.dumps(value) if isinstance(value, list) else value}" for key, value in says["changed_keys"].items())
    cost = f"{summary['cpu_seconds']:,.0f} CPU-seconds"
    if says["cpu_seconds_at_350"] is not None:
        cost += f" ({says['cpu_seconds_at_350']:,.0f} of a core that multiplies bf16 at 350 GFLOP/s)"
    return f"""---
{yaml.safe_dump(says, sort_keys=False, default_flow_style=None, width=140)}---
# {says["name"]}

{says["arch"]} ({says["parameters"]:,} parameters), trained from scratch on {says["dataset"]}: right in {100 * says["test_accuracy"]:.2f} % of the
{says["test_images"]:,} test images, each seen once, as it is.

    cct fit -c {says["recipe"]}{keys} --seed_everything {says["seed"]}

{summary["steps"]:,} steps, {cost}, on {summary["device"]}.{f"{chr(10)}{note}" if note else ""}

It is meant to begin a fine-tuning with: `cct finetune DIR` takes it for few or small images. By itself it tells the {len(says["classes"])} classes
above and nothing else; whom its mistakes concern was not looked at.

## Data

{LICENCES.get(says["dataset"], says["dataset"])}

## Licence

The weights are under the package's own licence, {says["licence"]}.
"""


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="cct_2_3x2_32_cifar10")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    run, checkpoint = RunFolder(options.run), find_network(options.run)
    dataset, summary = str(run.key("data.dataset")), run.summary
    tables = tables_beside(checkpoint, dataset, "test")
    measured = json.loads((tables / "measures.json").read_text()) if (tables / "measures.json").is_file() else {}
    if not measured or measured["n"] != measured["split_size"] or measured.get("tta", "none") != "none":
        raise SystemExit(f"{tables} holds no test of all images as they are: cct test {checkpoint}")
    folder = INSIDE / options.name
    (folder / "card.md").unlink(missing_ok=True)  # an export replaces an export alone
    export(checkpoint, "safetensors", folder, overwrite=True)
    (folder / "README.md").unlink()  # card.md says more
    about = json.loads((folder / "config.json").read_text())["cct_lightning"]
    at_350 = summary.get("cpu_seconds_at_350")
    says = {
        "name": options.name, "arch": about["model"]["arch"], "parameters": sum(p.numel() for p in build(about["model"]).parameters()),
        "dataset": dataset, "classes": about["class_names"], "image_size": about["preprocessing"]["image_size"],
        "test_accuracy": round(measured["accuracy"], 6), "test_images": measured["n"], "recipe": run.recipe,
        "changed_keys": changed_keys(dict(run.config), run.recipe), "seed": summary["seed"], "steps": summary["steps"],
        "cpu_seconds": round(summary["cpu_seconds"], 1), "cpu_seconds_at_350": at_350 and round(at_350, 1), "device": summary["device"],
        "sittings": 1 + summary["resumed"], "versions": about["versions"], "licence": "Apache-2.0", "sha256": sha256(folder / about["weights"]),
    }  # fmt: skip
    (folder / "card.md").write_text(card_text(says, summary, options.note), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > MAX_BYTES:
        raise SystemExit(f"{folder} takes {size:,} bytes, more than {MAX_BYTES:,}.")
    print(f"{(folder / 'card.md').read_text(encoding='utf-8')}\nwritten: {folder}, {size:,} bytes")


if __name__ == "__main__":
    main()
