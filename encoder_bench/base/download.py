"""Downloads that resume if interrupted and are checked before the file gets its name."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.progress import Reporter

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60
_CANNOT_RESUME = 416


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

    A file that is there already is checked in the same way and not fetched again.

    Args:
        url: where from.
        target: where to; `NAME.partial` beside it grows until it is whole.
        reporter: shows the progress in MiB.
        sha256: the expected one; None where it is not published.
        sha1: the first digits of a sha1, one of which it must have.
        size: in bytes, where known.

    Raises:
        DataError: not reachable, refused, no space, or not the expected file; says what to
            do. A partial download stays and is resumed, a wrong file is removed.
    """
    if not target.is_file():
        part = target.with_name(f"{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        _grow(url, part, target, reporter, size)
        _check(part, url, sha256, sha1, size)
        part.replace(target)
    else:
        _check(target, url, sha256, sha1, size)
    return hash_file(target)


def _grow(url: str, part: Path, target: Path, reporter: Reporter, size: int | None) -> None:
    start = part.stat().st_size if part.is_file() else 0
    if size is not None and start == size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            resumed = answer.status == 206
            length = int(answer.headers.get("Content-Length") or 0)
            whole = length + (start if resumed else 0)
            _enough_space(part.parent, length, url)
            total = whole // CHUNK_BYTES or None
            with (
                part.open("ab" if resumed else "wb") as stream,
                reporter.phase(target.name, total, "MiB") as phase,
            ):
                phase.advance(start // CHUNK_BYTES if resumed else 0)
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


def _enough_space(folder: Path, wanted: int, url: str) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise DataError(
            f"{url}: {wanted / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free in "
            f"{folder}"
        )


def _check(file: Path, url: str, sha256: str | None, sha1: Sequence[str], size: int | None) -> None:
    """Remove a file that is not the expected one, and raise."""
    found = file.stat().st_size
    problem = None
    if size is not None and found != size:
        problem = f"it has {found} bytes, {size} were expected"
    elif sha256 is not None and (own := hash_file(file)) != sha256:
        problem = f"its sha256 is {own}, {sha256} was expected"
    elif sha1:
        with file.open("rb") as stream:
            own = hashlib.file_digest(stream, "sha1").hexdigest()
        if not own.startswith(tuple(sha1)):
            problem = f"its sha1 is {own}, one that begins with {' or '.join(sha1)} was expected"
    if problem is None:
        return
    file.unlink()
    raise DataError(f"{url}: not the expected file: {problem}; {file} was removed")
