"""Printable tables on a terminal, as Markdown, LaTeX, HTML, CSV and JSON, and as files."""

import functools
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from encoder_bench.base.files import write_text
from encoder_bench.base.record import RunRecord
from encoder_bench.results.page import MODE, PRIMARY, SAMPLES, Entry, Line, Page, table_page
from encoder_bench.results.score import ENCODER, IMAGES, MEAN_RANK, SEEDS, SUPERVISION
from encoder_bench.results.table import Table, build_tables, flat_rows, to_frame

_MARKDOWN = {"best": "**{}**", "second": "<ins>{}</ins>", "blind": "*{}*", "": "{}"}
_LATEX = {
    "best": r"\textbf{{{}}}",
    "second": r"\underline{{{}}}",
    "blind": r"\textit{{{}}}",
    "": "{}",
}
_TERMINAL = {"best": "bold", "second": "underline", "blind": "italic", "": ""}
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
        '"': r"\char34{}",
        "±": r"$\pm$",
        "·": r"\textperiodcentered{}",
        "–": r"\textendash{}",
        "−": r"$-$",
        "×": r"$\times$",
        "≥": r"$\geq$",
        "→": r"$\rightarrow$",
    }
)
_LIGATURE = re.compile(r"([-'`])(?=\1)")
"""Two of these in a row are one other character."""
_WIDE = 150
_LEAST_NEWS = (IMAGES, SUPERVISION, SEEDS, MEAN_RANK, PRIMARY, SAMPLES)
"""Columns that a narrow terminal lacks first."""
_GROWTH = {ENCODER: 0, MODE: 2, SUPERVISION: 2, IMAGES: 2}
"""Order in which columns get the width that is left; by default 1."""
_SMALL = "not bold not underline dim"
_LATEX_HEAD = (
    "% \\usepackage{booktabs,graphicx} and, before LaTeX 2018, \\usepackage[utf8]{inputenc};\n"
    "% names in other scripts need LuaLaTeX or XeLaTeX and a font that has them\n"
)


@functools.cache
def templates() -> Environment:
    """Return the environment of the templates beside this module; HTML is escaped.

    `style` in them is the report's style sheet.
    """
    found = Environment(
        loader=PackageLoader("encoder_bench.results"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["style"] = Markup(style_sheet())
    found.filters["escape_markdown"] = escape_markdown
    found.filters["pretty"] = functools.partial(json.dumps, indent=1, default=str)
    return found


def print_table(records: Sequence[RunRecord], console: Console | None = None) -> None:
    """Print the comparison table of records, with its footnotes."""
    for table in build_tables(records):
        print_page(table_page(table), console)


def print_page(page: Page, console: Console | None = None) -> None:
    """Print one table and its footnotes; columns that do not fit are left out and named."""
    console = console or Console()
    padding = 0 if console.width < _WIDE else 2
    texts = [[Text(entry.text), *(_text(line.entries[n]) for line in page.lines)]
             for n, entry in enumerate(page.header)]  # fmt: skip
    least = [max(cell_len(word) for text in column for word in [*text.plain.split(), ""])
             for column in texts]  # fmt: skip
    most = [max(max(map(cell_len, text.plain.splitlines()), default=0) for text in column)
            for column in texts]  # fmt: skip
    shown, hidden = list(range(len(texts))), []
    for name in _LEAST_NEWS:
        found = next((n for n in shown if page.header[n].text == name), None)
        if found is not None and _needed(least, shown, padding) > console.width:
            shown.remove(found)
            hidden.append(name)
    given, needed = console.width, _needed(least, shown, padding)
    spare = max(0, given - needed)
    grid = Grid(
        title=Text(page.heading),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if padding == 0 else box.HEAVY_HEAD,
        padding=(0, padding // 2),
    )
    widths = dict.fromkeys(shown, 0)
    for place in sorted(shown, key=lambda n: (_GROWTH.get(page.header[n].text, 1), n)):
        widths[place] = least[place] + max(0, min(spare, most[place] - least[place]))
        spare -= widths[place] - least[place]
    for place, width in widths.items():
        entry = page.header[place]
        justify: Literal["right", "left"] = "right" if entry.number else "left"
        grid.add_column(Text(entry.text), justify=justify, width=width)
    for number, line in enumerate(page.lines, start=1):
        if line.opens:
            grid.add_section()
        grid.add_row(*(texts[place][number] for place in shown))
    console.width = max(given, needed)  # where no column is left to leave out, lines are too long
    console.print(grid)
    console.width = given
    notes = _footnotes(page, "[{}] ", str)
    if hidden:
        notes.append(f"Not shown at this width: {', '.join(hidden)}; a wider terminal shows them.")
    for note in notes:
        console.print(note, style="dim", markup=False, emoji=False, highlight=False)
    console.print()


def _needed(widths: Sequence[int], shown: Sequence[int], padding: int) -> int:
    """Return the width of a table of those columns: a separator each, and an edge."""
    return sum(widths[place] + padding + 1 for place in shown) + 1


def _text(entry: Entry) -> Text:
    text = Text(entry.text, style=_TERMINAL[entry.emphasis])
    text.append(f" ±{entry.half_width}" if entry.half_width else "", style=_SMALL)
    text.append(f" [{entry.note}]" if entry.note else "", style=_SMALL)
    text.append(f"\n{entry.lift}" if entry.lift else "", style=_SMALL)
    return text


def _footnotes(page: Page, mark: str, escape: Callable[[str], str]) -> list[str]:
    return [(mark.format(letter) if letter else "") + escape(t) for letter, t in page.footnotes]


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
    notes = _footnotes(page, "<sup>{}</sup> ", escape_markdown)
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

    >>> escape_latex("50% of a_b"), escape_latex("--weights")
    ('50\\% of a\\_b', '-{}-weights')
    """
    return _LIGATURE.sub(r"\1{}", " ".join(text.split()).translate(_LATEX_ESCAPES))


def to_latex(pages: Sequence[Page]) -> str:
    r"""Return pages as LaTeX tables (`booktabs`, `graphicx`): best `\textbf`, second underlined."""
    return _LATEX_HEAD + "\n".join(_latex_page(page) for page in pages)


def _latex_page(page: Page) -> str:
    alignment = "".join("r" if entry.number else "l" for entry in page.header)
    lines: list[str] = []
    for line in page.lines:
        lines += [r"\midrule"] if line.opens and lines else []
        lines.append(_latex_line(line))
    notes = _footnotes(page, "\\textsuperscript{{{}}} ", escape_latex)
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


def style_sheet() -> str:
    """Return the report's `style.css`."""
    return (resources.files("encoder_bench.results.report") / "style.css").read_text("utf-8")


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
    paths = {stem.with_name(f"{stem.name}.{ending}"): text for ending, text in texts.items()}
    for path, text in paths.items():
        write_text(path, text)
    return list(paths)
