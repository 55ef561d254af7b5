"""How much the shared prefix and the generation engine save, measured on this machine.

Ratios above 1 mean that this project's way is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import medians
from encoder_bench.base.recipes import DecodingSettings, LanguageModelSettings, ProjectorSettings
from encoder_bench.mllm.dialogue import ImageDialogue, tokenize_dialogues
from encoder_bench.mllm.generate import generate
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.loading import load_language_model
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, batch_dialogues, pack
from encoder_bench.mllm.projectors import build_projector
from encoder_bench.mllm.trainable import set_trainable

_ENCODER_WIDTH = 128
_THINGS = ("dog", "cat", "red ball", "tree", "blue car", "small bird", "chair", "house", "cup")
_FORMS = (
    "How many {}s are there in the image?",
    "Is there a {} in the image?",
    "What colour is the {}?",
    "What is to the left of the {}?",
)
_ANSWERS = ("2", "yes", "no", "red and white", "a tree")


def run_bench(
    *,
    llm: str = "tiny-llama",
    visual_tokens: int = 64,
    images: int = 8,
    repeats: int = 5,
    new_tokens: int = 8,
    questions_per_image: Sequence[int] = (1, 2, 5, 18),
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure shared prefix and generation engine and return seconds and ratios as JSON.

    `visual_tokens` is a square number; entries are by the number of questions per image.
    """
    mllm = model_without_encoder(llm, visual_tokens).to(device)
    features = random_features(images, visual_tokens).to(device)
    return {
        "settings": {
            "llm": mllm.language.source,
            "device": str(mllm.language.device),
            "threads": torch.get_num_threads(),
            "visual_tokens": visual_tokens,
            "images": images,
            "repeats": repeats,
            "new_tokens": new_tokens,
        },
        "shared_prefix": {
            str(count): _training_ratio(mllm, features, count, repeats)
            for count in questions_per_image
        },
        "generation": {
            str(count): _generation_ratios(mllm, features, count, repeats, new_tokens)
            for count in (1, 5)
        },
    }


def questions(count: int, offset: int = 0) -> list[str]:
    """Return `count` different questions such as the tasks ask."""
    asked = [form.format(thing) for thing in _THINGS for form in _FORMS]
    return [asked[(offset * 5 + index) % len(asked)] for index in range(count)]


def dialogues(images: int, count: int) -> list[ImageDialogue]:
    """Return `count` questions with short answers on each of so many images."""
    return [
        ImageDialogue(
            index,
            tuple(
                (question, _ANSWERS[(index + place) % len(_ANSWERS)])
                for place, question in enumerate(questions(count, index))
            ),
        )
        for index in range(images)
    ]


def random_features(images: int, visual_tokens: int) -> Tensor:
    """Return patch tokens `(B, N, D)` that no encoder made, the same each time."""
    shape = (images, visual_tokens, _ENCODER_WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def model_without_encoder(llm: str, visual_tokens: int) -> MLLM:
    """Return a projector before a frozen language model, in training mode."""
    language = load_language_model(LanguageModelSettings(name=llm))
    side = round(visual_tokens**0.5)
    torch.manual_seed(0)
    projector = build_projector(
        ProjectorSettings(name="mlp"),
        grid=(side, side),
        width=_ENCODER_WIDTH,
        llm_width=language.width,
    )
    mllm = MLLM(_NoEncoder(), projector, language)  # type: ignore[arg-type]
    set_trainable(mllm, encoder=False, llm="frozen")
    return mllm.train()


class _NoEncoder(nn.Module):
    """Stands where an encoder would: features are made before the clock starts."""


def _training_ratio(
    mllm: MLLM, features: Tensor, count: int, repeats: int
) -> dict[str, float | int]:
    """Time forward and backward of the same questions packed both ways, and the limit.

    The limit is the language model alone, forward and backward, on dense embeddings of as many
    tokens as the shared rows hold, in plain causal sequences.
    """
    items = tokenize_dialogues(mllm.language, dialogues(len(features), count), image=True)
    batches = {
        shared: batch_dialogues(
            mllm.language, items, shared_prefix=shared, images=features, encoded=True
        )
        for shared in (False, True)
    }
    rows = pack(batches[True], mllm.language, visual_tokens=features.shape[1]).to(features.device)
    shape = (*rows.input_ids.shape, mllm.language.width)
    dense = torch.randn(shape, device=features.device, requires_grad=True)
    at = (rows.loss_rows, rows.loss_columns)

    def limit() -> None:
        logits: Tensor = mllm.language(dense, at=at)
        torch.autograd.grad(logits.float().logsumexp(-1).sum(), dense)

    separate, shared, fastest = medians(
        [lambda: _step(mllm, batches[False]), lambda: _step(mllm, batches[True]), limit], repeats
    )
    return {
        "separate_seconds": separate,
        "shared_seconds": shared,
        "limit_seconds": fastest,
        "speed_up": separate / shared,
        "share_of_limit": fastest / shared,
        "separate_tokens": pack(
            batches[False], mllm.language, visual_tokens=features.shape[1]
        ).dialogue.numel(),
        "shared_tokens": rows.dialogue.numel(),
    }


def _step(mllm: MLLM, batch: TrainingBatch) -> None:
    mllm.zero_grad()
    (mllm(batch) / batch.answer_tokens).backward()


def _generation_ratios(
    mllm: MLLM, features: Tensor, count: int, repeats: int, new_tokens: int
) -> dict[str, float | bool]:
    """Time the engine, plain `generate` question by question, and plain batched `generate`."""
    prompts = [questions(count, index) for index in range(len(features))]
    decoding = DecodingSettings(max_new_tokens=new_tokens)
    answers: dict[str, list[str]] = {}
    with torch.inference_mode():
        visual = mllm.visual_tokens(features)
    sequences = _sequences(mllm.language, visual, prompts)

    def engine() -> None:
        found = generate(mllm, visual, prompts, decoding)
        answers["engine"] = [text for group in found for text in group]

    def one_by_one() -> None:
        answers["one"] = [
            text for row in sequences for text in _plain(mllm.language, [row], new_tokens)
        ]

    def batched() -> None:
        answers["batched"] = _plain(mllm.language, sequences, new_tokens)

    engine_seconds, one_seconds, batched_seconds = medians([engine, one_by_one, batched], repeats)
    return {
        "engine_seconds": engine_seconds,
        "one_by_one_seconds": one_seconds,
        "batched_seconds": batched_seconds,
        "speed_up_over_one_by_one": one_seconds / engine_seconds,
        "speed_up_over_batched": batched_seconds / engine_seconds,
        "answers_equal": answers["engine"] == answers["one"],
    }


@torch.inference_mode()
def _sequences(
    language: LanguageModel, visual: Tensor, prompts: Sequence[Sequence[str]]
) -> list[Tensor]:
    """Return the embeddings `(L, D_llm)` of each question behind its own image."""

    def embedded(ids: list[int]) -> Tensor:
        return language.embed(torch.tensor(ids, dtype=torch.long, device=language.device))

    begin = embedded(language.prefix_ids(image=True))
    return [
        torch.cat([begin, image, embedded(language.question_ids(text, image=True))])
        for image, group in zip(visual, prompts, strict=True)
        for text in group
    ]


@torch.inference_mode()
def _plain(language: LanguageModel, rows: Sequence[Tensor], new_tokens: int) -> list[str]:
    """Return the answers of the library's own greedy `generate` on one left-padded batch."""
    longest = max(len(row) for row in rows)
    gaps = [longest - len(row) for row in rows]
    embeddings = torch.stack(
        [nn.functional.pad(row, (0, 0, gap, 0)) for row, gap in zip(rows, gaps, strict=True)]
    )
    mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=language.device)
    ids = language.model.generate(
        inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False
    )
    ends = language.end_ids
    cut = [
        row[: next((n for n, t in enumerate(row) if t in ends), len(row))] for row in ids.tolist()
    ]
    return [language.decode(row) for row in cut]
