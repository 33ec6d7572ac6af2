"""Networks of the Hugging Face Hub: what ``cct push`` put there, fetched by ``hf:OWNER/NAME``. Importing this needs neither torch nor the client."""

from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError
from cct_lightning.weights.schema import KEY, check_export, read_json
from cct_lightning.weights.sources import hub_parts, reaches
from cct_lightning.wording import reason


def fetch(source: str) -> Path:
    """Fetches config.json and the safetensors that it describes; of a revision that is there already nothing but its name is asked for.

    The client of the hub keeps both, in ``HF_HOME``. Nothing else of a repository is fetched, so no pickle is either.

    Args:
        source: hf:OWNER/NAME, or hf:OWNER/NAME@REVISION, a branch, a tag or a commit.

    Returns:
        The config.json, beside which the weights lie; the folder's name is the commit.

    Raises:
        InputError: There is no such repository, or it may not be read; there is no network; it holds no network of ours; classes or
            normalisation are not known.
    """
    repository, revision = hub_parts(source)
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    away = ""
    if constants.HF_HUB_OFFLINE:
        away = "HF_HUB_OFFLINE is set"
    elif not reaches(constants.ENDPOINT):
        away = f"{constants.ENDPOINT} does not answer"
    wanted = "config.json"
    try:
        config = Path(hf_hub_download(repository, wanted, revision=revision, local_files_only=bool(away)))
        wanted = _check(source, config)
        hf_hub_download(repository, wanted, revision=config.parent.name, local_files_only=bool(away))
    except InputError:
        raise
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{source}: it can't be had ({away or reason(error.__cause__ or error)}), and was not downloaded before.\n"
            "  Where there is a network, `cct predict` with it fetches it; or copy the folder (config.json, model.safetensors) and name that instead."
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{source}: {constants.ENDPOINT} has no repository {repository}, or it is private, or its owner has to let you in.\n"
            "  Of a private one set HF_TOKEN to a token that may read it, or log in with `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{source}: {repository} has no revision {revision}: name a branch, a tag or a commit, or leave it out.") from None
    except EntryNotFoundError:
        raise InputError(f"{source}: {repository} holds no {wanted}: it was not pushed by `cct push`, and no other file is read.") from None
    except Exception as error:  # what the client's transport raises has another name in each of its versions
        raise InputError(f"{source}: it can't be downloaded ({reason(error)}).") from None
    return config


def _check(source: str, config: Path) -> str:
    """Refuses a network that is not ours, or does not say what it tells and how images are prepared; returns the name of its weights' file."""
    whole = read_json(config)
    said: Any = whole.get(KEY) if isinstance(whole, dict) else None
    if said is None:
        theirs = isinstance(whole, dict) and "architecture" in whole
        raise InputError(
            f"{source} is no network of cct-lightning: its config.json does not say {KEY}, as `cct push` writes it.\n"
            + (f"  It is timm's: --model.pretrained timm/{whole['architecture']}" if theirs else "  Weights of others are given as a file.")
        )
    about = check_export(config, said)
    if not about["weights"].endswith(".safetensors"):
        raise InputError(f"{source} holds {about['weights']} and no safetensors, which alone are fetched: push the run with `cct push`.")
    if not about["class_names"]:
        raise InputError(f"{source} does not say what its classes are (config.json: {KEY}.class_names): push the run anew.")
    if None in (about["preprocessing"]["mean"], about["preprocessing"]["std"]):
        raise InputError(f"{source} does not say how images are normalised (config.json: {KEY}.preprocessing): push the run anew.")
    return str(about["weights"])
