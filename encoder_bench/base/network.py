"""What comes over a network: files by their address, and repositories of the Hub."""

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from encoder_bench.base.errors import DataError, EncoderBenchError
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.progress import Reporter

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60
_PARTIAL_CONTENT, _CANNOT_RESUME = 206, 416
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
OFFLINE = "the Hub cannot be reached while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
_HUB_SECONDS = 3.0
_FILES = (
    "config.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def download(
    url: str,
    target: Path,
    reporter: Reporter,
    *,
    sha256: str | None = None,
    sha1: Sequence[str] = (),
    size: int | None = None,
) -> str:
    """Download a file, or resume a partial download, and return its sha256.

    A file that is there already is checked in the same way and not fetched again; `NAME.partial`
    beside the target grows until it is whole. `sha1` are first digits, one of which it must have;
    the size is in bytes; what is not known is not compared.

    Raises:
        DataError: not reachable, refused, no space, or not the expected file; says what to
            do. A partial download stays and is resumed, a wrong file is removed.
    """
    file = target
    if not target.is_file():
        file = target.with_name(f"{target.name}.partial")
        file.parent.mkdir(parents=True, exist_ok=True)
        if size is None or not file.is_file() or file.stat().st_size != size:
            _fetch(url, file, target, reporter)
    found = file.stat().st_size
    problem, own = None, hash_file(file)
    if size is not None and found != size:
        problem = f"it has {found} bytes, {size} were expected"
    elif sha256 is not None and own != sha256:
        problem = f"its sha256 is {own}, {sha256} was expected"
    elif sha1:
        digest = hash_file(file, "sha1")
        if not digest.startswith(tuple(sha1)):
            expected = " or ".join(sha1)
            problem = f"its sha1 is {digest}, one that begins with {expected} was expected"
    if problem is not None:
        file.unlink()
        raise DataError(f"{url}: not the expected file: {problem}; {file} was removed")
    if file != target:
        file.replace(target)
    return own


def _fetch(url: str, part: Path, target: Path, reporter: Reporter) -> None:
    """Append to `part` what it lacks, or write it from the start where the server cannot resume."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            if answer.status != _PARTIAL_CONTENT:
                start = 0
            length = int(answer.headers.get("Content-Length") or 0)
            whole, free = start + length, shutil.disk_usage(part.parent).free
            if length > free:
                raise DataError(
                    f"{url}: {length / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free "
                    f"in {part.parent}"
                )
            with (
                part.open("ab" if start else "wb") as stream,
                reporter.phase(target.name, whole // CHUNK_BYTES or None, "MiB") as phase,
            ):
                phase.advance(start // CHUNK_BYTES)
                while chunk := answer.read(CHUNK_BYTES):
                    stream.write(chunk)
                    phase.advance()
        if length and part.stat().st_size < whole:
            raise DataError(
                f"{url}: the connection ended at {part.stat().st_size} of {whole} bytes; run the "
                "same command again, it resumes"
            )
    except urllib.error.HTTPError as error:
        if error.code == _CANNOT_RESUME and start:
            return  # whole already; the hash decides
        raise DataError(f"{url}: refused ({error.code} {error.reason})") from error
    except http.client.HTTPException as error:
        raise DataError(
            f"{url}: the connection broke off ({type(error).__name__}); run the same command "
            "again, it resumes"
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{url} cannot be reached ({reason}); where there is no network, fetch it elsewhere, "
            f"put it at {target} and run the same command again"
        ) from error


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
        HfApi().model_info(repository, timeout=_HUB_SECONDS)
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
        return f"the Hub cannot be reached within {_HUB_SECONDS:.0f} seconds: try again"
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
