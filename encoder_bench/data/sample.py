"""What is asked and taught: a sample of a task, and a conversation, one row of a mixture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Split = Literal["train", "test"]
OFFICIAL_PART: Mapping[Split, str] = MappingProxyType({"train": "train", "test": "val"})
"""What official files call a split: tests are on the validation part, whose answers are public."""
TaskName = str
"""`vqa`, `captioning`, `oc` (counting), `mci` (multi-class identification), or a plug-in's."""
IMAGE = "<image>"
"""Marks the place of an image in a user's text, as in LLaVA's files."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question (or caption request) about one image, with its human answers.

    Attributes:
        sample_id: unique within the task and data set, stable across runs (`"vqa/262148000"`).
        task: the task that asks it.
        image_id: the image's identity: COCO's number where its file is named by it, else a path.
            Two samples are on the same image exactly when their `image_id`s are equal.
        image_path: absolute path of the image file, checked to be inside the data folder.
        question: the bare question; empty for captioning.
        references: every human answer, in file order: ten for VQAv2, five or so captions, one
            count or one "Yes."/"No.".
        target: the text that training teaches (the most common answer, one caption).
        facets: what scores are broken down by: `question_type`, `answer_type`, `n_obj_exist`...
    """

    sample_id: str
    task: TaskName
    image_id: int | str
    image_path: Path
    question: str
    references: tuple[str, ...]
    target: str
    facets: Mapping[str, str | int] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )


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
