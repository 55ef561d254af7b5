"""`encoder-bench score`: any model's predictions under every variant of a task's metrics."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import write_text
from encoder_bench.base.progress import make_reporter
from encoder_bench.base.recipes import load_task
from encoder_bench.cli import options
from encoder_bench.cli.printing import print_grid

if TYPE_CHECKING:
    from rich.text import Text

    from encoder_bench.metrics.java import JavaCheck
    from encoder_bench.tasks.score_file import FileScores, Missing

_NAMED = 3
_ROWS = 12
_ODD = {
    "not text": "answers that are not text, read as written",
    "empty": "empty answers",
    "long": "answers longer than 10,000 characters",
    "control characters": "answers with control characters",
    "another script": "answers in a script other than Latin",
    "id is text": "ids written as text where the data has numbers, read as numbers",
    "id written otherwise": "ids written differently from the data",
    "missing": "samples without an answer",
    "to no sample": "answers to no sample of the split, not scored",
}


Predictions = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="JSON, JSON lines, CSV, TSV or xlsx: an id (sample_id, question_id, image_id) and "
        "an answer (prediction, answer, caption) per row. Result files of VQA, COCO and GVT, "
        "samples of lmms-eval and lm-eval, and VLMEvalKit's tables are read as they are.",
    ),
]


def score_command(
    task: Annotated[str, typer.Argument(metavar="TASK", help="vqa, captioning, oc, mci, a file.")],
    predictions: Predictions,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column that holds the answers.")
    ] = None,
    data: options.Data = "scenes",
    show: Annotated[
        int, typer.Option(metavar="N", help="Differing samples to print for each variant.")
    ] = 5,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Every sample with all its scores.")
    ] = None,
    missing_is_wrong: Annotated[
        bool, typer.Option("--missing-is-wrong", help="Score unanswered samples as empty answers.")
    ] = False,
    answered_only: Annotated[
        bool, typer.Option("--answered-only", help="Leave unanswered samples out of the scores.")
    ] = False,
    check_java: Annotated[
        bool,
        typer.Option(
            "--check-java", help="Captions: tokenise with CoreNLP's own program too, and compare."
        ),
    ] = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Score a predictions file under every metric variant, and show where they disagree.

    It answers "why is my score not the paper's": official, pre-2021, normalised and GVT's readings
    side by side, and the samples on which they disagree.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.tasks.score_file import score_predictions

    recipe = load_task(task)
    folder = open_data(data, make_reporter(quiet=json_output), images_required=False)
    name = Path(task).stem if task.endswith(".toml") else task
    samples = folder.task_samples(name, recipe, "test")
    if missing_is_wrong and answered_only:
        raise DataError("--missing-is-wrong and --answered-only exclude each other")
    missing: Missing = "wrong" if missing_is_wrong else "leave-out" if answered_only else "refuse"
    found = score_predictions(name, recipe, samples, predictions, missing=missing, column=column)
    if output is not None:
        write_text(output, _csv(found))
    java = _java_check(found) if check_java else None
    if json_output:
        content = _as_json(found, java)
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False, default=asdict))
        return
    _print_scores(found)
    _print_odd(found)
    _print_breakdown(found)
    _print_differing(found, show)
    if java is not None:
        typer.echo(java.line)


def _print_scores(found: FileScores) -> None:
    from rich.text import Text

    typer.echo(f"read as {found.form}")
    rows: list[tuple[str | Text, ...]] = []
    reasons = []
    for name, score in found.scores.items():
        if score.value is None:
            rows.append((name, "n/a", "", str(score.samples), ""))
            reasons.append(f"{name}: n/a: {score.reason}")
            continue
        interval = "" if score.low is None else f"{score.low:.2f} to {score.high:.2f}"
        shown = Text(name, "bold" if name == found.primary else "")
        differs = str(len(found.differing(name))) if name in found.variants() else ""
        rows.append((shown, f"{score.value:.2f}", interval, str(score.samples), differs))
    print_grid(("Metric", "Score", "95% interval", "Samples", "Disagrees"), rows)
    for line in reasons:
        typer.echo(line)
    if found.ceiling is not None:
        typer.echo(
            "some questions have three human answers or fewer, with which the official formula "
            f"cannot reach 100: vqa_accuracy is {found.ceiling:.2f} at most here; exact_match "
            "counts any of the answers as right"
        )


def _print_odd(found: FileScores) -> None:
    """Print over how many samples the scores stand, and what is odd about the file."""
    typer.echo(
        f"over {len(found.samples)} of the split's {found.total} samples; parse failures: "
        f"{found.parse_failures}"
    )
    if found.blind:
        known = {name: score.value for name, score in found.blind.items()}
        blind = ", ".join(f"{n} {value:.2f}" for n, value in known.items() if value is not None)
        lift = "n/a" if found.lift is None else f"{found.lift:+.2f}"
        typer.echo(f"blind: {blind}; lift over the best: {lift}")
    for kind, names in found.odd.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        typer.echo(f"{_ODD[kind]}: {len(names)}: {'; '.join(names[:_NAMED])}{more}")


def _print_breakdown(found: FileScores) -> None:
    """Print broken-down metrics by facet value; long lists are cut, `--json` has them whole."""
    for facet, scores in found.breakdown.get(found.primary, {}).items():
        columns = [name for name, facets in found.breakdown.items() if facet in facets]
        rows = []
        for value, score in list(scores.items())[:_ROWS]:
            cells = [found.breakdown[name][facet][value].value for name in columns]
            shown = ["n/a" if cell is None else f"{cell:.2f}" for cell in cells]
            rows.append((value, str(score.samples), *shown))
        print_grid((facet, "samples", *columns), rows)
        if len(scores) > _ROWS:
            typer.echo(f"and {len(scores) - _ROWS} more; --json has all")


def _print_differing(found: FileScores, show: int) -> None:
    """Print samples that a variant scores otherwise than the primary metric does."""
    for name in found.variants():
        for entry in found.differing(name)[:show]:
            different = list(dict.fromkeys(entry.references))
            truths = ", ".join(map(repr, different[:4])) + (", ..." if different[4:] else "")
            typer.echo(
                f"{name} {entry.scores[name]:.0f}, {found.primary} "
                f"{entry.scores[found.primary]:.0f}: {entry.sample_id} "
                f"{entry.question!r} answered {entry.prediction!r}, truth {truths}"
            )


def _java_check(found: FileScores) -> JavaCheck:
    from encoder_bench.metrics.java import check_tokens

    texts = [entry.prediction for entry in found.samples]
    return check_tokens([*texts, *(t for e in found.samples for t in e.references)])


def _as_json(found: FileScores, java: JavaCheck | None) -> dict[str, Any]:
    return ({} if java is None else {"java_check": java}) | {
        "task": found.task,
        "read_as": found.form,
        "vqa_accuracy_ceiling": found.ceiling,
        "primary": found.primary,
        "scores": found.scores,
        "blind": found.blind,
        "lift": found.lift,
        "parse_failures": found.parse_failures,
        "breakdown": found.breakdown,
        "samples": len(found.samples),
        "samples_of_the_split": found.total,
        "odd": {kind: {"count": len(names), "names": names} for kind, names in found.odd.items()},
        "differing": {
            name: [entry.sample_id for entry in found.differing(name)] for name in found.variants()
        },
    }


def _csv(found: FileScores) -> str:
    metrics = [name for name, score in found.scores.items() if score.value is not None]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["sample_id", "question", "prediction", "parsed", "references", *metrics])
    for entry in found.samples:
        scores = [entry.scores.get(name, "") for name in metrics]
        writer.writerow(
            [entry.sample_id, entry.question, entry.prediction, entry.parsed,
             json.dumps(list(entry.references), ensure_ascii=False), *scores]
        )  # fmt: skip
    return stream.getvalue()
