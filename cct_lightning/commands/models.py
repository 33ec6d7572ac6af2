"""``cct models``: what ``--model.pretrained`` takes, listed; and what is known of weights by name."""

import time
from pathlib import Path

from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.evaluation.measures import measured
from cct_lightning.run_folder import BEST, LAST, RunFolder, newest
from cct_lightning.weights.sources import PUBLISHED, TABLES, URL, card, inside, weights_folder
from cct_lightning.wording import percent, shortened, table

SHOWN = 5  # runs
LEFT = ("name", "arch", "data", "on this machine", "run", "of")


def print_models(names: list[str]) -> None:
    """Lists all, or prints what is known of one.

    Raises:
        InputError: There are no weights of this name.
    """
    if not names or names[0] in ("-h", "--help"):
        print("\n".join(_listing()))
    elif names[0] in inside():
        print(card(names[0])[1], end="")
    elif names[0] in PUBLISHED:
        print("\n".join(_published(names[0])))
    else:
        known = (*inside(), *PUBLISHED)
        raise InputError(f"There are no weights of the name {names[0]!r}.{did_you_mean(names[0], known, listed=20)} `cct models` lists them.")


def _listing() -> list[str]:
    cards = {name: card(name)[0] for name in inside()}
    rows = [(name, says["arch"], says["dataset"], percent(says["test_accuracy"], 2), f"{says['parameters']:,}") for name, says in cards.items()]
    lines = ["inside the package: --model.pretrained NAME, and cct predict NAME PATH..."]
    lines += table(("name", "arch", "data", "test accuracy", "parameters"), rows, LEFT)
    there = {name: "downloaded" if _file(name).is_file() else "-" for name in PUBLISHED}
    rows = [(name, about.arch, about.dataset, f"{about.accuracy:.2f} %", there[name]) for name, about in PUBLISHED.items()]
    lines += ["", "published by SHI-Labs, fetched once where there is a network: --model.pretrained NAME (accuracies are theirs, not measured by us)"]
    lines += table(("name", "arch", "data", "accuracy", "on this machine"), rows, LEFT)
    lines += ["", "timm's, where there is a network: --model.pretrained timm/NAME, such as timm/vit_tiny_patch16_224"]
    lines += ["the Hugging Face Hub's, what `cct push` put there: --model.pretrained hf:OWNER/NAME (or hf:OWNER/NAME@REVISION); any command takes it"]
    return [*lines, "", *_runs(), "", "cct models NAME tells more of one; cct finetune DIR --model.pretrained NAME trains on your images from it"]


def _runs() -> list[str]:
    """The newest runs here, by their best checkpoint, or the last where none is kept as the best."""
    best = newest(BEST, count=SHOWN)
    last = [path for path in newest(LAST, count=SHOWN) if not path.with_name(BEST).is_file()]
    rows = []
    for path in sorted([*best, *last], key=lambda path: path.stat().st_mtime, reverse=True)[:SHOWN]:
        summary = RunFolder(path.parent.parent).summary
        found = (measured(summary, "val"), measured(summary, "test"))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        rows.append((str(path), shortened(str(summary.get("arch", "-")), 30), *(percent(share, 2) for share in found), when))
    if not rows:
        return ["yours: --model.pretrained RUN, a run's folder or checkpoint. There is none below runs/ here."]
    return ["yours, the newest below runs/: --model.pretrained RUN", *table(("run", "arch", "validation", "test", "of"), rows, LEFT)]


def _file(name: str) -> Path:
    return weights_folder() / f"{name}.pth"


def _published(name: str) -> list[str]:
    about, path = PUBLISHED[name], _file(name)
    noted = path.with_suffix(".sha256")
    digest = noted.read_text().split()[0] if noted.is_file() else ""
    return [
        f"{name}: {about.arch}, trained on {about.dataset} by SHI-Labs (Compact-Transformers, Apache-2.0)",
        f"  accuracy  {about.accuracy:.2f} % in the tables of {TABLES}; not measured by us",
        f"  from      {URL}/{about.folder}/{name}.pth",
        f"  here      {path if path.is_file() else f'not yet: its first use fetches it to {path}'}",
        *([f"  sha256    {digest}, remembered of the first download"] if digest else []),
    ]
