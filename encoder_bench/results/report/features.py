"""What the report shows of patch features: columns of small pictures.

What belongs here: the shape in which pictures reach the page. Making them needs encoders, and is
the business of `encoder_bench.inspection.report_features`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SeenColumn:
    """One column: the photos themselves, or one encoder's view of them.

    Attributes:
        title: the row's name in the table.
        note: what qualifies it (`random weights`), or empty.
        pictures: data URIs, one a photo.
        patches: whether a pixel is a patch, to be drawn with hard edges.
    """

    title: str
    note: str
    pictures: tuple[str, ...]
    patches: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """All columns of one table, and a line for each encoder that could not be shown."""

    columns: tuple[SeenColumn, ...]
    missing: tuple[str, ...]
