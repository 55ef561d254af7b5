"""`encoder-bench features | probe | predict`: a look inside encoders, without training an LLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoder_bench.base.errors import RecipeError, UnknownNameError, WeightsError
from encoder_bench.cli import options
from encoder_bench.cli.printing import grid, print_lines

if TYPE_CHECKING:
    from encoder_bench.inspection.predict import Forecast, Worth


def features_command(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    encoder: options.Encoders,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="A .png, .svg or .pdf that is written.")
    ] = Path("features.png"),
    point: Annotated[
        str,
        typer.Option(
            metavar="X,Y",
            help="The patch that others are compared to, as shares from left and top.",
        ),
    ] = "0.5,0.5",
    layer: options.Layer = None,
    resolution: options.Resolution = None,
    weights: options.WeightsByName = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Draw what encoders see: principal components and similarity of their patch features."""
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise RecipeError(f"--output {output}: end it in .png, .svg or .pdf")
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.data.images import load_image
    from encoder_bench.inspection.features import draw_features, patch_features

    where, places = _point(point), options.weights_by_name(encoder, weights)
    pictures = [load_image(path) for path in images]
    reporter = make_reporter(quiet=quiet)
    views = []
    with reporter.phase("features", len(encoder), "encoders") as phase:
        for name in encoder:
            loaded = _load(name, layer, resolution, "float32", places, trust_remote_code)
            view = patch_features(loaded.to(choose_device(device)), pictures, point=where)
            if not view.pretrained:
                reporter.warn(f"{name} has seeded random weights, and the picture says so")
            views.append(view)
            phase.advance()
    draw_features(pictures, views, output)
    typer.echo(f"wrote {output}")


def probe_command(
    encoder: options.Encoders,
    data: Annotated[
        str,
        typer.Option(
            metavar="scenes|DIR|hub:NAME",
            help="Labelled images: class folders (also under train/ and test/), a folder with COCO "
            "instances, or a data set of the Hub.",
        ),
    ] = "scenes",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="At most N images per split.")
    ] = None,
    retrieval: Annotated[
        bool, typer.Option(help="Also image-text retrieval, where there is a text tower.")
    ] = True,
    image_column: Annotated[str, typer.Option(help="Of a Hub data set.")] = "image",
    label_column: Annotated[str, typer.Option(help="Of a Hub data set.")] = "label",
    train_split: Annotated[str, typer.Option(help="Of a Hub data set.")] = "train",
    test_split: Annotated[str, typer.Option(help="Of a Hub data set.")] = "test",
    batch: Annotated[
        int, typer.Option(min=1, help="Batch size.", rich_help_panel=options.HOW)
    ] = 32,
    layer: options.Layer = None,
    resolution: options.Resolution = None,
    dtype: options.Dtype = "float32",
    weights: options.WeightsByName = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Rank frozen features cheaply: linear probe (best first), k-NN, image-text retrieval."""
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.progress import make_reporter
    from encoder_bench.inspection.labelled_images import HubColumns, read_labelled
    from encoder_bench.inspection.probe import probe_encoder

    reporter = make_reporter(quiet=quiet or json_output)
    places = options.weights_by_name(encoder, weights)
    columns = HubColumns(image_column, label_column, train_split, test_split)
    labelled = read_labelled(data, reporter, columns=columns, limit=limit)
    reports = []
    for name in encoder:
        loaded = _load(name, layer, resolution, dtype, places, trust_remote_code)
        loaded = loaded.to(choose_device(device))
        report: dict[str, Any] = {
            "encoder": name,
            "pretrained": loaded.pretrained,
            "revision": loaded.weights_revision,
        }
        report |= probe_encoder(loaded, labelled, reporter=reporter, batch=batch)
        if retrieval:
            report["retrieval"] = _retrieval(name, data, limit, places, device, batch, reporter)
        reports.append(report)
    if json_output:
        typer.echo(json.dumps(reports, indent=1))
    else:
        _print(reports)


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
    from encoder_bench.inspection import predict
    from encoder_bench.inspection.labelled_images import read_labelled
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
        lambda name: _load(name, None, None, "float32", places, trust_remote_code),
        material,
        texts=predict.text_features(language, texts) if len(texts) > 1 else None,
        reference=reference,
        device=choose_device(device),
        reporter=reporter,
    )
    try:
        worths, heading = predict.worth(forecasts, inventory(results)[0], joint=joint)
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


def _load(
    name: str,
    layer: str | None,
    resolution: int | None,
    dtype: str,
    places: dict[str, Path],
    trust_remote_code: bool,
) -> Any:
    from encoder_bench.encoders.registry import load_encoder

    if dtype not in ("float32", "bfloat16", "float16"):
        raise RecipeError(f"--dtype {dtype}: give float32, bfloat16 or float16")
    return load_encoder(
        name,
        layer=tuple(options.whole_numbers("--layer", layer) or (-1,)),
        resolution=resolution,
        dtype=dtype,
        weights=places.get(name),
        trust_remote_code=trust_remote_code,
    )


def _point(text: str) -> tuple[float, float]:
    try:
        across, down = (float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--point {text}: give two shares, as in 0.5,0.5") from None
    return across, down


def _retrieval(
    name: str,
    data: str,
    limit: int | None,
    places: dict[str, Path],
    device: str,
    batch: int,
    reporter: Any,
) -> dict[str, Any]:
    from encoder_bench.base.errors import DataError
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.data.folder import open_data
    from encoder_bench.encoders.text_tower import load_dual_encoder
    from encoder_bench.inspection.probe import retrieve

    try:
        samples = open_data(data, reporter).samples(
            "captioning", reader="coco-captions", source="captions", split="test", limit=limit
        )
        towers = load_dual_encoder(name, weights=places.get(name), device=choose_device(device))
    except DataError:
        return {"n/a": f"{data} has no captions"}
    except WeightsError as error:
        return {"n/a": str(error)}
    return retrieve(towers, samples, reporter=reporter, batch=batch)


def _print(reports: list[dict[str, Any]]) -> None:
    from rich.console import Console

    rows = []
    reasons: dict[str, list[str]] = {}
    for report in sorted(reports, key=lambda each: -each["linear_probe"]["percent"]):
        found = report.get("retrieval", {"n/a": "not asked for"})
        if "n/a" in found:
            reason = found["n/a"].removeprefix(f"encoder {report['encoder']}: ")
            reasons.setdefault(reason, []).append(report["encoder"])
        scores = (
            report["knn"],
            report["linear_probe"],
            found.get("image_to_text"),
            found.get("text_to_image"),
        )
        name = report["encoder"] + ("" if report["pretrained"] else " *")
        rows.append((name, *map(_score, scores)))
    first = reports[0]
    columns = ("encoder", "k-NN", "linear probe", "image>text", "text>image")
    Console().print(grid(columns, rows))
    notes = [
        f"{first['measure']}, percent, of mean patch tokens on {first['data']}: "
        f"{first['train_images']} training images, {first['test_images']} test images, "
        f"{first['classes']} classes; {first['chance_percent']} by chance. "
        "± is half of the 95% interval, bootstrapped over images. Retrieval is recall at 1.",
        *(["* random weights"] if not all(report["pretrained"] for report in reports) else []),
        *(f"n/a: {', '.join(names)}: {reason}" for reason, names in reasons.items()),
    ]
    print_lines(notes)


def _score(score: dict[str, Any] | None) -> str:
    if score is None:
        return "n/a"
    if score["interval"] is None:
        return f"{score['percent']:.1f}"
    low, high = score["interval"]
    return f"{score['percent']:.1f} ±{(high - low) / 2:.1f}"
