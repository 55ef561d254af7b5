"""The metrics: one record each, and the one table of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, cast

from encoder_bench.base.errors import MissingDependencyError, UnknownNameError
from encoder_bench.base.plugins import plugins
from encoder_bench.metrics import caption, short_answers, vqa
from encoder_bench.metrics.java import meteor
from encoder_bench.metrics.spice import spice
from encoder_bench.metrics.statistics import Matrix, References, mean_percent, share, unavailable
from encoder_bench.metrics.statistics import Measure as Measure

ENTRY_POINTS = "encoder_bench.metrics"
LIKELIHOOD = "@likelihood"
"""Ends the name of a metric that scores the likeliest candidate instead of the generated answer."""

MetricFunction = Callable[[Sequence[str], References], Measure]
CorpusMetricFunction = Callable[[Sequence[str], References, References], Measure]
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is, and all that is known about its scores.

    Attributes:
        name: as recipes and records have it.
        function: predictions and references, one each per sample, to a `Measure`; where
            `needs_corpus` also the references of the whole split.
        runner: the task runner whose answers it scores (`vqa`, `captioning`...).
        higher_is_better: None for rates, of which neither end is better.
        unit: of the score and its interval.
        needs_corpus: whether a score depends on the whole split.
        backend: "java" where a Java program scores.
        graded: whether a sample's score is a degree; else 50 percent or more is right, less wrong.
        version: of the definition; raised where scores change.
    """

    name: str
    function: MetricFunction | CorpusMetricFunction
    runner: str
    higher_is_better: bool | None = True
    unit: Literal["percent", "count"] = "percent"
    needs_corpus: bool = False
    backend: Literal["python", "java"] = "python"
    graded: bool = False
    version: int = 1

    def measure(
        self, predictions: Sequence[str], references: References, corpus: References | None = None
    ) -> Measure:
        """Return the metric of one prediction per sample.

        It is n/a where a sample has no reference or the metric's program is missing. `corpus` are
        the references of the whole split; None where `references` are.

        Raises:
            DataError: a reference is not of the runner's form.
        """
        if not all(references):
            return unavailable(
                "the human answers to some samples are missing or not public; upload the run's "
                "exported file, where there is one, to the benchmark's server"
            )
        try:
            if self.needs_corpus:
                function = cast(CorpusMetricFunction, self.function)
                return function(predictions, references, corpus or references)
            return cast(MetricFunction, self.function)(predictions, references)
        except MissingDependencyError as error:
            return unavailable(str(error))

    def loss(self, before: float, after: float) -> float:
        """Return how much worse `after` is, in the metric's unit; 0 where no end is better."""
        sign = {True: 1, False: -1, None: 0}[self.higher_is_better]
        return sign * (before - after)


def per_answer(score: Callable[[str, Sequence[str]], float]) -> MetricFunction:
    """Return the metric that is the mean of one answer's score, in percent."""

    def measure(predictions: Sequence[str], references: References) -> Measure:
        pairs = zip(predictions, references, strict=True)
        return mean_percent([score(text, truths) / 100 for text, truths in pairs], share)

    return measure


def per_sample(scores: Callable[P, Matrix]) -> Callable[P, Measure]:
    """Return the metric that is the mean of an array of percentages, one per sample."""

    def measure(*texts: P.args, **named: P.kwargs) -> Measure:
        return mean_percent(scores(*texts, **named) / 100)

    return measure


# Version 2 tokenises hyphens, apostrophes, numbers, abbreviations and addresses as CoreNLP does;
# 3 also all of its abbreviations, letters with a full stop, and words that begin with one.
_caption = functools.partial(Metric, runner="captioning", graded=True, version=3)
_count = functools.partial(Metric, runner="counting")
_yes_no = functools.partial(Metric, runner="identification")
_vqa = functools.partial(Metric, runner="vqa")
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _vqa("vqa_accuracy", per_answer(vqa.vqa_accuracy)),
        # 2: the last form before 2021, which keeps apostrophes and colons
        _vqa("vqa_accuracy_pre2021", per_answer(vqa.vqa_accuracy_pre2021), version=2),
        _vqa("vqa_accuracy_normalised", per_answer(vqa.vqa_accuracy_normalised)),
        _vqa("vqa_accuracy_gvt", per_answer(vqa.vqa_accuracy_gvt)),
        _vqa("exact_match", per_answer(vqa.exact_match)),
        _caption("cider", per_sample(caption.cider)),
        _caption("cider@full-idf", per_sample(caption.cider), needs_corpus=True),
        *(_caption(f"bleu{order}", caption.bleu_of_order(order)) for order in (1, 2, 3, 4)),
        _caption("rouge_l", per_sample(caption.rouge_l)),
        _caption("meteor", meteor, backend="java"),
        _caption("spice", spice, backend="java", version=1),
        # 2: refusals and negative numbers are parse failures; 3: bounds too, 2.0 and 1,000 are not;
        # 5: negations are, and "there isn't one" is 0
        _count("counting_accuracy", per_answer(short_answers.counting_accuracy), version=5),
        _count(
            "counting_error", short_answers.counting_error,
            higher_is_better=False, unit="count", graded=True, version=5,
        ),
        _count("counting_accuracy_gvt", per_answer(short_answers.counting_accuracy_gvt)),
        _count(
            "counting_error_gvt", short_answers.counting_error_gvt,
            higher_is_better=False, unit="count", graded=True, version=2,  # 2: numbers are capped
        ),
        # 2: refusals and contradictions are parse failures, "none" is no
        _yes_no("yesno_accuracy", per_answer(short_answers.yesno_accuracy), version=3),
        _yes_no("yesno_precision", short_answers.yesno_precision, version=3),
        _yes_no("yesno_recall", short_answers.yesno_recall, version=3),
        _yes_no("yesno_f1", short_answers.yesno_f1, version=3),
        _yes_no(
            "yes_rate", per_answer(short_answers.yes_rate),
            higher_is_better=None, graded=True, version=3,
        ),
        _yes_no("yesno_accuracy_gvt", per_answer(short_answers.yesno_accuracy_gvt)),
    )
}  # fmt: skip
"""By name; a score is compared within one version only."""


def find_metric(name: str) -> Metric:
    """Return a metric by name; `NAME@likelihood` is NAME under that name.

    Other packages add metrics by the entry point `encoder_bench.metrics`.

    Raises:
        UnknownNameError: there is none; the nearest are suggested.
    """
    base = name.removesuffix(LIKELIHOOD)
    found = METRICS.get(base)
    if found is None:
        others = plugins(ENTRY_POINTS, Metric, METRICS)
        if base not in others:
            raise UnknownNameError("metric", name, [*METRICS, *others])
        found = others[base]
    return found if base == name else dataclasses.replace(found, name=name)


def recorded_metric(name: str) -> Metric:
    """Return the metric of a recorded score; one in percent, with no better end, if unknown."""
    try:
        return find_metric(name)
    except UnknownNameError as error:
        message = str(error)
        return Metric(name, lambda predictions, references: unavailable(message), "", None)


def runner_metrics(runner: str) -> list[str]:
    """Return the names of a task runner's metrics, the built-in ones first."""
    known = METRICS | plugins(ENTRY_POINTS, Metric, METRICS)
    return [name for name, metric in known.items() if metric.runner == runner]


def measure_java_once(sets: Iterable[tuple[Iterable[str], Sequence[str], References]]) -> None:
    """Score all captions by each Java program in one go: one start for all that follows."""
    pairs: dict[str, tuple[list[str], list[Sequence[str]]]] = {}
    for names, predictions, references in sets:
        for name in names:
            if recorded_metric(name).backend == "java" and all(references):
                texts, truths = pairs.setdefault(name, ([], []))
                texts += predictions
                truths += references
    for name, (texts, truths) in pairs.items():
        find_metric(name).measure(texts, truths)
