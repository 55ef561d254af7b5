"""The shared prefix of generation: what comes before every question about an image, computed once.

Axes: P prefix tokens, R rows (questions), Q question tokens, M visual tokens, E LLM width.
"""

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
    """A prompt with the token ids that ask it, after the prefix that `image` counts."""

    image: int
    with_image: bool
    prompt: str
    ids: tuple[int, ...]


class Prefix:
    """The tokens before the question, of each image or of no image at all.

    Attributes:
        embeddings: `(P, E)` of each image; all questions without an image share one.
        length: P of the longest.
    """

    def __init__(self, language: LanguageModel, visual: Sequence[Tensor | None]) -> None:
        """Join template and visual tokens `(M, E)` of each image; None is text alone."""
        self.language = language
        text = self._embedded(language.prefix_ids(image=False))
        begin = self._embedded(language.prefix_ids(image=True))
        places: dict[int | None, int] = {}
        self.embeddings: list[Tensor] = []
        self._shown: list[tuple[int, bool]] = []
        for number, tokens in enumerate(visual):
            place = places.setdefault(None if tokens is None else number, len(places))
            self._shown.append((place, tokens is not None))
            if place == len(self.embeddings):
                whole = text if tokens is None else torch.cat([begin, tokens.to(begin)])
                self.embeddings.append(whole)
        self.length = max(map(len, self.embeddings), default=0)
        self._cache: Any = None
        self._mask = torch.empty(0)

    def questions(
        self, prompts: Sequence[Sequence[str]]
    ) -> tuple[list[list[Question]], list[Question]]:
        """Return prompts as questions, one group for each image, and each question once, by length.

        Raises:
            ValueError: not one group of prompts per image.
        """
        ids = self.language.question_ids
        groups = [
            [Question(*shown, text, tuple(ids(text, image=shown[1]))) for text in group]
            for shown, group in zip(self._shown, prompts, strict=True)
        ]
        unique = dict.fromkeys(question for group in groups for question in group)
        return groups, sorted(unique, key=lambda question: len(question.ids))

    def check_lengths(self, questions: Sequence[Question], *, answer_tokens: int) -> None:
        """Check that questions fit into the context with `answer_tokens`, and are not empty.

        Raises:
            DataError: one does not; shows how it begins. Or one has no token, and none before it.
        """
        language = self.language
        for question in questions:
            before = len(self.embeddings[question.image])
            if not before + len(question.ids):
                raise DataError("an empty prompt without an image cannot be answered")
            length = before + len(question.ids) + answer_tokens
            if length > language.max_length:
                begins = language.decode(list(question.ids[:16]))
                raise DataError(
                    f"prompt '{begins}...' needs {length} tokens with its answer ({before} "
                    f"before it), the language model's context has {language.max_length}; "
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
        window = self.language.sliding_window
        token_bytes = self.language.cache_bytes_per_token
        device, budget = self.language.device, _CPU_CACHE_BYTES
        if device.type == "cuda":
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            budget = int((torch.cuda.mem_get_info(device)[0] + kept) * _DEVICE_SHARE)
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

    def read(self, questions: Sequence[Question]) -> tuple[Any, Tensor]:
        """Return a cache whose rows are the prefixes of `questions`, and its mask `(R, P)`."""
        images = torch.tensor([q.image for q in questions], device=self.language.device)
        if self._cache is None:
            rows, self._mask = _left_padded(self.embeddings)
            self._cache = self.empty_cache()
            if self.length:
                self.language(
                    rows,
                    mask=None if bool(self._mask.all()) else self._mask,
                    position_ids=(self._mask.cumsum(1) - 1).clamp_min(0),
                    cache=self._cache,
                    at=([], []),
                )
        return rows_of(self._cache, images), self._mask[images]

    def empty_cache(self) -> Any:
        """Return a cache of keys and values that holds nothing yet."""
        from transformers import DynamicCache

        return DynamicCache(config=self.language.model.config)

    def padded(self, questions: Sequence[Question], *, joined: bool) -> tuple[Tensor, Tensor]:
        """Return embeddings `(R, Q, E)` of questions, or `(R, P + Q, E)` with prefixes, and a mask.

        The mask holds 0 for padding, which is on the left.
        """
        rows = []
        for question in questions:
            text = self._embedded(question.ids)
            before = self.embeddings[question.image]
            rows.append(torch.cat([before, text]) if joined else text)
        return _left_padded(rows)

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        return self.language.embed(torch.tensor(ids, dtype=torch.long, device=self.language.device))


def _left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows `(L, E)` of different lengths as one tensor, and its mask."""
    left = partial(pad_sequence, batch_first=True, padding_side="left")
    return left(list(rows)), left([row.new_ones(len(row), dtype=torch.long) for row in rows])


def rows_of(cache: Any, rows: Tensor) -> Any:
    """Return a cache of these rows of another, which stays as it is when this one grows."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected
