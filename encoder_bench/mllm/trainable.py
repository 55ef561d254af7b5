"""What trains and what stays frozen, how (adapters, gradient checkpointing), and its proof."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from encoder_bench.base.errors import ProofError, RecipeError
from encoder_bench.base.hashing import hash_parameters, hash_tensor
from encoder_bench.base.recipes import LoraSettings
from encoder_bench.base.record import PartProof
from encoder_bench.mllm.model import MLLM

_ADAPTER = "lora_"
_TRANSFORMERS = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
"""The later name first."""


def set_trainable(mllm: MLLM, *, encoder: bool, llm: Literal["frozen", "lora", "full"]) -> None:
    """Freeze and unfreeze the parts; the projector always trains.

    A frozen part has no parameter that requires gradients and stays in eval mode, without
    dropout, whatever `.train()` is called on. Under `lora` the language model's own weights are
    frozen and low-rank adapters (float32) are put into it alone.

    Raises:
        RecipeError: `lora.target_modules` names nothing in the language model.
        ProofError: an adapter is found outside the language model.
    """
    mllm.encoder.requires_grad_(encoder)
    mllm.projector.requires_grad_(True)
    language = mllm.language.model
    if llm == "lora" and not any(_ADAPTER in name for name, _ in language.named_parameters()):
        add_lora(language, mllm.language.settings.lora)
    for name, parameter in language.named_parameters():
        parameter.requires_grad_(llm == "full" or (llm == "lora" and _ADAPTER in name))
    for part in ("encoder", "projector"):
        strays = [name for name in mllm.parts()[part].state_dict() if _ADAPTER in name]
        if strays:
            raise ProofError(f"{part}: a LoRA adapter is outside the LLM: {first_names(strays)}")
    mllm.train(mllm.training)


def add_lora(language: Any, settings: LoraSettings) -> None:
    """Put low-rank adapters into a causal LM, in place, initialised by torch's generator.

    Raises as `set_trainable`. Reference: Hu et al. 2021 (arXiv 2106.09685), through peft.
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
    for name, parameter in language.named_parameters():
        if _ADAPTER in name:
            parameter.data = parameter.data.float()


def enable_gradient_checkpointing(module: Any, *, key: str) -> None:
    """Switch gradient checkpointing on in a model, or in every model that it is joined from.

    Raises:
        RecipeError: a model in it cannot recompute; names its class and the recipe's `key`.
    """
    refused = f"{key}: a {type(module).__name__} cannot recompute its activations"
    enable = next((getattr(module, name) for name in _TRANSFORMERS if hasattr(module, name)), None)
    if enable is not None:
        try:
            enable({"use_reentrant": False})
        except ValueError:
            raise RecipeError(refused) from None
    elif hasattr(module, "set_grad_checkpointing"):  # timm and OpenCLIP
        module.set_grad_checkpointing(True)
    else:
        children = list(module.children())
        if not children or any(True for _ in module.parameters(recurse=False)):
            raise RecipeError(refused)
        for child in children:
            if any(True for _ in child.parameters()):
                enable_gradient_checkpointing(child, key=key)


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


def snapshot(mllm: MLLM) -> dict[str, PartSnapshot]:
    """Return each part's hashes, with copies of the weights that `set_trainable` lets move."""
    snapshots = {}
    for part, module in mllm.parts().items():
        named = list(module.named_parameters())
        snapshots[part] = PartSnapshot(
            sha256=hash_parameters(module),
            norm=_norm(p.detach().cpu().double() for _, p in named),
            trainable={n: p.detach().to("cpu", copy=True) for n, p in named if p.requires_grad},
            frozen={n: hash_tensor(p) for n, p in named if not p.requires_grad},
        )
    return snapshots


def prove(
    mllm: MLLM,
    before: Mapping[str, PartSnapshot],
    *,
    should_train: Mapping[str, bool],
    gradient_norms: Mapping[str, tuple[float | None, float | None]] | None = None,
) -> dict[str, PartProof]:
    """Compare every part with its snapshot and return what training did to it.

    `gradient_norms` are (first, last) by part, where they were measured.

    Raises:
        ProofError: a part that should be frozen has trainable parameters or differs in one bit;
            a part that should train did not move; a frozen weight inside a trained part moved.
    """
    proofs = {}
    for name, part in mllm.parts().items():
        first, last = (gradient_norms or {}).get(name, (None, None))
        after = hash_parameters(part)
        change = _verified_change(name, part, before[name], after, should_train=should_train[name])
        proofs[name] = PartProof(
            should_train=should_train[name],
            parameters=sum(p.numel() for p in part.parameters()),
            trainable_parameters=sum(p.numel() for p in part.parameters() if p.requires_grad),
            first_gradient_norm=first,
            last_gradient_norm=last,
            relative_change=change,
            sha256_before=before[name].sha256,
            sha256_after=after,
        )
    return proofs


def _verified_change(
    name: str, part: nn.Module, before: PartSnapshot, after: str, *, should_train: bool
) -> float:
    """Return ||after - before|| / ||before|| of a part in which only what should moved."""
    parameters = dict(part.named_parameters())
    if set(parameters) != set(before.trainable) | set(before.frozen):
        raise ProofError(f"{name}: it has other parameters than before training")
    moved = [key for key, digest in before.frozen.items() if hash_tensor(parameters[key]) != digest]
    if moved:
        raise ProofError(f"{name}: frozen weights changed in training: {first_names(moved)}")
    changes = (
        parameters[key].detach().cpu().double() - old.double()
        for key, old in before.trainable.items()
    )
    change = _norm(changes) / before.norm if before.norm else 0.0
    if not should_train:
        trainable = [key for key, p in parameters.items() if p.requires_grad]
        if trainable:
            raise ProofError(f"{name}: should be frozen, yet may train: {first_names(trainable)}")
        if after != before.sha256:
            raise ProofError(f"{name}: should be frozen, yet its state changed in training")
    elif not before.trainable:
        raise ProofError(f"{name}: should train, yet none of its parameters may")
    elif not math.isfinite(change) or change == 0.0:
        raise ProofError(f"{name}: should train, yet its relative change is {change}")
    return change


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(tensor.square().sum().item() for tensor in tensors))


def first_names(names: Sequence[str], shown: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
