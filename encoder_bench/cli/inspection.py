"""`encoder-bench features | probe`: a look inside encoders, without an LLM."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from encoder_bench.base.errors import DataError, RecipeError, WeightsError
from encoder_bench.base.progress import make_reporter
from encoder_bench.cli import options
from encoder_bench.cli.printing import print_grid
from encoder_bench.encoders.registry import load_encoder

_TASKS = {"knn": "k-NN", "linear_probe": "linear probe"}


def features_command(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    encoder: options.Encoders,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="The picture to write: .png, .svg or .pdf.")
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
    from encoder_bench.data.images import load_image
    from encoder_bench.inspection.features import draw_features, patch_features

    where, places = _point(point), options.weights_by_name(encoder, weights)
    blocks = tuple(options.whole_numbers("--layer", layer) or (-1,))
    pictures = [load_image(path) for path in images]
    reporter = make_reporter(quiet=quiet)
    views = []
    with reporter.phase("features", len(encoder), "encoders") as phase:
        for name in encoder:
            loaded = load_encoder(
                name, layer=blocks, resolution=resolution, weights=places.get(name),
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
            view = patch_features(loaded.to(choose_device(device)), pictures, point=where)
            if not view.pretrained:
                reporter.warn(f"{name} has seeded random weights, and the picture says so")
            views.append(view)
            phase.advance()
    draw_features(pictures, views, output)
    typer.echo(f"wrote {output}")


_Labelled = Annotated[
    str,
    typer.Option(
        metavar="NAME|DIR",
        help="Labelled images: class folders (also under train/ and test/), a folder with COCO "
        "instances, or a data set of the Hub as hub:NAME.",
    ),
]
_Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="At most N images per split.")]
_Layers = Annotated[
    str | None,
    options.how(
        metavar="all",
        help="Every block, from one pass over the images, and the best for each probe.",
    ),
]


def probe_command(
    encoder: options.Encoders,
    data: _Labelled = "scenes",
    limit: _Limit = None,
    retrieval: Annotated[
        bool, typer.Option(help="Also image-text retrieval, where there is a text tower.")
    ] = True,
    image_column: Annotated[str, typer.Option(help="Of a Hub data set.")] = "image",
    label_column: Annotated[str, typer.Option(help="Of a Hub data set.")] = "label",
    train_split: Annotated[str, typer.Option(help="Of a Hub data set.")] = "train",
    test_split: Annotated[str, typer.Option(help="Of a Hub data set.")] = "test",
    batch: Annotated[int, options.how(min=1, help="Batch size.")] = 32,
    layer: options.Layer = None,
    layers: _Layers = None,
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
    from encoder_bench.inspection.labelled_images import HubColumns, read_labelled
    from encoder_bench.inspection.probe import probe_encoder, probe_layers

    if layers not in (None, "all"):
        raise RecipeError(f"--layers {layers}: give all, or one block with --layer")
    if layers and layer:
        raise RecipeError("--layers all and --layer exclude each other; give one")
    reporter = make_reporter(quiet=quiet or json_output)
    places = options.weights_by_name(encoder, weights)
    columns = HubColumns(image_column, label_column, train_split, test_split)
    labelled = read_labelled(data, reporter, columns=columns, limit=limit)
    blocks = tuple(options.whole_numbers("--layer", layer) or (-1,))
    reports = []
    for name in encoder:
        load = partial(
            load_encoder, name, resolution=resolution, dtype=dtype, weights=places.get(name),
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        loaded = load(layer=blocks)
        loaded = load(layer=_all_blocks(loaded)) if layers else loaded
        loaded = loaded.to(choose_device(device))
        probe = probe_layers if layers else probe_encoder
        report: dict[str, Any] = {
            "encoder": name,
            "pretrained": loaded.pretrained,
            "revision": loaded.weights_revision,
            **probe(loaded, labelled, reporter=reporter, batch=batch),
        }
        if retrieval:
            report["retrieval"] = _retrieval(name, data, limit, places, device, batch, reporter)
        reports.append(report)
    if json_output:
        typer.echo(json.dumps(reports, indent=1))
    else:
        _print(reports)


def _all_blocks(encoder: Any) -> tuple[int, ...]:
    if not encoder.spec.depth or encoder.spec.source == "combined":
        raise WeightsError(
            f"encoder {encoder.spec.name}: --layers works on plain stacks of blocks only"
        )
    return tuple(range(encoder.spec.depth))


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
    rows = []
    reasons: dict[str, list[str]] = {}
    for report in sorted(reports, key=lambda each: -each["linear_probe"]["percent"]):
        found = report.get("retrieval", {"n/a": "not asked for"})
        if "n/a" in found:
            reason = found["n/a"].removeprefix(f"encoder {report['encoder']}: ")
            reasons.setdefault(reason, []).append(report["encoder"])
        recalls = [found.get(way) for way in ("image_to_text", "text_to_image")]
        name = report["encoder"] + ("" if report["pretrained"] else " *")
        rows.append((name, *map(_score, [*(report[task] for task in _TASKS), *recalls])))
    print_grid(("encoder", *_TASKS.values(), "image>text", "text>image"), rows)
    for report in reports:
        if blocks := report.get("layers"):
            lines = [
                (str(n), *(_score(each[task]) for task in _TASKS)) for n, each in enumerate(blocks)
            ]
            print_grid(("block", *_TASKS.values()), lines, title=report["encoder"])
    first = reports[0]
    notes = [
        *(line for report in reports for line in _best_layers(report)),
        f"{first['measure']}, percent, of mean patch tokens on {first['data']}: "
        f"{first['train_images']} training images, {first['test_images']} test images, "
        f"{first['classes']} classes; {first['chance_percent']} by chance. "
        "± is half of the 95% interval, bootstrapped over images. Retrieval is recall at 1.",
        *(["* random weights"] if not all(report["pretrained"] for report in reports) else []),
        *(f"n/a: {', '.join(names)}: {reason}" for reason, names in reasons.items()),
    ]
    typer.echo("\n".join(notes))


def _best_layers(report: dict[str, Any]) -> list[str]:
    """Return a line per task: the best block, and whether it is better than the last."""
    lines = []
    for task, found in report.get("best", {}).items():
        low, high = found["interval"]
        last = len(report["layers"]) - 1
        better = f"{found['lead']:+.1f} [{low:+.1f}, {high:+.1f}] over the last"
        verdict = "" if low > 0 else ", not established"
        lead = "the last" if found["layer"] == last else f"{better}{verdict}"
        lines.append(f"{report['encoder']}, {_TASKS[task]}: block {found['layer']} is best: {lead}")
    return lines


def _score(score: dict[str, Any] | None) -> str:
    if score is None:
        return "n/a"
    if score["interval"] is None:
        return f"{score['percent']:.1f}"
    low, high = score["interval"]
    return f"{score['percent']:.1f} ±{(high - low) / 2:.1f}"
