"""Model repositories: whether one is on this machine or can be reached, and sending one there."""

import os
from pathlib import Path

from encoder_bench.base.errors import EncoderBenchError

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
OFFLINE = "the Hub cannot be reached while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
_SECONDS = 3.0
_FILES = (
    "config.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def is_cached(repository: str, revision: str | None = None) -> bool:
    """Return whether a configuration or weights of the repository are in the local Hub cache."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name, revision=revision) for name in _FILES)
    return any(isinstance(path, str) for path in found)


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` forbids any download."""
    return any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in _OFFLINE)


def obstacle(repository: str) -> str | None:
    """Return why the Hub does not offer a repository, asked once and for three seconds, or None."""
    if is_offline():
        return OFFLINE
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repository, timeout=_SECONDS)
    except Exception as error:  # the libraries below raise many; what they mean is told apart there
        return refusal(error, repository) or f"the Hub cannot be reached ({type(error).__name__})"
    return None


def refusal(error: BaseException, repository: str) -> str | None:
    """Return what the Hub's answer means, and what to do; None where it is no answer of the Hub."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{repository}"
        return f"it is gated: accept its licence on {page}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub has no such repository, or it is private: check the name, or log in with "
            "`hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return "its repository has no such revision"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the Hub refuses access ({status}): log in again with `hf auth login`"
        # 404 is a file that the repository lacks, which the library names better.
        return None if status == 404 else f"the Hub answers with error {status}: try again later"
    if "Timeout" in type(error).__name__:
        return f"the Hub cannot be reached within {_SECONDS:.0f} seconds: try again"
    return None


def upload_folder(folder: Path, repository: str) -> str:
    """Upload a folder to a model repository, private if it is new; return the commit's address.

    Raises:
        EncoderBenchError: not reachable, not allowed, or not a repository's name; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the Hub's many errors mean one thing here: it was not uploaded
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise EncoderBenchError(
            f"--push-to-hub {repository}: not uploaded ({reason[0]}); {folder} is whole, so "
            f"`hf upload {repository} {folder}` can send it later"
        ) from error
    return str(commit)
