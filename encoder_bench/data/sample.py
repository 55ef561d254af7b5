"""A sample: what every reader returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Split = Literal["train", "val", "test"]
TaskName = str
"""`vqa`, `captioning`, `oc` (counting), `mci` (multi-class identification), or a plug-in's."""


def _no_facets() -> Mapping[str, str | int]:
    return MappingProxyType({})


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
    facets: Mapping[str, str | int] = field(default_factory=_no_facets, hash=False)
