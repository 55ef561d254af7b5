"""One door to all data: a name or a folder in, samples out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from encoder_bench.base.errors import DataError, UnknownNameError
from encoder_bench.base.hashing import hash_file, hash_text
from encoder_bench.base.progress import QuietReporter, Reporter
from encoder_bench.data.image_files import Layout, TolerantLayout
from encoder_bench.data.readers.coco import caption_samples, captions_by_image
from encoder_bench.data.readers.gvtbench import SOURCES, gvt_samples
from encoder_bench.data.readers.other_captions import MORE_CAPTIONS, more_caption_samples
from encoder_bench.data.readers.other_vqa import MORE_VQA, more_vqa_samples
from encoder_bench.data.readers.pope import pope_samples
from encoder_bench.data.readers.vqav2 import vqa_samples
from encoder_bench.data.sample import Sample, Split
from encoder_bench.data.versions import known_version

Reader = Callable[[Layout, str, str, Split], list[Sample]]
"""Layout, task, source and split to samples."""

_READERS: dict[str, Reader] = {
    "coco-captions": caption_samples,
    "gvtbench": gvt_samples,
    "more-captions": more_caption_samples,
    "more-vqa": more_vqa_samples,
    "pope": pope_samples,
    "vqav2": vqa_samples,
}
ENTRY_POINTS = "encoder_bench.readers"
"""Entry points of other packages: functions `(layout, task, source, split)` to samples."""
_ANNOTATION_FOLDERS = (
    *("", "annotations", "coco", "coco/annotations", "vqav2", "gvtbench"),
    *(*MORE_VQA, "vizwiz/Annotations", *MORE_CAPTIONS, "pope"),
)


class DataFolder:
    """A folder of data in the official layouts.

    Attributes:
        name: what the user called it: `scenes`, `coco`, or the folder's own name.
        root: the folder.
    """

    def __init__(self, name: str, root: Path) -> None:
        """Name the folder; nothing is read yet."""
        self.name = name
        self.root = root
        self._layout = Layout(root)

    def samples(
        self,
        task: str,
        *,
        reader: str,
        source: str,
        split: Split,
        limit: int | None = None,
        seed: int = 0,
    ) -> list[Sample]:
        """Return the samples of a split, training ones without any image that a test uses.

        Args:
            task: the task's name, which the samples carry.
            reader: `coco-captions`, `vqav2`, `gvtbench`, `pope`, `more-vqa`, `more-captions`.
            source: which part of the reader's data (`coco_oc`, `coco_mci`...).
            split: train, val or test.
            limit: keep so many, chosen by a hash of seed and sample id, whatever the order.
            seed: of that choice.

        Raises:
            DataError: files are missing, malformed or unsafe, or the split is empty.
            UnknownNameError: no such reader.
        """
        samples = find_reader(reader)(self._layout, task, source, split)
        if split == "train":
            samples = [s for s in samples if s.image_id not in self._test_images]
        if not samples:
            raise DataError(f"{self.root}: no {split} samples for task '{task}'")
        if limit is not None and limit < len(samples):
            key = {s.sample_id: hash_text(str(seed), s.sample_id) for s in samples}
            kept = set(sorted(key, key=lambda name: key[name])[:limit])
            samples = [s for s in samples if s.sample_id in kept]
        return samples

    @contextlib.contextmanager
    def tolerating_missing_images(self) -> Iterator[list[str]]:
        """Read questions whose images are not there; yields a line for each missing image."""
        strict, tolerant = self._layout, TolerantLayout(self.root)
        self._layout = tolerant
        try:
            yield tolerant.missing
        finally:
            self._layout = strict

    def versions(self) -> dict[str, str]:
        """Return which known version each annotation file is, by its path in the folder."""
        known = {name: known_version(self.root / name) for name in self._annotation_hashes}
        return {name: version.name for name, version in known.items() if version is not None}

    def annotation_file(self, folder: str, name: str) -> Path | None:
        """Return an official file of the data folder, None where it is not there."""
        return self._layout.find(folder, name)

    @cached_property
    def _test_images(self) -> frozenset[int | str]:
        """Every image that any test split of the folder uses."""
        layout, found = self._layout, set[int | str]()
        if layout.find("coco", "captions_val2017.json") or layout.find("coco", "dataset_coco.json"):
            found |= set(captions_by_image(layout, "test"))
        for source in SOURCES:
            if layout.find("gvtbench", f"{source}.json"):
                found |= {s.image_id for s in gvt_samples(layout, source, source, "test")}
        if layout.find("vqav2", "v2_OpenEnded_mscoco_train2014_questions.json"):
            found |= {s.image_id for s in vqa_samples(layout, "vqa", "vqav2", "test")}
        return frozenset(found)

    @cached_property
    def _annotation_hashes(self) -> dict[str, str]:
        files: dict[str, str] = {}
        for folder in _ANNOTATION_FOLDERS:
            place = self.root / folder
            paths = sorted(place.glob("*.json")) + sorted(place.glob("*.json.gz"))
            files |= {path.relative_to(self.root).as_posix(): hash_file(path) for path in paths}
        return files

    def fingerprint(self) -> str:
        """Return the sha256 over all annotation files' content and the images' names and sizes."""
        images = [
            f"{path.name}:{path.stat().st_size}"
            for folder in self._layout.image_folders()
            for path in sorted(folder.iterdir())
            if path.is_file()
        ]
        return hash_text(repr(sorted(self._annotation_hashes.items())), *images)

    def description(self) -> dict[str, Any]:
        """Return name, fingerprint and annotation hashes, as the record keeps them."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "files": self._annotation_hashes,
            "versions": self.versions(),
            "image_files": len(self._layout.coco_images),
        }


def find_reader(name: str) -> Reader:
    """Return a data reader by name: a built-in one, or one of another package's entry point.

    Raises:
        UnknownNameError: there is none; the nearest are suggested.
    """
    if name in _READERS:
        return _READERS[name]
    others = metadata.entry_points(group=ENTRY_POINTS)
    for entry in others:
        if entry.name == name:
            return cast(Reader, entry.load())
    raise UnknownNameError("data reader", name, [*_READERS, *(entry.name for entry in others)])


def open_data(name: str, reporter: Reporter | None = None) -> DataFolder:
    """Return the data that `--data` names.

    Args:
        name: `scenes` (drawn once into the cache), `coco` (the folder in $COCO), or a folder.
        reporter: where progress of drawing goes.

    Raises:
        DataError: no such folder, or $COCO is not set.
    """
    if name == "scenes" or name.startswith("scenes:"):
        from encoder_bench.data.scenes.build import scenes_folder

        return DataFolder(name, scenes_folder(name, reporter or QuietReporter()))
    if name == "coco":
        root = os.environ.get("COCO")
        if not root:
            raise DataError(
                "--data coco: set the environment variable COCO to the folder that holds coco/, "
                "vqav2/ and gvtbench/, or pass that folder as --data"
            )
        return DataFolder("coco", _existing(Path(root), "COCO"))
    return DataFolder(Path(name).resolve().name, _existing(Path(name).expanduser(), "--data"))


def _existing(root: Path, flag: str) -> Path:
    if not root.is_dir():
        raise DataError(f"{flag} {root}: no such folder")
    return root


def check_disjoint(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Check that no image is both trained on and tested on, by id.

    Raises:
        DataError: some are; names the first and counts them.
    """
    shared = {s.image_id for s in train} & {s.image_id for s in test}
    if shared:
        first = min(shared, key=str)
        raise DataError(
            f"training and test data share {len(shared)} images, the first {first}; "
            "choose other --train-data, a score on seen images means nothing"
        )
