"""The table as a small HTML page of its own, without scripts; the report is another thing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd

from encoder_bench.results.layout import Cell, Line, Page, lay_out

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .5rem; text-align: left; vertical-align: baseline; }
td { line-height: 1.25; }
.n { text-align: right; }
thead th { border-top: 2px solid; border-bottom: 1px solid; }
tbody { border-bottom: 1px solid; }
tbody:last-child { border-bottom-width: 2px; }
.blind { font-style: italic; }
.second { text-decoration: underline; }
small { opacity: .75; }
sup { line-height: 0; }
""".strip()


def to_html(frame: pd.DataFrame) -> str:
    """Return the frame of `table` as one HTML page without outside parts; text is escaped."""
    pages = [render_page(page) for page in lay_out(frame)]
    return whole_page("Visual encoders compared", pages)


def whole_page(title: str, sections: Sequence[str]) -> str:
    """Return sections of HTML as one page without outside parts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>encoder-bench: {escape(title.casefold())}</title>\n"
        f"<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{chr(10).join(sections)}\n</body>\n</html>\n"
    )


def table_section(page: Page) -> str:
    """Return one page's `<table>` alone."""
    header = "".join(
        f"<th{_class(cell)} scope=col>{escape(cell.text)}</th>" for cell in page.header
    )
    body = []
    for index, line in enumerate(page.lines):
        if line.opens:
            body.append("</tbody>\n<tbody>" if index else "<tbody>")
        body.append(_line(line))
    rows = "\n".join(body)
    return f"<table>\n<thead><tr>{header}</tr></thead>\n{rows}\n</tbody>\n</table>"


def render_page(page: Page) -> str:
    """Return one laid-out table as HTML: `<h2>`, `<table>`, list of footnotes."""
    notes = "\n".join(
        "<li>" + (f"<sup>{letter}</sup> " if letter else "") + escape(text) + "</li>"
        for letter, text in page.footnotes
    )
    return (
        f"<h2>{escape(page.heading)}</h2>\n<div class=scroll>\n{table_section(page)}\n</div>\n"
        f"<ul>\n{notes}\n</ul>"
    )


def _line(line: Line) -> str:
    cells = "".join(f"<td{_class(cell)}>{_cell(cell)}</td>" for cell in line.cells)
    return f"<tr{' class=blind' if line.blind else ''}>{cells}</tr>"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.emphasis == "best":
        text = f"<strong>{text}</strong>"
    elif cell.emphasis == "second":
        text = f"<span class=second>{text}</span>"
    if cell.half_width:
        text += f" <small>±{cell.half_width}</small>"
    if cell.note:
        text += f"<sup>{cell.note}</sup>"
    return f"{text}<br><small>{cell.lift}</small>" if cell.lift else text


def _class(cell: Cell) -> str:
    return " class=n" if cell.number else ""
