"""The rows of a source that can be trained on: their images are there and in no test set."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder_bench.base.hashing import hash_array
from encoder_bench.base.progress import Reporter
from encoder_bench.data.formats.row import MAX_EXAMPLES, Place, note_skipped
from encoder_bench.data.index import Index, RowMaker, open_index
from encoder_bench.data.overlap import (
    MISSING,
    OUTSIDE,
    Match,
    TestImages,
    find_matches,
    image_sizes,
)

_ROWS = pa.schema({"row": pa.int64()})
_UNUSABLE = {MISSING: "missing image", OUTSIDE: "image outside its folder"}


class _Images:
    """The images of a source's rows: each name once, and which rows show it."""

    def __init__(self, table: pa.Table) -> None:
        column = table["images"].combine_chunks()
        encoded = column.flatten().dictionary_encode()
        self.names: list[str] = encoded.dictionary.to_pylist()
        self.codes: NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)
        self.rows = np.repeat(np.arange(len(table)), pc.list_value_length(column).to_numpy())

    def folders(self) -> list[str]:
        """Return the folders and archives that hold them."""
        inside = r"(\.(?:arrow|tar))/.*$"
        names = pc.replace_substring_regex(pa.array(self.names, pa.string()), inside, r"\1/")
        found = pc.unique(pc.replace_substring_regex(names, r"/?[^/]*$", ""))
        return sorted(found.to_pylist())

    def first_in_each_row(self, chosen: NDArray[np.bool_]) -> dict[int, int]:
        """Return rows that show a chosen image, and the first such image of each."""
        at = np.flatnonzero(chosen[self.codes])[::-1]
        return dict(sorted(zip(self.rows[at].tolist(), self.codes[at].tolist(), strict=True)))


def open_selection(
    place: Place, index: Index, tests: TestImages, kinds: Sequence[str], reporter: Reporter
) -> Index:
    """Return the numbers of a source's rows that can be trained on (`row`).

    Its `about` is the index's with missing images among `skipped`, `overlap` (rows and images
    dropped, by reason and test set, with the first), `kept`, `images` and `images_sha256`. It is
    made again where a folder of images or the test sets have changed.
    """
    images = _Images(index.table)
    times = [(name, _changed(place.images / name)) for name in images.folders()]
    key = (index.about["sha256"], str(place.images), times, tests.key, kinds, place.source.coco)
    make = partial(_select, place, index, images, tests, kinds, reporter)
    return open_index(repr(("selection", *key)), _ROWS, make)


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except (OSError, ValueError):
        return None


def _select(
    place: Place,
    index: Index,
    images: _Images,
    tests: TestImages,
    kinds: Sequence[str],
    reporter: Reporter,
) -> RowMaker:
    found = image_sizes(place, images.names)
    sizes = np.fromiter(found, np.int64, len(images.names))
    unusable = images.first_in_each_row(sizes < 0)
    skipped = {reason: dict(entry) for reason, entry in index.about["skipped"].items()}
    for row, code in unusable.items():
        where = row_name(index, row)
        note_skipped(skipped, _UNUSABLE[int(sizes[code])], f"{where}: {images.names[code]}")
    paths = [place.images / name for name in images.names]
    matches = find_matches(
        paths, sizes, tests, kinds, any_folder=place.source.coco, reporter=reporter
    )
    matched = np.zeros(len(sizes), np.bool_)
    matched[list(matches)] = True
    shown = {r: c for r, c in images.first_in_each_row(matched).items() if r not in unusable}
    left = np.ones(len(index.table), np.bool_)
    left[[*unusable, *shown]] = False
    for row in np.flatnonzero(left).tolist():
        yield {"row": row}
    used = np.unique(images.codes[left[images.rows]])
    return {
        **index.about,
        "skipped": skipped,
        "overlap": _overlap(
            index, images, {row: matches[code] for row, code in shown.items()}, shown, tests
        ),
        "kept": int(left.sum()),
        "images": len(used),
        "images_sha256": hash_array(sizes[used]),
    }


def _overlap(
    index: Index, images: _Images, rows: dict[int, Match], codes: dict[int, int], tests: TestImages
) -> dict[str, Any]:
    """Return how many rows show a test image, by why it is one and by test set."""
    reasons: dict[str, int] = {}
    for match in rows.values():
        reasons[match.reason] = reasons.get(match.reason, 0) + 1
    sets = {name: set(paths) for name, paths in tests.sets.items()}
    first = [
        f"{row_name(index, row)}: {images.names[codes[row]]} is {match.test} (by {match.reason})"
        for row, match in list(rows.items())[:MAX_EXAMPLES]
    ]
    by_set = {name: sum(m.test in paths for m in rows.values()) for name, paths in sets.items()}
    return {
        "rows": len(rows),
        "images": len(set(codes.values())),
        "by": reasons,
        "tests": by_set,
        "first": first,
    }


def row_name(index: Index, row: int) -> str:
    """Return the words that name a row of an index: its file, and its number there."""
    number = index.table["number"][row].as_py()
    starts = index.about["files"]
    file, start = starts[bisect.bisect_right(starts, number, key=lambda entry: entry[1]) - 1]
    return f"{file}: row {number - start}"
