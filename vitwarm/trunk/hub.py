"""The Hugging Face hub: trunk files fetched by name, folders pushed, and its errors in words."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vitwarm import __version__
from vitwarm.errors import TrunkError, first_line

PREFIX = "hf-hub:"

_NAME = re.compile(r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^\s@]+))?")


def fetch(name: str, file_name: str) -> Path:
    """Returns a file of `hf-hub:OWNER/NAME[@revision]` in the hub's local cache.

    Raises: TrunkError: no such repository, revision or file in it, or the hub is out of reach.
    """
    repo, revision = _read(name)
    try:
        return Path(hf_hub_download(repo, file_name, revision=revision))
    except Exception as error:  # the hub, its client and the network raise families of their own
        raise TrunkError(f"{name} cannot be fetched: {_explain(error, name)}") from error


def upload(folder: Path, name: str, *, private: bool = False) -> str:
    """Commits a folder to `hf-hub:OWNER/NAME`, which is made if there is none.

    Args:
        private: whether a new repository is visible to its owner alone.
    Returns: the name with the commit, `hf-hub:OWNER/NAME@commit`.
    Raises: TrunkError: the hub refuses or is out of reach.
    """
    repo, revision = _read(name)
    if revision is not None:
        raise TrunkError(f"{name} names a revision; leave @{revision} out to push.")
    api = HfApi(library_name="vitwarm", library_version=__version__)
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        message = f"vitwarm {__version__}"
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as error:  # as above
        raise TrunkError(f"{name} cannot be pushed: {_explain(error, name)}") from error
    return f"{name}@{done.oid}"


def _read(name: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(name)
    if not found:
        raise TrunkError(f"{name!r} is not a name on the hub; write hf-hub:OWNER/NAME[@revision].")
    return found["repo"], found["revision"]


def _explain(error: Exception, name: str) -> str:
    repo, revision = _read(name)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it."
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "it is not in the local cache, and the hub is out of reach or HF_HUB_OFFLINE is set. "
            f"Fetch it once while online: hf download {repo}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such repository, or it is closed to you. Check the name, or log in: "
            "hf auth login."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}. Give a branch, a tag or a commit."
    if isinstance(error, EntryNotFoundError):
        return "it holds no trunk. For a whole pretrained model use handoff.init."
    denied = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
    return f"{first_line(error)}." + (" Log in: hf auth login." if denied else "")
