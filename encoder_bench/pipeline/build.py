"""The model of a plan or of a finished run, and the record's facts about it."""

from dataclasses import replace
from pathlib import Path

import torch

from encoder_bench.base.errors import RecordError, WeightsError
from encoder_bench.base.hardware import choose_device
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.record import EncoderFacts, RunRecord
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.facts import count_gflops
from encoder_bench.encoders.registry import find_spec, load_encoder
from encoder_bench.mllm.loading import load_language_model
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors import build_projector
from encoder_bench.mllm.trainable import enable_gradient_checkpointing, set_trainable
from encoder_bench.pipeline.plan import RunPlan, recorded_plan
from encoder_bench.training.checkpoint import load_mllm_weights


def build_encoder(plan: RunPlan) -> Encoder:
    """Return the encoder of a plan, on the CPU; raises as `load_encoder`."""
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
    scale = getattr(language.model.get_input_embeddings(), "embed_scale", None)  # Gemma's
    projector.start_from(language.table if scale is None else language.table * float(scale))
    mllm = MLLM(encoder, projector, language)
    set_trainable(mllm, encoder=plan.joint, llm=plan.adapter.llm.train)
    if plan.joint and plan.adapter.encoder.gradient_checkpointing:
        enable_gradient_checkpointing(encoder.backbone, key="encoder.gradient_checkpointing")
    return mllm


def encoder_facts(encoder: Encoder, weights_sha256: str) -> EncoderFacts:
    """Return the record's facts about an encoder as it was loaded, before any training."""
    spec = encoder.spec
    local = Path(spec.locator)
    locator = local.name if local.is_absolute() else spec.locator  # no path of this machine
    gflops = spec.gflops  # the catalogue's are of its own resolution
    if gflops is None or encoder.resolution[0] != find_spec(spec.name).resolution:
        gflops = count_gflops(encoder)
    return EncoderFacts(
        name=spec.name,
        display_name=spec.display_name,
        source=f"{spec.source}:{locator}",
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
        gflops=gflops,
        remote_code=encoder.remote_code,
    )


def model_warnings(mllm: MLLM) -> tuple[str, ...]:
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
    language, lines = mllm.language, [*mllm.encoder.notes]
    name, tokenizer = language.settings.name, language.tokenizer
    if tokenizer.pad_token_id is None:
        filler = tokenizer.decode([language.pad_id])
        lines.append(f"LLM {name} has no pad token; {filler!r} fills rows, where masks hide it")
    configured = language.configured_end_ids
    if configured and tokenizer.eos_token_id not in {None, *configured}:
        lines.append(
            f"LLM {name} ends text with {tokenizer.eos_token!r} by its tokenizer and with "
            f"{tokenizer.decode(sorted(configured))!r} by its configuration; answers are taught "
            f"to end with {tokenizer.decode([language.end_id])!r}"
        )
    return tuple(lines)


def load_run(
    results: Path,
    record: RunRecord,
    *,
    weights: Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> MLLM:
    """Return the trained model of a run, in eval mode; a tuned encoder is the tuned one.

    `weights` is the encoder's checkpoint on disk, where the run was given one.

    Raises:
        RecordError: the trained weights are not there any more.
        WeightsError: the encoder or the LLM that is found is not the one of the run.
    """
    final = results / "checkpoints" / record.run_id / "final"
    if not final.is_dir():
        raise RecordError(f"{final}: the trained weights of run {record.run_id} are not there")
    plan = recorded_plan(record, results=results, weights=weights, device=device)
    mllm = build_mllm(replace(plan, trust_remote_code=trust_remote_code))
    if hash_parameters(mllm.encoder.backbone) != record.encoder.weights_sha256:
        raise WeightsError(
            f"encoder {record.encoder.name}: the weights found now are not those of run "
            f"{record.run_id}; pass the same --weights"
        )
    if mllm.language.weights_sha256 != record.language_model.weights_sha256:
        raise WeightsError(f"LLM {record.language_model.name}: not the weights of the run any more")
    then, now = record.language_model.template, mllm.language.facts()["template"]
    if then is not None and then != now:
        raise WeightsError(
            f"LLM {record.language_model.name}: its chat template is not that of run "
            f"{record.run_id} any more; put the tokenizer's files back as they were"
        )
    return with_trained(mllm, final, choose_device(device))


def with_trained(mllm: MLLM, final: Path, device: torch.device) -> MLLM:
    """Return a model, as it was built, with the weights that training saved, in eval mode."""
    load_mllm_weights(mllm, final)
    return mllm.to(device).eval()
