"""A data folder: a name or a path in, samples out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import DataError
from encoder_bench.base.hashing import hash_file, hash_text
from encoder_bench.base.progress import QuietReporter, Reporter
from encoder_bench.data.fetch import known_version
from encoder_bench.data.files import DataFiles
from encoder_bench.data.readers import find_reader, readers
from encoder_bench.data.sample import Sample, Split


class DataFolder:
    """A folder of data in the official layouts.

    Attributes:
        name: what the user called it: `scenes`, `coco`, or the folder's own name.
        root: the folder.
        files: its files.
    """

    def __init__(self, name: str, root: Path, *, images_required: bool = True) -> None:
        self.name = name
        self.root = root
        self.files = DataFiles(root, images_required=images_required)

    def samples(
        self,
        task: str,
        *,
        reader: str,
        source: str,
        split: Split,
        limit: int | None = None,
    ) -> list[Sample]:
        """Return the samples of a split, training ones without any image that a test uses.

        With a limit, so many are kept, chosen by a hash of the sample id, the same for every seed.

        Raises:
            DataError: files are missing, malformed or unsafe, or the split is empty.
        """
        samples = find_reader(reader).samples(self.files, task, source, split)
        if split == "train":
            identities, paths = self._test_images
            samples = [
                s for s in samples if s.image_id not in identities and s.image_path not in paths
            ]
        if not samples:
            raise DataError(f"{self.root}: no {split} samples for task '{task}'")
        if limit is not None and limit < len(samples):
            order = sorted(samples, key=lambda s: hash_text("0", s.sample_id))
            kept = {s.sample_id for s in order[:limit]}
            samples = [s for s in samples if s.sample_id in kept]
        return samples

    @cached_property
    def _test_images(self) -> tuple[frozenset[int | str], frozenset[Path]]:
        """Every image that a test split of any reader uses, whether or not its file is there."""
        files = self.files.without_images()
        tested = [s for reader in readers().values() for s in reader.test_samples(files)]
        return frozenset(s.image_id for s in tested), frozenset(s.image_path for s in tested)

    @cached_property
    def _annotation_hashes(self) -> dict[str, str]:
        folders = {""}.union(*(reader.folders for reader in readers().values()))
        return {
            path.relative_to(self.root).as_posix(): hash_file(path)
            for folder in folders
            for place in self.files.places(folder)
            for path in (*place.glob("*.json"), *place.glob("*.json.gz"))
        }

    def versions(self) -> dict[str, str]:
        """Return which known version each annotation file is, by its path in the folder."""
        known = {name: known_version(self.root / name) for name in self._annotation_hashes}
        return {name: version.name for name, version in known.items() if version is not None}

    def fingerprint(self) -> str:
        """Return the sha256 over all annotation files' content and the images' names and sizes."""
        images = [
            f"{path.name}:{path.stat().st_size}"
            for folder in self.files.image_folders
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
            "image_files": len(self.files.coco_images),
        }


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
    if name == "scenes" or name.startswith("scenes:"):
        from encoder_bench.data.scenes.build import scenes_folder

        root = scenes_folder(name, reporter or QuietReporter(), flag)
    elif name == "coco":
        if not os.environ.get("COCO"):
            raise DataError(
                f"{flag} coco: set the environment variable COCO to the folder that holds coco/, "
                f"vqav2/ and gvtbench/, or pass that folder as {flag}"
            )
        root = Path(os.environ["COCO"]).expanduser()
    else:
        root = Path(name).expanduser()
        name = root.resolve().name
    if not root.is_dir():
        raise DataError(f"{'COCO' if name == 'coco' else flag} {root}: no such folder")
    return DataFolder(name, root, images_required=images_required)


def check_disjoint(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Raise a DataError if an image is both trained on and tested on, by identity."""
    shared = {s.image_id for s in train} & {s.image_id for s in test}
    if shared:
        raise DataError(
            f"training and test data share {len(shared)} images, the first "
            f"{min(shared, key=str)}; choose other --train-data, a score on seen images means "
            "nothing"
        )
