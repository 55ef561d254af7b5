"""Two runs compared, and a results folder looked after."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_builders import draw_pictures, make_run
from result_builders import make_record
from typer.testing import CliRunner

from encoder_bench.base.errors import RecordError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_task
from encoder_bench.base.record import RunRecord, write_record
from encoder_bench.cli.app import app
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.statistics import Difference
from encoder_bench.results.compare import compare_runs, compare_task, differing_settings
from encoder_bench.results.compare_page import as_json, metric_page, task_page, to_html
from encoder_bench.results.export import all_predictions, export_harness, export_parquet
from encoder_bench.results.formats import to_markdown
from encoder_bench.results.paired import Scores
from encoder_bench.results.paired import difference as scores_difference
from encoder_bench.results.runs import find_run, find_runs, inventory, remove_runs
from encoder_bench.tasks.evaluate import evaluate
from encoder_bench.tasks.predictions import Prediction, Reply, read_predictions
from encoder_bench.tasks.task import TaskSamples


def answer(number: int, score: float, text: str = "x") -> Prediction:
    return Prediction(
        sample_id=f"vqa/{number}",
        image_id=number // 2,
        question="what?",
        prediction=text,
        references=("x",),
        scores={"vqa_accuracy": score},
    )


def difference(a: list[float], b: list[float], images: list[str]) -> Difference:
    samples = tuple(str(number) for number in range(len(a)))
    sides = (np.stack([np.array(side), np.ones(len(side))], axis=1)[None] for side in (a, b))
    return scores_difference(*(Scores((0,), samples, tuple(images), side) for side in sides))


def test_the_difference_is_b_minus_a_over_shared_samples() -> None:
    a = [answer(n, 100.0) for n in range(4)] + [answer(9, 0.0)]
    b = [answer(n, 100.0 if n else 0.0, f"b{n}") for n in range(4)] + [answer(7, 0.0)]
    record = make_record()
    task = compare_task("vqa", [(record, a)], [(record, b)])
    assert (task.samples, task.only_a, task.only_b) == (4, 1, 1)
    assert task.difference is not None
    assert task.difference.value == -25.0
    assert task.difference.low is not None
    assert task.difference.low <= -25.0
    assert [flip.sample_id for flip in task.flips] == ["vqa/0"]
    assert task.flips[0].prediction_b == "b0"
    assert task.right is not None
    assert (task.right.both, task.right.only_a, task.right.only_b, task.right.neither) == (
        3,
        1,
        0,
        0,
    )


def test_no_shared_sample_has_a_reason_and_no_number() -> None:
    record = make_record()
    task = compare_task("vqa", [(record, [answer(1, 0.0)])], [(record, [answer(2, 0.0)])])
    assert task.difference is None
    assert "no sample" in str(task.reason)


def test_one_image_of_many_questions_proves_nothing() -> None:
    # One image's 50 questions flip, 30 images of one question do not: no exact test of 50
    # independent samples, p 2e-15, but one image.
    images = [*["first"] * 50, *(str(n) for n in range(30))]
    found = difference([0.0] * 80, [100.0] * 50 + [0.0] * 30, images)
    assert found.p > 0.2
    assert found.low is not None
    assert found.low < 0


def test_all_seeds_of_two_rows_are_compared(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path, "dino", joint=False, skill=0.3, count=20, seed=seed)
        make_run(tmp_path, "clip", joint=False, skill=0.8, count=20, seed=seed)
    command = ["compare", "dino/frozen", "clip/frozen", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [len(found["a"]), len(found["b"])] == [3, 3]
    oc = next(task for task in found["tasks"] if task["task"] == "oc")
    means = [
        np.mean([find_run(tmp_path, f"{name}/frozen/{seed}").tasks["oc"].metrics[oc["metric"]].value
                 for seed in range(3)])
        for name in ("dino", "clip")
    ]  # fmt: skip
    assert [oc["score_a"], oc["score_b"]] == pytest.approx(means)
    assert oc["difference"]["seed_share"] is not None
    printed = CliRunner().invoke(app, command, env={"COLUMNS": "250"})
    assert "seed 0 (" in printed.output
    assert "seed 2 (" in printed.output
    assert "not known" not in printed.output
    write_record(tmp_path, make_record("dino", seed=0, encoder_lr=3.0, data="coco"))
    with pytest.raises(RecordError, match="means 4 runs; choose one of"):
        find_runs(tmp_path, "dino/frozen")


def test_equal_runs_differ_by_nothing() -> None:
    scores = [0.0, 100.0, 30.0]
    found = difference(scores, scores, ["1", "1", "2"])
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_samples_of_one_image_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    a = np.zeros(200)
    b = np.repeat(generator.normal(0.0, 10.0, 50), 4)
    alone = difference(list(a), list(b), [str(n) for n in range(200)])
    clustered = difference(list(a), list(b), [str(n // 4) for n in range(200)])
    widths = [found.high - found.low for found in (clustered, alone) if found.high and found.low]
    assert widths[0] > 1.5 * widths[1]
    assert clustered.p > alone.p


def test_captions_are_not_right_or_wrong(tmp_path: Path) -> None:
    a = make_run(tmp_path, "dino", joint=False, skill=0.3, count=10)
    b = make_run(tmp_path, "clip", joint=False, skill=0.8, count=10)
    comparison = compare_runs(tmp_path, [a], [b])
    by_task = {task.task: task for task in comparison.tasks}
    assert by_task["captioning"].right is None
    assert by_task["oc"].right is not None
    text = to_markdown([task_page(comparison)])
    assert "DINO, frozen, seed 0" in text
    assert "CIDEr" in text


def test_what_else_differs_is_said() -> None:
    assert differing_settings(make_record("a"), make_record("b", joint=True)) == ()
    assert differing_settings(make_record("a"), make_record("b", data="coco")) == (
        "test data", "training data",
    )  # fmt: skip
    assert differing_settings(make_record(), make_record(adapter="resampler")) == (
        "adapter recipe",
    )


def test_the_html_shows_flipped_pictures_and_escapes(tmp_path: Path) -> None:
    a = make_run(tmp_path, "dino", joint=False, skill=0.1, count=10)
    b = make_run(tmp_path, "clip", joint=False, skill=0.9, count=10)
    facts = a.encoder.model_copy(update={"display_name": "<b>x</b>"})
    comparison = compare_runs(tmp_path, [a.model_copy(update={"encoder": facts})], [b])
    page = to_html(comparison, draw_pictures(tmp_path / "pictures", 5))
    assert "data:image/png;base64," in page
    assert "<b>x</b>" not in page
    assert "samples that flipped" in page
    assert "http://" not in page


def test_predictions_that_are_not_the_records_are_refused(tmp_path: Path) -> None:
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    path = tmp_path / "predictions" / record.run_id / "oc.jsonl"
    path.write_text(path.read_text().replace("oc/1", "oc/9"))
    with pytest.raises(RecordError, match=r"oc\.jsonl: not the predictions"):
        read_predictions(tmp_path, record, "oc")


def test_a_half_written_line_is_named(tmp_path: Path) -> None:
    from encoder_bench.base.hashing import hash_file

    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    path = tmp_path / "predictions" / record.run_id / "oc.jsonl"
    path.write_text(path.read_text()[:-20])
    tasks = {
        **record.tasks,
        "oc": record.tasks["oc"].model_copy(update={"predictions_sha256": hash_file(path)}),
    }
    with pytest.raises(RecordError, match=r"oc\.jsonl:4: not a whole prediction"):
        read_predictions(tmp_path, record.model_copy(update={"tasks": tasks}), "oc")


def test_no_record_reaches_out_of_its_folder(tmp_path: Path) -> None:
    from encoder_bench.tasks.predictions import predictions_path

    record = make_record()
    task = record.tasks["vqa"].model_copy(update={"predictions_file": "../../../etc/passwd"})
    record = record.model_copy(update={"tasks": {"vqa": task}})
    path = predictions_path(tmp_path, record, "vqa")
    assert path == tmp_path / "predictions" / record.run_id / "passwd"


def test_find_run_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    record = make_record()
    write_record(tmp_path, record)
    assert find_run(tmp_path, record.run_id[:6]) == record
    with pytest.raises(RecordError, match="no run 'zzz'; give an id or one of"):
        find_run(tmp_path, "zzz")
    write_record(tmp_path, record.model_copy(update={"run_id": record.run_id[:6] + "other"}))
    with pytest.raises(RecordError, match="begins 2 runs"):
        find_run(tmp_path, record.run_id[:6])


def test_find_run_by_encoder_mode_and_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_record(tmp_path, make_record("timm:vit/base", seed=seed))
    joint = make_record("timm:vit/base", joint=True)
    write_record(tmp_path, joint)
    assert find_run(tmp_path, "timm:vit/base/joint") == joint
    assert find_run(tmp_path, "timm:vit/base/frozen/1").seed == 1
    with pytest.raises(RecordError, match="means 2 runs; choose one of"):
        find_run(tmp_path, "timm:vit/base/frozen")
    with pytest.raises(RecordError, match="no run 'dino/frozen'"):
        find_run(tmp_path, "dino/frozen")


def test_packed_predictions_are_read_like_plain_ones(tmp_path: Path) -> None:
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    plain = read_predictions(tmp_path, record, "oc")
    path = tmp_path / "predictions" / record.run_id / "oc.jsonl"
    packed = path.with_name("oc.jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert read_predictions(tmp_path, record, "oc") == plain
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(RecordError, match=r"oc\.jsonl: predictions cannot be read"):
        read_predictions(tmp_path, record, "oc")


def real_run(results: Path, encoder: str, said: list[str]) -> RunRecord:
    """Write a run whose captions and counts the real runners scored."""
    tasks = {}
    draft = make_record(encoder, tasks={})
    for task, truth in (("captioning", "a red square on a {n}"), ("oc", "{n}")):
        samples = [
            Sample(f"{task}/{n}", task, n, Path("x.png"), "", (truth.format(n=n),), "")
            for n in range(len(said))
        ]
        recipe = load_task(task)
        kept = {"oc": recipe.metrics, "captioning": ("cider", "bleu1", "bleu4", "spice")}[task]
        answers = [truth.format(n=n) if text == "right" else text for n, text in enumerate(said)]

        class Reader:
            told = answers

            def answer(self, images: Any, prompts: Any, decoding: Any, candidates: Any) -> Any:
                choice = candidates[0] if candidates else None
                return [[Reply(self.told[int(path.stem)], choice)] for path in images]

        samples = [replace(s, image_path=Path(f"{n}.png")) for n, s in enumerate(samples)]
        recipe = recipe.model_copy(update={"metrics": kept})
        tasks |= evaluate(
            Reader(),  # type: ignore[arg-type]
            [TaskSamples(task, recipe, samples)],
            results / "predictions" / draft.run_id,
            controls=False,
            batch_images=4,
            seed=0,
            reporter=QuietReporter(),
        )
    record = draft.model_copy(update={"tasks": tasks})
    write_record(results, record)
    return record


def test_every_metric_is_compared_as_a_whole(tmp_path: Path) -> None:
    a = real_run(tmp_path, "dino", ["7", "right", "right", "a thing", "right", "right"])
    b = real_run(tmp_path, "clip", ["right"] * 6)
    comparison = compare_runs(tmp_path, [a], [b])
    by_name = {m.metric: m for task in comparison.tasks for m in task.metrics}
    assert set(by_name) == {"cider", "bleu1", "bleu4", "spice", *b.tasks["oc"].metrics}
    for name, task in (("bleu4", "captioning"), ("counting_error", "oc"), ("cider", "captioning")):
        found, before, after = by_name[name], a.tasks[task], b.tasks[task]
        assert found.score_a == pytest.approx(before.metrics[name].value)
        assert found.score_b == pytest.approx(after.metrics[name].value)
        assert found.difference is not None
        assert found.difference.value == pytest.approx(found.score_b - found.score_a)
    assert by_name["bleu4"].difference is not None
    assert by_name["bleu4"].difference.value > 0
    assert by_name["spice"].difference is None or by_name["spice"].reason is None
    text = to_markdown([metric_page(comparison)])
    assert "| bleu4 |" in text
    assert json.loads(json.dumps(as_json(comparison)))["tasks"][0]["metrics"]


def test_an_unknown_runner_has_a_reason_for_each_metric(tmp_path: Path) -> None:
    a = make_run(tmp_path, "dino", joint=False, skill=0.3, count=6)
    b = make_run(tmp_path, "clip", joint=False, skill=0.8, count=6)
    task = compare_runs(tmp_path, [a], [b]).tasks[0]
    assert task.difference is not None
    assert all(metric.reason for metric in task.metrics)


def test_counts_are_not_exported_as_percentages(tmp_path: Path) -> None:
    record = real_run(tmp_path, "dino", ["9", "right", "right", "right"])
    found = export_harness(record)
    error = record.tasks["oc"].metrics["counting_error"]
    assert error.value is not None
    assert found["results"]["oc"]["counting_error,none"] == error.value
    accuracy = record.tasks["oc"].metrics["counting_accuracy"].value
    assert accuracy is not None
    assert found["results"]["oc"]["counting_accuracy,none"] == accuracy / 100
    assert found["higher_is_better"]["oc"]["counting_error"] is False


def test_the_commands_list_show_and_name_what_is_damaged(tmp_path: Path) -> None:
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)

    def invoke(*command: str) -> Any:
        arguments = ["results", *command, "--results", str(tmp_path)]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "220"})

    assert record.run_id in invoke("ls").stdout
    assert json.loads(invoke("ls", "--json").stdout)["runs"][0]["encoder"] == "dino"
    shown = invoke("show", "dino/frozen")
    assert "Proof of training" in shown.stdout, shown.output
    assert json.loads(invoke("show", record.run_id, "--json").stdout)["run_id"] == record.run_id
    (tmp_path / "records" / "broken.json").write_text("{")
    listed = invoke("ls")
    assert listed.exit_code == 1
    assert "broken.json" in listed.stderr


def test_inventory_names_what_is_damaged_and_keeps_the_rest(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("a"))
    cut = write_record(tmp_path, make_record("b"))
    cut.write_text(cut.read_text()[:100])
    records, damaged = inventory(tmp_path)
    assert len(records) == 1
    assert len(damaged) == 1
    assert cut.name in damaged[0]


def test_remove_takes_record_predictions_and_checkpoints_or_nothing(tmp_path: Path) -> None:
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    (tmp_path / "checkpoints" / record.run_id).mkdir(parents=True)
    with pytest.raises(RecordError):
        next(remove_runs(tmp_path, [record.run_id, "zzz"]))
    assert inventory(tmp_path) == ([record], [])
    assert [*remove_runs(tmp_path, [record.run_id[:8], record.run_id])] == [record.run_id]
    assert not [path for path in tmp_path.rglob("*") if record.run_id in str(path)]


def test_a_run_that_cannot_be_removed_keeps_its_record_and_the_one_before_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (make_run(tmp_path, n, joint=False, skill=0.5, count=4) for n in ("a", "b"))
    elsewhere = tmp_path / "large-disk"
    elsewhere.mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / first.run_id).symlink_to(elsewhere)
    (tmp_path / "checkpoints" / second.run_id).touch()  # no folder
    line = ["results", "rm", first.run_id, second.run_id, "--results", str(tmp_path)]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, NotADirectoryError)
    assert result.stdout == f"removed {first.run_id}\n"
    assert inventory(tmp_path) == ([second], [])
    assert elsewhere.is_dir()


def test_export_of_predictions_and_of_harness_scores(tmp_path: Path) -> None:
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    frame = all_predictions(tmp_path, [record])
    assert len(frame) == 16
    assert set(frame["task"]) == {"vqa", "captioning", "oc", "mci"}
    harness = json.loads(json.dumps(export_harness(record)))
    value = record.tasks["vqa"].metrics["vqa_accuracy"].value
    assert value is not None
    assert harness["results"]["vqa"]["vqa_accuracy,none"] == pytest.approx(value / 100)
    assert harness["results"]["captioning"]["spice,none"] is None
    assert harness["n-samples"]["vqa"]["effective"] == 4


def test_parquet_reads_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    record = make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    path = export_parquet(tmp_path, [record], tmp_path / "all.parquet")
    read = pd.read_parquet(path)
    assert read["sample_id"].tolist() == all_predictions(tmp_path, [record])["sample_id"].tolist()


def test_p_of_a_difference_on_every_image_is_that_of_the_sign_test() -> None:
    # Eight images, B better by one on each: only 2 of 2^8 assignments are as extreme.
    found = difference([0.0] * 8, [1.0] * 8, [str(n) for n in range(8)])
    assert found.p == pytest.approx(2 / 2**8, abs=0.003)


def test_one_image_has_no_interval() -> None:
    found = difference([0.0, 0.0], [1.0, 2.0], ["1", "1"])
    assert (found.value, found.low, found.high) == (1.5, None, None)
    assert found.interval(1) == "n/a"
