"""Contrasts and ties with the best: which pairs are tested, and the correction over them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_builders import make_run
from result_builders import encoder_facts, make_record, table
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from encoder_bench.base.errors import RecordError
from encoder_bench.base.record import RunRecord, read_records, write_record
from encoder_bench.cli.app import app
from encoder_bench.metrics.statistics import holm, other_pairs
from encoder_bench.results.contrasts import (
    BLIND,
    ENCODERS,
    JOINT,
    TWINS,
    best_ties,
    contrast_frame,
    contrasts,
    over_twins,
)
from encoder_bench.results.formats import FORMATS
from encoder_bench.results.grouping import find_twin, group_records
from encoder_bench.results.paired import Scores, difference
from encoder_bench.results.table import build_tables


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for name, frozen, joint in (("best", 0.9, 0.95), ("loser", 0.1, 0.9)):
        blind = {"no-image": 0.1, "constant": 0.5}
        make_run(folder, name, joint=False, skill=frozen, count=80, blind=blind)
        make_run(folder, name, joint=True, skill=joint, count=80, blind=blind)
    return folder


def test_every_pair_once_and_in_its_family(results: Path) -> None:
    frame = contrast_frame(contrasts(results, read_records(results)))
    counts = frame[frame["column"] == "OC Acc"].groupby("family").size()
    assert counts[ENCODERS] == 2, "one pair of encoders in each half"
    assert counts[JOINT] == 2
    assert counts[BLIND] == 4


def test_a_row_is_held_against_its_best_blind_control(results: Path) -> None:
    found = [c for c in contrasts(results, read_records(results)) if c.family == BLIND]
    assert {c.b for c in found} == {"constant"}
    best = next(c for c in found if (c.a, c.mode, c.column) == ("BEST", "frozen", "OC Acc"))
    assert best.difference.value > 0
    loser = next(c for c in found if (c.a, c.mode, c.column) == ("LOSER", "frozen", "OC Acc"))
    assert loser.difference.value < 0


def test_differences_are_those_of_the_means(results: Path) -> None:
    found = contrasts(results, read_records(results))
    for each in found:
        assert each.difference.value == pytest.approx(each.score_a - each.score_b)
        assert each.difference.p <= each.p_holm <= 1
    frozen = next(
        c for c in found if (c.family, c.mode, c.column) == (ENCODERS, "frozen", "OC Acc")
    )
    assert (frozen.a, frozen.b) == ("BEST", "LOSER")
    assert frozen.p_holm < 0.01
    assert frozen.difference.low is not None
    assert frozen.difference.low > 0
    gain = next(c for c in found if c.family == JOINT and c.a.startswith("LOSER"))
    assert gain.b == "LOSER, frozen"
    assert gain.difference.value > 0


def drawn(rng: np.random.Generator, image: np.ndarray, seed: float, noise: float) -> Scores:
    """Scores of a row whose mean is 50: what `image` holds for all, seeds and noise of its own."""
    images, seeds = len(image), 3
    own = rng.normal(0.0, 10.0, (1, images, 1)) + rng.normal(0.0, seed, (seeds, 1, 1))
    scores = 50.0 + image[None, :, None] + own + rng.normal(0.0, noise, (seeds, images, 2))
    names = tuple(f"{n}/{q}" for n in range(images) for q in range(2))
    values = scores.reshape(seeds, -1)
    return Scores(
        tuple(range(seeds)),
        names,
        tuple(name.partition("/")[0] for name in names),
        np.stack([values, np.ones_like(values)], axis=2),
    )


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """Make collections short: statsmodels asks for one at each correction."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize(("seed", "noise"), [(0.0, 40.0), (2.0, 10.0), (6.0, 10.0)])
def test_families_of_true_nulls_are_rejected_at_most_at_the_stated_rate(
    seed: float, noise: float
) -> None:
    # 4 encoders that do not differ, 6 pairs, 3 seeds, 60 images of 2 questions; 80 families.
    # Seeds averaged and only images resampled, (6, 10) rejects most families.
    rng = np.random.default_rng(5)
    families, single, rejected = 80, 0.0, 0
    for _ in range(families):
        image = rng.normal(0.0, 20.0, 60)
        rows = [drawn(rng, image, seed, noise) for _ in range(4)]
        p = [difference(a, b).p for a, b in combinations(rows, 2)]
        single += np.mean(np.array(p) < 0.05) / families
        rejected += min(holm(p)) < 0.05
    assert single <= 0.06
    assert rejected / families <= 0.1, "0.05 and twice its standard error"


def test_one_seed_says_that_the_variance_of_seeds_is_not_known(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path, "a", joint=False, skill=0.9, count=40, seed=seed)
    make_run(tmp_path, "bb", joint=False, skill=0.1, count=40)
    found = contrasts(tmp_path, read_records(tmp_path))
    assert {c.difference.seed_share for c in found} == {None}
    printed = CliRunner().invoke(app, ["contrasts", "--results", str(tmp_path)])
    assert "variance of seeds is not known" in printed.output


def test_a_difference_that_one_seed_makes_is_not_established() -> None:
    # Three seeds, one of which is 30 points better on every image: on images alone p < 0.001.
    rng = np.random.default_rng(0)
    base = drawn(rng, np.zeros(60), 0.0, 5.0)
    lifted = replace(base, values=base.values + np.array([[30.0], [0.0], [0.0]])[:, None] * [1, 0])
    found = difference(base, lifted)
    assert found.value == pytest.approx(10.0)
    assert found.p > 0.3
    assert found.low is not None
    assert found.low < 0
    assert found.seed_share is not None
    assert found.seed_share > 0.95
    other = replace(lifted, seeds=(3, 4, 5))
    assert difference(base, other).p > 0.3, "other seeds are not paired"


def test_the_command_prints_and_writes_them(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "contrasts.csv"
    done = CliRunner().invoke(app, ["contrasts", "--results", str(results), "--write", str(target)])
    assert done.exit_code == 0, done.output
    assert ENCODERS in done.output
    assert target.read_text().startswith("setting,family,mode,column,a,b,")
    nothing = CliRunner().invoke(app, ["contrasts", "--results", str(tmp_path)])
    assert isinstance(nothing.exception, RecordError)


def test_holm_against_the_published_steps() -> None:
    # Four tests: 4 p1, 3 p2, 2 p3, p4, each at least the one before (Holm 1979).
    assert holm([0.005, 0.011, 0.02, 0.04]) == pytest.approx([0.02, 0.033, 0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("rows", [3, 6, 10])
def test_of_equal_rows_none_is_called_worse_than_the_best_more_often_than_stated(rows: int) -> None:
    rng, false, naive, families = np.random.default_rng(rows), 0, 0, 2000
    for _ in range(families):
        scores = rng.normal(size=(rows, 60))
        best = scores.mean(axis=1).argmax()
        others = np.delete(scores, best, axis=0)
        p_values = list(
            ttest_rel(np.broadcast_to(scores[best], others.shape), others, axis=1).pvalue
        )
        naive += min(holm(p_values)) < 0.05
        false += min(holm(p_values, unseen=other_pairs(rows))) < 0.05
    assert false / families < 0.06
    assert naive / families > {3: 0.06, 6: 0.08, 10: 0.12}[rows], "the best was chosen by the data"


def test_a_clear_loser_is_out_and_a_near_equal_ties(tmp_path: Path) -> None:
    make_run(tmp_path, "best", joint=False, skill=0.95, count=80)
    make_run(tmp_path, "nearest", joint=False, skill=0.93, count=80)
    make_run(tmp_path, "loser", joint=False, skill=0.1, count=80)
    records = read_records(tmp_path)
    ties = best_ties(tmp_path, records)
    groups = [labels for (_, _, column), labels in ties.items() if column == "OC Acc"]
    assert groups == [frozenset({"BEST", "NEAREST"})]
    frame = table(records, ties=ties).set_index("Visual Encoder")
    assert not frame["OC Acc tied"]["LOSER"]
    assert pd.isna(frame["OC Acc tied"]["no image"])  # nothing was tested
    assert "not significantly worse" in FORMATS["md"](build_tables(records, ties=ties))
    assert "not significantly worse" not in FORMATS["md"](build_tables(records))


def test_seeds_are_averaged_sample_by_sample(tmp_path: Path) -> None:
    for seed in range(5):
        make_run(tmp_path, "best", joint=False, skill=0.95, count=60, seed=seed)
        make_run(tmp_path, "loser", joint=False, skill=0.1, count=60, seed=seed)
    ties = best_ties(tmp_path, read_records(tmp_path))
    assert set(ties.values()) == {frozenset({"BEST"})}


def test_a_half_of_one_has_no_ties(tmp_path: Path) -> None:
    make_run(tmp_path, "best", joint=False, skill=0.9, count=4)
    assert best_ties(tmp_path, read_records(tmp_path)) == {}


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"vqa\.jsonl: not there; keep"):
        best_ties(tmp_path, [make_record("a"), make_record("b")])


def with_twins(folder: Path) -> list[RunRecord]:
    """Two seeds of an encoder and of its twin, in both modes, and another encoder."""
    for seed, joint in ((0, False), (1, False), (0, True), (1, True)):
        make_run(folder, "dino", joint=joint, skill=0.9, seed=seed, count=80)
        make_run(folder, "random:dino", joint=joint, skill=0.3, seed=seed, count=80)
    make_run(folder, "clip", joint=False, skill=0.2, count=80)
    return read_records(folder)


def test_what_pretraining_adds_is_a_difference_to_the_twin_alone(tmp_path: Path) -> None:
    records = with_twins(tmp_path)
    twins = [c for c in contrasts(tmp_path, records) if c.family == TWINS]
    assert {(c.mode, c.a, c.b) for c in twins} == {
        (mode, "DINO", "RANDOM:DINO") for mode in ("frozen", "joint")
    }
    assert {(c.a, c.b) for c in contrasts(tmp_path, records) if c.family == ENCODERS} == {
        ("DINO", "CLIP")
    }
    rows = table(records, gains=over_twins(tmp_path, records))
    name = "OC Acc over random twin"
    shown = rows[rows[name].notna()]
    assert shown["Visual Encoder"].tolist() == ["DINO", "DINO"]
    expected = next(c for c in twins if (c.mode, c.column) == ("frozen", "OC Acc")).difference
    assert expected.seed_share is not None, "seeds are in the interval"
    assert shown.iloc[0][[name, f"{name} low", f"{name} high"]].tolist() == [
        expected.value, expected.low, expected.high,
    ]  # fmt: skip
    assert expected.low > 0


def test_without_a_twin_of_its_own_the_one_row_of_random_weights_is_taken(tmp_path: Path) -> None:
    for name, skill in (("dino", 0.9), ("clip", 0.8), ("mae", 0.3)):
        make_run(tmp_path, name, joint=False, skill=skill, count=80)
    assert [r.encoder.pretrained for r in read_records(tmp_path)].count(False) == 1
    pairs = {(c.a, c.b) for c in contrasts(tmp_path, read_records(tmp_path)) if c.family == TWINS}
    assert pairs == {("DINO", "MAE"), ("CLIP", "MAE")}
    make_run(tmp_path, "random:dino", joint=False, skill=0.3, count=80)
    pairs = {(c.a, c.b) for c in contrasts(tmp_path, read_records(tmp_path)) if c.family == TWINS}
    assert pairs == {("DINO", "RANDOM:DINO"), ("CLIP", "MAE")}


def test_an_encoder_of_which_a_part_is_random_is_no_twin() -> None:
    half = encoder_facts("a+random:b", supervision="none", pretrained=False)
    whole = encoder_facts("random:a+b", supervision="none", pretrained=False)
    rows = group_records([make_record("a+b"), make_record(facts=half)])[0].rows
    own = next(row for row in rows if row.pretrained)
    assert find_twin(own, rows) is None
    rows = group_records([make_record("a+b"), make_record(facts=half), make_record(facts=whole)])[
        0
    ].rows
    place = find_twin(next(row for row in rows if row.pretrained), rows)
    assert place is not None
    assert rows[place].records[0].encoder.name == "random:a+b"


def test_random_weights_of_other_pixels_are_said_to_be_no_twin(tmp_path: Path) -> None:
    """As `random:NAME` is without the `--weights` whose configuration says other pixels."""
    records = with_twins(tmp_path)
    for record in records:
        if record.encoder.name == "random:dino" and not record.joint:
            own = record.encoder.model_copy(update={"tokens": 1369})
            write_record(tmp_path, record.model_copy(update={"encoder": own}))
    shown = FORMATS["md"](build_tables(read_records(tmp_path)))
    tokens = next(r.encoder.tokens for r in records if r.encoder.name == "dino")
    note = f"RANDOM:DINO, frozen, has 1,369 tokens and not {tokens}, so that it is no twin of DINO:"
    assert shown.count(note) == 1
    assert shown.count("no twin") == 1, "the joint one is a twin"
    assert "no twin" not in FORMATS["md"](build_tables(records))


def test_the_column_over_the_twin_is_there_only_with_a_twin(tmp_path: Path) -> None:
    with_twins(tmp_path)
    shown = CliRunner().invoke(app, ["table", "--results", str(tmp_path), "--format", "md"]).stdout
    assert "| OC Acc over random twin |" in shown
    assert "what pretraining itself adds" in " ".join(shown.split())
    assert "SPICE over random twin" not in shown
    alone = make_record("dino")
    assert "over random twin" not in FORMATS["md"](build_tables([alone]))
