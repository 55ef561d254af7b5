"""Printable tables on a terminal, through Rich."""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from encoder_bench.base.record import RunRecord
from encoder_bench.results.columns import ENCODER, IMAGES, MEAN_RANK, SEEDS, SUPERVISION
from encoder_bench.results.page import MODE, PRIMARY, SAMPLES, Entry, Page, table_page
from encoder_bench.results.table import build_tables

_WIDE = 150
_LEAST_NEWS = (IMAGES, SUPERVISION, SEEDS, MEAN_RANK, PRIMARY, SAMPLES)
"""Columns that a narrow terminal lacks first."""
_GROWTH = {ENCODER: 0, MODE: 2, SUPERVISION: 2, IMAGES: 2}
"""Order in which columns get the width that is left; by default 1."""
_STYLES = {"best": "bold", "second": "underline", "blind": "italic", "": ""}
_SMALL = "not bold not underline dim"


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
    least = [max(len(word) for text in column for word in [*text.plain.split(), ""])
             for column in texts]  # fmt: skip
    most = [max(max(map(len, text.plain.splitlines()), default=0) for text in column)
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
    notes = [(f"[{letter}] " if letter else "") + text for letter, text in page.footnotes]
    if hidden:
        notes.append(f"Not shown at this width: {', '.join(hidden)}; a wider terminal shows them.")
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print()


def _needed(widths: Sequence[int], shown: Sequence[int], padding: int) -> int:
    """Return the width of a table of those columns: a separator each, and an edge."""
    return sum(widths[place] + padding + 1 for place in shown) + 1


def _text(entry: Entry) -> Text:
    text = Text(entry.text, style=_STYLES[entry.emphasis])
    text.append(f" ±{entry.half_width}" if entry.half_width else "", style=_SMALL)
    text.append(f" [{entry.note}]" if entry.note else "", style=_SMALL)
    text.append(f"\n{entry.lift}" if entry.lift else "", style=_SMALL)
    return text
