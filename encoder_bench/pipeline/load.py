"""A finished run's model, built again from its record and its saved weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from encoder_bench.base.errors import RecordError, WeightsError
from encoder_bench.base.hardware import choose_device
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.record import RunRecord
from encoder_bench.pipeline.plan import recorded_plan

if TYPE_CHECKING:
    from encoder_bench.mllm.model import MLLM


def load_run(
    results: Path, record: RunRecord, *, weights: Path | None = None, device: str = "auto"
) -> MLLM:
    """Return the trained model of a run, in eval mode; a tuned encoder is the tuned one.

    Args:
        results: the results folder that holds the run.
        record: the run's record.
        weights: the encoder's checkpoint on disk, where the run was given one.
        device: `auto` or a torch device.

    Raises:
        RecordError: the trained weights are not there any more.
        WeightsError: the encoder or the LLM that is found is not the one of the run.
    """
    from encoder_bench.pipeline.build import build_mllm
    from encoder_bench.training.checkpoint import load_mllm_weights

    final = results / "checkpoints" / record.run_id / "final"
    if not final.is_dir():
        raise RecordError(f"{final}: the trained weights of run {record.run_id} are not there")
    mllm = build_mllm(recorded_plan(record, results=results, weights=weights, device=device))
    if hash_parameters(mllm.encoder.backbone) != record.encoder.weights_sha256:
        raise WeightsError(
            f"encoder {record.encoder.name}: the weights found now are not those of run "
            f"{record.run_id}; pass the same --weights"
        )
    if mllm.language.weights_sha256 != record.language_model.weights_sha256:
        raise WeightsError(f"LLM {record.language_model.name}: not the weights of the run any more")
    load_mllm_weights(mllm, final)
    return mllm.to(choose_device(device)).eval()
