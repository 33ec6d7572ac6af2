"""``cct push``: a trained network on the Hugging Face Hub, as safetensors, config.json and card alone."""

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cct_lightning
from cct_lightning.errors import InputError
from cct_lightning.inference.card import CARD, PLACE, with_license
from cct_lightning.inference.export import export
from cct_lightning.weights.schema import KEY, check_export, read_json
from cct_lightning.weights.sources import HUB, find_source, reaches
from cct_lightning.wording import reason

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """What was put on the hub, or would have been.

    Attributes:
        name: OWNER/NAME there.
        address: Of its page; empty where nothing was sent.
        commit: Its commit; likewise.
        sizes: Bytes of each file, by name.
        card: The card's text.
    """

    name: str
    address: str
    commit: str
    sizes: dict[str, int]
    card: str


def push(
    source: str | Path, name: str, *, private: bool = False, license: str | None = None, dry_run: bool = False, say: Callable[[str], Any] = print
) -> Pushed:
    """Puts a trained network on the Hugging Face Hub, where ``hf:OWNER/NAME`` fetches it: weights as safetensors, config.json and the card.

    Args:
        source: A run's checkpoint or folder, or a folder that ``cct export`` wrote as safetensors (or for timm), whose card may have been edited.
        name: OWNER/NAME, or NAME of the token's owner. A repository that is there gets a further commit.
        private: It is made for its owner alone; one that is there and public is refused.
        license: As the hub names it, such as apache-2.0; None: none is stated, or what an edited card states.
        dry_run: Makes all that would be sent, and sends nothing.
        say: Tells what is done meanwhile.

    Raises:
        InputError: No such network, no network, no token, or one that may not write there.
    """
    if not NAME.fullmatch(name) or len(name) > 193 or ".." in name or "--" in name or name.endswith((".git", ".ipynb")):
        raise InputError(f"{name}: a repository of the hub is named OWNER/NAME, or NAME of your own; letters, digits, single - and . and _.")
    api = None if dry_run else _connected()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "export")
        weights = _fill(source, folder, say)
        if license is not None:
            text = with_license((folder / CARD).read_text(encoding="utf-8"), license)
            (folder / CARD).write_text(text, encoding="utf-8")
        files = (weights, "config.json", CARD)
        if api is None:
            whole = name if "/" in name else f"OWNER/{name}"
            text = _named(folder, whole)
            return Pushed(whole, "", "", {file: (folder / file).stat().st_size for file in files}, text)
        try:
            return _send(api, folder, files, name, private)
        except InputError:
            raise
        except Exception as error:  # what the client's transport raises has another name in each of its versions
            raise _refused(error, name) from None


def _fill(source: str | Path, folder: Path, say: Callable[[str], Any]) -> str:
    """Writes what is sent into a folder; returns the name of the weights' file."""
    path = find_source(source)
    if path.name != "config.json":
        done = export(source, "safetensors", folder)
        say(f"written as safetensors and compared on {done.compared_on}: logits differ by {done.difference:.1e} at most")
        return "model.safetensors"
    whole = read_json(path)
    about = check_export(path, whole.get(KEY) if isinstance(whole, dict) else None)
    if not str(about["weights"]).endswith(".safetensors"):
        raise InputError(
            f"{path.parent} holds {about['weights']}: only safetensors are pushed. Give the run, or export it with --format safetensors."
        )
    if not path.with_name(CARD).is_file():
        raise InputError(f"{path.parent} holds no {CARD}: give the run, or export it anew, which writes one.")
    folder.mkdir()
    for name in (str(about["weights"]), "config.json", CARD):
        shutil.copy(path.with_name(name), folder / name)
    return str(about["weights"])


def _named(folder: Path, name: str) -> str:
    """Has the card call the network by its name on the hub."""
    text = (folder / CARD).read_text(encoding="utf-8").replace(PLACE, f"{HUB}{name}")
    (folder / CARD).write_text(text, encoding="utf-8")
    return text


def _connected() -> Any:
    from huggingface_hub import HfApi, constants, get_token

    if get_token() is None:
        raise InputError(
            "push needs a token of the hub that may write: set HF_TOKEN to one of https://huggingface.co/settings/tokens, or log in with\n"
            "  `hf auth login`. --dry-run shows without one what would be sent."
        )
    if constants.HF_HUB_OFFLINE or not reaches(constants.ENDPOINT):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise InputError(
            f"nothing can be pushed: {why}. `cct export --format safetensors` writes the same files, to be pushed where there is a network."
        )
    return HfApi(library_name="cct-lightning", library_version=cct_lightning.__version__)


def _send(api: Any, folder: Path, files: tuple[str, ...], name: str, private: bool) -> Pushed:
    from huggingface_hub import CommitOperationAdd

    whole = str(api.create_repo(name, private=private or None, exist_ok=True).repo_id)
    if private and not api.model_info(whole).private:
        raise InputError(f"{whole} is there already, and public: nothing was sent. Make it private on its page first, or choose another name.")
    text = _named(folder, whole)
    done = api.create_commit(
        whole,
        [CommitOperationAdd(file, folder / file) for file in files],
        commit_message=f"Add a network of cct-lightning {cct_lightning.__version__}",
    )
    return Pushed(whole, f"{api.endpoint}/{whole}", str(done.oid), {file: (folder / file).stat().st_size for file in files}, text)


def _refused(error: Exception, name: str) -> InputError:
    """Says why the hub would not take it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return InputError(
            f"{name}: the hub does not let this token write there ({reason(error)}).\n"
            "  Give OWNER as your own name or an organisation's that you are in, and a token that may write: HF_TOKEN, or `hf auth login`."
        )
    return InputError(f"{name}: it can't be pushed ({reason(error)}).")
