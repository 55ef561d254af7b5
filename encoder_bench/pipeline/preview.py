"""Training rows as the language model will read them: the very token ids that training makes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder_bench.base.recipes import TaskRecipe
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.mixture import Mixture
from encoder_bench.data.sample import Conversation
from encoder_bench.data.sample_table import ImageGroups, SampleTable
from encoder_bench.mllm.dialogue import (
    ImageDialogue,
    Segment,
    TokenizedDialogue,
    asked_about,
    tokenize_dialogues,
)
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.results.formats import templates
from encoder_bench.results.thumbnails import data_uri

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


Piece = tuple[Segment, str]
"""A stretch of a row with what its tokens say; for the place of an image with the file's path."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row, its pieces, its images, and its tokens (visual ones not counted)."""

    dialogue: TokenizedDialogue
    pieces: tuple[Piece, ...]
    images: tuple[Path, ...]
    tokens: int


def preview_mixture(language: LanguageModel, mixture: Mixture, rows: int) -> Iterator[Shown]:
    """Yield so many rows of each source, spread evenly over it."""
    first = 0
    for part in mixture.parts:
        for number in _spread(len(part.chosen), rows):
            yield _shown(language, row := mixture[first + number], row.images)
        first += len(part.chosen)


def preview_folder(
    language: LanguageModel, folder: DataFolder, recipes: dict[str, TaskRecipe], images: int
) -> Iterator[Shown]:
    """Yield so many training images of a folder, each with the questions about it."""
    tables = [folder.task_samples(name, recipe, "train") for name, recipe in recipes.items()]
    groups = ImageGroups(
        SampleTable.joined([SampleTable.of(table) for table in tables]), list(recipes)
    )
    for number in _spread(len(groups), images):
        samples = groups[number]
        yield _shown(language, asked_about(samples, recipes), (samples[0].image_path,))


def _spread(total: int, wanted: int) -> Sequence[int]:
    return [total * place // min(wanted, total) for place in range(min(wanted, total))]


def _shown(
    language: LanguageModel, item: Conversation | ImageDialogue, images: tuple[Path, ...]
) -> Shown:
    [dialogue] = tokenize_dialogues(language, [item], image=True)
    tokens = sum(len(segment.ids or ()) for segment in dialogue.segments)
    pieces = tuple(_pieces(language, dialogue, images))
    return Shown(dialogue, pieces, images, tokens)


def _pieces(
    language: LanguageModel, dialogue: TokenizedDialogue, images: tuple[Path, ...]
) -> Iterator[Piece]:
    """Yield pieces whose texts are those of their tokens after the tokens before them."""
    left = iter(images)
    ids: list[int] = []
    text = ""
    for segment in dialogue.segments:
        if segment.ids is None:
            yield segment, str(next(left))
            continue
        ids += segment.ids
        whole = language.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        own = whole.removeprefix(text) if whole.startswith(text) else None
        if own is None:
            own = language.tokenizer.decode(list(segment.ids), clean_up_tokenization_spaces=False)
        text = whole
        yield segment, _CONTROL.sub("\N{REPLACEMENT CHARACTER}", own)


def to_html(title: str, rows: Sequence[Shown]) -> str:
    """Return a self-contained page of rows with thumbnails; `title` is what is previewed."""
    files = {str(path) for row in rows for path in row.images}
    pictures = {name: data_uri(Path(name)) for name in files}
    page = templates().get_template("preview.html.j2")
    return page.render(title=title, rows=rows, pictures=pictures)
