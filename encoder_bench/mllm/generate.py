"""Answers: greedy decoding that reads each image once, and conversations.

An image's prefix (template, visual tokens) goes through the language model once; its keys and
values serve all questions on that image. Questions are sorted by length, batched, and leave the
batch when they are answered. Where no image has two questions, prefix and question are read
together. Outputs are those of the plain library's greedy `generate`, one question at a time.

Axes: R rows (questions), P prefix tokens, Q question tokens, B images, M visual tokens, E LLM
width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.prefix import Prefix, Question

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
        visual: `(B, M, E)`; None shows no image at all, and no image prefix.
        prompts: for each image, its prompts. The same prompt on the same image is asked once.
        decoding: more than one beam goes through the library's own beam search.

    Raises:
        DataError: prompt and answer do not fit into the context; shows the prompt.
    """
    language = mllm.language
    with evaluating(language):
        prefix = Prefix(language, visual)
        questions = prefix.questions(prompts)
        unique = sorted(dict.fromkeys(questions), key=lambda question: len(question.ids))
        prefix.check_context(unique, decoding.max_new_tokens)
        by_engine = language.resumes_from_cache and all(question.ids for question in unique)
        if decoding.num_beams > 1 or not by_engine:
            answers = _with_library(language, prefix, unique, decoding)
        else:
            shared = len({question.image for question in unique}) < len(unique)
            answers = [
                ids
                for batch in prefix.batches(unique, new_tokens=decoding.max_new_tokens)
                for ids in _GreedyBatch(language, prefix, batch, shared=shared).run(decoding)
            ]
    texts = {
        question: cut_at_stop(language.decode(ids), decoding.stop)
        for question, ids in zip(unique, answers, strict=True)
    }
    return regroup([texts[question] for question in questions], prompts)


@dataclass
class Conversation:
    """Questions and answers about one image.

    Attributes:
        mllm: the model, in eval mode.
        image: what is talked about; None for text only. It is encoded once.
        decoding: how answers are generated.
        turns: (question, answer) pairs so far, oldest first.
    """

    mllm: MLLM
    image: Image | None
    decoding: DecodingSettings
    turns: list[tuple[str, str]] = field(default_factory=list)
    _visual: Tensor | None = field(default=None, init=False, repr=False)

    @torch.inference_mode()
    def ask(self, question: str) -> str:
        """Return the answer to `question` after all that was said, and remember both.

        Raises:
            DataError: the conversation has outgrown the context.
        """
        mllm, template = self.mllm, self.mllm.language.template
        if self.image is not None and self._visual is None:
            pixels = mllm.encoder.transform(self.image)[None].to(mllm.language.device)
            self._visual = mllm.visual_tokens(mllm.features(pixels))
        said = [
            f"{earlier}{template.tail}{template.joiner}{answer}{template.between}"
            for earlier, answer in self.turns
        ]
        prompt = "".join(said) + question
        ((answer,),) = generate(mllm, self._visual, [[prompt]], self.decoding)
        self.turns.append((question, answer))
        return answer


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
        self._cache = prefix.cache_for(questions) if shared else prefix.new_cache()
        before = prefix.length if shared else 0
        self._input, mask = _left_padded(language, prefix, questions, joined=not shared)
        self._mask = F.pad(mask, (before, 0), value=1)
        self._positions = before + (mask.cumsum(1) - 1).clamp_min(0)
        self._owners = list(range(len(questions)))
        self._answers: list[list[int]] = [[] for _ in questions]
        self._open = [True] * len(questions)

    def run(self, decoding: DecodingSettings) -> list[list[int]]:
        """Return the generated ids of each question, without the end token."""
        for step in range(decoding.max_new_tokens):
            rows_R = torch.arange(len(self._input), device=self._input.device)
            logits_RV: Tensor = self._language(
                self._input,
                mask=self._mask,
                position_ids=self._positions,
                cache=self._cache,
                at=(rows_R, torch.full_like(rows_R, self._input.shape[1] - 1)),
            )
            chosen_R = logits_RV.argmax(dim=-1)
            self._record(chosen_R.tolist(), decoding.stop)
            if step + 1 == decoding.max_new_tokens or not any(self._open):
                break
            self._advance(chosen_R)
        return self._answers

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

    def _advance(self, chosen_R: Tensor) -> None:
        """Make the chosen tokens the next input and drop answered rows once they are many."""
        keep = [row for row, owner in enumerate(self._owners) if self._open[owner]]
        if len(keep) <= _COMPACT_BELOW * len(self._owners):
            rows = torch.tensor(keep, device=chosen_R.device)
            self._cache.batch_select_indices(rows)
            chosen_R, self._mask = chosen_R[rows], self._mask[rows]
            self._positions = self._positions[rows]
            self._owners = [self._owners[row] for row in keep]
        self._input = self._language.embed(chosen_R[:, None])
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
    for batch in prefix.batches(
        questions, new_tokens=decoding.max_new_tokens, copies=decoding.num_beams
    ):
        step = len(batch) if language.resumes_from_cache else 1
        for first in range(0, len(batch), step):
            rows = batch[first : first + step]
            embeddings, mask = _left_padded(language, prefix, rows, joined=True)
            generated = language.model.generate(
                inputs_embeds=embeddings, attention_mask=mask, generation_config=settings
            )
            for ids in generated.tolist():
                ends = [place for place, token in enumerate(ids) if token in language.end_ids]
                answers.append(ids[: ends[0]] if ends else ids)
    return answers


def _left_padded(
    language: LanguageModel, prefix: Prefix, questions: Sequence[Question], *, joined: bool
) -> tuple[Tensor, Tensor]:
    """Return embeddings `(R, Q, E)` of questions, or `(R, P + Q, E)` with prefixes, and a mask."""
    rows = []
    for question in questions:
        ids = torch.tensor(question.ids, dtype=torch.long, device=language.device)
        text = language.embed(ids)
        rows.append(torch.cat([prefix.embeddings[question.image], text]) if joined else text)
    longest = max(len(row) for row in rows)
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    padded = [F.pad(row, (0, 0, longest - len(row), 0)) for row in rows]
    return torch.stack(padded), torch.tensor(mask, device=language.device)


@contextlib.contextmanager
def evaluating(language: LanguageModel) -> Iterator[None]:
    """Put the language model into eval mode, and back as it was, module by module."""
    before = {module: module.training for module in language.modules()}
    language.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
