"""Answers: generation that reads each image once.

What belongs here: the engine. An image's prefix (template, visual tokens) goes through the
language model once; its keys and values serve all questions on that image. Questions are sorted
by length, batched, and leave the batch when they are answered. Where no image has two questions,
prefix and question are read together. Outputs are those of the plain
library's greedy `generate`, one question at a time.

Shapes: R rows (questions), P prefix tokens, Q question tokens, B images, M visual tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.prefix import (
    Prefix,
    Question,
    check_context,
    left_padded,
    make_questions,
)
from encoder_bench.mllm.scoring import score_questions

_COMPACT_BELOW = 0.75
ValueT = TypeVar("ValueT")


@torch.inference_mode()
def generate(
    mllm: MLLM,
    visual: Tensor | None,
    prompts: Sequence[Sequence[str]],
    decoding: DecodingSettings,
) -> list[list[str]]:
    """Return one answer for each prompt, cut at the first stop string.

    Args:
        mllm: the model.
        visual: `(B, M, D_llm)` visual tokens; None shows no image at all: the prompt stands
            without the image prefix.
        prompts: for each image, its prompts. The same prompt on the same image is asked once.
        decoding: length, beams and stop strings; more than one beam goes through the library's
            own beam search.

    Raises:
        DataError: prompt and answer do not fit into the context; shows the prompt.
    """
    language = mllm.language
    questions = make_questions(language, visual, prompts)
    unique = sorted(dict.fromkeys(questions), key=lambda question: len(question.ids))
    with _evaluating(language):
        prefix = Prefix(language, visual)
        check_context(language, prefix, unique, decoding.max_new_tokens)
        by_engine = language.resumes_from_cache and all(question.ids for question in unique)
        if decoding.num_beams > 1 or not by_engine:
            answers = _with_library(language, prefix, unique, decoding)
        else:
            answers = _with_engine(language, prefix, unique, decoding)
    texts = {
        question: cut_at_stop(language.decode(ids), decoding.stop)
        for question, ids in zip(unique, answers, strict=True)
    }
    return regroup([texts[question] for question in questions], prompts)


@torch.inference_mode()
def score(
    mllm: MLLM, visual: Tensor | None, prompts: Sequence[Sequence[str]], candidates: Sequence[str]
) -> list[list[list[float]]]:
    """Return the log-probability (nats) of each candidate as the whole answer to each prompt.

    The sum runs over the candidate's tokens and the end of turn, so that "1" and "10" compare.

    Args:
        mllm: the model.
        visual: `(B, M, D_llm)`, or None for no image.
        prompts: for each image, its prompts.
        candidates: the answers among which to choose, none of them empty.

    Raises:
        DataError: an empty prompt or candidate, or one too long for the context.
    """
    questions = make_questions(mllm.language, visual, prompts)
    texts = [prompt for group in prompts for prompt in group]
    with _evaluating(mllm.language):
        prefix = Prefix(mllm.language, visual)
        scores = score_questions(mllm.language, prefix, questions, texts, candidates)
    return regroup(scores, prompts)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string in it.

    >>> cut_at_stop("A dog. It runs.", [".", "!"])
    'A dog'
    """
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends)].strip() if ends else text


def regroup(values: Sequence[ValueT], groups: Sequence[Sequence[str]]) -> list[list[ValueT]]:
    """Return flat values in the shape of `groups`."""
    flat = iter(values)
    return [[next(flat) for _ in group] for group in groups]


def _with_engine(
    language: LanguageModel,
    prefix: Prefix,
    questions: Sequence[Question],
    decoding: DecodingSettings,
) -> list[list[int]]:
    answers: list[list[int]] = []
    shared = len({question.image for question in questions}) < len(questions)
    for batch in prefix.batches(questions, new_tokens=decoding.max_new_tokens):
        rows = _GreedyBatch(language, prefix, batch, shared=shared)
        answers += rows.run(decoding.max_new_tokens, decoding.stop)
    return answers


class _GreedyBatch:
    """Questions decoded together; those that are answered leave.

    Where prefixes are not `shared`, prefix and question are read in one pass.
    """

    def __init__(
        self,
        language: LanguageModel,
        prefix: Prefix,
        questions: Sequence[Question],
        *,
        shared: bool,
    ) -> None:
        self._language = language
        if shared:
            self._cache = prefix.cache_for(questions)
            ids, asked = left_padded(language, questions)
            self._input = language.embed(ids)
            self._mask = F.pad(asked, (prefix.length, 0), value=1)
            self._positions = prefix.length + (asked.cumsum(1) - 1).clamp_min(0)
        else:
            self._cache = prefix.new_cache()
            self._input, self._mask = _joined(language, prefix, questions)
            self._positions = (self._mask.cumsum(1) - 1).clamp_min(0)
        self._owners = list(range(len(questions)))
        self._answers: list[list[int]] = [[] for _ in questions]
        self._open = [True] * len(questions)

    def run(self, max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
        """Return the generated ids of each question, without the end token."""
        for step in range(max_new_tokens):
            chosen = self._most_probable()
            self._record(chosen.tolist(), stop)
            if step + 1 == max_new_tokens or not any(self._open):
                break
            self._advance(chosen)
        return self._answers

    def _most_probable(self) -> Tensor:
        """Return the `(R,)` next tokens."""
        rows = torch.arange(len(self._input), device=self._input.device)
        logits: Tensor = self._language(
            self._input,
            mask=self._mask,
            positions=self._positions,
            cache=self._cache,
            at=(rows, torch.full_like(rows, self._input.shape[1] - 1)),
        )
        return logits.argmax(dim=-1)

    def _record(self, chosen: list[int], stop: Sequence[str]) -> None:
        for owner, token in zip(self._owners, chosen, strict=True):
            if not self._open[owner]:
                continue
            if token in self._language.end_ids:
                self._open[owner] = False
                continue
            self._answers[owner].append(token)
            if stop:
                text = self._language.decode(self._answers[owner])
                self._open[owner] = not any(string in text for string in stop)

    def _advance(self, chosen: Tensor) -> None:
        """Make the chosen tokens the next input and drop answered rows once they are many."""
        keep = [row for row, owner in enumerate(self._owners) if self._open[owner]]
        if len(keep) <= _COMPACT_BELOW * len(self._owners):
            rows = torch.tensor(keep, device=chosen.device)
            self._cache.batch_select_indices(rows)
            chosen, self._mask = chosen[rows], self._mask[rows]
            self._positions = self._positions[rows]
            self._owners = [self._owners[row] for row in keep]
        self._input = self._language.embed(chosen[:, None])
        self._mask = F.pad(self._mask, (0, 1), value=1)
        self._positions = self._positions[:, -1:] + 1


def _with_library(
    language: LanguageModel,
    prefix: Prefix,
    questions: Sequence[Question],
    decoding: DecodingSettings,
) -> list[list[int]]:
    """Return answers of the library's own `generate` on the joined embeddings.

    Used for beam search, for empty questions, and for models that cannot go on from a prefix
    (recurrent layers): those one row at a time, since padding would pass through their state.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=sorted(language.end_ids),
        pad_token_id=language.pad_id,
    )
    answers: list[list[int]] = []
    batches = prefix.batches(
        questions, new_tokens=decoding.max_new_tokens, copies=decoding.num_beams
    )
    for batch in batches:
        step = len(batch) if language.resumes_from_cache else 1
        for first in range(0, len(batch), step):
            embeddings, mask = _joined(language, prefix, batch[first : first + step])
            ids = language.model.generate(
                inputs_embeds=embeddings, attention_mask=mask, generation_config=settings
            )
            answers += [_until_end(row, language) for row in ids.tolist()]
    return answers


def _joined(
    language: LanguageModel, prefix: Prefix, questions: Sequence[Question]
) -> tuple[Tensor, Tensor]:
    """Return left-padded embeddings `(R, P + Q, D_llm)` of prefix and question, and their mask."""
    rows = []
    for question in questions:
        ids = torch.tensor(question.ids, dtype=torch.long, device=language.device)
        rows.append(torch.cat([prefix.embeddings[question.image], language.embed(ids)]))
    longest = max(len(row) for row in rows)
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    padded = [F.pad(row, (0, 0, longest - len(row), 0)) for row in rows]
    return torch.stack(padded), torch.tensor(mask, device=language.device)


def _until_end(ids: Sequence[int], language: LanguageModel) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in language.end_ids), len(ids))
    return list(ids[:end])


@contextlib.contextmanager
def _evaluating(language: LanguageModel) -> Iterator[None]:
    """Put the language model into eval mode, and back as it was, module by module."""
    before = {module: module.training for module in language.modules()}
    language.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
