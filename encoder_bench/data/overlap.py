"""Which images of a source are there, and which of them are images of a test set.

They are compared by COCO's number in file names, by bytes (only files whose size is that of a test
image are read), and by pixels on request (every image is decoded once, which is cached).
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.data.archives import member_sizes, split_archive
from encoder_bench.data.files import path_inside
from encoder_bench.data.formats.row import Place
from encoder_bench.data.images import (
    Fingerprint,
    fingerprints,
    hash_image,
    near_duplicates,
    read_image_bytes,
    same_files,
)
from encoder_bench.data.index import RowMaker, open_index
from encoder_bench.data.sample import Sample
from encoder_bench.data.sample_table import SampleTable

MISSING, OUTSIDE = -1, -2
"""Sizes of images that are not there, or not below their folder."""
TAIL_BYTES, IMAGES_AT_ONCE = 4096, 20_000
_COCO_NUMBER = (
    r"(?:(?:^|/)COCO_(?:train|val|test)20\d\d_"
    r"|(?:^|/)(?:train|val|test|unlabeled)20\d\d/"
    r"|(?:^|/)(?:ms)?coco(?:/[^/]+)*/0{3,})"
    r"0*(?P<number>\d{1,9})\.[A-Za-z]+$"
)
_ANY_NUMBER = r"(?:^|/)(?:COCO_\w+_)?0*(?P<number>\d{1,9})\.[A-Za-z]+$"
_PRINTS = pa.schema({"digest": pa.string(), "bits": pa.binary(), "grey": pa.binary()})


class Match(NamedTuple):
    """Why an image is one of a test set, and which one."""

    reason: str
    test: Path


def coco_numbers(paths: pa.Array, *, any_folder: bool = False) -> pa.Array:
    """Return COCO's image id of each path, null where the name is none of COCO's.

    A number counts in a folder of COCO's (`train2017/`; zeros before it below `coco/`) or after
    `COCO_val2014_`; in any folder only on request, since other sets number their files too.
    """
    pattern = _ANY_NUMBER if any_folder else _COCO_NUMBER
    found = pc.extract_regex(paths, pattern)
    return pc.cast(pc.struct_field(found, "number"), pa.int64())


class TestImages:
    """The images of a run's test sets."""

    __test__ = False  # not a test of pytest's

    def __init__(self, sets: Mapping[str, Sequence[Sample]]) -> None:
        tables = {name: SampleTable.of(some) for name, some in sets.items()}
        self.sets = {name: table.image_paths() for name, table in tables.items()}
        self._numbered = [pair for table in tables.values() for pair in table.numbered_images()]
        self.paths = list(dict.fromkeys(path for paths in self.sets.values() for path in paths))

    @cached_property
    def key(self) -> str:
        """The hash of which images they are, and in what state."""
        return hash_text(*map(_state, self.paths))

    @cached_property
    def by_number(self) -> dict[int, Path]:
        """The images that have a number of COCO's, by their path or as their identity.

        The identity is that of the name in the data folder, which a link may lead away from.
        """
        numbers = coco_numbers(pa.array(map(str, self.paths), pa.string())).to_pylist()
        by_path = {n: p for n, p in zip(numbers, self.paths, strict=True) if n is not None}
        return dict(self._numbered) | by_path

    @cached_property
    def by_size(self) -> dict[int, list[Path]]:
        """The images that are there, by the size of their files."""
        found: dict[int, list[Path]] = defaultdict(list)
        for path in filter(Path.is_file, self.paths):
            found[path.stat().st_size].append(path)
        return dict(found)


def image_sizes(place: Place, names: Sequence[str]) -> Iterator[int]:
    """Yield the bytes of each image of a source, `MISSING`, or `OUTSIDE`.

    Links may lead to other places below its folder or the training data's, and beyond on request,
    as everywhere.
    """
    images, root = place.images, place.root
    inside: dict[str, bool] = {}
    archive, sizes = "", dict[str, int]()
    for name in names:
        path = os.path.normpath(images / name)
        folder = str(Path(path).parent)
        if archive and path.startswith(archive):
            yield sizes.get(path.removeprefix(archive), MISSING)
            continue
        if folder not in inside:
            inside[folder] = place.trusted or _is_inside(folder, images, root)
        if not inside[folder]:
            yield OUTSIDE
            continue
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                found = Path(path).stat()
                if not (place.trusted or _is_inside(path, images, root)):
                    yield OUTSIDE
                    continue
            yield found.st_size if stat.S_ISREG(found.st_mode) else MISSING
        except (OSError, ValueError):
            split = split_archive(Path(path))
            if split is None:
                yield MISSING
            else:
                archive, sizes = f"{split[0]}/", member_sizes(split[0])
                yield sizes.get(split[1], MISSING)


def _is_inside(path: str, images: Path, root: Path) -> bool:
    try:
        path_inside(images, path, "", root)
    except (DataError, OSError, ValueError):
        return False
    return True


def find_matches(
    paths: Sequence[Path],
    sizes: NDArray[np.int64],
    tests: TestImages,
    kinds: Sequence[str],
    *,
    any_folder: bool,
    reporter: Reporter,
) -> dict[int, Match]:
    """Return the images that are test images, by their place in `paths`, which has each once.

    Files whose size is below zero are not there. `kinds` are of `id`, `bytes` and `pixels`;
    `any_folder` says that numbers are COCO's whatever their folder.
    """
    found: dict[int, Match] = {}
    if "id" in kinds and tests.paths:
        names = pa.array(map(str, paths), pa.string())
        numbers = coco_numbers(names, any_folder=any_folder)
        by_number = pc.is_in(numbers, pa.array(tests.by_number, pa.int64()))
        by_path = pc.is_in(names, pa.array(map(str, tests.paths), pa.string()))
        is_test = pc.or_(by_number, by_path).to_numpy(zero_copy_only=False)
        for place in np.flatnonzero(is_test).tolist():
            twin = tests.by_number.get(numbers[place].as_py(), paths[place])
            found[place] = Match("id", twin)
    if "bytes" in kinds and tests.by_size:
        same_size = np.isin(sizes, list(tests.by_size))
        with reporter.phase("comparing bytes", int(same_size.sum()), "images") as phase:
            for place in np.flatnonzero(same_size).tolist():
                same = _twin(paths[place], tests.by_size[int(sizes[place])])
                if same is not None:
                    found.setdefault(place, Match("bytes", same))
                phase.advance()
    if "pixels" in kinds and tests.paths:
        theirs = cached_fingerprints(list(filter(Path.is_file, tests.paths)), reporter)
        present = np.flatnonzero(sizes >= 0)
        for start in range(0, len(present), IMAGES_AT_ONCE):
            places = {paths[place]: int(place) for place in present[start : start + IMAGES_AT_ONCE]}
            ours = cached_fingerprints(list(places), reporter)
            near = [(path, twin) for path, twin, _ in near_duplicates(ours, theirs)]
            for path, twin in [*same_files(ours, theirs), *near]:
                found.setdefault(places[path], Match("pixels", twin))
    return found


def _twin(path: Path, candidates: Sequence[Path]) -> Path | None:
    """Return the candidate with the same bytes, whose sizes are the same already."""
    try:
        tail = _tail(path)
        same = [other for other in candidates if _tail(other) == tail]
        digest = hash_image(path) if same else ""
        return next((other for other in same if hash_image(other) == digest), None)
    except (OSError, DataError):
        return None


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(-min(TAIL_BYTES, path.stat().st_size), os.SEEK_END)
            return stream.read()
    except NotADirectoryError:
        return read_image_bytes(path)[-TAIL_BYTES:]


def cached_fingerprints(paths: Sequence[Path], reporter: Reporter) -> dict[Path, Fingerprint]:
    """Return the fingerprints of those images that can be read, from an index once they are made.

    The index is of exactly these images, in the state in which they are.
    """

    def make() -> RowMaker:
        found, _ = fingerprints(paths, reporter)
        for path in paths:
            entry = found.get(path)
            yield {
                "digest": None if entry is None else entry.digest,
                "bits": None if entry is None or entry.bits is None else entry.bits.tobytes(),
                "grey": None if entry is None else entry.grey.astype(np.uint8).tobytes(),
            }
        return {}

    of = f"image hashes of {len(paths)} images"
    table = open_index(
        repr(("prints", [_state(path) for path in paths])), _PRINTS, make, of=of
    ).table
    rows = zip(*(table[name].to_pylist() for name in _PRINTS.names), strict=True)
    return {
        path: Fingerprint(
            digest,
            None if bits is None else np.frombuffer(bits, np.uint8),
            np.frombuffer(grey, np.uint8).astype(np.int16).reshape(32, 32),
        )
        for path, (digest, bits, grey) in zip(paths, rows, strict=True)
        if digest
    }


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # a member of an archive, or missing
        split = split_archive(path)
        if split is None:
            return str(path)
        found = split[0].stat()
    return f"{path}:{found.st_size}:{found.st_mtime_ns}"
