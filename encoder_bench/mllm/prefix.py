"""The shared prefix of generation: what comes before every question on an image, computed once.

Axes: G prefixes (one per image, or one for text only), P tokens each, R rows (questions), Q
question tokens, B images, M visual tokens, E LLM width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoder_bench.base.errors import DataError
from encoder_bench.mllm.language import LanguageModel

_CPU_CACHE_BYTES = 2**30
_DEVICE_SHARE = 0.25
MAX_ROWS = 256


class Question(NamedTuple):
    """A prompt about one image with the token ids that ask it; `image` counts prefixes."""

    image: int
    prompt: str
    ids: tuple[int, ...]


class Prefix:
    """The tokens before the question, of each image.

    Attributes:
        language: reads it.
        embeddings: `(G, P, E)`.
        length: P.
        with_image: whether it holds visual tokens.
    """

    def __init__(self, language: LanguageModel, visual: Tensor | None) -> None:
        """Join template and visual tokens `(B, M, E)`; None is one prefix of text alone."""
        self.with_image = visual is not None
        ids = language.prefix_ids(image=self.with_image)
        text = language.embed(torch.tensor([ids], dtype=torch.long, device=language.device))
        if visual is not None:
            spliced = visual.to(device=text.device, dtype=text.dtype)
            text = torch.cat([text.expand(len(visual), -1, -1), spliced], dim=1)
        self.embeddings = text
        self.length = text.shape[1]
        self.language = language
        self._cache: Any = None

    def questions(
        self, prompts: Sequence[Sequence[str]], *, answer_tokens: int
    ) -> tuple[list[list[Question]], list[Question]]:
        """Tokenise prompts, one group per image; without images all share the one text prefix.

        Returns:
            The questions in the groups of their prompts, and each question once, by length.

        Raises:
            ValueError: not one group of prompts per image.
            DataError: a question and `answer_tokens` do not fit into the context; shows how it
                begins.
        """
        language, image = self.language, self.with_image
        if image and len(self.embeddings) != len(prompts):
            raise ValueError(f"{len(self.embeddings)} images for {len(prompts)} groups of prompts")
        ask = partial(language.question_ids, image=image)
        groups = [
            [Question(index if image else 0, text, tuple(ask(text))) for text in group]
            for index, group in enumerate(prompts)
        ]
        unique = dict.fromkeys(question for group in groups for question in group)
        for question in unique:
            length = self.length + len(question.ids) + answer_tokens
            if length > language.max_length:
                begins = language.decode(list(question.ids[:16]))
                raise DataError(
                    f"prompt '{begins}...' needs {length} tokens with its answer ({self.length} "
                    f"before it), the language model's context has {language.max_length}; "
                    "shorten the prompt, or lower --visual-tokens or the task's max_new_tokens"
                )
        return groups, sorted(unique, key=lambda question: len(question.ids))

    def batches(
        self, questions: Sequence[Question], *, new_tokens: int, copies: int = 1
    ) -> Iterator[list[Question]]:
        """Cut questions, sorted by length, into batches whose keys and values fit into memory.

        Where a row is longer than the model's sliding window, only equally long questions share
        a batch: padding would shift what the window sees. A question becomes `copies` rows
        (beams), to each of which `new_tokens` are added.
        """
        window = self.language.sliding_window
        token_bytes = self.language.cache_bytes_per_token
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

    def cache(self, questions: Sequence[Question] = ()) -> Any:
        """Return a cache of keys and values whose rows are the prefixes of `questions`, if any."""
        from transformers import DynamicCache

        if not questions or not self.length:
            return DynamicCache(config=self.language.model.config)
        if self._cache is None:
            self._cache = self.cache()
            self.language(self.embeddings, cache=self._cache, at=([], []))
        selected = copy.copy(self._cache)
        selected.layers = [copy.copy(layer) for layer in self._cache.layers]
        images = [question.image for question in questions]
        selected.batch_select_indices(torch.tensor(images, device=self.embeddings.device))
        return selected

    def padded(self, questions: Sequence[Question], *, joined: bool) -> tuple[Tensor, Tensor]:
        """Return embeddings `(R, Q, E)` of questions, or `(R, P + Q, E)` with prefixes, and a mask.

        The mask holds 0 for padding, which is on the left.
        """
        rows = []
        for image, _, ids in questions:
            device = self.embeddings.device
            text = self.language.embed(torch.tensor(ids, dtype=torch.long, device=device))
            rows.append(torch.cat([self.embeddings[image], text]) if joined else text)
        mask = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
        left = partial(pad_sequence, batch_first=True, padding_side="left")
        return left(rows), left(mask)
