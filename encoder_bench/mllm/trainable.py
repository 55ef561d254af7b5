"""What trains and what stays frozen, and the proof of it after training.

What belongs here: switching parts on and off, low-rank adapters, snapshots, and their comparison.
The optimizer and its learning rates are the training room's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encoder_bench.base.errors import ProofError, RecipeError
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.recipes import LoraSettings
from encoder_bench.base.record import PartProof
from encoder_bench.mllm.model import MLLM

_ADAPTER = "lora_"
_SHOWN = 3


def set_trainable(mllm: MLLM, *, encoder: bool, llm: Literal["frozen", "lora", "full"]) -> None:
    """Freeze and unfreeze the parts; the projector always trains.

    A frozen part has no parameter that requires gradients and stays in eval mode, without
    dropout, whatever `.train()` is called on. Under `lora` the language model's own weights are
    frozen and low-rank adapters (float32) are put into it alone.

    Args:
        mllm: the model, changed in place.
        encoder: whether the encoder trains jointly.
        llm: what of the language model trains.

    Raises:
        RecipeError: `lora.target_modules` names nothing in the language model.
        ProofError: an adapter is found outside the language model.
    """
    mllm.encoder.requires_grad_(encoder)
    mllm.projector.requires_grad_(True)
    language = mllm.language.model
    if llm == "lora" and not _adapters(language):
        add_lora(language, mllm.language.settings.lora)
    for name, parameter in language.named_parameters():
        parameter.requires_grad_(llm == "full" or (llm == "lora" and _ADAPTER in name))
    check_lora_confined(mllm)
    mllm.train(mllm.training)


def add_lora(language: Any, settings: LoraSettings) -> None:
    """Put low-rank adapters into a causal LM, in place, initialised by torch's generator.

    Raises:
        RecipeError: `target_modules` names nothing in it.

    Reference: Hu et al. 2021 (arXiv 2106.09685), through peft.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(config, language)
    except ValueError as error:
        raise RecipeError(
            f"llm.lora.target_modules {targets!r}: nothing in the language model has that name"
        ) from error
    for name in _adapters(language):
        parameter = language.get_parameter(name)
        parameter.data = parameter.data.float()


def check_lora_confined(mllm: MLLM) -> None:
    """Check that no adapter is in the encoder or the projector.

    Raises:
        ProofError: one is; names it.
    """
    for part in ("encoder", "projector"):
        strays = [name for name in mllm.parts()[part].state_dict() if _ADAPTER in name]
        if strays:
            raise ProofError(f"{part}: a LoRA adapter lies outside the LLM: {_some(strays)}")


@dataclass(frozen=True, slots=True)
class PartSnapshot:
    """A part as it was before training.

    Attributes:
        sha256: hash of its whole state.
        norm: L2 norm over all its parameters.
        trainable: copies of the parameters that may move, on the CPU.
        frozen: sha256 of each parameter that may not.
    """

    sha256: str
    norm: float
    trainable: dict[str, Tensor]
    frozen: dict[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every part of an MLLM before training."""

    parts: dict[str, PartSnapshot]


def snapshot(mllm: MLLM) -> Snapshot:
    """Return hashes of all weights, and copies of those that `set_trainable` lets move."""
    return Snapshot({name: _snapshot_part(part) for name, part in mllm.parts().items()})


def prove(
    mllm: MLLM,
    before: Snapshot,
    *,
    should_train: Mapping[str, bool],
    gradient_norms: Mapping[str, tuple[float | None, float | None]] | None = None,
) -> dict[str, PartProof]:
    """Compare every part with its snapshot and return what training did to it.

    Args:
        mllm: the model after training.
        before: its snapshot from before.
        should_train: part name -> whether the recipe trains it.
        gradient_norms: part name -> its (first, last) gradient norm, where they were measured.

    Raises:
        ProofError: a part that should be frozen has trainable parameters or differs in one bit;
            a part that should train did not move; a frozen weight inside a trained part moved.
    """
    norms = gradient_norms or {}
    return {
        name: _prove_part(
            name,
            part,
            before.parts[name],
            should_train=should_train[name],
            norms=norms.get(name, (None, None)),
        )
        for name, part in mllm.parts().items()
    }


def _prove_part(
    name: str,
    part: nn.Module,
    before: PartSnapshot,
    *,
    should_train: bool,
    norms: tuple[float | None, float | None],
) -> PartProof:
    parameters = dict(part.named_parameters())
    if set(parameters) != set(before.trainable) | set(before.frozen):
        raise ProofError(f"{name}: it has other parameters than before training")
    trainable = {key: p for key, p in parameters.items() if p.requires_grad}
    after = hash_parameters(part)
    moved = [key for key, digest in before.frozen.items() if _digest(parameters[key]) != digest]
    if moved:
        raise ProofError(f"{name}: frozen weights changed in training: {_some(moved)}")
    change = _distance(before.trainable, parameters) / before.norm if before.norm else 0.0
    if not should_train:
        if trainable:
            raise ProofError(f"{name}: should be frozen, yet may train: {_some(trainable)}")
        if after != before.sha256:
            raise ProofError(f"{name}: should be frozen, yet its state changed in training")
    elif not before.trainable:
        raise ProofError(f"{name}: should train, yet none of its parameters may")
    elif not math.isfinite(change) or change == 0.0:
        raise ProofError(f"{name}: should train, yet its relative change is {change}")
    return PartProof(
        should_train=should_train,
        parameters=sum(p.numel() for p in parameters.values()),
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        first_gradient_norm=norms[0],
        last_gradient_norm=norms[1],
        relative_change=change,
        sha256_before=before.sha256,
        sha256_after=after,
    )


def _snapshot_part(part: nn.Module) -> PartSnapshot:
    parameters = dict(part.named_parameters())
    squares = sum(p.detach().double().square().sum().item() for p in parameters.values())
    return PartSnapshot(
        sha256=hash_parameters(part),
        norm=math.sqrt(squares),
        trainable={
            name: p.detach().to("cpu", copy=True)
            for name, p in parameters.items()
            if p.requires_grad
        },
        frozen={name: _digest(p) for name, p in parameters.items() if not p.requires_grad},
    )


def _distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of the change over the parameters in `before`."""
    squares = 0.0
    for name, old in before.items():
        new = after[name].detach().cpu().double()
        squares += (new - old.double()).square().sum().item()
    return math.sqrt(squares)


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return hashlib.sha256(data).hexdigest()


def _adapters(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters() if _ADAPTER in name]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
