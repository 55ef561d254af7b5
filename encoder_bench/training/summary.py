"""What training reports: the loss curve, gradient norms, rates and waiting time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class TrainingSummary:
    """What happened in training, over all stages and resumed parts.

    Attributes:
        losses: mean loss a token (nats) of every step.
        gradient_norms: part -> (first, last) L2 norm of its gradient, before clipping.
        steps: optimizer steps of each stage.
        images: images shown, repeats counted, over all processes.
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
    answer_tokens: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    processes: int = 1
    sharded: bool = False
    attention: str = "sdpa"

    def add_norms(self, norms: Mapping[str, float]) -> None:
        """Keep each part's first gradient norm and replace its last."""
        for part, norm in norms.items():
            first = self.gradient_norms.get(part, (norm, norm))[0]
            self.gradient_norms[part] = (first, norm)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object, with rates; a rate of no time is None."""
        return {
            "losses": self.losses,
            "gradient_norms": {part: list(pair) for part, pair in self.gradient_norms.items()},
            "steps": self.steps,
            "images": self.images,
            "answer_tokens": self.answer_tokens,
            "seconds": round(self.seconds, 3),
            "waited_seconds": round(self.waited_seconds, 3),
            "processes": self.processes,
            "sharded": self.sharded,
            "attention": self.attention,
            "waited_share": self._a_second(self.waited_seconds),
            "images_per_second": self._a_second(self.images),
            "answer_tokens_per_second": self._a_second(self.answer_tokens),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingSummary:
        """Return the summary that `as_json` wrote."""
        return cls(
            losses=list(content["losses"]),
            gradient_norms={k: (v[0], v[1]) for k, v in content["gradient_norms"].items()},
            steps=dict(content["steps"]),
            images=content["images"],
            answer_tokens=content["answer_tokens"],
            seconds=content["seconds"],
            waited_seconds=content["waited_seconds"],
            processes=content.get("processes", 1),
            sharded=content.get("sharded", False),
            attention=content.get("attention", "sdpa"),
        )

    def _a_second(self, amount: float) -> float | None:
        return round(amount / self.seconds, 4) if self.seconds else None
