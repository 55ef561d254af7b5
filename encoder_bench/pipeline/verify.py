"""From an untrained model to one that was trained, saved, read back and proved.

What belongs here: the order of snapshot, training, saving, reloading and proof. Each is done by
its own module in `training/` and `mllm/`.
"""

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
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import ImageDialogue, make_batch
from encoder_bench.mllm.trainable import prove, snapshot
from encoder_bench.pipeline.build import build_mllm
from encoder_bench.pipeline.plan import RunPlan
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
    """A model as it was read back from disk, the proof of its training, and its summary."""

    mllm: MLLM
    proof: TrainingProof
    summary: dict[str, Any]


def is_trained(folder: Path) -> bool:
    """Return whether a training with its proof is finished in this folder."""
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
    """Train `mllm`, save it, drop it, read it back from disk, and prove what happened.

    Args:
        plan: the run's plan; builds the second model exactly as the first was built.
        mllm: the model as `build_mllm(plan)` made it. It is used up.
        samples: training samples.
        folder: where checkpoints and final weights go. A finished training there is read back
            instead of being repeated; an unfinished one goes on.
        features: the frozen encoder's patch tokens by image path, or None.
        device: where to train.
        reporter: where progress goes.
        trackers: experiment trackers that follow the training.

    Raises:
        ProofError: a frozen part changed, a trained part did not, or the model read back
            disagrees with the trained one.
        TrainingError: training cannot start or go on.
    """
    finished, final = folder / _FINISHED, folder / "final"
    if is_trained(folder):
        content = json.loads(finished.read_text(encoding="utf-8"))
        reporter.note(f"training was finished before; reading {final}")
        proof = TrainingProof.model_validate(content["proof"])
        return Trained(_read_back(plan, final, device), proof, content["summary"])

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
        should_train=_should_train(plan),
        gradient_norms=summary.gradient_norms,
    )
    save_mllm(mllm, final)
    probe = samples[:_PROBE_IMAGES]
    expected = _probe_logits(mllm.to(device), plan, probe, device)
    del mllm
    gc.collect()

    reloaded = _read_back(plan, final, device)
    difference = (_probe_logits(reloaded, plan, probe, device) - expected).abs().max().item()
    if difference != 0.0:
        raise ProofError(
            f"{final}: the model read back disagrees with the trained one (largest difference of "
            f"logits {difference:.3g}); its scores would not be the trained model's"
        )
    proof = TrainingProof(parts=parts, reload_identical=True, reload_max_difference=difference)
    content = {"proof": proof.model_dump(mode="json"), "summary": summary.as_json()}
    write_text(finished, json.dumps(content, indent=1) + "\n")
    remove_checkpoints(folder)
    return Trained(reloaded, proof, content["summary"])


def _should_train(plan: RunPlan) -> dict[str, bool]:
    return {
        "encoder": plan.joint,
        "projector": True,
        "llm": plan.adapter.llm.train != "frozen",
    }


def _read_back(plan: RunPlan, final: Path, device: torch.device) -> MLLM:
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
    pixels = mllm.encoder.pixels(load_image(sample.image_path) for sample in samples)
    dialogues = [ImageDialogue(sample.image_id, (_turn(plan, sample),)) for sample in samples]
    batch = make_batch(mllm.language, dialogues, shared_prefix=False, pixels=pixels)
    return mllm.logits(batch.to(device)).float().cpu()


def _turn(plan: RunPlan, sample: Sample) -> tuple[str, str]:
    recipe = plan.training_recipes[sample.task]
    prompt = recipe.fill_prompt(sample.question)
    return prompt, recipe.fill_answer(sample.target)
