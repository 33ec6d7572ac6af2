"""Whether W&B's server can be had, and in which mode a run is tracked."""

import http.client
import netrc
import os
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

from cct_lightning.errors import InputError
from cct_lightning.runs.tracking.worker import within

PROBE_SECONDS = 3.0


def _answers(url: str) -> bool:
    """Tells whether a server answers within the time of the probe, in any words. In a thread, since a name server may take minutes."""

    def ask() -> bool:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError, http.client.HTTPException):
            return False
        return True

    try:
        return bool(within(PROBE_SECONDS, ask))
    except TimeoutError:
        return False


def _server() -> tuple[str, bool]:
    """Returns the address of W&B's server by its settings, and whether a key for it is configured."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return settings.base_url, True
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else [os.path.expanduser(f"~/{name}") for name in (".netrc", "_netrc")]
    for file in files:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(file).authenticators(urlparse(settings.base_url).hostname or ""):
                return settings.base_url, True
    return settings.base_url, False


def is_disabled(mode: str) -> bool:
    """Tells whether W&B is left out, by the recipe or, for ``auto``, by WANDB_MODE in the environment."""
    return mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")


def wandb_mode(mode: str) -> tuple[str, str]:
    """Decides what ``auto`` means here and now; never asks, and waits at most 3 s. It heeds WANDB_MODE=offline in the environment.

    Returns:
        The mode, and where ``auto`` went offline, why.

    Raises:
        InputError: ``online`` is asked for, and no key is configured: W&B would ask for one.
    """
    if mode == "offline":
        return mode, ""
    if mode == "auto" and os.environ.get("WANDB_MODE") == "offline":
        return "offline", "WANDB_MODE says so"
    url, has_key = _server()
    if mode == "online" and not has_key:
        raise InputError(f"wandb.mode=online: no key for {url} is configured. Run `wandb login`, set WANDB_API_KEY, or choose wandb.mode offline.")
    if not has_key:
        return "offline", "no key is configured"
    if mode == "auto" and not _answers(url):
        return "offline", "the server does not answer"
    return "online", ""


def wandb_id(run_dir: Path) -> str | None:
    """Returns the id under which the run is tracked, by the name of a folder that W&B left, run-<time>-<id>; None for a new run."""
    found = next((run_dir / "wandb").glob("*run-*-*"), None)
    return found.name.partition("run-")[2].partition("-")[2] if found else None
