"""Train, save, load what was saved, and check both: what trained, and that nothing was lost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder_bench.base.errors import ProofError, TrainingError
from encoder_bench.base.files import write_text
from encoder_bench.base.record import TrainingProof
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch
from encoder_bench.mllm.trainable import prove, snapshot
from encoder_bench.pipeline.build import build_mllm, with_trained
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.training.batches import BatchMaker, TrainingRow
from encoder_bench.training.checkpoint import remove_checkpoints, save_mllm
from encoder_bench.training.trainer import Trainer

_PROBE_ROWS = 2
"""Of the samples, and of each mixture."""
_FINISHED = "training.json"
_DEVICE_TOLERANCE = {torch.float32: 0.01, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Share of the loss and of a gradient's norm, by the language model's dtype."""


def is_trained(folder: Path) -> bool:
    """Return whether a training with its checks is finished in this folder."""
    return (folder / _FINISHED).is_file()


def train_and_verify(plan: RunPlan, trainer: Trainer) -> tuple[MLLM, TrainingProof, dict[str, Any]]:
    """Train a model, save it, free its memory, load it from disk, and check what happened.

    Returned are the model as it was loaded, the checks of its training, and its summary.
    A finished training in the trainer's folder is loaded instead of being repeated; an unfinished
    one resumes. The trainer's model, as `build_mllm(plan)` made it, has no weights afterwards.

    Raises:
        ProofError: a frozen part changed, a trained part did not, or the loaded model
            disagrees with the trained one.
        TrainingError: training cannot start or resume.
    """
    mllm, folder, device = trainer.mllm, trainer.folder, trainer.device
    finished, final = folder / _FINISHED, folder / "final"
    if is_trained(folder):
        content = json.loads(finished.read_text(encoding="utf-8"))
        trainer.reporter.note(f"training was finished before; reading {final}")
        proof = TrainingProof.model_validate(content["proof"])
        return with_trained(build_mllm(plan), final, device), proof, content["summary"]
    before = snapshot(mllm)
    probe: list[TrainingRow] = [(sample,) for sample in trainer.samples[:_PROBE_ROWS]]
    for mixture in trainer.mixtures.values():
        probe += [mixture[row] for row in range(min(_PROBE_ROWS, len(mixture)))]
    on_device = None
    if probe and device.type not in ("cpu", "cuda"):
        on_device = device_difference(mllm, plan, probe[0], device)
    summary = trainer.train()
    trains = {"encoder": plan.joint, "projector": True, "llm": plan.adapter.llm.train != "frozen"}
    parts = prove(mllm, before, should_train=trains, gradient_norms=summary.gradient_norms)
    save_mllm(mllm, final)
    loaded, difference = _reload(plan, mllm, final, probe, device)
    proof = TrainingProof(
        parts=parts, reload_max_difference=difference, device_difference=on_device
    )
    content = {"proof": proof.model_dump(mode="json"), "summary": summary.as_json()}
    write_text(finished, json.dumps(content, indent=1) + "\n")
    remove_checkpoints(folder)
    return loaded, proof, content["summary"]


def device_difference(mllm: MLLM, plan: RunPlan, row: TrainingRow, device: torch.device) -> float:
    """Return how far a row's loss and gradients on a device are from the CPU's, as a share of them.

    Kernels of less common devices compute wrong values without an error now and then: PyTorch
    labels such reports of Apple's MPS "correctness (silent)". The model is on the device after.

    Raises:
        TrainingError: further than rounding goes.
    """
    expected = _loss_and_norms(mllm, plan, row, torch.device("cpu"))
    found = _loss_and_norms(mllm, plan, row, device)
    tolerance, furthest = _DEVICE_TOLERANCE[mllm.language.dtype], 0.0
    least = 1e-3 * max(expected.values())  # what is next to nothing has no digits to compare
    for name, value in expected.items():
        share = abs(found[name] - value) / max(value, least)
        if not share <= tolerance:
            raise TrainingError(
                f"--device {device}: for one image {name} is {found[name]:.6g} there and "
                f"{value:.6g} on the CPU, more than rounding apart; use --device cpu"
            )
        furthest = max(furthest, share)
    return furthest


def _loss_and_norms(
    mllm: MLLM, plan: RunPlan, row: TrainingRow, device: torch.device
) -> dict[str, float]:
    """Return the loss of a row, without dropout, and the norm of each part's gradient."""
    mllm.to(device).eval()
    loss = mllm(_probe_batch(mllm, plan, [row]).to(device))
    if loss.requires_grad:  # text alone, before a frozen language model, trains nothing
        loss.backward()
    values = {"the loss": loss.item()}
    for name, part in mllm.parts().items():
        gradients = [p.grad.float().cpu() for p in part.parameters() if p.grad is not None]
        if gradients:
            norms = torch.stack([gradient.norm() for gradient in gradients])
            values[f"the gradient's norm of the {name}"] = float(norms.norm())
    mllm.zero_grad(set_to_none=True)
    return values


def _reload(
    plan: RunPlan, mllm: MLLM, final: Path, probe: Sequence[TrainingRow], device: torch.device
) -> tuple[MLLM, float]:
    """Return the saved model in place of the trained one, and how far their logits differ."""
    expected = _probe_logits(mllm.to(device), plan, probe, device)
    mllm.to("meta")  # frees the memory of a model that the callers still hold
    loaded = with_trained(build_mllm(plan), final, device)
    differences = (_probe_logits(loaded, plan, probe, device) - expected).abs()
    difference = differences.max().item() if len(differences) else 0.0
    if difference != 0.0:
        raise ProofError(
            f"{final}: the model read back disagrees with the trained one (largest difference of "
            f"logits {difference:.3g}); its scores would not be the trained model's"
        )
    return loaded, difference


@torch.inference_mode()
def _probe_logits(
    mllm: MLLM, plan: RunPlan, rows: Sequence[TrainingRow], device: torch.device
) -> Tensor:
    """Return `(T, vocabulary)` logits at the answers of a few training rows, on the CPU.

    The pixels go through the encoder, cached features or not, so that all parts are compared.
    """
    mllm.eval()
    return mllm.logits(_probe_batch(mllm, plan, rows).to(device))[0].float().cpu()


def _probe_batch(mllm: MLLM, plan: RunPlan, rows: Sequence[TrainingRow]) -> TrainingBatch:
    maker = BatchMaker(
        mllm, plan.training_recipes, micro_batch_images=len(rows), shared_prefix=False
    )
    ((micro,), *_) = maker.make(rows)
    maker.close()
    return micro
