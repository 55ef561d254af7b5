"""The report in a real browser: used by mouse and by keyboard, on a phone, in the dark, on paper.

It needs Chromium (Debian's `chromium`, or `$CHROMIUM`) and Playwright's Python library, and is
skipped with a reason where one of them is missing.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from report_builders import draw_pictures, make_results, make_run

from encoder_bench.base.record import read_records
from encoder_bench.results.report.content import chapters
from encoder_bench.results.report.page import write_report
from encoder_bench.results.thumbnails import Seen, SeenColumn, data_uri

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
DESKTOP, PHONE, PAPER = (1280, 900), (390, 844), (1032, 703)
"""CSS pixels; paper is A4 less its margins of 12 mm."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    library = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    with library.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    make_results(folder, encoders=("dino", "clip", "mae"), count=24)
    pictures = draw_pictures(folder / "pictures", 12)
    shown = tuple(str(data_uri(path)) for path in list(pictures.values())[:2])
    heading = chapters(read_records(folder))[0].table.heading
    seen = Seen((SeenColumn("photo", "", shown, patches=False),), ("MAE: not here",))
    return write_report(folder, images=pictures, features={heading: seen})


class Visit:
    """An open page, with everything that went wrong on it and every request that it made."""

    def __init__(self, browser: Any, report: Path, size: tuple[int, int], theme: str) -> None:
        width, height = size
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, accept_downloads=True
        )
        self.page = self._context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console",
            lambda line: line.type in ("error", "warning") and self.problems.append(line.text),
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_function(
            "document.querySelectorAll('.save').length === "
            "document.querySelectorAll('[data-chart]').length"
        )

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def visit(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    size, theme = getattr(request, "param", (DESKTOP, "light"))
    opened = Visit(browser, report, size, theme)
    yield opened
    outside = [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))]
    opened.close()
    assert opened.problems == []
    assert outside == []
    assert opened.requests[0] == report.as_uri()


def names(page: Any, body: int = 0) -> list[str]:
    rows = f"#table-1 tbody:nth-of-type({body + 1}) tr:not([hidden]) td:nth-child(3)"
    return [str(text) for text in page.locator(rows).all_inner_texts()]


def test_a_heading_sorts_each_half_and_blind_rows_stay_last(visit: Visit) -> None:
    # Skill grows in the order in which the encoders were made: dino, clip, mae.
    button = visit.page.get_by_role("button", name="VQA Acc", exact=True)
    button.click()
    descending = names(visit.page)
    assert visit.page.locator("th[aria-sort=descending]").inner_text().startswith("VQA Acc")
    button.click()
    assert len(descending) == 3
    assert names(visit.page) == descending[::-1]
    visit.page.locator("[data-blind]").check()
    assert names(visit.page)[:3] == descending[::-1]
    assert set(names(visit.page)[3:]) == {"no image", "shuffled images"}


def test_the_first_click_on_ranks_and_names_begins_with_the_best_and_with_a(visit: Visit) -> None:
    visit.page.get_by_role("button", name="VQA Acc", exact=True).click()
    best = names(visit.page)
    visit.page.get_by_role("button", name="Mean Rank", exact=True).click()
    assert names(visit.page)[0] == best[0]
    visit.page.get_by_role("button", name="Visual Encoder", exact=True).click()
    assert names(visit.page) == sorted(best)


def test_the_filters_hide_rows_and_count_them(visit: Visit) -> None:
    visit.page.locator("[data-filter]").fill("clip")
    assert [name for name in names(visit.page) if name.isupper()] == ["CLIP"]
    assert visit.page.locator("[data-count]").inner_text() == "2 of 6 rows"
    visit.page.locator("[data-filter]").fill("")
    visit.page.locator("[data-mode]").select_option("joint")
    assert names(visit.page, 0) == []
    assert len(names(visit.page, 1)) == 3
    visit.page.locator("[data-blind]").check()
    assert len(names(visit.page, 1)) == 5


def test_samples_begin_where_two_encoders_disagree(visit: Visit) -> None:
    page = visit.page
    assert page.locator("#pick-rule").input_value() == "right-a"
    a, b = (page.locator(f"#pick-{name} option:checked").inner_text() for name in "ab")
    assert a.partition(",")[0] != b.partition(",")[0]
    cards = page.locator("#sample-list .sample")
    assert 0 < cards.count() <= 6
    for number in range(cards.count()):
        rows = cards.nth(number).locator("tr")
        assert rows.count() == 2
        verdicts = [rows.nth(run).locator("td").nth(3).inner_text() for run in (0, 1)]
        assert verdicts == ["right", "wrong"]
    cards.first.locator("summary").click()
    cards.first.locator("tr").nth(5).wait_for()


def test_samples_are_paged(visit: Visit) -> None:
    page = visit.page
    page.locator("#pick-rule").select_option("all")
    assert page.locator("#sample-list .sample").count() == 6
    assert page.locator("#sample-list img").count() == 6
    for _ in range(3):
        page.get_by_role("button", name="Next", exact=True).first.click()
    assert page.locator("#sample-count").inner_text() == "24 samples, page 4 of 4"
    assert page.locator("#next").is_disabled()


def test_the_search_reads_what_is_shown_and_not_how_it_is_stored(visit: Visit) -> None:
    page = visit.page
    page.locator("#pick-rule").select_option("all")
    for stored in ("unparsed", "score", '":'):
        page.locator("#pick-text").fill(stored)
        assert page.locator("#sample-count").inner_text() == "0 samples, page 1 of 1"
    answer = page.evaluate(
        "() => Object.values(JSON.parse(document.getElementById('sample-data').textContent)"
        ".tables[0].tasks)[0][0].references[0]"
    )
    page.locator("#pick-text").fill(answer.upper())
    assert not page.locator("#sample-count").inner_text().startswith("0 ")


def test_an_opened_sample_goes_on_to_the_next_page(visit: Visit) -> None:
    page = visit.page
    page.locator("#pick-rule").select_option("all")
    page.locator("#sample-list h3 button").nth(5).click()
    page.keyboard.press("ArrowRight")
    assert page.locator("#sample-count").inner_text() == "24 samples, page 2 of 4"
    following = page.locator("dialog[open] .id").inner_text()
    assert following == page.locator("#sample-list .id").first.inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#sample-count").inner_text() == "24 samples, page 1 of 4"


def test_one_encoder_in_two_modes_is_compared_with_itself_and_one_run_shows_all(
    browser: Any, tmp_path: Path
) -> None:
    for modes, rule, b in (((False, True), "right-a", "joint"), ((False,), "all", "frozen")):
        folder = tmp_path / rule
        for joint in modes:
            make_run(folder, "dino", joint=joint, skill=0.5, count=12)
        opened = Visit(browser, write_report(folder), DESKTOP, "light")
        assert opened.page.locator("#pick-rule").input_value() == rule
        assert b in opened.page.locator("#pick-b option:checked").inner_text()
        opened.page.locator("#pick-rule").select_option("all")
        assert opened.page.locator("#sample-list .sample").count() == 6
        assert opened.page.locator("#sample-list details").count() == 0
        opened.close()


def test_captions_are_neither_right_nor_wrong(visit: Visit) -> None:
    visit.page.locator("#pick-task").select_option(label="captioning")
    assert visit.page.locator("#pick-rule").input_value() == "a"
    assert visit.page.locator("#pick-rule option[data-verdict]:enabled").count() == 0


_TEXTS = """() => [...document.querySelectorAll(".chart svg")].map((svg) =>
  [...svg.querySelectorAll("text")].filter((each) => each.textContent.trim()).map((each) => {
    const { left, top, right, bottom } = each.getBoundingClientRect();
    return [left, top, right, bottom, each.textContent];
  }))"""


def test_no_two_texts_of_a_chart_overlap(visit: Visit) -> None:
    visit.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    charts = visit.page.evaluate(_TEXTS)
    assert len(charts) > 12
    for texts in charts:
        for one, other in itertools.combinations(texts, 2):
            wide = min(one[2], other[2]) - max(one[0], other[0])
            high = min(one[3], other[3]) - max(one[1], other[1])
            # A font's box is higher than its letters.
            assert wide < 2 or high < 4, (one, other)


def test_a_sample_is_opened_turned_and_closed_by_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    page.locator("#pick-rule").select_option("all")
    page.locator("#pick-text").focus()
    page.keyboard.press("Tab")  # the disabled Previous is skipped
    assert page.evaluate("document.activeElement.id") == "next"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    first = dialog.locator(".id").inner_text()
    assert dialog.locator("img").count() == 1
    page.keyboard.press("ArrowRight")
    assert dialog.locator(".id").inner_text() != first
    page.keyboard.press("ArrowLeft")
    assert dialog.locator(".id").inner_text() == first
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_the_table_is_sorted_by_keyboard_and_the_skip_link_leads_to_it(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    page.get_by_role("button", name="Avg", exact=True).focus()
    page.keyboard.press("Space")
    assert page.locator("th[aria-sort]").count() == 1


def test_everything_that_can_be_used_has_a_name(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a, summary, svg, img")]
          .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim()
            || each.alt || (each.labels && each.labels.length)))
          .map((each) => each.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


def test_a_chart_is_saved_as_svg_and_png(visit: Visit, tmp_path: Path) -> None:
    figure = visit.page.locator(".charts figure").first
    for kind in ("SVG", "PNG"):
        with visit.page.expect_download() as download:
            figure.get_by_role("button", name=f"as {kind}").click()
        download.value.save_as(tmp_path / f"chart.{kind.lower()}")
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    assert "var(" not in ElementTree.tostring(root, encoding="unicode")
    with Image.open(tmp_path / "chart.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
        assert picture.width == pytest.approx(3 * float(root.attrib["width"]), abs=3)
    assert colours is not None
    assert len(colours) > 20


_CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map((i) => alpha * top[i] + (1 - alpha) * under[i]);
  };
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement)
      layers.unshift(parse(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.getClientRects().length) continue;
    if (element.closest("button:disabled, script, style")) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const paper = behind(element);
    const [a, b] = [light(over(parse(ink), paper)), light(paper)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize(
    "visit", [(DESKTOP, "light"), (DESKTOP, "dark")], ids=["light", "dark"], indirect=True
)
def test_every_text_on_the_page_has_contrast_aa(visit: Visit) -> None:
    # WCAG 2.2, 1.4.3: at least 4.5 for text, as it is drawn.
    visit.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = visit.page.evaluate(_CONTRASTS)
    assert len(found) > 300
    assert [entry for entry in found if entry[0] < 4.5] == []


@pytest.mark.parametrize(
    "visit", [(PHONE, "light"), (PHONE, "dark")], ids=["light", "dark"], indirect=True
)
def test_a_phone_scrolls_the_table_and_not_the_page(visit: Visit) -> None:
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    assert page.locator(".compared").evaluate("(box) => box.scrollWidth > box.clientWidth")
    for kind in ("small", "fit"):
        figures = page.locator(f".charts.{kind} figure")
        wide = figures.evaluate_all("(all) => all.filter((f) => f.scrollWidth > f.clientWidth)")
        assert figures.count() > 1
        assert wide == []
    score = page.locator("#table-1 tbody tr").first.locator("td").nth(4)
    assert score.evaluate("(cell) => cell.getBoundingClientRect().right") <= PHONE[0]


@pytest.mark.parametrize("visit", [(PAPER, "dark")], ids=["paper"], indirect=True)
def test_paper_is_white_and_wide_enough_for_the_table(visit: Visit) -> None:
    page = visit.page
    page.emulate_media(media="print", color_scheme="light")
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER[0]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#samples").is_hidden()
    assert page.locator(".charts svg").first.is_visible()
    assert len(page.pdf(prefer_css_page_size=True)) > 10_000


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_of_the_palette_is_aa(theme: int) -> None:
    # Without a browser too. WCAG 2.2: 4.5 for text (1.4.3), 3 for graphical objects (1.4.11).
    style: Path = resources.files("encoder_bench.results.report") / "style.css"  # type: ignore[assignment]
    block = re.findall(r":root \{(.*?)\}", style.read_text(), flags=re.DOTALL)[theme]
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))
    for name in ("ink", "soft", "accent", "warn", "good"):
        assert _contrast(colours[name], colours["paper"]) >= 4.5
        assert _contrast(colours[name], colours["wash"]) >= 4.5
    for series in range(8):
        assert _contrast(colours[f"s{series}"], colours["paper"]) >= 3.0
