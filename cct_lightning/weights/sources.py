"""Where weights come from: a file, an exported folder; by name those inside the package, the ten published files of SHI-Labs/Compact-Transformers,
timm's, the Hugging Face Hub's."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.networks.timm_names import check_timm_name
from cct_lightning.plain_yaml import read_yaml
from cct_lightning.run_folder import ENSEMBLE, find_network

INSIDE = Path(__file__).with_name("inside")  # a folder for each name, as `cct export` writes it, and card.md


@dataclass(frozen=True)
class Published:
    """Weights that SHI-Labs offer: where they lie, the network, the data set whose normalisation and classes they know, and the accuracy on its
    test images (ImageNet: validation images) that ``TABLES`` state, in per cent."""

    folder: str
    arch: str
    dataset: str
    accuracy: float


URL = "https://shi-labs.com/projects/cct/checkpoints"
TABLES = "https://github.com/SHI-Labs/Compact-Transformers#results"
# A name is that of the file there.
PUBLISHED: dict[str, Published] = {
    "cct_7_3x1_32_cifar10_300epochs": Published("pretrained", "cct_7_3x1_32", "cifar10", 96.53),
    "cct_7_3x1_32_sine_cifar10_1500epochs": Published("pretrained", "cct_7_3x1_32_sine", "cifar10", 97.48),
    "cct_7_3x1_32_sine_cifar10_5000epochs": Published("pretrained", "cct_7_3x1_32_sine", "cifar10", 98.00),
    "cct_7_3x1_32_cifar100_300epochs": Published("pretrained", "cct_7_3x1_32_c100", "cifar100", 80.92),
    "cct_7_3x1_32_sine_cifar100_1500epochs": Published("pretrained", "cct_7_3x1_32_sine_c100", "cifar100", 82.72),
    "cct_7_3x1_32_sine_cifar100_5000epochs": Published("pretrained", "cct_7_3x1_32_sine_c100", "cifar100", 82.87),
    "cct_7_7x2_224_flowers102": Published("pretrained", "cct_7_7x2_224_sine", "flowers102", 97.19),
    "cct_14_7x2_224_imagenet": Published("pretrained", "cct_14_7x2_224", "imagenet", 80.67),
    "cct_14_7x2_384_imagenet": Published("finetuned", "cct_14_7x2_384", "imagenet", 82.71),
    "cct_14_7x2_384_flowers102": Published("finetuned", "cct_14_7x2_384_fl", "flowers102", 99.76),
}
HUB = "hf:"  # before OWNER/NAME of a network of the Hugging Face Hub
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
SECONDS = 30  # without a byte, after which a download is given up


def weights_folder() -> Path:
    """Returns where downloaded weights are kept: ``CCT_HOME``, else ~/.cache/cct-lightning, each with weights/ below."""
    return Path(os.environ.get("CCT_HOME", "~/.cache/cct-lightning")).expanduser() / "weights"


def inside() -> dict[str, Path]:
    """Returns the weights that came with the package, by name: the config.json of each, which stands for its folder."""
    return {config.parent.name: config for config in sorted(INSIDE.glob("*/config.json"))}


def card(name: str) -> tuple[dict[str, Any], str]:
    """Returns what the card of weights inside the package says: its values by name, and the whole text."""
    path = inside()[name].with_name("card.md")
    text = path.read_text(encoding="utf-8")
    return read_yaml(text.split("---\n")[1], str(path)), text


def find_source(source: str | Path) -> Path:
    """Returns the file of a trained network: that of weights inside the package by their name, the hub's fetched, else as ``find_network``.

    Raises:
        InputError: There is nothing of that kind.
    """
    if str(source).startswith(HUB):
        from cct_lightning.weights.hub import fetch

        return fetch(str(source))
    if (config := inside().get(str(source))) is not None and not Path(source).exists():
        return config
    return find_network(source)


def hub_parts(source: str) -> tuple[str, str | None]:
    """Takes hf:OWNER/NAME@REVISION apart.

    Returns:
        OWNER/NAME, and the revision; None where none is named.

    Raises:
        InputError: It is written otherwise.
    """
    repository, at, revision = source.removeprefix(HUB).partition("@")
    is_revision = not at or re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)*", revision, re.ASCII)  # relative: the client makes a file's name of it
    if not re.fullmatch(rf"{_PART}/{_PART}", repository, re.ASCII) or not is_revision or ".." in source:
        raise InputError(f"{source}: networks of the hub are named {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION (a branch, a tag or a commit).")
    return repository, revision or None


def check_source(source: str) -> None:
    """Refuses a source that is neither there nor a name; nothing is read or downloaded.

    Raises:
        InputError: Says what may be given.
    """
    if not source or source.startswith("--"):
        raise InputError(
            "model.pretrained is given without a value: name a file, an exported folder, hf:OWNER/NAME, timm/NAME or published weights; null is none."
        )
    if source.startswith(HUB):
        hub_parts(source)
        return
    path = Path(source).expanduser()
    names = (*inside(), *PUBLISHED)
    if source in names or source.startswith("timm/") or path.is_file() or (path / "checkpoints").is_dir():
        return
    if any((path / name).is_file() for name in ("config.json", ENSEMBLE)):
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder without weights: give a run's folder, one that `cct export` wrote, or a file.")
    near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".ckpt", ".pth", ".pt", ".safetensors"))[:5]
    if path.suffix == ".pth" and path.stem in PUBLISHED:
        raise InputError(f"There is no file {path}. Published weights go by their name without .pth, which downloads them: {path.stem}.")
    hint = f" Beside it: {', '.join(near)}." if near else did_you_mean(source, names) if len(path.parts) == 1 and not path.suffix else ""
    raise InputError(
        f"There is no file {path}.{hint}\n"
        f"  Weights come from a file (a run's best.ckpt, .pth, .safetensors), an exported folder, hf:OWNER/NAME, timm/NAME, or by the name of\n"
        f"  those that `cct models` lists: {', '.join(names)}."
    )


def check_teacher(source: str) -> None:
    """Does so for a network to learn from, which may also be timm/NAME@FILE.

    Raises:
        InputError: Says what may be given.
    """
    name, given, file = source.partition("@")
    if not name.startswith("timm/"):
        try:
            return check_source(source)
        except InputError as error:
            raise InputError(str(error).replace("model.pretrained", "model.teacher", 1)) from None
    check_timm_name("model.teacher", name)
    if given and not Path(file).expanduser().is_file():
        raise InputError(f"model.teacher={source}: there is no file {file or 'behind the @'}; give timm/NAME@FILE, or a checkpoint of yours.")


def locate(source: str | Path) -> Path:
    """Returns the file of a source (of an exported folder its config.json); published weights and the hub's are downloaded where they are not on
    this machine, those inside the package are there.

    Raises:
        InputError: There is no such source, or it can't be downloaded.
    """
    check_source(str(source))
    if str(source) in PUBLISHED and not Path(source).is_file():
        return download(str(source))
    return find_source(source)


def reaches(address: str) -> bool:
    """Tells whether a server takes a connection within 3 s; through a proxy it is taken for granted."""
    import socket
    import urllib.request
    from urllib.parse import urlparse

    about = urlparse(address)
    if {about.scheme, "all"} & set(urllib.request.getproxies()) and not urllib.request.proxy_bypass(about.hostname or ""):  # type: ignore[attr-defined]
        return True
    try:
        socket.create_connection((about.hostname or "", about.port or (80 if about.scheme == "http" else 443)), timeout=3).close()
    except OSError:
        return False
    return True


def unreachable(source: str, reason: str) -> InputError:
    """Makes the error of timm's weights that can't be had."""
    return InputError(
        f"{source}: the weights can't be had ({reason}).\n"
        f"  Without a network give a file of them: --model.arch {source} --model.pretrained FILE.safetensors"
    )


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, expected: str, found: str) -> None:
    """Refuses the network's file of an export that is not the one that was written.

    Raises:
        InputError: The digests differ.
    """
    if found != expected:
        raise InputError(
            f"{path} is not the file that {path.with_name('config.json')} describes: its sha256 is {found[:12]}..., there it is {expected[:12]}...\n"
            "  It was changed, or not copied to its end: copy the folder again, or write it anew with `cct export`."
        )


def download(name: str, base: str = URL) -> Path:
    """Fetches published weights once and remembers their SHA-256 in a file beside them, which every later use is compared with.

    Their authors state no sums, so the first download is taken at its word: over https, and read without running code.

    Args:
        name: Of ``PUBLISHED``.
        base: The address that the folders are below.

    Raises:
        InputError: No network, a broken download, or a file that has changed since.
    """
    import urllib.request  # the front checks sources, too, and answers at once

    path = weights_folder() / f"{name}.pth"
    noted = path.with_suffix(".sha256")
    url = f"{base}/{PUBLISHED[name].folder}/{name}.pth"
    if not path.is_file():
        part = path.with_name(f"{path.name}.part-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=SECONDS) as answer, open(part, "wb") as file:
                length, done = int(answer.headers.get("Content-Length") or 0), 0
                while chunk := answer.read(2**20):
                    file.write(chunk)
                    done += len(chunk)
            if length and done != length:
                raise OSError(f"{done} of {length} bytes came")
            digest = sha256(part)
            if noted.is_file() and noted.read_text().split()[0] != digest:
                raise InputError(f"{url} is another file than before: its sha256 is {digest}, {noted} remembers another. Nothing was kept.")
            noted.write_text(f"{digest}  {path.name}\n")
            os.replace(part, path)
        except (OSError, ValueError) as error:
            part.unlink(missing_ok=True)
            if isinstance(error, InputError):
                raise
            reason = str(getattr(error, "reason", error)).splitlines()[0][:120]
            raise InputError(
                f"{name} can't be downloaded ({reason}).\n  From {url}\n"
                f"  Where there is a network, fetch it and give the file: --model.pretrained {name}.pth"
            ) from None
        print(f"downloaded {path}\n  sha256 {digest}, remembered")
    elif noted.is_file() and noted.read_text().split()[0] != sha256(path):
        raise InputError(f"{path} has changed since it was downloaded: its sha256 is not that of {noted.name}. Delete both to fetch it again.")
    return path
