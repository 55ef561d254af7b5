"""Pictures of what a table's encoders see, for the report: before tuning, and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.hashing import hash_text
from encoder_bench.base.progress import Reporter
from encoder_bench.base.record import RunRecord
from encoder_bench.results.grouping import TableGroup, TableRow, group_records
from encoder_bench.results.report.content import Seen, SeenColumn, row_name
from encoder_bench.results.thumbnails import data_uri, picture_uri

if TYPE_CHECKING:
    from encoder_bench.encoders.encoder import Encoder

PHOTOS = 4


def seen_features(
    results: Path,
    records: Sequence[RunRecord],
    images: Mapping[str, Path],
    reporter: Reporter,
    *,
    device: str = "auto",
) -> dict[str, Seen]:
    """Return pictures of patch features by table heading.

    A frozen row shows the encoder as it was loaded; a joint one the tuned encoder, from the run's
    trained weights. An encoder that cannot be loaded here is named with the reason. Images
    are `str(image_id)` -> image file; the same few of them are shown every time.
    """
    chosen = [images[name] for name in sorted(images, key=hash_text)[:PHOTOS]]
    if not chosen:
        return {}
    return {
        group.heading: _of_group(results, group, chosen, reporter, device)
        for group in group_records(records)
    }


def _of_group(
    results: Path, group: TableGroup, photos: Sequence[Path], reporter: Reporter, device: str
) -> Seen:
    shown = tuple(uri for path in photos if (uri := data_uri(path)) is not None)
    columns, missing = [SeenColumn("photo", "", shown, patches=False)], []
    with reporter.phase("patch features", len(group.rows), "encoders") as phase:
        for row in group.rows:
            try:
                columns.append(_column(results, row, photos, device))
            except EncoderBenchError as error:
                missing.append(f"{row_name(row)}: not shown, because {error}")
            phase.advance()
    return Seen(tuple(columns), tuple(missing))


def _column(results: Path, row: TableRow, photos: Sequence[Path], device: str) -> SeenColumn:
    from PIL import Image

    from encoder_bench.data.images import load_image
    from encoder_bench.inspection.features import patch_features

    view = patch_features(_encoder(results, row, device), [load_image(path) for path in photos])
    note = f"{view.explained:.0%} of variance" + ("" if row.pretrained else ", random weights")
    pixels = (view.colours.numpy() * 255).round().astype("uint8")
    pictures = tuple(picture_uri(Image.fromarray(each), "png") for each in pixels)
    return SeenColumn(row_name(row), note, pictures, patches=True)


def _encoder(results: Path, row: TableRow, device: str) -> Encoder:
    """Return a row's encoder: tuned where it was tuned."""
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.base.recipes import EncoderSettings
    from encoder_bench.encoders.registry import load_encoder
    from encoder_bench.pipeline.build import load_run

    record = row.records[0]
    if row.joint:
        return load_run(results, record, device=device).encoder
    settings = EncoderSettings.model_validate(record.adapter["encoder"])
    encoder = load_encoder(
        record.encoder.name,
        layer=settings.layer,
        resolution=settings.resolution,
        dtype=settings.dtype,
        seed=record.seed,
    )
    if encoder.fingerprint() != record.encoder.fingerprint:
        raise EncoderBenchError(f"the weights found now are not those of run {record.run_id}")
    return encoder.to(choose_device(device)).eval()
