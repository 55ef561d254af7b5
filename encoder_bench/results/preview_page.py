"""Training rows as one HTML file: what the model reads, with thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from encoder_bench.results.formats import templates
from encoder_bench.results.thumbnails import data_uri


def to_html(title: str, rows: Sequence[Any]) -> str:
    """Return a self-contained page of rows.

    Args:
        title: what is previewed.
        rows: each with `label`, `tokens`, `taught_tokens`, `images` (paths) and `pieces`, which
            have `text`, `image`, `taught` and `question`.
    """
    style = (resources.files("encoder_bench.results.report") / "style.css").read_text("utf-8")
    files = {str(path) for row in rows for path in row.images}
    pictures = {name: data_uri(Path(name)) for name in files}
    page = templates().get_template("preview.html.j2")
    return page.render(title=title, rows=rows, pictures=pictures, style=style)
