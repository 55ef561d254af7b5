"""Intervals: they cover as often as they say, and they respect clusters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from encoder_bench.metrics.statistics import (
    bootstrap_interval,
    cluster_sums,
    expanded_tail,
    plain_ratio,
    ratio,
    split_variance,
    swap_p,
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


def test_swaps_of_a_ratio_of_sums_against_every_assignment() -> None:
    # Three clusters, precision: all 2^3 assignments counted by hand below.
    a = np.array([[1.0, 1.0], [0.0, 2.0], [0.0, 1.0]])
    b = np.array([[1.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
    p = swap_p(a, b, ["x", "y", "z"], ratio, swaps=4000)
    # Only the middle cluster differs: swapped or not, the difference is 50 points.
    assert p == 1.0
    b[2] = [1.0, 1.0]
    # Now two differ, on 75 points observed: extreme where both go the same way, half of them.
    assert swap_p(a, b, ["x", "y", "z"], ratio, swaps=4000) == pytest.approx(0.5, abs=0.03)


def test_few_images_make_an_interval_wider_than_its_percentiles() -> None:
    assert expanded_tail(5) < expanded_tail(50) < expanded_tail(5000) < 0.025


def test_the_variance_of_a_mean_over_seeds_is_split() -> None:
    found = split_variance([50.0, 54.0, 58.0], [1.959964, 1.959964, 1.959964])
    assert found.sampling == pytest.approx(1.0, abs=1e-6)
    assert found.seed == pytest.approx(16.0 / 3)
    assert found.seed_share == pytest.approx(16 / 19)
    assert split_variance([50.0], [2.0]).seed == 0.0
    assert split_variance([50.0, 50.0], [0.0, 0.0]).seed_share == 0.0
