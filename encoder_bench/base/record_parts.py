"""The parts of a run's record that lower floors fill in: scores, facts and proof.

What belongs here: plain frozen records of numbers and names, on the ground floor so that imports
run one way. The whole record, its files and its checksum are `results/record.py`'s.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class RecordPart(BaseModel):
    """A piece of a record: it cannot be changed, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(RecordPart):
    """One metric of one task.

    `value`, `low` and `high` are in the metric's own unit (accuracy and CIDEr in percent);
    `low` and `high` are a 95% bootstrap interval clustered on images. A metric that could not be
    computed has `value` None and says why in `reason`; it is never 0.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int
    images: int
    reason: str | None = None


class TaskScores(RecordPart):
    """A task's scores, those of its blind controls, and its breakdowns.

    Attributes:
        primary: the metric that stands in the table.
        column: the table's column (`VQA Acc`).
        metrics: metric name -> score.
        controls: control name (`no-image`, `shuffled-images`, `constant`, `majority`) ->
            metric name -> score.
        breakdown: facet -> facet value -> score of the primary metric.
        more_breakdowns: another metric -> facet -> facet value -> its score.
        parse_failures: samples whose answer could not be parsed; they count as not correct.
        predictions_file: JSON lines beside the record, one a sample.
        predictions_sha256: hash of that file.
        definition: the resolved task recipe.
        metric_versions: metric name -> version of its definition.
    """

    primary: str
    column: str
    metrics: dict[str, Score]
    controls: dict[str, dict[str, Score]] = Field(default_factory=dict)
    breakdown: dict[str, dict[str, Score]] = Field(default_factory=dict)
    more_breakdowns: dict[str, dict[str, dict[str, Score]]] = Field(default_factory=dict)
    parse_failures: int = 0
    predictions_file: str
    predictions_sha256: str
    definition: dict[str, Any]
    metric_versions: dict[str, int] = Field(default_factory=dict)


class EncoderFacts(RecordPart):
    """Exactly which encoder stood in the run.

    `gflops` are of one image at this resolution, a multiply-add counted as two operations: the
    catalogue's where they are of it, else counted. None in records that were written before they
    were counted.
    `remote_code` tells whether the repository's own Python code ran (`--trust-remote-code`).
    """

    name: str
    display_name: str
    source: str
    revision: str | None
    weights_sha256: str
    fingerprint: str
    pretrained: bool
    family: str
    supervision: Literal["fully", "weakly", "self", "none", "mixed"]
    pretraining_images: str
    parameters: int
    width: int
    tokens: int
    resolution: tuple[int, int]
    layer: tuple[int, ...]
    transform: str
    gflops: float | None = None
    remote_code: bool = False


class LanguageModelFacts(RecordPart):
    """Exactly which language model stood in the run."""

    name: str
    source: str
    revision: str | None
    weights_sha256: str
    pretrained: bool
    parameters: int
    vocabulary: int


class PartProof(RecordPart):
    """What training did to one part (encoder, projector, llm).

    `relative_change` is ||after - before|| / ||before|| over all weights of the part, L2.
    """

    should_train: bool
    parameters: int
    trainable_parameters: int
    first_gradient_norm: float | None
    last_gradient_norm: float | None
    relative_change: float
    sha256_before: str
    sha256_after: str


class TrainingProof(RecordPart):
    """Evidence that what should train did, what should not did not, and what was saved is it."""

    parts: dict[str, PartProof]
    reload_identical: bool
    reload_max_difference: float
