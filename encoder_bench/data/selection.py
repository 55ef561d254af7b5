"""The rows of a source that can be trained on: their images are there and in no test set."""

import bisect
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder_bench.base.hashing import hash_array, hash_json, hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import SourceSettings
from encoder_bench.data.files import FOLLOW_LINKS
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
_HINTS = {MISSING: "", OUTSIDE: f" ({FOLLOW_LINKS}=1 follows links)"}


class _Images:
    """The images of a source's rows: each name once, and which rows show it."""

    def __init__(self, table: pa.Table) -> None:
        column = table["images"].combine_chunks()
        encoded = column.flatten().dictionary_encode()
        self.dictionary: pa.Array = encoded.dictionary
        self.codes: NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)
        self.rows = np.repeat(np.arange(len(table)), pc.list_value_length(column).to_numpy())

    @cached_property
    def names(self) -> list[str]:
        """The name of each image, by its code."""
        names: list[str] = self.dictionary.to_pylist()
        return names

    def folders(self) -> list[str]:
        """Return the folders and archives that hold them."""
        inside = r"(\.(?:arrow|tar))/.*$"
        names = pc.replace_substring_regex(self.dictionary, inside, r"\1/")
        found = pc.unique(pc.replace_substring_regex(names, r"/?[^/]*$", ""))
        return sorted(found.to_pylist())

    def first_in_each_row(self, chosen: NDArray[np.bool_]) -> dict[int, int]:
        """Return rows that show a chosen image, and the first such image of each."""
        at = np.flatnonzero(chosen[self.codes])[::-1]
        return dict(sorted(zip(self.rows[at].tolist(), self.codes[at].tolist(), strict=True)))


def open_selection(
    place: Place, index: Index, tests: TestImages, kinds: Sequence[str], reporter: Reporter
) -> Index:
    """Return the numbers of a source's rows that are trained on (`row`), in order.

    They are chosen by the source's weight or cap among the rows whose images are there; of these,
    those that show a test image are then left out. Its `about` is the index's with missing images
    among `skipped`, `overlap` (rows and images left out, by reason and test set, with the first),
    `used`, `images` and `images_sha256`. It is made again where a folder of images or the test sets
    have changed.
    """
    images = _Images(index.table)
    times = [(name, _changed(place.images / name)) for name in images.folders()]
    source = place.source
    choice = (source.name, source.weight, source.max_rows, source.streaming, source.coco)
    follows = os.environ.get(FOLLOW_LINKS) == "1"
    key = (hash_json(index.about), str(place.images), times, tests.key, kinds, choice, follows)
    make = partial(_select, place, index, images, tests, kinds, reporter)
    return open_index(
        repr(("selection", *key)), _ROWS, make, of=f"{source.name}, its rows to train on"
    )


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
        size = int(sizes[code])
        example = f"{row_name(index, row)}: {images.names[code]}{_HINTS[size]}"
        note_skipped(skipped, _UNUSABLE[size], example)
    present = np.ones(len(index.table), np.bool_)
    present[list(unusable)] = False
    chosen = choose(np.flatnonzero(present), place.source)
    wanted = np.zeros(len(present), np.bool_)
    wanted[chosen] = True
    codes = np.unique(images.codes[wanted[images.rows]])
    found_in = find_matches(
        [place.images / images.names[code] for code in codes],
        sizes[codes],
        tests,
        kinds,
        any_folder=place.source.coco,
        reporter=reporter,
    )
    matches = {int(codes[at]): match for at, match in found_in.items()}
    matched = np.zeros(len(sizes), np.bool_)
    matched[list(matches)] = True
    shown = {r: c for r, c in images.first_in_each_row(matched).items() if wanted[r]}
    wanted[list(shown)] = False
    used = np.unique(images.codes[wanted[images.rows]])
    rows = chosen[wanted[chosen]]
    for row in rows.tolist():
        yield {"row": row}
    return {
        **index.about,
        "skipped": skipped,
        "overlap": _overlap(index, images, matches, shown, tests),
        "used": len(rows),
        "images": len(used),
        "images_sha256": hash_array(sizes[used]),
    }


def choose(rows: NDArray[np.int64], source: SourceSettings) -> NDArray[np.int64]:
    """Return the rows that a source's weight or cap chooses, sorted.

    They follow from a hash of each row's number, so that a smaller choice is part of a larger one.
    """
    count = len(rows)
    wanted = min(source.max_rows or count, count)
    if source.weight is not None:
        wanted = round(source.weight * count)
    copies, rest = divmod(wanted, count or 1)
    if source.streaming:
        return rows[:wanted]
    salt = np.uint64(int(hash_text(source.name)[:16], 16))
    hashes = pd.util.hash_array(rows.astype(np.uint64) ^ salt)
    first = rows[np.argsort(hashes, kind="stable")[:rest]]
    return np.sort(np.concatenate([np.repeat(rows, copies), first]))


def _overlap(
    index: Index,
    images: _Images,
    matches: dict[int, Match],
    shown: dict[int, int],
    tests: TestImages,
) -> dict[str, Any]:
    """Return how many rows show a test image, by why it is one and by test set."""
    rows = {row: matches[code] for row, code in shown.items()}
    sets = {name: set(paths) for name, paths in tests.sets.items()}
    return {
        "rows": len(rows),
        "images": len(set(shown.values())),
        "by": dict(Counter(match.reason for match in rows.values())),
        "tests": {n: sum(m.test in paths for m in rows.values()) for n, paths in sets.items()},
        "first": [
            f"{row_name(index, row)}: {images.names[shown[row]]} is the test image "
            f"{'/'.join(match.test.parts[-3:])} (by {match.reason})"
            for row, match in list(rows.items())[:MAX_EXAMPLES]
        ],
    }


def row_name(index: Index, row: int) -> str:
    """Return the words that name a row of an index: its file, and its number there."""
    number = index.table["number"][row].as_py()
    starts = index.about["files"]
    file, start = starts[bisect.bisect_right(starts, number, key=lambda entry: entry[1]) - 1]
    return f"{file}: row {number - start}"
