"""The shared prefix of generation: what comes before every question on an image, computed once.

Axes: G prefixes (one per image, or one for text only), P tokens each, R rows (questions), Q
question tokens, B images, M visual tokens, E LLM width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.language import LanguageModel

_CPU_CACHE_BYTES = 2**30
_DEVICE_SHARE = 0.25
MAX_ROWS = 256


class Question(NamedTuple):
    """Token ids asked about one image; `image` counts prefixes."""

    image: int
    ids: tuple[int, ...]


class Prefix:
    """The tokens before the question, of each image.

    Attributes:
        embeddings: `(G, P, E)`.
        length: P.
        with_image: whether it holds visual tokens.
    """

    def __init__(self, language: LanguageModel, visual: Tensor | None) -> None:
        """Join template and visual tokens `(B, M, E)`; None is one prefix of text alone."""
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

    def questions(self, prompts: Sequence[Sequence[str]]) -> list[Question]:
        """Tokenise prompts, one group per image; without images all share the one text prefix.

        Raises:
            ValueError: not one group of prompts per image.
        """
        image = self.with_image
        if image and len(self.embeddings) != len(prompts):
            raise ValueError(f"{len(self.embeddings)} images for {len(prompts)} groups of prompts")
        return [
            Question(index if image else 0, tuple(self._language.question_ids(prompt, image=image)))
            for index, group in enumerate(prompts)
            for prompt in group
        ]

    def cache_for(self, questions: Sequence[Question]) -> Any:
        """Return a cache of keys and values whose rows are the prefixes of `questions`."""
        device = self.embeddings.device
        if self._cache is None:
            self._cache = self.new_cache()
            if self.length:
                nowhere = torch.empty(0, dtype=torch.long, device=device)
                self._language(self.embeddings, cache=self._cache, at=(nowhere, nowhere))
        selected = copy.copy(self._cache)
        selected.layers = [copy.copy(layer) for layer in self._cache.layers]
        if self.length:
            selected.batch_select_indices(torch.tensor([q.image for q in questions], device=device))
        return selected

    def new_cache(self) -> Any:
        """Return an empty cache of keys and values."""
        from transformers import DynamicCache

        return DynamicCache(config=self._language.model.config)

    def check_context(self, questions: Sequence[Question], new_tokens: int) -> None:
        """Check that every question and its answer fit into the context.

        Raises:
            DataError: one does not; shows how it begins.
        """
        for question in questions:
            length = self.length + len(question.ids) + new_tokens
            if length > self._language.max_length:
                begins = self._language.decode(list(question.ids[:16]))
                raise DataError(
                    f"prompt '{begins}...' needs {length} tokens with its answer ({self.length} "
                    f"before it), the language model's context has {self._language.max_length}; "
                    "shorten the prompt, or lower --visual-tokens or the task's max_new_tokens"
                )

    def batches(
        self, questions: Sequence[Question], *, new_tokens: int, copies: int = 1
    ) -> Iterator[list[Question]]:
        """Cut questions, sorted by length, into batches whose keys and values fit into memory.

        Where a row is longer than the model's sliding window, only equally long questions share
        a batch: padding would shift what the window sees. A question becomes `copies` rows
        (beams), to each of which `new_tokens` are added.
        """
        window = self._language.sliding_window
        token_bytes = self._language.cache_bytes_per_token
        device, budget = self.embeddings.device, _CPU_CACHE_BYTES
        if device.type == "cuda":
            budget = int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE)
        batch: list[Question] = []
        for question in questions:
            length = self.length + len(question.ids) + new_tokens
            rows = max(1, min(MAX_ROWS, budget // (length * token_bytes)) // copies)
            apart = bool(batch) and window is not None and length > window
            if len(batch) >= rows or (apart and len(batch[-1].ids) != len(question.ids)):
                yield batch
                batch = []
            batch.append(question)
        if batch:
            yield batch
