"""Which data sets can be fetched: their addresses, hashes, Hub ids and pinned revisions.

What belongs here: reading `catalog.toml`. Fetching is `fetch.py`'s job.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from encoder_bench.base.errors import UnknownNameError


class CatalogFile(BaseModel):
    """One official download.

    Attributes:
        url: where it lies.
        into: the folder of the data folder that it belongs in.
        unpack: whether it is an archive.
        sha256: as published; None where nobody publishes one.
        sha1: first digits, one of which it must have.
        size: in bytes, where known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    into: str
    unpack: bool = False
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    sha1: tuple[str, ...] = ()
    size: int | None = Field(default=None, gt=0, alias="bytes")

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def pinned(self) -> bool:
        """Whether what must come is known beforehand."""
        return self.sha256 is not None or bool(self.sha1)


class CatalogSet(BaseModel):
    """One data set: official files, or a set of the Hub.

    Attributes:
        description: one line.
        files: official downloads; empty for a set of the Hub.
        hub: id of a Hub data set.
        revision: its commit; None where none could be verified.
        split: the Hub set's own name of the split.
        kind: what its columns hold, as `data import` names it.
        part: what it becomes.
        streaming: read row by row, without keeping the whole set on disk twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    files: tuple[CatalogFile, ...] = ()
    hub: str | None = None
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    split: str = "validation"
    kind: Literal["vqav2", "captions"] = "vqav2"
    part: Literal["train", "val"] = "val"
    streaming: bool = False

    @model_validator(mode="after")
    def _files_or_hub(self) -> CatalogSet:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give 'files' or 'hub', one of them")
        return self

    @property
    def pinning(self) -> str:
        """How sure it is that the same thing comes every time, in words."""
        if self.hub is not None:
            return f"revision {self.revision[:12]}" if self.revision else "pinned on first use"
        known = sum(file.pinned for file in self.files)
        if known == len(self.files):
            return "hashes known"
        return "pinned on first use" if not known else f"{known} of {len(self.files)} hashes known"

    @property
    def size(self) -> int | None:
        """Bytes to fetch, None where not all sizes are known."""
        sizes = [file.size for file in self.files]
        return None if not sizes or None in sizes else sum(size for size in sizes if size)


@functools.cache
def catalog() -> dict[str, CatalogSet]:
    """Return all data sets by name, in the catalogue's order."""
    content = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {name: CatalogSet.model_validate(entry) for name, entry in content.items()}


def find_set(name: str) -> CatalogSet:
    """Return a data set by name.

    Raises:
        UnknownNameError: there is none; the nearest are suggested.
    """
    if name not in catalog():
        raise UnknownNameError(
            "data set", name, catalog(), "`encoder-bench data fetch --list` names all."
        )
    return catalog()[name]
