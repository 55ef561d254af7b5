"""The report in a real browser: sorting, filtering, samples, no error, no request; and contrast."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from report_builders import draw_pictures, make_results

from encoder_bench.results.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_WATCH = """<script>
window.problems = [];
window.addEventListener("error", (event) => problems.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));
const complain = console.error;
console.error = (...all) => { problems.push(all.join(" ")); complain(...all); };
</script>"""

_USE = """<script>
const table = document.querySelector("section[id^='table-'] table");
const names = (body) => [...body.rows].filter((row) => !row.hidden)
  .map((row) => row.cells[2].textContent);
const input = (selector, value) => {
  const field = document.querySelector(selector);
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
const heading = [...table.tHead.rows[0].cells].find((cell) => cell.textContent === "VQA Acc");
const found = { before: names(table.tBodies[0]) };
heading.querySelector("button").click();
found.descending = names(table.tBodies[0]);
found.sort = heading.getAttribute("aria-sort");
heading.querySelector("button").click();
found.ascending = names(table.tBodies[0]);
input("[data-filter]", "clip");
found.filtered = [...table.tBodies].flatMap((body) => names(body));
found.count = document.querySelector("[data-count]").textContent;
input("[data-filter]", "");
input("[data-half]", "yes");
found.joint = [...table.tBodies].map((body) => names(body).length);
found.samples = document.querySelectorAll(".sample").length;
found.pictures = document.querySelectorAll(".sample img").length;
document.querySelector("#next").click();
found.second = document.querySelectorAll(".sample").length;
input("#pick-rule", "a");
found.better = [...document.querySelectorAll(".sample")].map((box) =>
  [...box.querySelectorAll("tr")].slice(0, 2).map((row) => row.cells[2].textContent));
found.requests = performance.getEntriesByType("resource")
  .map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
found.problems = window.problems;
document.body.setAttribute("data-found", JSON.stringify(found));
</script>"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a browser saw after using the page."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    folder = tmp_path_factory.mktemp("browser")
    make_results(folder, encoders=("dino", "clip", "mae"), count=24)
    text = write_report(folder, images=draw_pictures(folder / "pictures", 12)).read_text()
    page = folder / "used.html"
    page.write_text(text.replace("<body>", f"<body>{_WATCH}").replace("</body>", f"{_USE}</body>"))
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match is not None, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(match.group(1)))
    return result


def test_a_heading_sorts_each_half_and_blind_rows_stay_last(found: dict[str, Any]) -> None:
    # Skill grows in the order in which the encoders were made.
    assert found["sort"] == "descending"
    for order in ("descending", "ascending"):
        assert set(found[order][-2:]) == {"no image", "shuffled images"}
    assert found["ascending"][:3] == found["descending"][:3][::-1]


def test_the_filters_hide_rows_and_count_them(found: dict[str, Any]) -> None:
    assert [name for name in found["filtered"] if name.isupper()] == ["CLIP", "CLIP"]
    assert found["count"] == "2 of 6 rows"
    assert found["joint"] == [0, 5, 0]


def test_samples_are_paged_with_pictures_and_filtered_by_who_is_better(
    found: dict[str, Any],
) -> None:
    assert found["samples"] == found["pictures"] == 20
    assert found["second"] == 4
    assert found["better"]
    assert all(float(a) > float(b) for a, b in found["better"])


def test_nothing_complains_and_nothing_leaves_the_file(found: dict[str, Any]) -> None:
    assert found["problems"] == []
    assert found["requests"] == []


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_aa(theme: int) -> None:
    # WCAG 2.2: 4.5 for text (1.4.3), 3 for graphical objects (1.4.11).
    style: Path = resources.files("encoder_bench.results.report") / "style.css"  # type: ignore[assignment]
    block = re.findall(r":root \{(.*?)\}", style.read_text(), flags=re.DOTALL)[theme]
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))
    for name in ("ink", "soft", "accent", "warn"):
        assert _contrast(colours[name], colours["paper"]) >= 4.5
        assert _contrast(colours[name], colours["wash"]) >= 4.5
    for series in range(8):
        assert _contrast(colours[f"s{series}"], colours["paper"]) >= 3.0
