"""A data folder: a name or a path in, samples out."""

import filecmp
import functools
import heapq
import json
import os
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_file, hash_text, known_hash
from encoder_bench.base.paths import visible, with_home
from encoder_bench.base.progress import QuietReporter, Reporter
from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.fetch import NOTE, known_version
from encoder_bench.data.files import FOLLOW_LINKS, DataFiles
from encoder_bench.data.index import Index, RowMaker, open_index
from encoder_bench.data.readers import Reader, find_reader, readers
from encoder_bench.data.sample import Sample, Split
from encoder_bench.data.sample_table import SCHEMA, RowDigest, SampleTable, as_row


class DataFolder:
    """A folder of data in the official layouts.

    Its samples are read once into an index on disk, and again where a file has changed.

    Attributes:
        name: what the user called it: `scenes`, `coco`, or the folder's own name.
        images_required: whether a missing image is an error.
    """

    def __init__(self, name: str, root: Path, *, images_required: bool = True) -> None:
        self.name = name
        self.root = root
        self.files = DataFiles(root)
        self.images_required = images_required

    def samples(
        self, task: str, *, reader: str, source: str, split: Split, limit: int | None = None
    ) -> SampleTable:
        """Return the samples of a split, training ones without any image that a test uses.

        With a limit, so many are kept, chosen by a hash of the sample id, the same for every seed.

        Raises:
            DataError: files are missing, malformed or unsafe, or the split is empty.
        """
        index = self._index(find_reader(reader, source), source, split)
        samples = SampleTable.of_task(index.table, task, self._real_root, index.about["rows"])
        if self.images_required and (missing := samples.missing()):
            raise DataError(next(iter(missing.values())))
        if not samples:
            raise DataError(f"{self.root}: no {split} samples for task '{task}'")
        if limit is not None and limit < len(samples):
            keys = [hash_text("0", name) for name in samples.sample_ids()]
            chosen = heapq.nsmallest(limit, range(len(keys)), key=keys.__getitem__)
            samples = samples.take(np.sort(chosen))
        return samples

    def task_samples(
        self, task: str, recipe: TaskRecipe, split: Split, limit: int | None = None
    ) -> SampleTable:
        """Return the samples that a task's recipe names, as `samples`."""
        reader, source = recipe.reader, recipe.source
        return self.samples(task, reader=reader, source=source, split=split, limit=limit)

    def _index(self, reader: Reader, source: str, split: Split) -> Index:
        module = sys.modules.get(getattr(reader.read, "__module__", ""))
        place = getattr(module, "__file__", None)
        code = [_code_version(), hash_file(Path(place)) if place else ""]
        asked = [str(self._real_root), reader.name, source, split]
        return open_index(
            repr(("samples", *code, *asked, self.fingerprint(), self._links)),
            SCHEMA,
            lambda: self._rows(reader, source, split),
            lambda about: self.files.stamps(about["looked"]) == about["looked"],
            of=f"{source} {split} of {self.root}",
        )

    def _rows(self, reader: Reader, source: str, split: Split) -> RowMaker:
        files, digest = self.files.afresh(), RowDigest()
        if split == "train":
            files.is_tested = functools.cache(self._is_tested)
        noted: set[int | str] = set()
        for sample in reader.read(files, source, source, split):
            if files.is_tested(sample.image_id, sample.image_path):
                continue
            row = as_row(sample, self._inside(sample.image_path))
            if sample.image_id in files.missing and sample.image_id not in noted:
                noted.add(sample.image_id)
                row["missing"] = files.missing[sample.image_id]
            yield digest.add(row)
        looked = files.looked
        if split == "train" and "_test_files" in vars(self):  # whose bytes were compared
            looked = looked | self._test_images[1]
        return {"rows": digest.hexdigest(), "looked": files.stamps(looked)}

    def _inside(self, image: Path) -> str:
        """Return a file's path in the folder, or the whole one of a file elsewhere."""
        path, roots = str(image), (f"{self._real_root}{os.sep}", f"{self.root}{os.sep}")
        return next((path.removeprefix(top) for top in roots if path.startswith(top)), path)

    @cached_property
    def _real_root(self) -> Path:
        return self.root.resolve()

    @cached_property
    def _links(self) -> str:
        """The hash of where links lead, and whether they are followed out of the folder."""
        targets = [(str(each.real), sorted(each.links.items())) for each in self.files.listings]
        return hash_text(os.environ.get(FOLLOW_LINKS, ""), repr(targets))

    @cached_property
    def _test_images(self) -> tuple[frozenset[str], frozenset[str]]:
        """Every image that a test split of any reader uses, whether or not its file is there.

        By identity, as JSON, and by path in the folder.
        """
        found: tuple[set[str], set[str]] = set(), set()
        for reader in readers().values():
            for source in reader.tested(self.files):
                table = self._index(reader, source, "test").table
                for images, name in zip(found, ("image", "path"), strict=True):
                    images.update(pc.unique(table.column(name)).to_pylist())
        return frozenset(found[0]), frozenset(found[1])

    @cached_property
    def _tests_have_numbers(self) -> bool:
        """Whether COCO's number is the identity of every test image; others are paths."""
        return not any(text.startswith('"') for text in self._test_images[0])

    @cached_property
    def _test_files(self) -> dict[int, list[Path]]:
        """The test images that are there, by the size of their files."""
        found: dict[int, list[Path]] = {}
        for path in filter(Path.is_file, map(self.root.joinpath, self._test_images[1])):
            found.setdefault(path.stat().st_size, []).append(path)
        return found

    def _is_tested(self, identity: int | str, path: Path) -> bool:
        """Return whether a test split shows an image: by identity, path, or bytes.

        Bytes are compared where not both have COCO's numbers, which a copy would share.
        """
        identities, paths = self._test_images
        written = json.dumps(identity, ensure_ascii=False)  # as `as_row` writes it
        if written in identities or self._inside(path) in paths:
            return True
        if (isinstance(identity, int) and self._tests_have_numbers) or not path.is_file():
            return False
        alike = self._test_files.get(path.stat().st_size, ())
        return any(filecmp.cmp(path, each, shallow=False) for each in alike)

    @cached_property
    def _annotation_hashes(self) -> dict[str, str]:
        folders = {""}.union(*(reader.folders for reader in readers().values()))
        return {
            path.relative_to(self.root).as_posix(): known_hash(path)
            for folder in folders
            for place in self.files.places(folder)
            for path in (*visible(place, "*.json"), *visible(place, "*.json.gz"))
            if path != self.root / NOTE
        }

    def versions(self) -> dict[str, str]:
        """Return which known version each annotation file is, by its path in the folder."""
        known = {name: known_version(self.root / name) for name in self._annotation_hashes}
        return {name: version.name for name, version in known.items() if version is not None}

    def fingerprint(self) -> str:
        """Return the sha256 over all annotation files' content and the images' names and sizes."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        sizes = (listing.sizes.items() for listing in self.files.listings)
        images = (f"{name}:{size}" for each in sizes for name, size in each)
        return hash_text(repr(sorted(self._annotation_hashes.items())), *images)

    def description(self) -> dict[str, Any]:
        """Return name, fingerprint and annotation hashes, as the record keeps them."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "files": self._annotation_hashes,
            "versions": self.versions(),
            "image_files": len(self.files.coco_images),
        }


def is_scenes(name: str) -> bool:
    """Return whether `--data` names the embedded scenes, not a folder or `coco`."""
    return name == "scenes" or name.startswith("scenes:")


def open_data(
    name: str,
    reporter: Reporter | None = None,
    *,
    images_required: bool = True,
    flag: str = "--data",
) -> DataFolder:
    """Return the data that `--data` names.

    `scenes` is drawn once into the cache, `coco` is the folder in $COCO, all else is a folder.
    Scoring needs no images; `flag` is the option that named it, for errors.
    """
    if is_scenes(name):
        from encoder_bench.data.scenes.build import scenes_folder

        root = scenes_folder(name, reporter or QuietReporter(), flag)
    elif name == "coco":
        if not os.environ.get("COCO"):
            raise DataError(
                f"{flag} coco: set the environment variable COCO to the folder that holds coco/, "
                f"vqav2/ and gvtbench/, or pass that folder as {flag}"
            )
        root = with_home(os.environ["COCO"])
    else:
        root = with_home(name)
        name = root.resolve().name
    if not root.is_dir():
        raise DataError(f"{'COCO' if name == 'coco' else flag} {root}: no such folder")
    return DataFolder(name, root, images_required=images_required)


@functools.cache
def _code_version() -> str:
    """Return the hash of the code that makes rows of files."""
    place = Path(__file__).parent
    return hash_text(*(path.read_text("utf-8") for path in sorted(place.rglob("*.py"))))


def check_disjoint(train: Iterable[Sample], test: Iterable[Sample]) -> None:
    """Raise a DataError if an image is both trained on and tested on, by identity."""
    shared = {*SampleTable.of(train).images()} & {*SampleTable.of(test).images()}
    if shared:
        raise DataError(
            f"training and test data share {len(shared)} images, the first "
            f"{min(shared, key=str)}; choose other --train-data, a score on seen images means "
            "nothing"
        )
