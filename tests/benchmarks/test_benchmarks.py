"""The benchmarks measure what they say: the same answers, fewer tokens. Speed is not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import encoders, full_size, metrics, precision, side_by_side, utilisation
from benchmarks.mllm import questions, run_bench
from benchmarks.summary import SIDE_BY_SIDE_AIMS, summary
from benchmarks.timing import ratio, rounds


def test_a_small_benchmark() -> None:
    result = run_bench(
        images=2, visual_tokens=16, repeats=1, new_tokens=3, questions_per_image=(1, 3)
    )
    json.dumps(result)
    alone, three = (result["shared_prefix"][count] for count in ("1", "3"))
    assert alone["shared_tokens"] == alone["separate_tokens"]
    assert three["shared_tokens"] < three["separate_tokens"]
    for entry in (alone, three):
        assert entry["speed_up"] == entry["separate_seconds"] / entry["shared_seconds"]
    assert all(entry["answers_equal"] for entry in result["generation"].values())
    lines = summary(result)
    assert len(lines) == 2 * 2 + 2 * 2
    assert sum("aim: 4 or more" in line for line in lines) == 1


def test_every_precision_and_attention_is_compared_with_float32() -> None:
    result = precision.run_bench(images=2, questions_per_image=2, visual_tokens=16, repeats=1)
    json.dumps(result)
    ways = result["precision"]
    assert [*ways] == [f"{p}, {a}" for p in ("float32", "bfloat16") for a in ("sdpa", "eager")]
    exact, rounded = ways["float32, sdpa"], ways["bfloat16, sdpa"]
    assert exact["gradient_difference"] < 1e-6 < rounded["gradient_difference"] < 0.2
    assert exact["loss_difference"] < 1e-6 < rounded["loss_difference"] < 0.1
    assert exact["equal_answers"] == exact["step_over_float32_sdpa"] == 1
    assert ways["float32, eager"]["gradient_difference"] < 1e-4
    assert len(summary(result)) == 8


@pytest.mark.parametrize("joint", [False, True])
def test_ours_and_the_plain_way_learn_and_answer_the_same(joint: bool, tmp_path: Path) -> None:
    job = side_by_side.Job("tiny-deit", joint, questions=3, images=8, tests=2, steps=2)
    ours, plain = (way(job, tmp_path / name) for name, way in side_by_side.WAYS.items())
    assert len(ours["losses"]) == 2
    assert ours["losses"] == pytest.approx(plain["losses"], abs=1e-4)
    assert ours["losses"][0] != pytest.approx(ours["losses"][1], abs=1e-4)
    assert len(ours["answers"]) == 6
    assert ours["answers"] == plain["answers"]
    for done in (ours, plain):
        done["whole"] = [20.0, 10.0]
    for clock in (0, 1):
        for name, of in side_by_side.RATIOS.items():
            assert of(ours, plain, clock) > 0, name
    assert {name.partition(": ")[2] for name in SIDE_BY_SIDE_AIMS} <= {*side_by_side.RATIOS}


def test_metrics_are_compared_where_they_are_equal() -> None:
    result = metrics.run_bench(images=20, answers=40, repeats=1)
    json.dumps(result)
    cider = result["cider"]
    assert cider["times_as_fast"] == cider["pycocoevalcap_seconds"] / cider["seconds"]
    assert cider["largest_difference"] < 1e-9
    assert result["vqa"]["all_variants_seconds"] > 0


def test_questions_of_one_image_differ() -> None:
    assert len(set(questions(18, offset=3))) == 18


def test_utilisation_counts_the_operations_of_the_step() -> None:
    """A linear map costs 2 operations a weight and token forward, 4 more where it trains."""
    llm = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    sizes = utilisation.Sizes(encoder="tiny-deit", llm=llm, images=2, questions=2)
    report = utilisation.run_bench(device="cpu", repeats=1, sizes=sizes)
    json.dumps(report)
    frozen, joint = report["frozen"], report["joint"]
    peak = report["settings"]["peak_flops"]
    assert frozen["mfu"] == pytest.approx(frozen["flops"] / frozen["seconds"] / peak)
    images, tokens = 2, report["settings"]["visual_tokens"] + 2
    encoder = report["settings"]["encoder_parameters"] * images * tokens
    assert joint["flops"] - frozen["flops"] == pytest.approx(4 * encoder, rel=0.25)
    assert len(summary(report)) == 2


def test_encoders_are_measured_beside_the_librarys_own_call() -> None:
    report = encoders.run_bench(batch=1, repeats=1, sources=["hf"])
    json.dumps(report)
    hf = report["hf"]
    forward = hf["forward"]  # of one round: the ratio is its two times' own
    for clock, ratio_name in (("", "throughput_ratio"), ("cpu_", "throughput_ratio_cpu")):
        own = forward[f"library_{clock}seconds"] / forward[f"ours_{clock}seconds"]
        assert hf[ratio_name] == own
    assert len(summary(report)) == 4


def test_every_round_runs_every_way_in_turn_from_both_ends() -> None:
    order: list[str] = []
    times = rounds([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert [len(way.wall) for way in times] == [len(way.cpu) for way in times] == [2, 2]
    assert ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


def test_without_a_gpu_utilisation_says_why_it_is_not_there() -> None:
    report = utilisation.run_bench(device="cpu")
    assert summary(report) == [f"model FLOPs utilisation  n/a  because {report['reason']}"]


def test_the_peak_of_a_known_gpu_is_its_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert utilisation.peak_flops(cuda)[0] == peak


def test_a_small_folder_of_the_full_form_is_read_indexed_and_encoded() -> None:
    result = full_size.run_bench(share=0.0003, images=8)
    json.dumps(result)
    first, later = (result["full_size"][name] for name in ("first_index", "later_start"))
    assert result["samples"] == first["samples"] == later["samples"] > 0
    assert result["index_bytes"] > 0
    encode = result["encode"]
    assert encode["of_a_dataloader"] == pytest.approx(
        encode["images_per_second"] / encode["dataloader_images_per_second"]
    )
    assert sum("aim" in line for line in summary(result)) == 5
