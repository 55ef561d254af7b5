"""A conversation: one row of a training mixture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

IMAGE = "<image>"
"""Marks the place of an image in a user's text, as in LLaVA's files."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, and the answer that is taught."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that follow each other in one sequence, each seeing those before it.

    Attributes:
        row_id: unique in its mixture and stable across runs (`"llava-665k/000123"`).
        images: files, or members of archives (`shard.tar/000001.jpg`), in the order in which the
            turns show them; none for a row of text alone.
        turns: at least one. `IMAGE` stands in the users' texts once for each image; an image of a
            file that marks no place is put before the first turn's text by the reader.
    """

    row_id: str
    images: tuple[Path, ...]
    turns: tuple[Turn, ...]
