"""From an untrained model to one that was trained, saved, read back and proved.

What belongs here: the order of snapshot, training, saving, reloading and proof. Each is done by
its own module in `training/` and `mllm/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from encoder_bench.mllm.model import MLLM
from encoder_bench.results.record import TrainingProof

_PROBE_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """A model as it was read back from disk, the proof of its training, and its summary."""

    mllm: MLLM
    proof: TrainingProof
    summary: dict[str, Any]
