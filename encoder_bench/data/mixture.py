"""A mixture: the rows of several sources that a stage trains on, made when needed."""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_array, hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import MixtureRecipe, SourceSettings, load_mixture
from encoder_bench.data.formats import locate, open_source
from encoder_bench.data.index import Index
from encoder_bench.data.overlap import TestImages
from encoder_bench.data.sample import Conversation, Sample, Turn
from encoder_bench.data.sample_table import take_rows
from encoder_bench.data.selection import open_selection


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one source.

    Attributes:
        images: the folder below which the images are.
        table: all rows that its files hold (`formats.SCHEMA`).
        chosen: row numbers of the table, in order; a weight of 2 has each twice.
        about: counts, for the record.
    """

    source: SourceSettings
    images: Path
    table: pa.Table
    chosen: NDArray[np.int64]
    about: dict[str, Any]

    def row(self, index: int) -> Conversation:
        """Return one of the chosen rows."""
        number = int(self.chosen[index])
        images, users, answers, position = (
            self.table.column(name)[number].as_py()
            for name in ("images", "users", "assistants", "number")
        )
        again = index - int(np.searchsorted(self.chosen, number))
        return Conversation(
            f"{self.source.name}/{position:06}{f'+{again}' * bool(again)}",
            tuple(self.images / name for name in images),
            tuple(Turn(*pair) for pair in zip(users, answers, strict=True)),
        )

    def turns(self) -> tuple[int, int]:
        """Return how many turns the chosen rows have, and how many words their texts."""
        chosen = take_rows(self.table.select(["users", "assistants"]), self.chosen)
        words = (pc.count_substring_regex(pc.list_flatten(each), r"\S+") for each in chosen.columns)
        turns = pc.sum(pc.list_value_length(chosen["users"])).as_py()
        return int(turns), sum(int(pc.sum(each).as_py()) for each in words)

    def image_paths(self) -> pa.Array:
        """Return the paths of the chosen rows' images, each once, as text."""
        rows = take_rows(self.table.select(["images"]), np.unique(self.chosen))
        names = pc.unique(pc.list_flatten(rows["images"]))
        joined = pc.binary_join_element_wise(str(self.images), names, "/")
        return pc.if_else(pc.starts_with(names, "/"), names, joined)


class Mixture:
    """The rows of a mixture, source by source, in the order of their files."""

    def __init__(self, name: str, recipe: MixtureRecipe, parts: Sequence[Part]) -> None:
        self.name = name
        self.recipe = recipe
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(len(part.chosen) for part in parts))

    def __len__(self) -> int:
        """Return the number of rows, those of a weight of 2 counted twice."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Conversation:
        """Return a row, read from disk."""
        index = range(len(self))[index]
        which = bisect.bisect_right(self._ends, index)
        return self.parts[which].row(index - (self._ends[which - 1] if which else 0))

    def row_images(self, rows: Sequence[int]) -> list[tuple[Path, ...]]:
        """Return the images of some rows, without reading their texts."""
        wanted = np.asarray(rows, np.int64)
        owners = np.searchsorted(self._ends, wanted, side="right")
        found: list[tuple[Path, ...]] = [()] * len(wanted)
        for owner in np.unique(owners).tolist():
            part, places = self.parts[owner], np.flatnonzero(owners == owner)
            numbers = part.chosen[wanted[places] - (self._ends[owner - 1] if owner else 0)]
            images = take_rows(part.table.select(["images"]), numbers)["images"].to_pylist()
            for place, names in zip(places.tolist(), images, strict=True):
                found[place] = tuple(part.images / name for name in names)
        return found

    def images(self) -> Iterator[Path]:
        """Yield the path of every image, each once."""
        paths = pa.chunked_array([part.image_paths() for part in self.parts], pa.string())
        return (Path(path.as_py()) for path in pc.unique(paths))

    def fingerprint(self) -> str:
        """Return the sha256 over what the rows in use say and which images they show."""
        parts = (
            (p.source.name, p.about["sha256"], p.about["images_sha256"], hash_array(p.chosen))
            for p in self.parts
        )
        return hash_text(*(hash_text(*part) for part in parts))

    def description(self) -> dict[str, Any]:
        """Return name, fingerprint and the counts of each source, as the record keeps them."""
        kept = [{k: v for k, v in part.about.items() if k != "files"} for part in self.parts]
        sources = {p.source.name: about for p, about in zip(self.parts, kept, strict=True)}
        return {"name": self.name, "fingerprint": self.fingerprint(), "sources": sources}


def open_mixture(
    name: str,
    root: Path,
    reporter: Reporter,
    *,
    tests: Mapping[str, Sequence[Sample]] | None = None,
) -> Mixture:
    """Return a mixture of `mixtures/` or of a file, without the rows that show a test image.

    Relative paths of sources begin at `root` (`--train-data`). `tests` are, by the name of each
    test set, the samples whose images must not be trained on.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: files are missing or not of the format, nothing is left, or rows show a test
            image and the recipe refuses that.
    """
    recipe = load_mixture(name)
    images = TestImages(tests or {})
    parts = []
    for source in recipe.sources:
        part = open_part(source, root, recipe, images, reporter)
        dropped = part.about["overlap"]
        if dropped["rows"] and recipe.on_overlap == "refuse":
            raise DataError(
                f"source '{source.name}': {dropped['rows']} rows show a test image, the first "
                f'{dropped["first"][0]}; take them out, or set on_overlap = "drop"'
            )
        parts.append(part)
    return Mixture(name, recipe, parts)


def open_part(
    source: SourceSettings, root: Path, recipe: MixtureRecipe, tests: TestImages, reporter: Reporter
) -> Part:
    """Return the rows of one source of a recipe, without those that show a test image.

    Raises:
        DataError: files are missing or not of the format, or nothing is left.
    """
    place = locate(source, root, reporter)
    index = open_source(place, reporter)
    selection = open_selection(place, index, tests, recipe.overlap, reporter)
    chosen = selection.table["row"].to_numpy()
    if not len(chosen):
        raise DataError(f"source '{source.name}': no row is left: {_nothing_left(selection)}")
    return Part(source, place.images, index.table, chosen, selection.about)


def _nothing_left(selection: Index) -> str:
    skipped, dropped = selection.about["skipped"], selection.about["overlap"]
    reasons = [
        f"{entry['count']} {reason} ({entry['first'][0]})" for reason, entry in skipped.items()
    ]
    if dropped["rows"]:
        reasons.append(f"{dropped['rows']} that show a test image ({dropped['first'][0]})")
    return "; ".join(reasons) or f"its weight chooses none of {selection.about['read']}"
