"""Intervals: they cover as often as they say, and they respect clusters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from encoder_bench.metrics.metric import find_metric
from encoder_bench.metrics.statistics import (
    Variance,
    bootstrap_interval,
    cluster_sums,
    expanded_tail,
    jackknife,
    leave_one_out,
    plain_ratio,
    ratio,
    score_interval,
    share_interval,
)


def columns(correct: np.ndarray) -> np.ndarray:
    return np.stack([correct.astype(float), np.ones(len(correct))], axis=1)


def test_cluster_sums_add_up() -> None:
    values = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    assert cluster_sums(values, ["a", "b", "a"]).tolist() == [[2.0, 2.0], [0.0, 1.0]]


def test_ratios_are_percent_or_plain_and_undefined_where_nothing_counts() -> None:
    sums = np.array([[1.0, 4.0], [0.0, 0.0]])
    assert ratio(sums)[0] == 25.0
    assert plain_ratio(sums)[0] == 0.25
    assert np.isnan(ratio(sums)[1])


def test_one_image_has_no_interval() -> None:
    assert bootstrap_interval(columns(np.array([1, 0])), ["a", "a"], ratio) is None


def test_questions_of_one_image_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    per_image = rng.integers(0, 2, 50)
    repeated = np.repeat(per_image, 10)
    images = np.repeat(np.arange(50), 10).tolist()
    clustered = bootstrap_interval(columns(repeated), images, ratio)
    naive = bootstrap_interval(columns(repeated), range(500), ratio)
    assert clustered is not None
    assert naive is not None
    assert (clustered[1] - clustered[0]) > 2.5 * (naive[1] - naive[0])


def test_the_same_seed_gives_the_same_interval() -> None:
    values = columns(np.random.default_rng(1).integers(0, 2, 80))
    assert bootstrap_interval(values, range(80), ratio, seed=5) == bootstrap_interval(
        values, range(80), ratio, seed=5
    )


def right_answers(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """An accuracy whose truth is 60; questions on one image share its difficulty."""
    return columns(rng.random(len(images)) < rng.beta(3, 2, images.max() + 1)[images])


def yes_answers(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """An F1 whose truth is 80: right in 80%, half of the truths yes."""
    truth = rng.random(len(images)) < 0.5
    said = truth ^ (rng.random(len(images)) < 0.2)
    return np.stack([2.0 * (truth & said), truth + 1.0 * said], axis=1)


def caption_scores(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """A CIDEr whose truth is 90: a mean of skewed numbers, one per image as far as it counts."""
    score = rng.gamma(2.0, 0.45, images.max() + 1)
    return np.stack([score[images], np.ones(len(images))], axis=1)


@pytest.mark.parametrize(
    ("draw", "truth"), [(right_answers, 60.0), (yes_answers, 80.0), (caption_scores, 90.0)]
)
def test_95_percent_intervals_cover_94_to_96_percent(
    draw: Callable[[np.random.Generator, np.ndarray], np.ndarray], truth: float
) -> None:
    # 2,000 data sets of 120 images; the standard error of the coverage is half a point
    rng = np.random.default_rng(11)
    covered, sets = 0, 2000
    for number in range(sets):
        images = np.repeat(np.arange(120), rng.integers(1, 4, 120))
        values = draw(rng, images)
        if draw is caption_scores:
            images, values = np.arange(120), values[np.unique(images, return_index=True)[1]]
        interval = bootstrap_interval(values, images.tolist(), ratio, resamples=300, seed=number)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.94 <= covered / sets <= 0.96


@pytest.mark.parametrize("images", [30, 200])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_of_shares_cover_93_to_97_percent_near_all_and_none(
    images: int, skewed: bool
) -> None:
    # 600 sets each; questions on one image share its difficulty. At 0.97, 30 images, one question
    # each, the bootstrap's interval covers 55%. Few failures make coverage jump: 98.5% at most.
    rng = np.random.default_rng(2)
    sets = 600
    for truth in (0.5, 0.9, 0.97):
        covered = 0
        for _ in range(sets):
            sizes = 1 + (rng.geometric(0.4, images) if skewed else np.ones(images, dtype=int))
            clusters = np.repeat(np.arange(images), sizes)
            difficulty = rng.beta(8 * truth, 8 * (1 - truth), images)
            right = columns(rng.random(len(clusters)) < difficulty[clusters])
            interval = share_interval(right, clusters.tolist())
            assert interval is not None
            covered += interval[0] <= 100 * truth <= interval[1]
        assert 0.93 <= covered / sets <= 0.985, (truth, covered / sets)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_and_none_right_have_intervals_of_some_width(value: float) -> None:
    alone = share_interval(columns(np.full(60, value)), range(60))
    shared = share_interval(columns(np.full(60, value)), [n // 10 for n in range(60)])
    assert alone is not None
    assert shared is not None
    inner = {0.0: (alone[1], shared[1]), 1.0: (100 - alone[0], 100 - shared[0])}[value]
    assert 5 < inner[0] < 7
    assert inner[1] > 40, "six images of ten questions are six samples"
    assert (alone[0] if value == 0 else alone[1]) == 100 * value


def test_two_images_have_an_interval_and_one_has_none() -> None:
    right = columns(np.array([1.0, 0.0]))
    assert share_interval(right, [0, 1]) == pytest.approx((0.3, 99.7), abs=0.1)
    assert share_interval(right, [0, 0]) is None


def test_right_answers_are_shares_and_captions_are_not() -> None:
    for name, low in (("vqa_accuracy", 28.3), ("rouge_l", 100.0)):
        found = find_metric(name).measure(["a"] * 4, [["a"] * 10] * 4)
        interval = score_interval(found.values, range(4), found.statistic)
        assert interval == pytest.approx((low, 100.0), abs=0.1)


def test_an_interval_depends_on_no_column_beside_its_own() -> None:
    rng = np.random.default_rng(1)
    images = [index // 3 for index in range(300)]
    own, other = (columns(rng.random(300) < share) for share in (0.2, 0.5))
    beside = bootstrap_interval(
        np.concatenate([own, other], axis=1), images, lambda sums: ratio(sums[:, :2])
    )
    assert beside == pytest.approx(bootstrap_interval(own, images, ratio), abs=1e-9)


def test_a_resample_draws_as_many_clusters_as_there_are() -> None:
    def drawn(sums: np.ndarray) -> np.ndarray:
        return np.asarray(sums[:, 1])

    interval = bootstrap_interval(columns(np.zeros(70)), range(70), drawn, resamples=500)
    assert interval == (70.0, 70.0)


def test_the_jackknife_of_a_mean_is_its_textbook_variance() -> None:
    scores = np.random.default_rng(3).normal(50.0, 10.0, 40)
    values = np.stack([scores, np.ones(40)], axis=1)[None]
    found = jackknife(leave_one_out(values, range(40), plain_ratio)[:, 0])
    assert found == pytest.approx(scores.var(ddof=1) / 40)


def test_the_jackknife_of_a_ratio_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    images = np.repeat(np.arange(200), rng.integers(1, 6, 200))
    values = yes_answers(rng, images)
    error = float(jackknife(leave_one_out(values[None], images.tolist(), ratio)[:, 0])) ** 0.5
    interval = bootstrap_interval(values, images.tolist(), ratio)
    assert interval is not None
    assert (interval[1] - interval[0]) / 3.94 == pytest.approx(error, rel=0.06)


def test_few_images_make_an_interval_wider_than_its_percentiles() -> None:
    assert expanded_tail(5) < expanded_tail(50) < expanded_tail(5000) < 0.025


def test_each_part_of_a_variance_has_its_own_quantile() -> None:
    both = Variance(1.0, 1e9, 16.0 / 3, 2)
    assert both.half_width() == pytest.approx((1.95996**2 + 4.30265**2 * 16 / 3) ** 0.5, rel=1e-4)
    assert both.seed_share == pytest.approx(16 / 19)
    assert both.p(both.half_width(0.003)) == pytest.approx(0.003)
    assert Variance(1.0, 99).seed_share is None
    assert Variance(0.0, 99, 0.0, 2).seed_share == 0.0
    assert both.p(0.0) == 1.0
    assert both.p(1e-17) == 1.0  # older scipy's quantile of 1/2 is not quite 0
