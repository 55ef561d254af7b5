"""What a bench found, in lines for a person: each figure beside what it should reach.

Aims are those of `results/bench/README.md`; a figure that misses its aim is printed like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Line = tuple[str, float | None, str]
"""What was measured, the figure, and what it should reach."""


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return a report's ratios as aligned lines; none for a report that is not known here."""
    parts = (
        _shared_prefix,
        _generation,
        _precision,
        _training,
        _side_by_side,
        _encoders,
        _mfu,
        _full_size,
    )
    lines = [line for part in parts for line in part(report)]
    width = max((len(what) for what, _, _ in lines), default=0)
    return [
        f"{what:<{width}}  {'n/a' if figure is None else f'{figure:6.2f}'}  {aim}".rstrip()
        for what, figure, aim in lines
    ]


def _shared_prefix(report: Mapping[str, Any]) -> Iterator[Line]:
    for count, entry in report.get("shared_prefix", {}).items():
        aim = "aim: 2.5 or more" if count == "5" else ""
        what = f"shared prefix over separate sequences, {count} questions per image"
        yield what, entry["speed_up"], aim
        yield "  its tokens per second, share of dense embeddings'", entry["share_of_limit"], ""


def _generation(report: Mapping[str, Any]) -> Iterator[Line]:
    for count, entry in report.get("generation", {}).items():
        aims = ("aim: 4 or more", "aim: 1.5 or more") if count == "5" else ("", "")
        yield (
            f"engine over generate one at a time, {count} questions per image",
            entry["speed_up_over_one_by_one"],
            aims[0],
        )
        yield "engine over batched generate, the same", entry["speed_up_over_batched"], aims[1]


def _precision(report: Mapping[str, Any]) -> Iterator[Line]:
    for way, entry in report.get("precision", {}).items():
        difference = f"loss differs by {entry['loss_difference']:.0e}"
        yield (
            f"training, {way}, over float32 with sdpa",
            entry["step_over_float32_sdpa"],
            difference,
        )
        if "answer_seconds" in entry:
            equal = f"{entry['equal_answers']:.0%} of the answers are the same"
            yield f"answers, {way}, the same", entry["answer_over_float32_sdpa"], equal


def _training(report: Mapping[str, Any]) -> Iterator[Line]:
    for name, entry in report.items():
        if not isinstance(entry, Mapping) or "waited_share" not in entry:
            continue
        yield f"frozen training, cached over uncached: {name}", entry["speed_up"], ""
        yield "  cached, share of no encoder at all", entry["share_of_limit"], "aim: 0.95 or more"
        yield (
            "  cached, share of time waiting for input",
            entry["waited_share"],
            "aim: < 0.05",
        )
        yield "  uncached, the same", entry["waited_share_uncached"], "aim: < 0.05"


def _side_by_side(report: Mapping[str, Any]) -> Iterator[Line]:
    for job, entry in report.get("side_by_side", {}).items():
        for what, (median, least, largest) in entry["processor_time"].items():
            span = f"{least:.2f} to {largest:.2f}"
            aim = SIDE_BY_SIDE_AIMS.get(f"{job}: {what}")
            yield f"{job}: {what}", median, span if aim is None else f"{span}, aim: {aim} or more"
        yield "  largest difference of a step's loss", entry["largest_loss_difference"], ""
        yield "  equal answers", entry["equal_answers"], ""


SIDE_BY_SIDE_AIMS = {
    "frozen, 5 per image: training and evaluation over one by one": 5,
    "frozen, 5 per image: evaluation over one by one": 4,
    "frozen, 5 per image: evaluation over batched": 2,
    "joint, 5 per image: training and evaluation over one by one": 2,
    "frozen, 1 per image: training and evaluation over batched": 1,
    "joint, 1 per image: training and evaluation over batched": 1,
    "frozen, 5 per image: with all baselines, whole process over one by one without": 2.5,
}


def _encoders(report: Mapping[str, Any]) -> Iterator[Line]:
    for source, entry in report.items():
        if not isinstance(entry, Mapping) or "loading_overhead" not in entry:
            continue
        for key, what, aim in (
            ("loading_overhead", "loading over {}'s own call, overhead", "aim: < 0.10"),
            ("throughput_ratio", "throughput over {}'s own forward", "aim: 1.00 or more"),
        ):
            for suffix, clock in (("", "clock"), ("_cpu", "processor time")):
                if entry[key + suffix] is not None:
                    yield f"{what.format(source)}, {clock}", entry[key + suffix], aim


def _mfu(report: Mapping[str, Any]) -> Iterator[Line]:
    if "reason" in report:
        yield "model FLOPs utilisation", None, f"because {report['reason']}"
    for mode in ("frozen", "joint"):
        if "mfu" in report.get(mode, {}):
            yield f"model FLOPs utilisation, {mode}", report[mode]["mfu"], ""


def _full_size(report: Mapping[str, Any]) -> Iterator[Line]:
    found = report.get("full_size", {})
    for name, aims in (
        ("first_index", ("aim: < 90", "aim: < 2")),
        ("later_start", ("aim: < 5", "aim: < 0.5")),
    ):
        if name in found:
            words, entry = name.replace("_", " "), found[name]
            yield f"{words}, seconds", entry["seconds"], aims[0]
            yield "  processor seconds", entry["processor_seconds"], ""
            yield "  peak above the program's memory, GB", entry["peak_bytes"] / 1e9, aims[1]
    if found:
        yield (
            "bytes per sample, pages of the index apart",
            found["later_start"]["bytes_per_sample"],
            "aim: < 100",
        )
        of = report["encode"]["of_a_dataloader"]
        yield "encoding, share of a DataLoader's images per second", of, ""
