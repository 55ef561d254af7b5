"""The tiny Llama: pretrained on text alone to read a written scene and answer about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.mllm.language import LanguageModel
from zoo.card import ship
from zoo.loop import Run, train
from zoo.objective import ObjectiveLoss
from zoo.reading import Page, encode_pages, exact_answers, reading_loss
from zoo.schedule import Budget
from zoo.tokenizer import build_tokenizer, words_of
from zoo.written_scenes import (
    LAYOUTS,
    OTHER_CAPTIONS,
    OTHER_QUESTIONS,
    Layout,
    TaskPrompts,
    grammar_texts,
    written_page,
)

_TRAINING_STREAM, _HELD_OUT_STREAM = 6_001, 6_002
_LAYOUT_CYCLE: tuple[Layout, ...] = (
    "cover",
    "objects",
    "centres",
    "cover",
    "sentence",
    "centres",
    "cover",
)
"""Which layout each step's pages have; an odd number, so that noise comes to each."""
_FIRST_LAYOUTS: tuple[Layout, ...] = ("objects", "sentence")
_FIRST_SHARE = 0.2
"""The first fifth of the steps has short pages without noise: looking up is learned there."""
_WATCHED_WORDS = 128
NOISE, DROPOUT = 0.3, 0.02
"""Noise on cells (share of a word's root mean square) and share of emptied cells, half the time."""


WORDING = (
    *OTHER_QUESTIONS,
    *OTHER_CAPTIONS,
    "Is there a object picture photo of this that it yes no Yes No the what who where when why",
    "Provide a brief one-sentence caption for what is shown. USER ASSISTANT: \n",
)


def build_tokenizer_of_grammar() -> Any:
    """Return the tokenizer that knows every word of the grammar, the pages and the prompts."""
    return build_tokenizer(words_of([*grammar_texts(), *WORDING]))


def build_language_model(*, seed: int) -> LanguageModel:
    """Return the untrained tiny Llama with a tokenizer that knows the grammar's words."""
    tokenizer = build_tokenizer_of_grammar()
    return LanguageModel(
        tiny_llama(tokenizer, seed=seed),
        tokenizer,
        LanguageModelSettings(),
        pretrained=False,
        source="bundled:tiny-llama",
    )


def tiny_llama(tokenizer: Any, *, seed: int) -> Any:
    """Return an untrained `LlamaForCausalLM`, 192 wide with 4 layers, for a tokenizer's words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain_language_model(
    budget: Budget,
    *,
    work: Path,
    output: Path,
    prompts: TaskPrompts,
    reporter: Reporter,
    seed: int = 0,
    checkpoint_every: int = 100,
    held_out_count: int = 64,
    device: torch.device | None = None,
) -> None:
    """Pretrain the tiny Llama and ship it to `output`, a snapshot at every checkpoint.

    The budget's images are pages here. At every checkpoint `held_out_count` pages of each layout
    are measured.
    """
    language = build_language_model(seed=seed).to(device or torch.device("cpu"))
    held_out = {layout: held_out_pages(layout, prompts, held_out_count) for layout in LAYOUTS}

    def snapshot(step: int, curve: list[dict[str, Any]]) -> None:
        language.model.eval()
        accuracy = {name: measure(language, pages) for name, pages in held_out.items()}
        reporter.note(f"step {step}: held-out exact answers, percent: {accuracy}")
        card = _card(budget, prompts, step, curve, accuracy, held_out_count, seed)
        card["word_embedding_rms"] = round(_words(language).square().mean().sqrt().item(), 4)
        ship(language.model, output, card=card, companions=(language.tokenizer,))

    run = Run(
        name="tiny-llama",
        module=language.model,
        step_loss=partial(_step_loss, language, budget, prompts, seed),
        after_step=lambda _: None,
        generator=torch.Generator().manual_seed(seed),
        identity={
            "model": "tiny-llama",
            "budget": budget.as_json(),
            "seed": seed,
            "prompts": asdict(prompts),
        },
    )
    train(
        run,
        budget,
        folder=work,
        reporter=reporter,
        checkpoint_every=checkpoint_every,
        on_checkpoint=snapshot,
    )


def _step_loss(
    language: LanguageModel,
    budget: Budget,
    prompts: TaskPrompts,
    seed: int,
    step: int,
    generator: torch.Generator,
) -> ObjectiveLoss:
    """Return the loss on the pages of a step, with noise on every second one after the first."""
    pages = training_pages(
        step, layout_at(step, budget.steps), budget.images_per_step, prompts, seed=seed
    )
    noisy = step % 2 == 1 and step >= _FIRST_SHARE * budget.steps
    with torch.autocast(language.device.type, torch.bfloat16):
        loss = reading_loss(
            language,
            encode_pages(language, pages),
            generator=generator,
            noise=NOISE if noisy else 0.0,
            dropout=DROPOUT if noisy else 0.0,
        )
    return ObjectiveLoss(loss, _words(language))


def _words(language: LanguageModel) -> Tensor:
    """Return the embeddings of the last words of the vocabulary, past bytes and characters."""
    table: Tensor = language.model.get_input_embeddings().weight.detach()
    return table[-_WATCHED_WORDS:]


def layout_at(step: int, steps: int) -> Layout:
    """Return the layout of a step's pages: short ones first, then all in turn."""
    cycle = _FIRST_LAYOUTS if step < _FIRST_SHARE * steps else _LAYOUT_CYCLE
    return cycle[step % len(cycle)]


def training_pages(
    step: int, layout: Layout, count: int, prompts: TaskPrompts, *, seed: int
) -> list[Page]:
    """Return the pages of one step; the same at every call."""
    rng = np.random.default_rng([_TRAINING_STREAM, seed, step])
    return [written_page(rng, layout, prompts, name=f"train/{step}/{i}") for i in range(count)]


def held_out_pages(layout: Layout, prompts: TaskPrompts, count: int) -> list[Page]:
    """Return pages of scenes that no training step draws."""
    rng = np.random.default_rng([_HELD_OUT_STREAM, LAYOUTS.index(layout)])
    return [written_page(rng, layout, prompts, name=f"held-out/{i}") for i in range(count)]


def measure(language: LanguageModel, pages: Sequence[Page], *, batch: int = 16) -> dict[str, float]:
    """Return task -> share of answers that greedy decoding gives exactly, in percent."""
    counts: dict[str, tuple[int, int]] = {}
    for start in range(0, len(pages), batch):
        for task, (hits, total) in exact_answers(language, pages[start : start + batch]).items():
            before = counts.get(task, (0, 0))
            counts[task] = (before[0] + hits, before[1] + total)
    return {task: round(100 * hits / total, 2) for task, (hits, total) in sorted(counts.items())}


def _card(
    budget: Budget,
    prompts: TaskPrompts,
    step: int,
    curve: list[dict[str, Any]],
    accuracy: dict[Layout, dict[str, float]],
    held_out_count: int,
    seed: int,
) -> dict[str, Any]:
    return {
        "name": "tiny-llama",
        "class": "LlamaForCausalLM",
        "data": {
            "kind": "text alone: written scenes with questions and captions; no image was seen",
            "scenes": f"random scenes drawn step by step from seed {seed}; no scene is shared with "
            "the embedded suite's files",
            "layouts": list(LAYOUTS),
            "layout_cycle": list(_LAYOUT_CYCLE),
            "first_layouts": {"layouts": list(_FIRST_LAYOUTS), "share_of_steps": _FIRST_SHARE},
            "prompts": asdict(prompts),
            "other_prompts_on_a_quarter_of_the_pages": [*OTHER_QUESTIONS, *OTHER_CAPTIONS],
        },
        "budget": budget.as_json(),
        "steps_done": step,
        "pages_seen": step * budget.images_per_step,
        "precision": "bfloat16 autocast, float32 weights; shipped as float16",
        "noise": {"cells": NOISE, "emptied": DROPOUT, "share_of_steps": 0.5 * (1 - _FIRST_SHARE)},
        "seed": seed,
        "held_out_exact_answers_percent": accuracy,
        "held_out_pages_per_layout": held_out_count,
        "loss_curve": curve,
    }
