"""A row of a source: what every format makes of its rows, and what is wrong with one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from encoder_bench.base.recipes import SourceSettings
from encoder_bench.data.sample import IMAGE, Turn

MAX_EXAMPLES = 3
"""Rows that are named of those skipped for one reason."""
_USERS, _ASSISTANTS, _SYSTEMS = {"human", "user"}, {"gpt", "assistant"}, {"system"}


class BadRow(ValueError):  # noqa: N818 (it ends a row, not a program)
    """A row that cannot be trained on.

    Attributes:
        reason: the kind of fault, by which rows are counted; `str()` says what it is in this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class Parsed(NamedTuple):
    """A row that can be trained on; images are paths below the source's image folder."""

    images: Sequence[str]
    turns: Sequence[Turn]


class RawRow(NamedTuple):
    """A row as its file has it: the file's name, its number there from 0, and its content.

    A content that is a `BadRow` could not even be read.
    """

    file: str
    number: int
    content: object


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source's data is.

    Attributes:
        root: the folder that holds the training data.
        files: those that its path names, sorted.
        images: the folder below which its images' names are.
        trusted: whether those names were made or checked here, rather than read from a file.
        identity: the state of what is read, where it is not that of `files`.
    """

    source: SourceSettings
    root: Path
    files: tuple[Path, ...]
    images: Path
    trusted: bool = False
    identity: str = ""


RawRows = Iterator[RawRow]


def conversation(messages: Sequence[tuple[str, str]], images: Sequence[str]) -> Parsed:
    """Return a row of alternating `(role, text)` messages.

    A system's text is put before the first question. Where no user's text marks a place of an
    image, all are put before the first question; an empty question is one only if it shows one.

    Raises:
        BadRow: no turns, roles out of order, no answer, an empty turn, or marks that do not fit.
    """
    system = "\n\n".join(text.strip() for role, text in messages if role.lower() in _SYSTEMS)
    spoken = [(role.lower(), text.strip()) for role, text in messages if role.lower() != "system"]
    if not spoken:
        raise BadRow("no turns")
    for index, (role, _) in enumerate(spoken):
        if role not in (_ASSISTANTS if index % 2 else _USERS):
            raise BadRow("bad role order", f"turn {index} is of '{role}'")
    if len(spoken) % 2:
        raise BadRow("no answer", f"turn {len(spoken) - 1}, the last, is a question")
    users, answers = ([text for _, text in spoken[start::2]] for start in (0, 1))
    marks = sum(text.count(IMAGE) for text in users)
    if marks == 0 and images:
        users[0] = "\n".join([IMAGE] * len(images) + [users[0]] * bool(users[0]))
    elif marks != len(images):
        raise BadRow(f"{IMAGE} marks do not fit", f"{marks} {IMAGE} for {len(images)} images")
    if system:
        users[0] = f"{system}\n\n{users[0]}"
    turns = [Turn(*pair) for pair in zip(users, answers, strict=True)]
    empty = [index for index, turn in enumerate(turns) if not (turn.user and turn.assistant)]
    if empty:
        raise BadRow("empty turn", f"turn {empty[0]} has no text")
    return Parsed(tuple(images), turns)


def note_skipped(skipped: dict[str, dict[str, Any]], reason: str, example: str) -> None:
    """Count a row under the reason why it is skipped, and keep the first examples."""
    entry = skipped.setdefault(reason, {"count": 0, "first": []})
    entry["count"] += 1
    if len(entry["first"]) < MAX_EXAMPLES:
        shown = example.encode(errors="replace").decode()
        entry["first"] = [*entry["first"], shown]
