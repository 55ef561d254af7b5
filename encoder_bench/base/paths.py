"""Where results go by default, where the cache is, and what it holds that can be made again."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from encoder_bench.base.errors import EncoderBenchError

RESULTS = Path("runs")
"""The results folder where none is given."""
ABOUT = "about.json"
"""In a folder of cached features or rows: what they are; its time is that of their last use."""


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return what `folder.glob(pattern)` finds, sorted, without hidden files and folders.

    macOS lays `._NAME` beside files on disks of another format and `.DS_Store` into folders that
    are looked at; Jupyter keeps copies of images in `.ipynb_checkpoints`.
    """
    found = ((path, path.relative_to(folder).parts) for path in folder.glob(pattern))
    return sorted(path for path, parts in found if not any(p.startswith(".") for p in parts))


def cache_dir(*parts: str) -> Path:
    """Return a folder under `$ENCODER_BENCH_CACHE`, else `$XDG_CACHE_HOME` or `~/.cache`.

    The folder is not created.

    Raises:
        EncoderBenchError: none of the two is set and the user has no home.
    """
    root = os.environ.get("ENCODER_BENCH_CACHE")
    try:
        if root:
            return Path(root).expanduser().joinpath(*parts)
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # neither HOME nor a passwd entry
        raise EncoderBenchError(
            "no home folder is known: set HOME, or ENCODER_BENCH_CACHE to a folder for caches"
        ) from None
    return caches.joinpath("encoder-bench", *parts)


def with_home(path: str | Path) -> Path:
    """Return a path with the user's home folder for `~`; as it is where that is not known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


class CacheEntry(NamedTuple):
    """One folder of the cache with its images or rows; `last_used` is in seconds since the epoch.

    `of` says what it was made from, as in `tiny-deit (exact)`.
    """

    folder: Path
    of: str
    items: int
    size_bytes: int
    last_used: float


def list_cached(
    part: str, read: Callable[[Path], tuple[str, int]], *, marker: str = ABOUT
) -> list[CacheEntry]:
    """Return the folders of a part of the cache, the least recently used first.

    `read` returns what a folder was made from and how many items it holds; one that raises an
    OSError or a ValueError is left out, and so is one without the file `marker`, whose time is that
    of the last use.
    """
    entries = []
    for about in cache_dir(part).glob(f"*/{marker}"):
        with contextlib.suppress(OSError, ValueError):
            size = sum(path.stat().st_size for path in about.parent.iterdir())
            entries.append(
                CacheEntry(about.parent, *read(about.parent), size, about.stat().st_mtime)
            )
    return sorted(entries, key=lambda entry: entry.last_used)


def list_features() -> list[CacheEntry]:
    """Return every encoder's cached features, the least recently used first."""
    from safetensors import SafetensorError, safe_open

    def read(folder: Path) -> tuple[str, int]:
        of, images = "unknown", set[str]()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            of = f"{content['encoder']} ({content['storage']})"
        for path in folder.glob("*.safetensors"):
            with (
                contextlib.suppress(OSError, SafetensorError),
                safe_open(path, framework="numpy") as shard,
            ):
                images.update(shard.keys())
        return of, len(images)

    return list_cached("features", read)


def list_language_models() -> list[CacheEntry]:
    """Return every copy that was made of a GGUF file, the least recently used first."""
    return list_cached(
        "llm", lambda folder: (folder.name, len(list(folder.iterdir()))), marker="config.json"
    )


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there; of a symbolic link the link, not what it leads to.

    Raises:
        OSError: something in it cannot be removed; names it.
    """
    with contextlib.suppress(FileNotFoundError):
        while folder.lstat():
            if folder.is_symlink():
                folder.unlink()
            with contextlib.suppress(FileNotFoundError):  # another process removes it too
                shutil.rmtree(folder)


def prune(entries: Iterable[CacheEntry], max_bytes: int) -> Iterator[CacheEntry]:
    """Remove the least recently used entries until at most `max_bytes` are left; yield each then.

    Raises:
        OSError: one cannot be removed.
    """
    left = sorted(entries, key=lambda entry: entry.last_used)
    total = sum(entry.size_bytes for entry in left)
    for entry in left:
        if total <= max_bytes:
            break
        remove_folder(entry.folder)
        total -= entry.size_bytes
        yield entry
