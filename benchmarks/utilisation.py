"""How much of a GPU's arithmetic a training step uses: model FLOPs utilisation (MFU).

One real optimizer step (encoder, projector, LLM, AdamW) of a ViT-L with an LLM of about 1.2B
parameters, both of random weights. torch counts the operations as the step runs, attention in full
whatever its mask hides.

Reference: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), section 4.1 and appendix B. Deviation:
what the step computes is counted, so a frozen part counts without its weight gradients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.encoders import write_vit
from benchmarks.mllm import dialogues
from benchmarks.timing import medians
from encoder_bench.base.recipes import (
    LanguageModelSettings,
    PartOptimizer,
    ProjectorSettings,
    StageSettings,
)
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.attention import training_attention
from encoder_bench.mllm.dialogue import tokenize_dialogues
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.loading import load_language_model
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, batch_dialogues
from encoder_bench.mllm.projectors import build_projector
from encoder_bench.mllm.trainable import set_trainable
from encoder_bench.training.batches import StepBatches
from encoder_bench.training.distributed import Gradients
from encoder_bench.training.optimizer import make_optimizer, only_parts, set_learning_rates
from encoder_bench.training.trainer import train_step

_VIT_L = "openai/clip-vit-large-patch14"
_PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16 operations per second, from the vendor's data sheets; the first name that fits."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured.

    Attributes:
        encoder: a registered name; None for a ViT-L/14 at 224 px from its configuration.
        llm: keys of transformers' `LlamaConfig`; the default has 1.2B parameters.
        images: images of a step.
        questions: questions per image, behind one prefix.
    """

    encoder: str | None = None
    llm: Mapping[str, int] = field(
        default_factory=lambda: {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        }
    )
    images: int = 32
    questions: int = 5


LARGE = Sizes()


def run_bench(*, device: str, repeats: int = 5, sizes: Sizes = LARGE) -> dict[str, Any]:
    """Measure frozen and joint steps in bfloat16 and return JSON.

    On a CPU the default sizes are not tried: `reason` says so.
    """
    place = torch.device(device)
    if place.type != "cuda" and sizes == LARGE:
        return {"settings": {"device": device}, "reason": "no GPU is at hand for a ViT-L and 1.2B"}
    peak, source = peak_flops(place)
    mllm = _model(sizes).to(place)
    report: dict[str, Any] = {
        "settings": {
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else device,
            "peak_flops": peak,
            "peak_from": source,
            "encoder_parameters": _count(mllm.encoder),
            "llm_parameters": _count(mllm.language),
            "visual_tokens": mllm.projector.visual_tokens,
            "images": sizes.images,
            "questions": sizes.questions,
            "repeats": repeats,
        }
    }
    for mode in ("frozen", "joint"):
        report[mode] = _measure(mllm, sizes, place, peak, repeats, joint=mode == "joint")
    return report


def peak_flops(device: torch.device) -> tuple[float, str]:
    """Return a device's dense bfloat16 operations per second, and where the figure is from.

    A device that is not in the list is measured by a large matrix product.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for part, peak in _PEAKS.items():
        if all(word in name for word in part.split()):
            return peak, f"data sheet of {part}"
    size = 8192 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    (seconds,) = medians([lambda: matrix @ matrix], 5)
    return 2.0 * size**3 / seconds, f"a {size} x {size} bfloat16 matrix product here"


def _measure(
    mllm: MLLM, sizes: Sizes, device: torch.device, peak: float, repeats: int, *, joint: bool
) -> dict[str, Any]:
    set_trainable(mllm, encoder=joint, llm="full")
    mllm.train()
    rate = PartOptimizer(learning_rate=1e-5)
    stage = StageSettings(
        name="bench",
        tasks=("vqa",),
        images_per_step=sizes.images,
        projector=rate,
        llm=rate,
        encoder=rate if joint else None,
    )
    optimizer = make_optimizer(mllm, stage)
    set_learning_rates(optimizer, 1.0)
    micro = _micro_batch(mllm, sizes)
    accelerator = Accelerator(cpu=device.type == "cpu", device_placement=False)
    with only_parts(mllm, stage) as parameters:
        gradients = Gradients(parameters, accelerator)

        def step() -> None:
            train_step(
                mllm,
                optimizer,
                gradients,
                StepBatches([micro], sizes.images, 0, 0),
                bfloat16=True,
                clip_norm=1.0,
                where="bench",
                seed=0,
            )

        with FlopCounterMode(display=False) as counter:
            step()
        with training_attention(mllm.language, device, "auto") as attention:
            (seconds,) = medians([step], repeats)
    flops = counter.get_total_flops()
    return {
        "seconds": seconds,
        "attention": attention,
        "flops": flops,
        "images_per_second": sizes.images / seconds,
        "answer_tokens_per_second": micro.answer_tokens / seconds,
        "mfu": flops / seconds / peak,
    }


def _model(sizes: Sizes) -> MLLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_language_model(LanguageModelSettings(name="tiny-llama")).tokenizer
    llama = LlamaForCausalLM(LlamaConfig(**dict(sizes.llm), tie_word_embeddings=True))
    settings = LanguageModelSettings(name="llama-from-config", train="full", chat_template=False)
    language = LanguageModel(llama, tokenizer, settings, source="config:llama", pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        encoder = load_encoder(sizes.encoder or write_vit(Path(folder), _VIT_L))
    projector = build_projector(
        ProjectorSettings(name="mlp"),
        grid=encoder.grid,
        width=encoder.width,
        llm_width=language.width,
    )
    return MLLM(encoder, projector, language)


def _micro_batch(mllm: MLLM, sizes: Sizes) -> TrainingBatch:
    shape = (sizes.images, 3, *mllm.encoder.resolution)
    return batch_dialogues(
        mllm.language,
        tokenize_dialogues(mllm.language, dialogues(sizes.images, sizes.questions), image=True),
        shared_prefix=True,
        images=torch.randn(shape, generator=torch.Generator().manual_seed(0)),
    )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
