"""The tools of this folder on what the real task runners write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from result_builders import make_record, table

from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import DecodingSettings, load_task
from encoder_bench.base.record import RunRecord, write_record
from encoder_bench.data.sample import Sample
from encoder_bench.gate.baseline import accept
from encoder_bench.gate.check import check
from encoder_bench.results.compare import compare_runs
from encoder_bench.results.export import all_predictions
from encoder_bench.results.report.page import write_report
from encoder_bench.tasks.controls import MEAN_IMAGE
from encoder_bench.tasks.evaluate import evaluate
from encoder_bench.tasks.predictions import Images, Prompts, Reply, read_controls, read_predictions
from encoder_bench.tasks.task import TaskSamples

COUNT = 24


class Guesser:
    """Answers with the image's number, and one too many from image `wrong_from` on."""

    def __init__(self, wrong_from: int) -> None:
        self._wrong_from = wrong_from

    def answer(
        self,
        images: Images,
        prompts: Prompts,
        decoding: DecodingSettings,
        candidates: Sequence[str] = (),
    ) -> list[list[Reply]]:
        return [
            [Reply(self._text(path), candidates[0])] * len(group)
            for path, group in zip(images, prompts, strict=True)
        ]

    def _text(self, path: Path | None) -> str:
        if path is None or path == MEAN_IMAGE:
            return "I\u2028cannot tell"
        return str(int(path.stem) + (int(path.stem) >= self._wrong_from))


def run_oc(results: Path, encoder: str, wrong_from: int) -> RunRecord:
    """Score the shipped OC recipe with a guesser and write record and predictions."""
    recipe = load_task("oc")
    draft = make_record(encoder, tasks={})
    samples = [
        Sample(
            sample_id=f"oc/{number}",
            task="oc",
            image_id=number,
            image_path=Path(f"/images/{number}.png"),
            question="How many?",
            references=(str(number),),
            target=str(number),
        )
        for number in range(COUNT)
    ]
    scores = evaluate(
        Guesser(wrong_from), [TaskSamples("oc", recipe, samples)],
        results / "predictions" / draft.run_id, batch_images=8, seed=0, reporter=QuietReporter(),
    )  # fmt: skip
    record = draft.model_copy(update={"tasks": scores})
    write_record(results, record)
    return record


def test_scores_in_the_table_are_the_runners(tmp_path: Path) -> None:
    record = run_oc(tmp_path, "dino", 12)
    frame = table([record])
    assert frame["OC Acc"][0] == 50.0
    labels = frame["Visual Encoder"].tolist()
    assert labels[1:] == [
        "no image", "mean image", "shuffled images", "constant answer", "majority per question",
    ]  # fmt: skip
    assert frame["OC Acc"].tolist()[1] == 0.0


def test_the_mean_of_the_samples_is_the_score(tmp_path: Path) -> None:
    record = run_oc(tmp_path, "dino", 18)
    primary = record.tasks["oc"].primary
    scores = [each.scores[primary] for each in read_predictions(tmp_path, record, "oc")]
    mean = sum(score for score in scores if score is not None) / COUNT
    assert mean == pytest.approx(record.tasks["oc"].metrics[primary].value)
    blind = read_controls(tmp_path, record, "oc")["no-image"]
    assert {each.outcome for each in blind} == {"unparsable"}
    assert {each.prediction for each in blind} == {"I\u2028cannot tell"}
    assert len(all_predictions(tmp_path, [record])) == COUNT * 6


def test_compare_and_report_read_them(tmp_path: Path) -> None:
    a, b = run_oc(tmp_path, "dino", 12), run_oc(tmp_path, "clip", 18)
    task = compare_runs(tmp_path, [a], [b]).tasks[0]
    assert task.difference is not None
    assert task.difference.value == pytest.approx(25.0)
    assert task.right is not None
    assert (task.right.only_a, task.right.only_b) == (0, 6)
    assert [flip.sample_id for flip in task.flips] == sorted(f"oc/{n}" for n in range(12, 18))
    assert "How many?" in write_report(tmp_path).read_text()


def test_a_planted_error_of_the_model_turns_the_gate_red(tmp_path: Path) -> None:
    record = run_oc(tmp_path / "accepted", "dino", 20)
    accept(tmp_path / "baseline", tmp_path / "accepted", [record.run_id], reason="first")
    run_oc(tmp_path / "same", "dino", 20)
    assert check(tmp_path / "baseline", tmp_path / "same").passed
    run_oc(tmp_path / "worse", "dino", 6)
    assert not check(tmp_path / "baseline", tmp_path / "worse", margin=100.0).passed
