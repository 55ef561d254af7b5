"""Building a plan's encoder, projector and language model, and the record's facts about them."""

from __future__ import annotations

from pathlib import Path

import torch

from encoder_bench.base.record import EncoderFacts
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.loading import load_language_model
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors import build_projector
from encoder_bench.mllm.trainable import enable_gradient_checkpointing, set_trainable
from encoder_bench.pipeline.plan import RunPlan


def build_encoder(plan: RunPlan) -> Encoder:
    """Return the encoder of a plan, on the CPU.

    Raises:
        WeightsError: its weights are unreachable, tampered with or do not fit.
        UnknownNameError: no such encoder.
    """
    settings = plan.adapter.encoder
    return load_encoder(
        plan.encoder,
        layer=settings.layer,
        resolution=settings.resolution,
        dtype=settings.dtype,
        weights=plan.weights,
        trust_remote_code=plan.trust_remote_code,
        seed=plan.seed,
    )


def build_mllm(plan: RunPlan) -> MLLM:
    """Return the model of a plan, untrained, on the CPU, with what may train marked so.

    The seed fixes whatever is initialised here (projector, LoRA), so that two calls give
    bit-identical models.

    Raises:
        WeightsError: encoder or LLM weights are unreachable, tampered with or do not fit.
        UnknownNameError: no such encoder, LLM or projector.
        RecipeError: settings that a part cannot have.
    """
    encoder = build_encoder(plan)
    language = load_language_model(plan.adapter.llm)
    torch.manual_seed(plan.seed)
    projector = build_projector(
        plan.adapter.projector, grid=encoder.grid, width=encoder.width, llm_width=language.width
    )
    mllm = MLLM(encoder, projector, language)
    set_trainable(mllm, encoder=plan.joint, llm=plan.adapter.llm.train)
    if plan.joint and plan.adapter.encoder.gradient_checkpointing:
        enable_gradient_checkpointing(encoder.backbone, key="encoder.gradient_checkpointing")
    return mllm


def encoder_facts(encoder: Encoder, weights_sha256: str) -> EncoderFacts:
    """Return the record's facts about an encoder as it was loaded, before any training."""
    spec = encoder.spec
    return EncoderFacts(
        name=spec.name,
        display_name=spec.display_name,
        source=f"{spec.source}:{_without_folder(spec.locator)}",
        revision=encoder.weights_revision or spec.revision,
        weights_sha256=weights_sha256,
        fingerprint=encoder.fingerprint(),
        pretrained=encoder.pretrained,
        family=spec.family,
        supervision=spec.supervision,
        pretraining_images=spec.pretraining_images,
        parameters=sum(parameter.numel() for parameter in encoder.backbone.parameters()),
        width=encoder.width,
        tokens=encoder.num_tokens,
        resolution=encoder.resolution,
        layer=encoder.layer,
        transform=encoder.transform_description,
        gflops=_gflops(encoder),
        remote_code=encoder.remote_code,
    )


def _gflops(encoder: Encoder) -> float:
    """Return the catalogue's GFLOPs where they are of this resolution, else count them."""
    from encoder_bench.encoders.facts import count_gflops
    from encoder_bench.encoders.registry import find_spec

    spec = encoder.spec
    stated = find_spec(spec.name).resolution
    if spec.gflops is not None and encoder.resolution[0] == stated:
        return spec.gflops
    return count_gflops(encoder)


def random_weight_warnings(mllm: MLLM) -> tuple[str, ...]:
    """Return a line for each part whose weights are seeded random rather than pretrained."""
    lines = []
    if not mllm.encoder.pretrained:
        lines.append(
            f"encoder {mllm.encoder.spec.name} has seeded random weights, not pretrained ones: "
            "its row is a baseline and says nothing about the family that it is named after"
        )
    if not mllm.language.pretrained:
        lines.append("the language model has seeded random weights, not pretrained ones")
    return tuple(lines)


def model_notes(mllm: MLLM) -> tuple[str, ...]:
    """Return a line for each gap in a model's configuration, and how it was filled."""
    language = mllm.language
    if language.tokenizer.pad_token_id is not None:
        return mllm.encoder.notes
    name, filler = language.settings.name, language.tokenizer.decode([language.pad_id])
    line = f"LLM {name} has no pad token; {filler!r} fills rows, where masks hide it"
    return (*mllm.encoder.notes, line)


def _without_folder(locator: str) -> str:
    """Keep a local folder's name only: a record should not carry the paths of a machine."""
    path = Path(locator)
    return path.name if path.is_absolute() else locator
