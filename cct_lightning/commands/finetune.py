"""``cct finetune``: the words of a fit, with what the weights say about the network and its images."""

from pathlib import Path

import yaml

from cct_lightning.errors import InputError


def arguments_of(arguments: list[str], folder: Path) -> list[str]:
    """Turns ``finetune --config DEFAULT ... --model.pretrained SOURCE`` into those of ``fit``, with what the source says behind the default.

    Args:
        arguments: Checked by the front, which put the default recipe first.
        folder: For the recipe that is written.

    Raises:
        InputError: The source can't be read, or its tensors do not tell what network they are of.
    """
    _, config, default, *rest = arguments
    given = _given(rest)
    source = given.get("model.pretrained")
    if source is None:
        print(_from_scratch())
        return ["fit", config, default, *rest]
    from cct_lightning.weights.inspection import describe

    path = folder / "source.yaml"
    path.write_text(yaml.safe_dump(describe(source, given)), encoding="utf-8")
    return ["fit", config, default, "--config", str(path), *rest]


def _given(words: list[str]) -> dict[str, str]:
    """Returns the keys of recipes and command line with their values, the last one of each; lists and groups are of no interest here."""
    found: dict[str, str] = {}
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        value = value if equals else next(iter(words[position + 1 :]), "")
        if name == "--config":
            model = yaml.safe_load(Path(value).read_text(encoding="utf-8")).get("model") or {}
            found |= {f"model.{key}": str(setting) for key, setting in model.items() if setting is not None}
        elif name.startswith("--"):
            found[name.removeprefix("--")] = value
    return {name: value for name, value in found.items() if value != "null"}


def _from_scratch() -> str:
    runs = sorted(Path("runs").glob("*/*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)[-2:]
    lines = ["TRAINING FROM SCRATCH: no --model.pretrained is given. With few images a start from weights is better nearly always. It takes",
             *(f"  {path}" for path in reversed(runs)),
             "  a checkpoint or exported folder of yours, a .pth of SHI-Labs/Compact-Transformers or vit-pytorch, or where there is a network",
             "  timm/vit_tiny_patch16_224 or another ViT of timm, or a published network, such as cct_7_3x1_32_cifar10_300epochs."]  # fmt: skip
    return "\n".join(lines)


def with_default_recipe(words: list[str]) -> list[str]:
    """Turns the words of ``finetune DIR ...`` into those of a ``fit`` of the default recipe on it; what follows wins.

    Raises:
        InputError: There is no such folder or file.
    """
    if not words or words[0].startswith("-"):
        raise InputError(f"finetune begins with your images: cct finetune {'DIR'} [--model.pretrained SOURCE]. DIR holds a folder for each class,\n"
                         "  or train and val (and test) with such folders, or is a CSV with the columns path and label.")  # fmt: skip
    place = Path(words[0]).expanduser()
    if not place.exists():
        raise InputError(f"There is no folder or file {words[0]}.")
    if place.is_file() and place.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise InputError(f"{words[0]} is neither a folder of class folders nor a .csv with the columns path and label.")
    from cct_lightning.data.folders import folder_class_names, read_table

    read_table(place) if place.is_file() else folder_class_names(place)
    return ["-c", "finetune", "--data.dataset", "csv" if place.is_file() else "image_folder", "--data.root", words[0], *words[1:]]
