"""The table in GitHub's Markdown: best in bold, second best underlined (`<ins>`)."""

from __future__ import annotations

import re

import pandas as pd

from encoder_bench.results.layout import Cell, Line, Page, lay_out

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$@])")


def to_markdown(frame: pd.DataFrame) -> str:
    """Return the frame of `table` as Markdown; all its text is escaped."""
    return "\n".join(render_page(page) for page in lay_out(frame))


def escape(text: str) -> str:
    r"""Return text that Markdown prints as it is, on one line of a table.

    >>> escape("a|b *c*\n<d>")
    'a\\|b \\*c\\* &lt;d&gt;'
    """
    flat = " ".join(text.split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", flat)


def render_page(page: Page) -> str:
    """Return one laid-out table as Markdown: heading, table, footnotes."""
    header = "| " + " | ".join(escape(cell.text) for cell in page.header) + " |"
    rule = "|" + "|".join("---:" if cell.number else "---" for cell in page.header) + "|"
    lines = [_line(line) for line in page.lines]
    notes = [
        f"- {f'<sup>{letter}</sup> ' if letter else ''}{escape(text)}"
        for letter, text in page.footnotes
    ]
    return "\n".join([f"### {escape(page.heading)}", "", header, rule, *lines, "", *notes, ""])


def _line(line: Line) -> str:
    return "| " + " | ".join(_cell(cell, italic=line.blind) for cell in line.cells) + " |"


def _cell(cell: Cell, *, italic: bool) -> str:
    text = escape(cell.text)
    if cell.emphasis == "best":
        text = f"**{text}**"
    elif cell.emphasis == "second":
        text = f"<ins>{text}</ins>"
    elif italic and text:
        text = f"*{text}*"
    if cell.half_width:
        text += f" ±{cell.half_width}"
    if cell.note:
        text += f"<sup>{cell.note}</sup>"
    return f"{text}<br><sub>{cell.lift}</sub>" if cell.lift else text
