"""The gate's verdict in words: terminal and step summary (Markdown), and JUnit XML.

What belongs here: printing. The verdict itself is `regression.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.files import write_text
from encoder_bench.gate.verdicts import CheckResult, RunVerdict, TaskVerdict
from encoder_bench.results.compare import Flip
from encoder_bench.results.formats import escape_markdown as escape

SHOWN_FLIPS = 10
"""Flipped samples printed a task, those that lost most first."""

_ILLEGAL_XML = {code: "�" for code in range(32) if code not in (9, 10, 13)} | {
    0xFFFE: "�",
    0xFFFF: "�",
}


def lines(result: CheckResult) -> list[str]:
    """Return the verdict as plain lines: every run, every failure, samples that flipped."""
    found = [line for run in result.runs for line in _run_lines(run)]
    found += [f"unknown to the baseline: {name}" for name in result.unknown]
    failed = sum(not run.passed for run in result.runs)
    if not result.runs:
        found.append("FAILED: no accepted run was run again")
    elif failed:
        found.append(f"FAILED: {failed} of {len(result.runs)} runs")
    else:
        found.append(f"passed: {len(result.runs)} runs, margin {result.margin:g} points")
    return found


def to_step_summary(result: CheckResult) -> str:
    """Return the verdict as Markdown for a GitHub step summary; all text is escaped."""
    head = "passed" if result.passed else "failed"
    parts = [
        f"## Scores against the baseline: {head}",
        "",
        "| Run | Task | Accepted | Now | Difference (95% interval) | p | Flipped | Verdict |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for run in result.runs:
        if run.failures:
            verdict = escape("; ".join(run.failures))
            parts.append(f"| {escape(run.name)} |  |  |  |  |  |  | **{verdict}** |")
        parts += [_task_row(run, task) for task in run.tasks]
    for run in result.runs:
        for task in run.tasks:
            parts += _flip_details(run, task)
    if not result.runs:
        parts += ["", "No accepted run was run again."]
    notes = [
        f"- {escape(run.name)}: {escape('; '.join(run.notes))}" for run in result.runs if run.notes
    ]
    if notes:
        parts += ["", "Allowed differences:", "", *notes]
    return "\n".join(parts) + "\n"


def append_step_summary(result: CheckResult, path: Path) -> None:
    """Append the verdict to the file that `$GITHUB_STEP_SUMMARY` names.

    Raises:
        EncoderBenchError: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(to_step_summary(result))
    except OSError as error:
        raise EncoderBenchError(f"{path}: {error.strerror or error}") from error


def to_junit(result: CheckResult) -> str:
    """Return the verdict as JUnit XML: a suite a run, a case for replay and for each task."""
    root = ElementTree.Element("testsuites", name="encoder-bench check")
    for run in result.runs:
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(run.name))
        cases = [("exact replay", run.failures, "")]
        cases += [(task.task, task.failures, "\n".join(_flip_lines(task))) for task in run.tasks]
        for name, failures, output in cases:
            case = ElementTree.SubElement(
                suite, "testcase", name=_xml(name), classname=_xml(run.name)
            )
            if failures:
                failure = ElementTree.SubElement(case, "failure", message=_xml(failures[0]))
                failure.text = _xml("\n".join(failures))
            if output:
                ElementTree.SubElement(case, "system-out").text = _xml(output)
        suite.set("tests", str(len(cases)))
        suite.set("failures", str(sum(bool(failures) for _, failures, _ in cases)))
    if not result.runs:
        suite = ElementTree.SubElement(root, "testsuite", name="baseline", tests="1", failures="1")
        case = ElementTree.SubElement(suite, "testcase", name="runs", classname="baseline")
        ElementTree.SubElement(case, "failure", message="no accepted run was run again")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(result: CheckResult, path: Path) -> None:
    """Write `to_junit` to a file in one step.

    Raises:
        EncoderBenchError: the file cannot be written.
    """
    write_text(path, to_junit(result))


def _run_lines(run: RunVerdict) -> Iterator[str]:
    yield f"{'passed' if run.passed else 'FAILED'}  {run.name}"
    for failure in run.failures:
        yield f"  {failure}"
    for task in run.tasks:
        yield f"  {task.task}: {_summary(task)}"
        for failure in task.failures:
            yield f"    {failure}"
        yield from (f"    {line}" for line in _flip_lines(task))
    for note in run.notes:
        yield f"  note: {note}"


def _summary(task: TaskVerdict) -> str:
    comparison = task.comparison
    if comparison is None:
        return "failed" if task.failures else "as accepted"
    if comparison.difference is None:
        return comparison.reason or "not compared"
    difference = comparison.difference
    return (
        f"{comparison.column} {comparison.score_a:.2f} -> {comparison.score_b:.2f} "
        f"({difference.value:+.2f} {difference.interval(2)}, "
        f"p {difference.p:.3g}, {len(comparison.flips)} of {comparison.samples} flipped)"
    )


def _task_row(run: RunVerdict, task: TaskVerdict) -> str:
    comparison = task.comparison
    verdict = f"**{escape('; '.join(task.failures))}**" if task.failures else "passed"
    if comparison is None or comparison.difference is None:
        return f"| {escape(run.name)} | {escape(task.task)} |  |  |  |  |  | {verdict} |"
    difference = comparison.difference
    cells = (
        escape(run.name),
        escape(task.task),
        f"{comparison.score_a:.2f}",
        f"{comparison.score_b:.2f}",
        f"{difference.value:+.2f} {difference.interval(2)}",
        f"{difference.p:.3g}",
        f"{len(comparison.flips)} of {comparison.samples}",
        verdict,
    )
    return "| " + " | ".join(cells) + " |"


def _flip_details(run: RunVerdict, task: TaskVerdict) -> list[str]:
    shown = _worst(task)
    if not shown:
        return []
    title = f"{escape(run.name)}, {escape(task.task)}: samples that flipped"
    rows = [
        f"| {escape(flip.sample_id)} | {escape(flip.question)} | "
        f"{escape(_references(flip))} | {escape(flip.prediction_a)} | "
        f"{escape(flip.prediction_b)} | {flip.score_a:g} → {flip.score_b:g} |"
        for flip in shown
    ]
    return [
        "",
        f"<details><summary>{title}</summary>",
        "",
        "| Sample | Question | People | Accepted | Now | Score |",
        "|---|---|---|---|---|---:|",
        *rows,
        "",
        "</details>",
    ]


def _flip_lines(task: TaskVerdict) -> list[str]:
    found = task.comparison.flips if task.comparison else ()
    more = [f"... and {len(found) - SHOWN_FLIPS} more"] if len(found) > SHOWN_FLIPS else []
    return [
        f"{flip.sample_id} (image {flip.image_id}): {flip.question!r}, people "
        f"{_references(flip)!r}, was {flip.prediction_a!r} ({flip.score_a:g}), "
        f"now {flip.prediction_b!r} ({flip.score_b:g})"
        for flip in _worst(task)
    ] + more


def _worst(task: TaskVerdict) -> list[Flip]:
    flips = task.comparison.flips if task.comparison else ()
    return sorted(flips, key=lambda f: (f.score_b - f.score_a, f.sample_id))[:SHOWN_FLIPS]


def _references(flip: Flip) -> str:
    return " / ".join(dict.fromkeys(flip.references))


def _xml(text: str) -> str:
    """Replace characters that XML 1.0 cannot hold."""
    return text.translate(_ILLEGAL_XML)
