"""What training keeps: weights, optimizer state and its summary, as safetensors and JSON.

Folders are whole or absent; nothing is pickled.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.files import atomic_folder
from encoder_bench.mllm.model import MLLM
from encoder_bench.training.distributed import cut_like

_CHECKPOINT = re.compile(r"checkpoint-(\d+)-(\d+)")
_WEIGHTS = "trained.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"


def trained_state(mllm: MLLM) -> dict[str, Tensor]:
    """Return the parameters that may train, and all buffers of parts that train, by name."""
    state: dict[str, Tensor] = {}
    for part_name, part in mllm.parts().items():
        trainable = {name for name, p in part.named_parameters() if p.requires_grad}
        saved = trainable | {name for name, _ in part.named_buffers()} if trainable else set()
        for name, tensor in part.state_dict(keep_vars=True).items():
            if name in saved:
                state[f"{part_name}/{name}"] = tensor.detach()
    return state


def save_mllm(mllm: MLLM, folder: Path) -> None:
    """Write what trained to `folder`, in one step; an EncoderBenchError on a full disk."""
    _write_folder(folder, {_WEIGHTS: trained_state(mllm)}, {"kind": "encoder-bench weights"})


def load_mllm_weights(mllm: MLLM, folder: Path) -> None:
    """Load what `save_mllm` wrote into a model built from the same plan, as `restore_weights`."""
    restore_weights(trained_state(mllm), folder)


class TrainingSummary(BaseModel):
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

    losses: list[float] = []
    gradient_norms: dict[str, tuple[float, float]] = {}
    steps: dict[str, int] = {}
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

        return self.model_dump(mode="json") | {
            "seconds": round(self.seconds, 3),
            "waited_seconds": round(self.waited_seconds, 3),
            "waited_share": per_second(self.waited_seconds),
            "images_per_second": per_second(self.images),
            "answer_tokens_per_second": per_second(self.answer_tokens),
        }


class Resume(NamedTuple):
    """Where an unfinished training stands: the stage, the steps done in it, and its summary."""

    path: Path
    stage: int
    step: int
    summary: TrainingSummary


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state by parameter position, which `make_optimizer` fixes, and key."""
    return {
        f"{index}/{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def save_checkpoint(
    folder: Path,
    trained: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    *,
    stage: int,
    step: int,
    summary: TrainingSummary,
    identity: str,
    keep: int,
) -> None:
    """Write a checkpoint and drop all but the last `keep`; `identity` is compared on loading.

    `trained` is `trained_state` and `optimizer` is `optimizer_state`, as whole tensors.

    Raises:
        EncoderBenchError: the disk is full or read-only.
    """
    state = {"identity": identity, "stage": stage, "step": step, "history": summary.as_json()}
    files = {_WEIGHTS: trained, _OPTIMIZER: optimizer}
    _write_folder(folder / f"checkpoint-{stage}-{step:08}", files, state)
    remove_checkpoints(folder, keep=keep)


def latest_checkpoint(folder: Path, identity: str) -> Resume | None:
    """Return the newest checkpoint of a run, or None.

    Raises:
        TrainingError: it belongs to another recipe, or is damaged.
    """
    if not (found := _checkpoints(folder)):
        return None
    path = found[-1]
    try:
        content = json.loads((path / _STATE).read_text(encoding="utf-8"))
        summary = TrainingSummary.model_validate(content["history"])
        resume = Resume(path, content["stage"], content["step"], summary)
        written_by = content["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: its state cannot be read ({error}); remove it") from error
    if written_by != identity:
        raise TrainingError(
            f"{path}: a checkpoint of another recipe or other data; use another --results folder, "
            "or --force to start again"
        )
    return resume


def restore_weights(trained: Mapping[str, Tensor], folder: Path) -> None:
    """Load saved weights into a model's `trained_state`, in place.

    Raises:
        TrainingError: missing, damaged, or of a model with other trained parameters.
    """
    saved = _read(folder / _WEIGHTS)
    if trained.keys() != saved.keys():
        odd = sorted(trained.keys() ^ saved.keys())
        raise TrainingError(
            f"{folder}: holds other trained parameters than this recipe, {odd[0]} among {len(odd)}"
        )
    with torch.no_grad():
        for name, tensor in trained.items():
            if tensor.shape != saved[name].shape:
                raise TrainingError(f"{folder}: {name} has another shape than in this recipe")
            tensor.copy_(cut_like(saved[name], tensor))


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Load a checkpoint's optimizer state; a TrainingError where it is damaged."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _read(checkpoint / _OPTIMIZER).items():
        index, _, key = name.partition("/")
        cut = tensor if key == "step" else cut_like(tensor, parameters[int(index)])
        state.setdefault(int(index), {})[key] = cut
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def remove_checkpoints(folder: Path, *, keep: int = 0) -> None:
    """Remove all checkpoints but the last `keep`, and unfinished ones; the final weights stay."""
    for path in [*_checkpoints(folder)[: -keep or None], *folder.glob(".checkpoint-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    names = ((path, _CHECKPOINT.fullmatch(path.name)) for path in folder.glob("checkpoint-*"))
    found = [(int(n[1]), int(n[2]), path) for path, n in names if n is not None and path.is_dir()]
    return [path for _, _, path in sorted(found)]


def _write_folder(
    target: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    with atomic_folder(target, replace=True) as folder:
        for name, tensors in files.items():
            whole = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
            save_file(whole, folder / name)
        (folder / _STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: missing or damaged ({error})") from error
    return tensors
