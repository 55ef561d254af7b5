"""`encoder-bench predict`: encoders ranked before any training, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import DataError, UnknownNameError
from encoder_bench.cli import options
from encoder_bench.cli.printing import print_grid

if TYPE_CHECKING:
    from encoder_bench.inspection.predict import Forecast, Worth

_Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="NAME",
        help="Of the A-score; else the first given encoder that was trained with text.",
    ),
]
_Joint = Annotated[
    bool,
    typer.Option(
        "--joint-tune", help="Compare with the trained results of joint tuning, not frozen ones."
    ),
]
_By = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="COLUMN",
        help="The trained score, by default Avg or else the first; --json has all columns.",
    ),
]
_TextModel = Annotated[
    str, typer.Option("--llm", metavar="NAME", help="Whose text features GW compares with.")
]
_Instances = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="scenes|DIR",
        help="A folder with COCO instances, and captions of the same images where there are.",
    ),
]
_Images = Annotated[
    int, typer.Option("--limit", metavar="N", min=8, help="At most N training and N test images.")
]


def predict_command(
    encoder: options.Encoders,
    data: _Instances = "scenes",
    joint: _Joint = False,
    llm: _TextModel = "tiny-llama",
    reference: _Reference = None,
    by: _By = None,
    limit: _Images = 256,
    results: options.Results = options.RESULTS,
    weights: options.WeightsByName = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Rank encoders before training, and show how well such rankings matched your results so far.

    Prints scores that papers propose, computed from frozen features alone; then each score's rank
    correlation with the trained results in --results, with its interval.
    """
    from encoder_bench import api
    from encoder_bench.inspection.predict import worth
    from encoder_bench.results.runs import inventory
    from encoder_bench.results.score import AVERAGE

    forecasts = api.predict(
        encoder, data=data, llm=llm, reference=reference, limit=limit,
        weights=options.weights_by_name(encoder, weights), device=device,
        trust_remote_code=trust_remote_code, quiet=quiet or json_output,
    )  # fmt: skip
    try:
        worths, heading = worth(forecasts, inventory(results)[0], joint=joint)
    except DataError as error:
        worths, heading = [], str(error)
    columns = list(dict.fromkeys(each.column for each in worths))
    if by is None:
        by = AVERAGE if AVERAGE in columns else next(iter(columns), AVERAGE)
    if json_output:
        content = {
            "encoders": forecasts,
            "worth": [asdict(each) | {"established": each.established} for each in worths],
            "trained": heading,
        }
        typer.echo(json.dumps(content, indent=1, default=asdict))
        return
    _print_forecasts(forecasts, llm)
    if columns and by not in columns:
        raise UnknownNameError("column", by, columns)
    if worths:
        _print_worths([each for each in worths if each.column == by], heading)
    else:
        typer.echo(f"What this is worth as a forecast is not known: {heading}")


def _print_forecasts(forecasts: Sequence[Forecast], llm: str) -> None:
    from encoder_bench.inspection.predict import PREDICTORS

    rows = []
    for each in forecasts:
        name = each.encoder + ("" if each.pretrained else " *")
        scores = [each.scores.get(predictor) for predictor in PREDICTORS]
        rows.append((name, *("n/a" if score is None else f"{score:.3g}" for score in scores)))
    print_grid(("encoder", *PREDICTORS), rows)
    typer.echo(
        f"On {forecasts[0].images} test images, LLM {llm}. Less is better for the GW distance only."
    )
    if not all(each.pretrained for each in forecasts):
        typer.echo("* random weights")
    reasons = {f"n/a: {name}: {why}" for each in forecasts for name, why in each.reasons.items()}
    typer.echo("\n".join([*sorted(reasons), ""]))


def _print_worths(worths: Sequence[Worth], heading: str) -> None:
    rows = [
        (
            each.predictor,
            f"{each.correlation:+.2f}",
            f"{each.low:+.2f} to {each.high:+.2f}",
            f"{each.without_one[0]:+.2f} to {each.without_one[1]:+.2f}",
            "" if each.established else "not established",
        )
        for each in worths
    ]
    print_grid(("predictor", "rank corr.", "95% interval", "leaving one out", ""), rows)
    typer.echo(
        f"Spearman's rank correlation with {worths[0].column} over {worths[0].encoders} encoders: "
        f"{heading}.\n"
        f"Of {len(worths)} such intervals {0.05 * len(worths):.1f} leave out 0 by chance."
    )
