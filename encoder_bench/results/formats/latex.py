r"""The table in LaTeX: `booktabs` rules, best `\textbf`, second best `\underline`."""

from __future__ import annotations

import pandas as pd

from encoder_bench.results.layout import Cell, Line, Page, lay_out

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "·": r"\textperiodcentered{}",
    "–": "--",
}


def to_latex(frame: pd.DataFrame) -> str:
    """Return the frame of `table` as LaTeX; needs `booktabs` and `graphicx`, text is escaped."""
    head = (
        "% \\usepackage{booktabs,graphicx} and, before LaTeX 2018, \\usepackage[utf8]{inputenc}\n"
    )
    return head + "\n".join(render_page(page) for page in lay_out(frame))


def escape(text: str) -> str:
    r"""Return text that LaTeX prints as it is.

    >>> escape("50% of a_b")
    '50\\% of a\\_b'
    """
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def render_page(page: Page) -> str:
    """Return one laid-out table as a LaTeX `table` environment."""
    alignment = "".join("r" if cell.number else "l" for cell in page.header)
    lines = []
    for index, line in enumerate(page.lines):
        if line.opens and index:
            lines.append(r"\midrule")
        lines.append(_line(line))
    notes = [
        (f"\\textsuperscript{{{letter}}} " if letter else "") + escape(text)
        for letter, text in page.footnotes
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escape(page.heading)}}}",
            r"\resizebox{\linewidth}{!}{%",
            f"\\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(escape(cell.text) for cell in page.header) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\smallskip\footnotesize\raggedright",
            " \\\\\n".join(notes),
            r"\end{table}",
            "",
        ]
    )


def _line(line: Line) -> str:
    """Return a row; where a score has its lift, a second one under it, drawn near."""
    scores = " & ".join(_cell(cell, italic=line.blind) for cell in line.cells)
    if not any(cell.lift for cell in line.cells):
        return scores + r" \\"
    lifts = (f"{{\\scriptsize ${cell.lift}$}}" if cell.lift else "" for cell in line.cells)
    return scores + " \\\\[-0.4ex]\n" + " & ".join(lifts) + r" \\"


def _cell(cell: Cell, *, italic: bool) -> str:
    text = escape(cell.text)
    if cell.emphasis == "best":
        text = f"\\textbf{{{text}}}"
    elif cell.emphasis == "second":
        text = f"\\underline{{{text}}}"
    elif italic and text:
        text = f"\\textit{{{text}}}"
    if cell.half_width:
        text += f" {{\\scriptsize $\\pm${cell.half_width}}}"
    return f"{text}\\textsuperscript{{{cell.note}}}" if cell.note else text
