"""Which precision and attention train and answer fastest, and how far each is from float32.

Every way does the same forward and backward pass of the same weights, a projector and a fully tuned
language model over questions behind shared prefixes, and answers the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.mllm import dialogues, model_without_encoder, questions, random_features
from benchmarks.timing import medians
from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm.attention import FLEX, trains_with_flex
from encoder_bench.mllm.dialogue import tokenize_dialogues
from encoder_bench.mllm.generate import generate
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, batch_dialogues
from encoder_bench.mllm.trainable import set_trainable


class Way(NamedTuple):
    """A precision (`float32`, `tf32`, `bfloat16` for autocast over float32 weights), an attention.

    `tf32` is float32 whose matrix products a GPU rounds to ten bits of mantissa.
    """

    precision: str
    attention: str


_EXACT = Way("float32", "sdpa")


def run_bench(
    *,
    llm: str = "tiny-llama",
    visual_tokens: int | None = None,
    images: int | None = None,
    questions_per_image: int = 5,
    new_tokens: int = 4,
    repeats: int = 5,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure every way that the device has and return seconds and differences as JSON.

    `loss_difference` is relative; `gradient_difference` is the norm of the difference from
    float32 with SDPA over the norm there, of all gradients together. FlexAttention is measured
    where it trains, and answers nothing: evaluation keeps SDPA. 8 images of 64 visual tokens by
    default, on a GPU 16 of 256.
    """
    place = torch.device(device)
    visual_tokens = visual_tokens or (256 if place.type == "cuda" else 64)
    images = images or (16 if place.type == "cuda" else 8)
    mllm = model_without_encoder(llm, visual_tokens).to(place)
    set_trainable(mllm, encoder=False, llm="full")
    features = random_features(images, visual_tokens).to(place)
    items = tokenize_dialogues(mllm.language, dialogues(images, questions_per_image), image=True)
    batch = batch_dialogues(mllm.language, items, shared_prefix=True, images=features, encoded=True)
    ways = _ways(mllm, place)
    report = _training(mllm, batch, ways, repeats)
    mllm.zero_grad()
    prompts = [questions(questions_per_image, index) for index in range(images)]
    answering = [way for way in ways if way.attention != FLEX]
    for name, entry in _answers(mllm, features, prompts, answering, new_tokens, repeats).items():
        report[name] |= entry
    return {
        "settings": {
            "llm": mllm.language.source,
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else device,
            "threads": torch.get_num_threads(),
            "visual_tokens": visual_tokens,
            "images": images,
            "questions_per_image": questions_per_image,
            "new_tokens": new_tokens,
            "repeats": repeats,
        },
        "precision": report,
    }


def _training(
    mllm: MLLM, batch: TrainingBatch, ways: Sequence[Way], repeats: int
) -> dict[str, dict[str, float]]:
    """Time a step of each way and compare its loss and gradients with float32 under SDPA."""
    exact_loss, exact_gradients = _pass(mllm, batch, _EXACT)
    seconds = medians([partial(_pass, mllm, batch, way) for way in ways], repeats)
    report = {}
    for way, spent in zip(ways, seconds, strict=True):
        loss, gradients = _pass(mllm, batch, way)
        difference = float((gradients - exact_gradients).norm()) / float(exact_gradients.norm())
        report[", ".join(way)] = {
            "step_seconds": spent,
            "step_over_float32_sdpa": seconds[ways.index(_EXACT)] / spent,
            "loss_difference": abs(loss - exact_loss) / exact_loss,
            "gradient_difference": difference,
        }
    return report


def _answers(
    mllm: MLLM,
    features: Tensor,
    prompts: Sequence[Sequence[str]],
    ways: Sequence[Way],
    new_tokens: int,
    repeats: int,
) -> dict[str, dict[str, float]]:
    """Time each way's answers and count those that are float32's under SDPA."""
    answers: dict[Way, list[str]] = {}

    def ask(way: Way) -> None:
        with _set(mllm, way), torch.inference_mode():
            visual = mllm.visual_tokens(features)
            decoding = DecodingSettings(max_new_tokens=new_tokens)
            found = generate(mllm.eval(), visual, prompts, decoding)
        answers[way] = [text for group in found for text in group]

    seconds = medians([partial(ask, way) for way in ways], repeats)
    report = {}
    for way, spent in zip(ways, seconds, strict=True):
        same = [a == b for a, b in zip(answers[way], answers[_EXACT], strict=True)]
        report[", ".join(way)] = {
            "answer_seconds": spent,
            "answer_over_float32_sdpa": seconds[ways.index(_EXACT)] / spent,
            "equal_answers": sum(same) / len(same),
        }
    return report


def _ways(mllm: MLLM, device: torch.device) -> list[Way]:
    attentions = ["sdpa", "eager", *([FLEX] if trains_with_flex(mllm.language, device) else [])]
    precisions = ["float32", *(["tf32"] if device.type == "cuda" else []), "bfloat16"]
    return [Way(precision, attention) for precision in precisions for attention in attentions]


@contextmanager
def _set(mllm: MLLM, way: Way) -> Iterator[None]:
    """Compute as `way` says inside, then as before."""
    language, matmul = mllm.language, torch.backends.cuda.matmul
    before, tf32 = language.attention, matmul.allow_tf32
    language.model.set_attn_implementation(way.attention)
    matmul.allow_tf32 = way.precision == "tf32"
    try:
        with torch.autocast(
            language.device.type, torch.bfloat16, enabled=way.precision == "bfloat16"
        ):
            yield
    finally:
        language.model.set_attn_implementation(before)
        matmul.allow_tf32 = tf32


def _pass(mllm: MLLM, batch: TrainingBatch, way: Way) -> tuple[float, Tensor]:
    """Return the loss per answer token and all gradients in one vector."""
    mllm.train()
    mllm.zero_grad()
    with _set(mllm, way):
        loss = mllm(batch) / batch.answer_tokens
    loss.backward()
    return loss.item(), torch.cat(
        [p.grad.flatten() for p in mllm.parameters() if p.grad is not None]
    )
