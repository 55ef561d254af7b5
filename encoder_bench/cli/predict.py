"""`encoder-bench predict`: encoders ranked before any training, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.cli import options
from encoder_bench.cli.printing import grid, print_lines

if TYPE_CHECKING:
    from encoder_bench.inspection.predict import Forecast
    from encoder_bench.inspection.worth import Worth

_Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="NAME",
        help="Of the A-score; else the first given encoder that was trained with text.",
    ),
]
_By = Annotated[
    str,
    typer.Option("--by", metavar="COLUMN", help="The trained score; --json has all columns."),
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
    joint: options.JointTune = False,
    llm: _TextModel = "tiny-llama",
    reference: _Reference = None,
    by: _By = "Avg",
    limit: _Images = 256,
    results: options.Results = options.RESULTS,
    weights: options.WeightsByName = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Rank encoders before training any, and say what such a ranking has been worth so far.

    Scores that papers propose, from frozen features alone; then each one's rank correlation with
    the trained results of --results, with its interval. It says where nothing is established.
    """
    from encoder_bench.base.errors import DataError
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.base.recipes import LanguageModelSettings
    from encoder_bench.data.folder import open_data
    from encoder_bench.encoders.registry import load_encoder
    from encoder_bench.inspection import predict
    from encoder_bench.inspection.labelled_images import read_labelled
    from encoder_bench.inspection.worth import worth
    from encoder_bench.mllm.loading import load_language_model
    from encoder_bench.results.runs import inventory

    reporter = make_reporter(quiet=quiet or json_output)
    places = options.weights_by_name(encoder, weights)
    labelled = read_labelled(data, reporter, limit=limit)
    material = predict.read_material(open_data(data, reporter), labelled)
    language = load_language_model(LanguageModelSettings(name=llm))
    texts = [material.captions[path] for path in material.described]
    forecasts = predict.forecast_all(
        list(dict.fromkeys(encoder)),
        lambda name: load_encoder(
            name, weights=places.get(name), trust_remote_code=trust_remote_code
        ),
        material,
        texts=predict.text_features(language, texts) if len(texts) > 1 else None,
        reference=reference,
        device=choose_device(device),
        reporter=reporter,
    )
    try:
        worths, heading = worth(forecasts, inventory(results)[0], joint=joint)
    except DataError as error:
        worths, heading = [], str(error)
    _require_column(by, worths)
    if json_output:
        typer.echo(_forecasts_as_json(forecasts, worths, heading))
    else:
        chosen = [each for each in worths if each.column == by]
        _print_forecasts(forecasts, chosen, heading, images=len(material.test), llm=llm)


def _require_column(by: str, worths: Sequence[Worth]) -> None:
    columns = list(dict.fromkeys(each.column for each in worths))
    if columns and by not in columns:
        raise UnknownNameError("column", by, columns)


def _forecasts_as_json(forecasts: Sequence[Forecast], worths: Sequence[Worth], heading: str) -> str:
    content = {
        "encoders": [asdict(each) for each in forecasts],
        "worth": [asdict(each) | {"established": each.established} for each in worths],
        "trained": heading,
    }
    return json.dumps(content, indent=1)


def _print_forecasts(
    forecasts: Sequence[Forecast], worths: Sequence[Worth], heading: str, *, images: int, llm: str
) -> None:
    from rich.console import Console

    from encoder_bench.inspection.predict import PREDICTORS

    names = [each.name for each in PREDICTORS]
    rows = [
        (
            each.encoder + ("" if each.pretrained else " *"),
            *(f"{each.scores[name]:.3g}" if name in each.scores else "n/a" for name in names),
        )
        for each in forecasts
    ]
    console = Console()
    console.print(grid(("encoder", *names), rows))
    reasons = {f"n/a: {name}: {why}" for each in forecasts for name, why in each.reasons.items()}
    print_lines(
        [
            f"On {images} test images, LLM {llm}. Less is better for the GW distance only.",
            *(["* random weights"] if not all(each.pretrained for each in forecasts) else []),
            *sorted(reasons),
            "",
        ]
    )
    if not worths:
        print_lines([f"What this is worth as a forecast is not known: {heading}"])
        return
    table = [
        (
            each.predictor,
            f"{each.correlation:+.2f}",
            f"{each.low:+.2f} to {each.high:+.2f}",
            f"{each.without_one[0]:+.2f} to {each.without_one[1]:+.2f}",
            "" if each.established else "not established",
        )
        for each in worths
    ]
    columns = ("predictor", "rank corr.", "95% interval", "leaving one out", "")
    console.print(grid(columns, table))
    print_lines(
        [
            f"Spearman's rank correlation with {worths[0].column} over {worths[0].encoders} "
            f"encoders: {heading}.",
            f"Of {len(worths)} such intervals {0.05 * len(worths):.1f} leave out 0 by chance.",
        ]
    )
