"""What training reports: the loss curve, gradient norms, rates and waiting time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class TrainingSummary:
    """What happened in training, over all stages and resumed parts.

    Attributes:
        losses: mean loss per token (nats) of every step.
        gradient_norms: part -> (first, last) L2 norm of its gradient, before clipping.
        steps: optimizer steps of each stage.
        images: images shown, repeats counted, over all processes.
        cut_rows: conversations of which only the first turns fitted into the context.
        skipped_rows: conversations whose first turn alone did not fit.
        answer_tokens: tokens taught, over all processes.
        seconds: spent in steps and in waiting for batches, checkpoints not counted.
        waited_seconds: of these, spent waiting for batches.
        processes: that trained together; after a resume, those of the last part.
        sharded: whether they shared one copy of the model; after a resume, in the last part.
        attention: of the language model, as transformers names it; in the last part likewise.
    """

    losses: list[float] = field(default_factory=list)
    gradient_norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    images: int = 0
    cut_rows: int = 0
    skipped_rows: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    processes: int = 1
    sharded: bool = False
    attention: str = "sdpa"

    def add_norms(self, norms: Mapping[str, float]) -> None:
        """Keep each part's first gradient norm and replace its last."""
        for part, norm in norms.items():
            self.gradient_norms[part] = (self.gradient_norms.get(part, (norm, norm))[0], norm)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object, with rates; a rate of no time is None."""

        def per_second(amount: float) -> float | None:
            return round(amount / self.seconds, 4) if self.seconds else None

        return asdict(self) | {
            "gradient_norms": {part: list(pair) for part, pair in self.gradient_norms.items()},
            "seconds": round(self.seconds, 3),
            "waited_seconds": round(self.waited_seconds, 3),
            "waited_share": per_second(self.waited_seconds),
            "images_per_second": per_second(self.images),
            "answer_tokens_per_second": per_second(self.answer_tokens),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingSummary:
        """Return the summary that `as_json` wrote."""
        norms = {part: (first, last) for part, (first, last) in content["gradient_norms"].items()}
        kept = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        return cls(**kept | {"gradient_norms": norms})
