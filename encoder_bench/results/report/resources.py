"""The page's own files (template, style, script), and the charts' style outside the page."""

from __future__ import annotations

import re
from importlib import resources

from encoder_bench.results.report.svg import SERIES

_VARIABLE = re.compile(r"--([a-z0-9]+): (#[0-9a-f]{6})")
_RULE = re.compile(r"^svg ([^{]+)(\{[^}]*\})", flags=re.MULTILINE)


def read_resource(name: str) -> str:
    """Return one of the files beside this module: template, style or script."""
    return (resources.files("encoder_bench.results.report") / name).read_text(encoding="utf-8")


def standalone_style() -> str:
    """Return the page's rules for charts, with the light theme's colours filled in."""
    css = read_resource("style.css")
    light = dict(_VARIABLE.findall(css[: css.index("@media")]))
    rules = [
        f"{selector.strip()} {body}"
        for selector, body in _RULE.findall(css)
        if "--c" not in body and ".hollow" not in selector
    ]
    series = [
        f".s{n}.curve, .s{n} .curve {{ stroke: {colour}; }}\n"
        f".s{n}.whisker {{ stroke: {colour}; stroke-width: 1.5; }}\n"
        f".s{n}.mark, .s{n} .mark {{ fill: {colour}; stroke: {colour}; stroke-width: 1.75; }}"
        for n in range(SERIES)
        for colour in (light[f"s{n}"],)
    ]
    hollow = f".hollow.mark, .hollow .mark {{ fill: {light['paper']}; }}"
    text = "\n".join(["svg { font: 12px system-ui, sans-serif; }", *rules, *series, hollow])
    text = text.replace("svg .", ".")
    return re.sub(r"var\(--([a-z0-9]+)\)", lambda match: light[match.group(1)], text)
