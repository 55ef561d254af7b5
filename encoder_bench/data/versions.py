"""Published files that exist in several versions, or are known not to be what they seem.

What belongs here: telling such a file by the sha1 of its content.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A published file.

    Attributes:
        name: short, for records and tables.
        caution: what to know before scores on it are compared; empty where there is nothing.
    """

    name: str
    caution: str = ""


_TWO = (
    "the constant answer '1' scores 54.3% on one of the two files and 85.5% on the other, so that "
    "scores on them cannot be compared"
)

KNOWN_VERSIONS = {
    "0341dd19": KnownVersion("GVTBench's first published coco_oc.json (on 4,825 images)", _TWO),
    "f44ffead": KnownVersion("GVTBench's second coco_oc.json (on 4,413 images)", _TWO),
    "f74998f5": KnownVersion("GVTBench's coco_mci.json"),
    "1a30dc5a": KnownVersion("GVTBench's vcr_oc.json", "it repeats questions about an image"),
    "4ef451b8": KnownVersion(
        "GVTBench's vcr_mci.json",
        "every negative question has the misprint 'exis', which tells the answer",
    ),
}
"""By the first eight digits of the sha1 of the file's content."""


def known_version(path: Path) -> KnownVersion | None:
    """Return what is known of a file's content, None for any other content."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha1").hexdigest()
    return KNOWN_VERSIONS.get(digest[:8])
