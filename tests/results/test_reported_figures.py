"""Published figures beside ours."""

from __future__ import annotations

import functools
import math

import pandas as pd
import pytest
from result_builders import encoder_facts, make_record, task_scores

from encoder_bench.base.errors import RecordError
from encoder_bench.results.formats import to_markdown
from encoder_bench.results.reported import (
    compare_reported,
    footnotes,
    load_reported,
    rank_agreement,
    reported_pages,
)

FAMILIES = ("deit", "dino", "mae", "dinov2", "clip")


of_photos = functools.partial(make_record, data="coco")


def test_drawn_scenes_are_not_set_beside_the_published_figures() -> None:
    drawn, photos = make_record("deit", data="scenes:5:24:2:6"), of_photos("deit", joint=True)
    with pytest.raises(RecordError, match="tested on drawn scenes"):
        reported_pages([drawn])
    assert set(compare_reported([drawn, photos])["Joint Tuning"]) == {True}


def test_the_packaged_table_has_five_encoders_in_both_modes() -> None:
    frame = load_reported()
    assert len(frame) == 10
    assert sorted(set(frame["Family"])) == sorted(FAMILIES)
    deit = frame[(frame["Family"] == "deit") & ~frame["Joint Tuning"]].iloc[0]
    assert (deit["VQA Acc"], deit["CIDEr"], deit["OC Acc"]) == (48.3, 65.8, 37.5)


def test_difference_is_ours_minus_published() -> None:
    frame = compare_reported([of_photos("deit", values=(50.0, 60.0, 40.0, 80.0))])
    by_column = frame.set_index("Column")
    assert by_column["Difference"]["VQA Acc"] == pytest.approx(1.7)
    assert by_column["Difference"]["Avg"] == pytest.approx(57.5 - 58.8)
    assert math.isnan(by_column["Difference"]["SPICE"])


def test_families_that_were_not_published_are_left_out() -> None:
    assert compare_reported([of_photos("siglip")]).empty
    with pytest.raises(RecordError, match="published encoder's family"):
        reported_pages([of_photos("siglip")])


def test_equal_figures_correlate_perfectly() -> None:
    published = load_reported()
    records = [
        of_photos(
            str(row["Family"]),
            joint=bool(row["Joint Tuning"]),
            values=(row["VQA Acc"], row["CIDEr"], row["OC Acc"], row["MCI Acc"]),
        )
        for row in published.to_dict("records")
    ]
    agreement = rank_agreement(compare_reported(records))
    vqa = agreement[agreement["Column"] == "VQA Acc"]
    assert vqa["Spearman"].tolist() == pytest.approx([1.0, 1.0])
    assert vqa["Kendall"].tolist() == pytest.approx([1.0, 1.0])
    spice = agreement[agreement["Column"] == "SPICE"]
    assert spice["Spearman"].isna().all()
    assert "ranks need 3" in spice["Reason"].iloc[0]


def test_rank_correlation_against_a_worked_example() -> None:
    # Ranks 1..5 against 2, 1, 4, 3, 5: sum of d^2 = 4, rho = 1 - 24/120 = 0.8; 8 concordant and
    # 2 discordant pairs, tau = 0.6. Interval: z = atanh(0.8), error = sqrt(1.32 / 2).
    comparison = pd.DataFrame(
        {
            "Setting": "s",
            "Joint Tuning": False,
            "Column": "VQA Acc",
            "Ours": [1.0, 2.0, 3.0, 4.0, 5.0],
            "Published": [2.0, 1.0, 4.0, 3.0, 5.0],
        }
    )
    row = rank_agreement(comparison).iloc[0]
    assert row["Spearman"] == pytest.approx(0.8)
    assert row["Kendall"] == pytest.approx(0.6)
    assert row["Spearman low"] == pytest.approx(math.tanh(math.atanh(0.8) - 1.959964 * 0.66**0.5))


def test_few_encoders_have_no_interval() -> None:
    records = [of_photos(name, values=(i, i, i, i)) for i, name in enumerate(FAMILIES[:3])]
    row = rank_agreement(compare_reported(records)).iloc[0]
    assert not math.isnan(row["Spearman"])
    assert math.isnan(row["Spearman low"])
    assert "too few" in row["Reason"]


def test_footnotes_name_the_averages_that_are_not_means_and_the_size_of_oc() -> None:
    text = "\n".join(footnotes())
    assert "mae, frozen, is printed as 53.4; the mean of its four figures is 53.975" in text
    assert "mae, joint, is printed as 58.2; the mean of its four figures is 58.275" in text
    assert text.count("is printed as") == 2
    assert "half-width of up to 6.9" in text


def test_the_page_shows_both_figures_and_the_footnotes() -> None:
    facts = encoder_facts("dinov2-b").model_copy(update={"family": "dinov2"})
    text = to_markdown(reported_pages([of_photos(facts=facts)]))
    assert "50.0 ±2.0 / 51.3 (-1.3)" in text
    assert "n/a / 16.1" in text
    assert "54.3" in text


def test_a_random_twin_is_no_published_encoder_and_a_task_not_run_is_not_available() -> None:
    twin = encoder_facts("random:deit", supervision="none", pretrained=False)
    twin = twin.model_copy(update={"family": "deit"})
    alone = of_photos("deit", tasks={"oc": task_scores("oc", 40.0)})
    frame = compare_reported([alone, of_photos("random:deit", facts=twin)])
    assert set(frame["Visual Encoder"]) == {"DEIT"}
    ours = frame.set_index("Column")["Ours"]
    assert ours["OC Acc"] == 40.0
    assert math.isnan(ours["CIDEr"])
