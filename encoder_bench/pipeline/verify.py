"""Train, save, load what was saved, and check both: what trained, and that nothing was lost."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder_bench.base.errors import ProofError
from encoder_bench.base.files import write_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.record import TrainingProof
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.trainable import prove, snapshot
from encoder_bench.pipeline.build import build_mllm
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.training.batches import BatchMaker, ImageSamples
from encoder_bench.training.checkpoint import (
    load_mllm_weights,
    remove_checkpoints,
    save_mllm,
)
from encoder_bench.training.trainer import train

_PROBE_IMAGES = 2
_FINISHED = "training.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """A model as it was loaded from disk, the checks of its training, and its summary."""

    mllm: MLLM
    proof: TrainingProof
    summary: dict[str, Any]


def is_trained(folder: Path) -> bool:
    """Return whether a training with its checks is finished in this folder."""
    return (folder / _FINISHED).is_file()


def train_and_verify(
    plan: RunPlan,
    mllm: MLLM,
    samples: Sequence[Sample],
    *,
    folder: Path,
    features: Mapping[Path, Tensor] | None,
    device: torch.device,
    reporter: Reporter,
    trackers: Sequence[str] = (),
) -> Trained:
    """Train `mllm`, save it, drop it, load it from disk, and check what happened.

    A finished training in `folder` is loaded instead of being repeated; an unfinished one resumes.
    `mllm`, as `build_mllm(plan)` made it, is not to be used afterwards.

    Raises:
        ProofError: a frozen part changed, a trained part did not, or the loaded model
            disagrees with the trained one.
        TrainingError: training cannot start or resume.
    """
    finished, final = folder / _FINISHED, folder / "final"
    if is_trained(folder):
        content = json.loads(finished.read_text(encoding="utf-8"))
        reporter.note(f"training was finished before; reading {final}")
        proof = TrainingProof.model_validate(content["proof"])
        return Trained(_load_saved(plan, final, device), proof, content["summary"])

    before = snapshot(mllm)
    summary = train(
        mllm,
        samples,
        plan.adapter,
        plan.training_recipes,
        folder=folder,
        seed=plan.seed,
        reporter=reporter,
        device=device,
        features=features,
        trackers=trackers,
    )
    parts = prove(
        mllm,
        before,
        should_train={
            "encoder": plan.joint,
            "projector": True,
            "llm": plan.adapter.llm.train != "frozen",
        },
        gradient_norms=summary.gradient_norms,
    )
    save_mllm(mllm, final)
    probe = samples[:_PROBE_IMAGES]
    expected = _probe_logits(mllm.to(device), plan, probe, device)
    del mllm
    gc.collect()
    loaded = _load_saved(plan, final, device)
    difference = (_probe_logits(loaded, plan, probe, device) - expected).abs().max().item()
    _check_same(difference, final)
    proof = TrainingProof(parts=parts, reload_identical=True, reload_max_difference=difference)
    content = {"proof": proof.model_dump(mode="json"), "summary": summary.as_json()}
    write_text(finished, json.dumps(content, indent=1) + "\n")
    remove_checkpoints(folder)
    return Trained(loaded, proof, content["summary"])


def _check_same(difference: float, final: Path) -> None:
    if difference != 0.0:
        raise ProofError(
            f"{final}: the model read back disagrees with the trained one (largest difference of "
            f"logits {difference:.3g}); its scores would not be the trained model's"
        )


def _load_saved(plan: RunPlan, final: Path, device: torch.device) -> MLLM:
    mllm = build_mllm(plan)
    load_mllm_weights(mllm, final)
    return mllm.to(device).eval()


@torch.inference_mode()
def _probe_logits(
    mllm: MLLM, plan: RunPlan, samples: Sequence[Sample], device: torch.device
) -> Tensor:
    """Return `(T, vocabulary)` logits at the answers of a few training samples, on the CPU.

    The pixels go through the encoder, cached features or not, so that all parts are compared.
    """
    mllm.eval()
    maker = BatchMaker(
        mllm, plan.training_recipes, micro_batch_images=len(samples), shared_prefix=False
    )
    (micro,) = maker.make([ImageSamples(s.image_id, s.image_path, (s,)) for s in samples])
    maker.close()
    return mllm.logits(micro.batch.to(device))[0].float().cpu()
