"""The image prefix: what stands before every question on an image, computed once an image.

What belongs here: prefix embeddings, their keys and values, and cutting questions into batches
that fit into memory beside them. Decoding is `generation.py`'s job, likelihoods `scoring.py`'s.

Shapes: G prefixes (one an image, or one for text only), P tokens each, R rows (questions).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.language import LanguageModel

_CPU_CACHE_BYTES = 2**30
_DEVICE_SHARE = 0.25
_MOST_ROWS = 256


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids asked about one image; `image` counts prefixes."""

    image: int
    ids: tuple[int, ...]


class Prefix:
    """The tokens before the question, of each image: `(G, P, D_llm)`.

    Attributes:
        embeddings: `(G, P, D_llm)`.
        length: P.
        with_image: whether visual tokens stand in it.
    """

    def __init__(self, language: LanguageModel, visual: Tensor | None) -> None:
        """Join template and visual tokens.

        Args:
            language: the language model.
            visual: `(B, M, D_llm)`, or None for one prefix of text alone.
        """
        ids = language.prefix_ids(image=visual is not None)
        text = language.embed(torch.tensor([ids], dtype=torch.long, device=language.device))
        if visual is not None:
            spliced = visual.to(device=text.device, dtype=text.dtype)
            text = torch.cat([text.expand(len(visual), -1, -1), spliced], dim=1)
        self.embeddings = text
        self.length = text.shape[1]
        self.with_image = visual is not None
        self._language = language
        self._cache: Any = None

    def cache_for(self, questions: Sequence[Question]) -> Any:
        """Return a cache of keys and values whose rows are the prefixes of `questions`."""
        if self._cache is None:
            self._cache = self.new_cache()
            if self.length:
                self._language(self.embeddings, cache=self._cache, at=_nowhere(self.embeddings))
        selected = copy.copy(self._cache)
        selected.layers = [copy.copy(layer) for layer in self._cache.layers]
        if self.length:
            rows = torch.tensor([q.image for q in questions], device=self.embeddings.device)
            selected.batch_select_indices(rows)
        return selected

    def new_cache(self) -> Any:
        """Return an empty cache of keys and values."""
        from transformers import DynamicCache

        return DynamicCache(config=self._language.model.config)

    def batches(
        self, questions: Sequence[Question], *, new_tokens: int, copies: int = 1
    ) -> Iterator[list[Question]]:
        """Cut questions, sorted by length, into batches whose keys and values fit into memory.

        Where a row is longer than the model's sliding window, only equally long questions share
        a batch: padding would shift what the window sees.

        Args:
            questions: sorted by length.
            new_tokens: tokens that are added to each row.
            copies: rows that a question becomes (beams).
        """
        window = self._language.sliding_window
        token_bytes = self._language.cache_bytes_per_token
        budget = _cache_budget(self.embeddings.device)
        batch: list[Question] = []
        for question in questions:
            length = self.length + len(question.ids) + new_tokens
            rows = max(1, min(_MOST_ROWS, budget // (length * token_bytes)) // copies)
            apart = bool(batch) and window is not None and length > window
            if len(batch) >= rows or (apart and len(batch[-1].ids) != len(question.ids)):
                yield batch
                batch = []
            batch.append(question)
        if batch:
            yield batch


def make_questions(
    language: LanguageModel, visual: Tensor | None, prompts: Sequence[Sequence[str]]
) -> list[Question]:
    """Tokenise prompts, one group an image; without images all share the one text prefix.

    Raises:
        ValueError: not one group of prompts an image.
    """
    if visual is not None and len(visual) != len(prompts):
        raise ValueError(f"{len(visual)} images for {len(prompts)} groups of prompts")
    image = visual is not None
    return [
        Question(index if image else 0, tuple(language.question_ids(prompt, image=image)))
        for index, group in enumerate(prompts)
        for prompt in group
    ]


def check_context(
    language: LanguageModel, prefix: Prefix, questions: Sequence[Question], new_tokens: int
) -> None:
    """Check that every question and its answer fit into the context.

    Raises:
        DataError: one does not; shows how it begins.
    """
    for question in questions:
        length = prefix.length + len(question.ids) + new_tokens
        if length > language.max_length:
            begins = language.decode(list(question.ids[:16]))
            raise DataError(
                f"prompt '{begins}...' needs {length} tokens with its answer ({prefix.length} "
                f"before it), the language model's context has {language.max_length}; shorten "
                "the prompt, or lower --visual-tokens or the task's max_new_tokens"
            )


def left_padded(language: LanguageModel, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """Return ids `(R, Q)` and their mask `(R, Q)` (1: a token), ends aligned."""
    longest = max(len(question.ids) for question in questions)
    gaps = [longest - len(question.ids) for question in questions]
    ids = [[language.pad_id] * gap + [*q.ids] for gap, q in zip(gaps, questions, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    return torch.tensor(ids, device=language.device), torch.tensor(mask, device=language.device)


def _nowhere(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions at which a prefix needs logits: none."""
    empty = torch.empty(0, dtype=torch.long, device=embeddings.device)
    return empty, empty


def _cache_budget(device: torch.device) -> int:
    """Return how many bytes of keys and values a batch may hold."""
    if device.type != "cuda":
        return _CPU_CACHE_BYTES
    return int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE)
