"""Train, save, load what was saved, and check both: what trained, and that nothing was lost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder_bench.base.errors import ProofError
from encoder_bench.base.files import write_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.record import TrainingProof
from encoder_bench.data.mixture import Mixture
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.trainable import prove, snapshot
from encoder_bench.pipeline.build import build_mllm
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.training.batches import BatchMaker
from encoder_bench.training.checkpoint import load_mllm_weights, remove_checkpoints, save_mllm
from encoder_bench.training.order import NO_MIXTURES, TrainingRow
from encoder_bench.training.trainer import Trainer

_PROBE_ROWS = 2
"""Of the samples, and of each mixture."""
_FINISHED = "training.json"


def is_trained(folder: Path) -> bool:
    """Return whether a training with its checks is finished in this folder."""
    return (folder / _FINISHED).is_file()


def train_and_verify(
    plan: RunPlan,
    mllm: MLLM,
    samples: Sequence[Sample],
    *,
    mixtures: Mapping[str, Mixture] = NO_MIXTURES,
    folder: Path,
    features: Mapping[Path, Tensor] | None,
    device: torch.device,
    reporter: Reporter,
    trackers: Sequence[str] = (),
) -> tuple[MLLM, TrainingProof, dict[str, Any]]:
    """Train `mllm`, save it, free its memory, load it from disk, and check what happened.

    Returned are the model as it was loaded, the checks of its training, and its summary.
    A finished training in `folder` is loaded instead of being repeated; an unfinished one resumes.
    `mllm`, as `build_mllm(plan)` made it, has no weights afterwards.

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
        return _load_saved(plan, final, device), proof, content["summary"]
    before = snapshot(mllm)
    summary = Trainer(
        mllm,
        samples,
        plan.adapter,
        plan.training_recipes,
        folder=folder,
        seed=plan.seed,
        reporter=reporter,
        device=device,
        features=features,
        mixtures=mixtures,
        trackers=trackers,
    ).train()
    trains = {"encoder": plan.joint, "projector": True, "llm": plan.adapter.llm.train != "frozen"}
    norms = summary.gradient_norms
    parts = prove(mllm, before, should_train=trains, gradient_norms=norms)
    save_mllm(mllm, final)
    probe: list[TrainingRow] = [(sample,) for sample in samples[:_PROBE_ROWS]]
    for mixture in mixtures.values():
        probe += [mixture[row] for row in range(min(_PROBE_ROWS, len(mixture)))]
    loaded, difference = _reload(plan, mllm, final, probe, device)
    proof = TrainingProof(parts=parts, reload_max_difference=difference)
    content = {"proof": proof.model_dump(mode="json"), "summary": summary.as_json()}
    write_text(finished, json.dumps(content, indent=1) + "\n")
    remove_checkpoints(folder)
    return loaded, proof, content["summary"]


def _reload(
    plan: RunPlan, mllm: MLLM, final: Path, probe: Sequence[TrainingRow], device: torch.device
) -> tuple[MLLM, float]:
    """Return the saved model in place of the trained one, and how far their logits differ."""
    expected = _probe_logits(mllm.to(device), plan, probe, device)
    mllm.to("meta")  # frees the memory of a model that the callers still hold
    loaded = _load_saved(plan, final, device)
    differences = (_probe_logits(loaded, plan, probe, device) - expected).abs()
    difference = differences.max().item() if len(differences) else 0.0
    if difference != 0.0:
        raise ProofError(
            f"{final}: the model read back disagrees with the trained one (largest difference of "
            f"logits {difference:.3g}); its scores would not be the trained model's"
        )
    return loaded, difference


def _load_saved(plan: RunPlan, final: Path, device: torch.device) -> MLLM:
    mllm = build_mllm(plan)
    load_mllm_weights(mllm, final)
    return mllm.to(device).eval()


@torch.inference_mode()
def _probe_logits(
    mllm: MLLM, plan: RunPlan, rows: Sequence[TrainingRow], device: torch.device
) -> Tensor:
    """Return `(T, vocabulary)` logits at the answers of a few training rows, on the CPU.

    The pixels go through the encoder, cached features or not, so that all parts are compared.
    """
    mllm.eval()
    maker = BatchMaker(
        mllm, plan.training_recipes, micro_batch_images=len(rows), shared_prefix=False
    )
    ((micro,), *_) = maker.make(rows)
    maker.close()
    return mllm.logits(micro.batch.to(device))[0].float().cpu()
