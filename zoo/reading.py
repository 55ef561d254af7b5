"""Reading: a written page in the place of an image, many questions behind it, answers to learn.

A page is a list of cells, and a cell is a few words that are read at once: their embeddings are
added and divided by the square root of their number. One word per cell is ordinary text; the words
of one object in a cell, or of one place on a grid, are what a projector will be asked to make of
an image's patch tokens. All questions of a page follow it in one row under the mask and positions
of `mllm/packing.py`, as questions follow an image.

Axes: B pages, M cells, W words of a cell, T answer tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.mllm.dialogue import ImageDialogue, tokenize_dialogues
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.packing import PackedRows, TrainingBatch, pack


@dataclass(frozen=True, slots=True)
class Page:
    """A written scene with its questions.

    Attributes:
        name: shown in errors.
        cells: the words of each cell; an empty cell holds nothing.
        turns: (prompt, answer), each asked on its own.
        tasks: the task of each turn.
    """

    name: str
    cells: tuple[tuple[str, ...], ...]
    turns: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PageBatch:
    """Pages as tensors.

    Attributes:
        words: `(B, M, W)` token ids, padded with -1.
        rows: the pages and their questions laid out in rows.
    """

    words: Tensor
    rows: PackedRows

    def to(self, device: torch.device) -> PageBatch:
        """Return the batch on `device`."""
        return PageBatch(self.words.to(device), self.rows.to(device))


def encode_pages(language: LanguageModel, pages: Sequence[Page]) -> PageBatch:
    """Tokenise pages of equally many cells (shorter ones are filled with empty cells).

    Raises:
        DataError: a page without a question; names it.
    """
    cells = max(len(page.cells) for page in pages)
    ids = [[_word_ids(language, cell) for cell in page.cells] for page in pages]
    widest = max(1, max(len(cell) for page in ids for cell in page))
    words = torch.full((len(pages), cells, widest), -1, dtype=torch.long)
    for page, row in enumerate(ids):
        for cell, content in enumerate(row):
            words[page, cell, : len(content)] = torch.tensor(content, dtype=torch.long)
    dialogues = [ImageDialogue(page.name, page.turns) for page in pages]
    batch = TrainingBatch(tokenize_dialogues(language, dialogues, image=True), shared_prefix=True)
    return PageBatch(words, pack(batch, language, visual_tokens=cells)).to(language.device)


def cell_embeddings(table: Tensor, words: Tensor) -> Tensor:
    """Return `(B, M, D)`: each cell's word embeddings added and divided by the root of their count.

    Args:
        table: `(vocabulary, D)`.
        words: `(B, M, W)` token ids, padded with -1; an empty cell gives zeros.
    """
    present = words >= 0
    embedded = F.embedding(words.clamp_min(0), table) * present[..., None]
    count = present.sum(dim=-1, keepdim=True).clamp_min(1)
    return embedded.sum(dim=-2) / count.sqrt()


def answer_logits(language: LanguageModel, batch: PageBatch, cells: Tensor) -> Tensor:
    """Return `(T, vocabulary)` logits that predict the answer tokens.

    `cells` are `(B, M, D)`, in the place of visual tokens.
    """
    rows, mask = batch.rows, batch.rows.mask()
    text = language.embed(rows.input_ids)
    is_cell = rows.visual_index >= 0
    flat = cells.flatten(0, 1)[rows.visual_index[is_cell]].to(text.dtype)
    output = language.model.model(
        inputs_embeds=text.index_put(is_cell.nonzero(as_tuple=True), flat),
        attention_mask=None if mask is None else language.prepare_mask(mask),
        position_ids=rows.position_ids,
        use_cache=False,
    )
    hidden = output.last_hidden_state[rows.loss_rows, rows.loss_columns]
    logits: Tensor = language.model.lm_head(hidden)
    return logits.float()


def reading_loss(
    language: LanguageModel,
    batch: PageBatch,
    *,
    generator: torch.Generator | None = None,
    noise: float = 0.0,
    dropout: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of the answer tokens, in nats.

    Args:
        language: learns.
        batch: pages and questions.
        generator: draws noise and dropout.
        noise: standard deviation of Gaussian noise on cells, as a share of a word's root mean
            square: visual tokens will never be exact words.
        dropout: share of cells that are emptied.
    """
    table = language.model.get_input_embeddings().weight
    cells = cell_embeddings(table, batch.words)
    if noise:
        scale = noise * table.detach().square().mean().sqrt()
        cells = cells + scale * torch.randn(cells.shape, generator=generator).to(cells)
    if dropout:
        kept = torch.rand(cells.shape[:2], generator=generator) >= dropout
        cells = cells * kept[..., None].to(cells)
    return F.cross_entropy(answer_logits(language, batch, cells), batch.rows.targets)


@torch.no_grad()
def exact_answers(language: LanguageModel, pages: Sequence[Page]) -> dict[str, tuple[int, int]]:
    """Return task -> (answers that greedy decoding would give exactly, answers in all).

    An answer is given exactly when each of its tokens, its end included, is the likeliest one
    after those before it.
    """
    batch = encode_pages(language, pages)
    rows = batch.rows
    cells = cell_embeddings(language.model.get_input_embeddings().weight, batch.words)
    right = (answer_logits(language, batch, cells).argmax(dim=-1) == rows.targets).tolist()
    page = rows.dialogue[rows.loss_rows, rows.loss_columns].tolist()
    turn = rows.turn[rows.loss_rows, rows.loss_columns].tolist()
    exact: dict[tuple[int, int], bool] = {}
    for where, hit in zip(zip(page, turn, strict=True), right, strict=True):
        exact[where] = exact.get(where, True) and hit
    counts: dict[str, tuple[int, int]] = {}
    for (index, number), hit in exact.items():
        task = pages[index].tasks[number - 1]
        hits, total = counts.get(task, (0, 0))
        counts[task] = (hits + hit, total + 1)
    return counts


def _word_ids(language: LanguageModel, cell: Sequence[str]) -> list[int]:
    return [index for word in cell for index in language.encode(word)]
