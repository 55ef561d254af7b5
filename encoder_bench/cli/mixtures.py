"""`encoder-bench data check MIXTURE` and `data preview`: training rows before a run reads them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import DataError, EncoderBenchError, UnknownNameError
from encoder_bench.base.files import write_text
from encoder_bench.base.progress import Reporter, make_reporter
from encoder_bench.base.recipes import (
    LanguageModelSettings,
    MixtureRecipe,
    load_adapter,
    load_mixture,
    recipe_names,
)
from encoder_bench.cli import options
from encoder_bench.cli.printing import print_grid

if TYPE_CHECKING:
    from rich.text import Text

    from encoder_bench.data.mixture import Part
    from encoder_bench.data.sample import Sample
    from encoder_bench.mllm.language import LanguageModel
    from encoder_bench.pipeline.preview import Shown

MAX_COUNTED = 1000
"""Rows of a source whose tokens are counted; the others are taken to be as long."""
TrainingFolder = Annotated[
    Path, typer.Option("--train-data", metavar="DIR", help="Where a mixture's paths begin.")
]
TestData = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="scenes|coco|DIR", help="Test sets that a mixture is compared with."
    ),
]
FolderTasks = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Task recipes; by default four, and VCR's if present."),
]
Tokenizer = Annotated[
    str | None, typer.Option("--llm", metavar="NAME|PATH", help="Whose tokens are counted.")
]


def is_mixture(name: str) -> bool:
    """Return whether an argument names a mixture recipe rather than data.

    Raises:
        UnknownNameError: it is nearly the name of a mixture, and no folder.
    """
    known = recipe_names("mixtures")
    if name.endswith(".toml") or Path(name).is_dir():
        return name.endswith(".toml")
    if name not in known and difflib.get_close_matches(name, known, cutoff=0.8):
        raise UnknownNameError("mixture recipe", name, known, "Nor is it a folder.")
    return name in known


def check(
    name: str, root: Path, test_data: str | None, llm: str | None, reporter: Reporter
) -> None:
    """Print a mixture's sources, what is skipped and why, and its overlap with the test sets.

    Raises:
        EncoderBenchError: rows are skipped, a source cannot be read, or overlap is refused.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.data.mixture import open_part
    from encoder_bench.data.overlap import TestImages

    recipe = load_mixture(name)
    problems: list[str] = []
    sets: dict[str, Sequence[Sample]] = {}
    if test_data is not None:
        folder = open_data(test_data, reporter, images_required=False)
        for task, asked in options.task_recipes(folder).items():
            try:
                sets[task] = folder.task_samples(task, asked, "test")
            except DataError as error:
                problems.append(str(error))
    images = TestImages(sets)
    parts: list[Part] = []
    for source in recipe.sources:
        try:
            parts.append(open_part(source, root, recipe, images, reporter))
        except DataError as error:
            problems.append(str(error))
    _print_table(parts, llm)
    for part in parts:
        for reason, entry in part.about["skipped"].items():
            first = f"first {entry['first'][0]}"
            problems.append(f"{part.source.name}: {entry['count']:,} {reason}; {first}")
    for line in _overlap(recipe, parts, list(images.sets)):
        typer.echo(line)
    shown = sum(part.about["overlap"]["rows"] for part in parts)
    if shown and recipe.on_overlap == "refuse":
        problems.append(f"{shown} rows show a test image, which on_overlap refuses")
    for problem in problems:
        typer.echo(f"PROBLEM  {problem}")
    if problems:
        raise EncoderBenchError(f"{name}: {len(problems)} problems, listed above")


def _print_table(parts: list[Part], llm: str | None) -> None:
    """Print a line per source, with the words of its texts, or their tokens for the LLM."""
    language: LanguageModel | None = None
    if llm is not None:
        from encoder_bench.mllm.loading import load_language_model

        language = load_language_model(LanguageModelSettings(name=llm), with_weights=False)
    rows = []
    for part in parts:
        about, (turns, words) = part.about, part.turns()
        skipped = sum(entry["count"] for entry in about["skipped"].values())
        length = words if language is None else _count_tokens(part, language)
        numbers = about["read"], skipped, about["overlap"]["rows"], about["used"], about["images"]
        rows.append([part.source.name, *(f"{number:,}" for number in (*numbers, turns, length))])
    header = ("source", "rows", "skipped", "overlap", "used", "images", "turns")
    print_grid((*header, "words" if language is None else "~tokens"), rows)


def _count_tokens(part: Part, language: LanguageModel) -> int:
    """Return how many tokens a source's texts have, template included, images not."""
    from encoder_bench.mllm.dialogue import tokenize_turns

    rows = range(0, len(part.chosen), -(-len(part.chosen) // MAX_COUNTED))
    segments = (s for row in rows for s in tokenize_turns(language, part.row(row).turns))
    tokens = sum(len(segment.ids or ()) for segment in segments)
    return round(tokens / len(rows) * len(part.chosen))


def _overlap(recipe: MixtureRecipe, parts: list[Part], sets: list[str]) -> Iterator[str]:
    if not sets:
        yield "no test set to compare with; --data names them"
        return
    for name in sets:
        rows = sum(part.about["overlap"]["tests"].get(name, 0) for part in parts)
        yield f"{name}: {rows:,} rows show one of its test images, by {', '.join(recipe.overlap)}"
    for part in parts:
        for line in part.about["overlap"]["first"][:1]:
            yield f"{part.source.name}: dropped, first {line}"


def preview_command(
    data: Annotated[str, typer.Argument(metavar="MIXTURE|scenes|coco|DIR")],
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="How many rows.")] = 5,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one HTML file with thumbnails.")
    ] = None,
    tasks: FolderTasks = None,
    train_data: TrainingFolder = Path(),
    adapter: options.Adapter = "quick",
    llm: options.LanguageModel = None,
    settings: options.Set = None,
    debug: options.Debug = False,
) -> None:
    """Show training rows as an adapter's LLM will read them, with what the loss covers.

    Rows are spread evenly over each source. Only the LLM's tokenizer is loaded, no weights.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.data.mixture import open_mixture
    from encoder_bench.mllm.loading import load_language_model
    from encoder_bench.pipeline import preview

    reporter = make_reporter(quiet=False)
    recipe = load_adapter(adapter, {**options.settings(settings), "llm.name": llm})
    language = load_language_model(recipe.llm, with_weights=False)
    if is_mixture(data):
        found = preview.preview_mixture(language, open_mixture(data, train_data, reporter), rows)
    else:
        folder = open_data(data, reporter, images_required=False)
        found = preview.preview_folder(language, folder, options.task_recipes(folder, tasks), rows)
    if html is None:
        _print_rows(found)
    else:
        write_text(html, preview.to_html(data, list(found)))
        typer.echo(f"wrote {html}")


def _print_rows(rows: Iterator[Shown]) -> None:
    """Print rows; what the loss covers is highlighted, and in brackets where there is no colour."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    brackets = console.color_system is None
    console.print(
        Text.assemble(
            "the loss covers ", *_taught("this", brackets), "; [image] is a place of visual tokens"
        )
    )
    for row in rows:
        taught = row.dialogue.answer_tokens
        head = f"\n{row.dialogue.label}: {row.tokens} tokens, {taught} of them taught"
        console.print(Text(head, style="bold"), soft_wrap=True)
        console.print(_as_text(row, brackets), soft_wrap=True)


def _as_text(row: Shown, brackets: bool) -> Text:
    from rich.text import Text

    text, question = Text(), 0
    for segment, said in row.pieces:
        if segment.turn != question:
            question = segment.turn
            text.append(f"\n(question {question}, which sees no other)\n", style="dim")
        if segment.ids is None:
            text.append(f"[image {Path(said).name}]", style="black on cyan")
        elif segment.taught:
            text.append_text(Text.assemble(*_taught(said, brackets)))
        else:
            text.append(said)
    return text


def _taught(text: str, brackets: bool) -> list[tuple[str, str]]:
    return [(f"[[{text}]]" if brackets else text, "bold black on green")]
