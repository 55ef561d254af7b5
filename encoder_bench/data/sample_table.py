"""Samples in Arrow columns, made into objects when they are asked for.

A million samples take hardly any memory so: an index on disk is mapped, and what many samples need
(which image, which question) is read by column.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder_bench.base.hashing import hash_text
from encoder_bench.data.sample import Sample

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("path", pa.string()),
        ("question", pa.string()),
        ("references", pa.list_(pa.string())),
        ("target", pa.string()),
        ("facets", pa.string()),
        ("missing", pa.string()),
    ]
)
"""Of an index of samples, whatever task asks them: an `id` that begins with `/` follows the task's
name, another one `=`; `image` is the identity as JSON, `path` is relative to the data folder,
`facets` are JSON; the first row of an image that is not there says so in `missing`."""
_TASK = pa.dictionary(pa.int8(), pa.string())
_ROWS_AT_ONCE = 1024
_as_json, _from_json = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
_NO_FACETS: Mapping[str, str | int] = MappingProxyType({})


class SampleTable(Sequence[Sample]):
    """Samples of one data folder, made from their row when asked for.

    Attributes:
        table: the rows, of `SCHEMA` and with a column `task`.
        root: the folder that image paths are relative to.
    """

    def __init__(self, table: pa.Table, root: Path, fingerprint: Callable[[], str]) -> None:
        """Keep a table that has a column `task`; `fingerprint` is called at most once."""
        self.table = table
        self.root = root
        self._fingerprint = fingerprint
        self._groups: dict[frozenset[str], ImageGroups] = {}
        self._columns = [table.column(name) for name in ("task", *SCHEMA.names[:-1])]

    @classmethod
    def of_task(cls, table: pa.Table, task: str, root: Path, digest: str) -> SampleTable:
        """Return the rows of an index as samples of a task; `digest` is of the rows."""
        codes = pa.array(np.zeros(len(table), np.int8))
        column = pa.DictionaryArray.from_arrays(codes, pa.array([task]))
        named = table.append_column(pa.field("task", _TASK), column)
        return cls(named, root, lambda: hash_text(task, digest))

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> SampleTable:
        """Return any samples as a table, in memory; a table stays what it is."""
        if isinstance(samples, cls):
            return samples
        parts = []
        for task, group in itertools.groupby(samples, lambda sample: sample.task):
            digest = RowDigest()
            rows = [digest.add(as_row(sample)) for sample in group]
            table = pa.Table.from_pylist(rows, schema=SCHEMA)
            parts.append(cls.of_task(table, task, Path(), digest.hexdigest()))
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: Sequence[SampleTable]) -> SampleTable:
        """Return the samples of tables of one data folder, one after the other."""
        if len(parts) == 1:
            return parts[0]
        assert len({part.root for part in parts}) < 2
        empty = SCHEMA.append(pa.field("task", _TASK)).empty_table()
        table = pa.concat_tables([part.table for part in parts] or [empty])
        root = parts[0].root if parts else Path()
        return cls(table, root, lambda: hash_text(*(part.fingerprint for part in parts)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of ids, images, questions and targets in their order."""
        return self._fingerprint()

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleTable: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index]
        return self._sample(*(column[row].as_py() for column in self._columns))

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            columns = (batch.column(name).to_pylist() for name in ("task", *SCHEMA.names[:-1]))
            yield from map(self._sample, *columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: NDArray[np.int64]) -> SampleTable:
        """Return the samples of some rows, in the order given."""
        chosen = rows.astype(np.int64)
        return SampleTable(
            take_rows(self.table, chosen),
            self.root,
            lambda: hash_text(self.fingerprint, chosen.tobytes().hex()),
        )

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of `SCHEMA`, or `task`."""
        return self.table.column(name)

    def pairs(self, one: str, other: str) -> Iterator[tuple[str, str]]:
        """Yield the texts of two columns, row by row."""
        for batch in self.table.select([one, other]).to_batches():
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def counts(self, name: str) -> Counter[str]:
        """Return how often each text of a column occurs, as they first occur."""
        found = pc.value_counts(self.column(name))
        return Counter({entry["values"].as_py(): entry["counts"].as_py() for entry in found})

    def codes(self, name: str) -> tuple[NDArray[np.int32], list[Any]]:
        """Return a text column as numbers, `(rows,)`, and the text of each number.

        Numbers follow the order in which texts first occur.
        """
        encoded = self.column(name)
        if name == "task":
            encoded = encoded.cast(pa.string())
        encoded = encoded.dictionary_encode().unify_dictionaries()
        parts = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
        texts = encoded.chunk(0).dictionary.to_pylist() if parts else []
        return np.concatenate([np.empty(0, np.int32), *parts]).astype(np.int32), texts

    def images(self) -> list[int | str]:
        """Return the identity of every image, each once, as they first occur."""
        return [_from_json(text) for text in pc.unique(self.column("image")).to_pylist()]

    def image_paths(self, among: Iterable[Path] | None = None) -> list[Path]:
        """Return the file of every image (of those in `among`), each once, as they first occur."""
        names = pc.unique(self.column("path"))
        if among is not None:
            full = [str(path) for path in among]
            wanted = {*full, *(path.removeprefix(f"{self.root}/") for path in full)}
            names = names.filter(pc.is_in(names, pa.array(sorted(wanted), pa.string())))
        return [self.root / name for name in names.to_pylist()]

    def numbered_images(self) -> list[tuple[int, Path]]:
        """Return number and file of the images whose identity is a number."""
        pairs = self.table.select(["image", "path"]).group_by(["image", "path"]).aggregate([])
        found = ((_from_json(pair["image"]), pair["path"]) for pair in pairs.to_pylist())
        return [(image, self.root / path) for image, path in found if isinstance(image, int)]

    def by_image(self, tasks: Sequence[str]) -> ImageGroups:
        """Return the samples of some tasks by image, grouped once for each choice of tasks."""
        key = frozenset(tasks)
        if key not in self._groups:
            self._groups[key] = ImageGroups(self, tasks)
        return self._groups[key]

    def missing(self) -> dict[str, str]:
        """Return a line per image that was not there, by its identity as JSON."""
        noted = self.table.select(["image", "missing"]).filter(pc.field("missing").is_valid())
        return dict(zip(noted["image"].to_pylist(), noted["missing"].to_pylist(), strict=True))

    def sample_ids(self) -> Iterator[str]:
        """Return the sample ids."""
        return (_sample_id(*names) for names in self.pairs("task", "id"))

    def image_path(self, row: int) -> Path:
        """Return the image file of a row."""
        return self.root / str(self.column("path")[row])

    def _sample(
        self, task: str, name: str, image: str, path: str, question: str,
        references: list[str], target: str, facets: str,
    ) -> Sample:  # fmt: skip
        return Sample(
            _sample_id(task, name),
            task,
            _from_json(image),
            self.root / path,
            question,
            tuple(references),
            target,
            _from_json(facets) if facets else _NO_FACETS,
        )


def _sample_id(task: str, name: str) -> str:
    return task + name if name.startswith("/") else name[1:]


def take_rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Return some rows of a table, in the order given.

    Batch by batch: Arrow's own `take` copies whole columns of tables in several chunks.
    """
    order = np.argsort(rows, kind="stable")
    ascending, start, parts = rows[order], 0, []
    for batch in table.to_batches():
        first, end = np.searchsorted(ascending, (start, start + len(batch)))
        if first < end:
            parts.append(batch.take(pa.array(ascending[first:end] - start)))
        start += len(batch)
    return pa.Table.from_batches(parts, table.schema).take(pa.array(np.argsort(order)))


class RowDigest:
    """The sha256 of what is taught and asked, over rows of `SCHEMA` as they come."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Take in a row and return it."""
        taught = (row["id"], row["image"], row["question"], row["target"])
        self._digest.update(repr(taught).encode("utf-8", "surrogatepass"))
        return row

    def hexdigest(self) -> str:
        """Return the hash of the rows so far."""
        return self._digest.hexdigest()


def as_row(sample: Sample, path: str | None = None) -> dict[str, Any]:
    """Return a sample as a row of `SCHEMA`, its image at `path` (its own by default)."""
    own = sample.sample_id.startswith(f"{sample.task}/")
    return {
        "id": sample.sample_id[len(sample.task) :] if own else f"={sample.sample_id}",
        "image": _as_json(sample.image_id).decode(),
        "path": str(sample.image_path) if path is None else path,
        "question": sample.question,
        "references": sample.references,
        "target": sample.target,
        "facets": _as_json({**sample.facets}).decode() if sample.facets else "",
        "missing": None,
    }


class ImageGroups:
    """The samples of each image, ordered by image id and made when asked for."""

    def __init__(self, samples: Iterable[Sample], tasks: Sequence[str]) -> None:
        self.samples = SampleTable.of(samples)
        tasks_by_row, self._names = self.samples.codes("task")
        self._tasks = tasks_by_row.astype(np.int16)
        wanted = [code for code, name in enumerate(self._names) if name in tasks]
        codes, texts = self.samples.codes("image")
        identities = [_from_json(text) for text in texts]
        del texts
        order = sorted(range(len(identities)), key=lambda code: str(identities[code]))
        place = np.empty(len(identities), np.int32)
        place[order] = np.arange(len(identities), dtype=np.int32)
        rows = np.flatnonzero(np.isin(self._tasks, wanted)).astype(np.int32)
        own = place[codes[rows]]
        self._rows = rows[np.argsort(own, kind="stable")]
        counts = np.bincount(own, minlength=len(identities))
        present = np.flatnonzero(counts)
        self._ends = np.cumsum(counts[present])
        self._images: list[int | str] = [identities[order[number]] for number in present]
        del codes
        pa.default_memory_pool().release_unused()  # a hundred MB at a million samples

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        return tuple(self.samples[row] for row in self.rows(index))

    def image(self, index: int) -> int | str:
        """Return the identity of an image."""
        return self._images[index]

    def rows(self, index: int) -> list[int]:
        """Return where an image's samples are in `samples`."""
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return [int(row) for row in self._rows[start : self._ends[index]]]

    def task(self, row: int) -> str:
        """Return the task of a row of `samples`."""
        return str(self._names[self._tasks[row]])
