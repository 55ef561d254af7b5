"""The table of readers: how each official layout is read, and which images it tests on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from encoder_bench.base.errors import DataError, UnknownNameError
from encoder_bench.base.plugins import plugins
from encoder_bench.data.files import DataFiles
from encoder_bench.data.readers import captions, gvtbench, vqa
from encoder_bench.data.sample import Sample, Split

ENTRY_POINTS = "encoder_bench.readers"
"""Entry points of other packages, each a `Reader`."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A family of data sets that one function reads.

    Attributes:
        name: what a task's recipe says under `reader`.
        read: data folder, task, source and split to samples, in file order; it takes images from
            `DataFiles.image`, and other files from `DataFiles.find`.
        sources: each source with the annotation files (`folder/name`) any of which says that its
            test split is in a data folder; none for a source that only joins other ones. The
            images of these splits are kept out of all training, and the folders' JSON files are
            part of the data's fingerprint.
    """

    name: str
    read: Callable[[DataFiles, str, str, Split], Iterable[Sample]]
    sources: Mapping[str, tuple[str, ...]]

    @property
    def folders(self) -> set[str]:
        """The folders in which its annotation files are."""
        return {name.rpartition("/")[0] for names in self.sources.values() for name in names}

    def tested(self, files: DataFiles) -> Iterator[str]:
        """Yield the sources whose test split is in a data folder."""
        for source, names in self.sources.items():
            if any(files.find(*name.rsplit("/", 1)) for name in names):
                yield source


_BUILT_IN = (
    Reader("coco-captions", captions.coco_samples, captions.COCO_SOURCES),
    Reader("gvtbench", gvtbench.gvt_samples, gvtbench.SOURCES),
    Reader("more-captions", captions.more_samples, captions.MORE_SOURCES),
    Reader("more-vqa", vqa.more_samples, vqa.MORE_SOURCES),
    Reader("pope", vqa.pope_samples, vqa.POPE_SOURCES),
    Reader("vqav2", vqa.vqav2_samples, vqa.VQAV2_SOURCES),
)


def readers() -> dict[str, Reader]:
    """Return all readers by name, those of other packages last; one that is broken is an error."""
    found = {reader.name: reader for reader in _BUILT_IN}
    return found | plugins(ENTRY_POINTS, Reader, found)


def find_reader(name: str, source: str) -> Reader:
    """Return a reader that has a source; near names are suggested, sources listed."""
    known = readers()
    if name not in known:
        raise UnknownNameError("data reader", name, known)
    if source not in known[name].sources:
        choices = ", ".join(known[name].sources)
        raise DataError(f"reader '{name}' has no '{source}'; choose one of {choices}")
    return known[name]
