"""Printable tables as Markdown, LaTeX and HTML, and the files of a results folder's table."""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.files import write_text
from encoder_bench.results.page import Entry, Line, Page, table_page
from encoder_bench.results.table import Table, flat_rows, to_frame

if TYPE_CHECKING:
    from jinja2 import Environment

_MARKDOWN = {"best": "**{}**", "second": "<ins>{}</ins>", "blind": "*{}*", "": "{}"}
_LATEX = {
    "best": r"\textbf{{{}}}",
    "second": r"\underline{{{}}}",
    "blind": r"\textit{{{}}}",
    "": "{}",
}
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$@])")
_LATEX_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "{}&%$#_"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "·": r"\textperiodcentered{}",
        "–": "--",
        "−": r"$-$",
    }
)
_LATEX_HEAD = (
    "% \\usepackage{booktabs,graphicx} and, before LaTeX 2018, \\usepackage[utf8]{inputenc}\n"
)


@functools.cache
def templates() -> Environment:
    """Return the environment of the templates beside this module; HTML is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    found = Environment(
        loader=PackageLoader("encoder_bench.results"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["escape_markdown"] = escape_markdown
    found.filters["pretty"] = functools.partial(json.dumps, indent=1, default=str)
    return found


def escape_markdown(text: str) -> str:
    r"""Return text that Markdown prints as it is, on one line of a table.

    >>> escape_markdown("a|b *c*\n<d>")
    'a\\|b \\*c\\* &lt;d&gt;'
    """
    return _MARKDOWN_SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def to_markdown(pages: Sequence[Page]) -> str:
    """Return pages in GitHub's Markdown: best in bold, second best underlined (`<ins>`)."""
    return "\n".join(_markdown_page(page) for page in pages)


def _markdown_page(page: Page) -> str:
    header = [escape_markdown(entry.text) for entry in page.header]
    rule = "|".join("---:" if entry.number else "---" for entry in page.header)
    rows = [[_markdown_entry(each) for each in line.entries] for line in page.lines]
    notes = [
        (f"<sup>{letter}</sup> " if letter else "") + escape_markdown(text)
        for letter, text in page.footnotes
    ]
    return "\n".join([
        f"### {escape_markdown(page.heading)}",
        "",
        f"| {' | '.join(header)} |",
        f"|{rule}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {note}" for note in notes),
        "",
    ])  # fmt: skip


def _markdown_entry(entry: Entry) -> str:
    text = _MARKDOWN[entry.emphasis].format(escape_markdown(entry.text))
    text += f" ±{entry.half_width}" if entry.half_width else ""
    text += f"<sup>{entry.note}</sup>" if entry.note else ""
    return f"{text}<br><sub>{entry.lift}</sub>" if entry.lift else text


def escape_latex(text: str) -> str:
    r"""Return text that LaTeX prints as it is.

    >>> escape_latex("50% of a_b")
    '50\\% of a\\_b'
    """
    return " ".join(text.split()).translate(_LATEX_ESCAPES)


def to_latex(pages: Sequence[Page]) -> str:
    r"""Return pages as LaTeX tables (`booktabs`, `graphicx`): best `\textbf`, second underlined."""
    return _LATEX_HEAD + "\n".join(_latex_page(page) for page in pages)


def _latex_page(page: Page) -> str:
    alignment = "".join("r" if entry.number else "l" for entry in page.header)
    lines: list[str] = []
    for line in page.lines:
        lines += [r"\midrule"] if line.opens and lines else []
        lines.append(_latex_line(line))
    notes = [
        (f"\\textsuperscript{{{letter}}} " if letter else "") + escape_latex(text)
        for letter, text in page.footnotes
    ]
    return "\n".join([
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escape_latex(page.heading)}}}",
        r"\resizebox{\linewidth}{!}{%",
        f"\\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(escape_latex(entry.text) for entry in page.header) + r" \\",
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\par\smallskip\footnotesize\raggedright",
        " \\\\\n".join(notes),
        r"\end{table}",
        "",
    ])  # fmt: skip


def _latex_line(line: Line) -> str:
    """Return a row; where a score has its lift, a second row close under it."""
    scores = " & ".join(_latex_entry(entry) for entry in line.entries)
    if not any(entry.lift for entry in line.entries):
        return scores + r" \\"
    lifts = (f"{{\\scriptsize ${entry.lift}$}}" if entry.lift else "" for entry in line.entries)
    return scores + " \\\\[-0.4ex]\n" + " & ".join(lifts) + r" \\"


def _latex_entry(entry: Entry) -> str:
    text = _LATEX[entry.emphasis].format(escape_latex(entry.text))
    text += f" {{\\scriptsize $\\pm${entry.half_width}}}" if entry.half_width else ""
    return f"{text}\\textsuperscript{{{entry.note}}}" if entry.note else text


def to_html(pages: Sequence[Page], title: str = "Visual encoders compared") -> str:
    """Return pages as one HTML page without scripts or outside parts; text is escaped."""
    return templates().get_template("table.html.j2").render(pages=pages, title=title)


def html_table(page: Page) -> str:
    """Return a page's `<table>` alone."""
    return str(templates().get_template("macros.html.j2").module.table(page))  # type: ignore[attr-defined]


def to_csv(tables: Sequence[Table]) -> str:
    """Return tables as CSV, numbers unrounded; n/a is empty, with its reason in `C reason`."""
    return str(to_frame(tables).to_csv(index=False, lineterminator="\n", float_format="%.6f"))


def to_json(rows: Any) -> str:
    """Return a JSON value as text, keys in their order."""
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": lambda tables: to_markdown([table_page(table) for table in tables]),
    "csv": to_csv,
    "tex": lambda tables: to_latex([table_page(table) for table in tables]),
    "html": lambda tables: to_html([table_page(table) for table in tables]),
    "json": lambda tables: to_json(flat_rows(tables)),
}
"""Format, as its files end -> function from tables to text."""


def write_tables(results: Path, tables: Sequence[Table]) -> list[Path]:
    """Write `table.md`, `.csv`, `.tex`, `.html` and `.json`; equal records give equal bytes."""
    return write_texts(results / "table", {end: text(tables) for end, text in FORMATS.items()})


def write_texts(stem: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write each text to `STEM.ENDING`, each in one step; return the paths."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths
