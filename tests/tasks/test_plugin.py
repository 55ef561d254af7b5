"""A task of another package: its reader, runner and recipe come by entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from encoder_bench.base.errors import EncoderBenchError, UnknownNameError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_task
from encoder_bench.data.folder import DataFolder, open_data
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import find_metric, recorded_metric
from encoder_bench.tasks.evaluate import evaluate
from encoder_bench.tasks.predictions import Reply
from encoder_bench.tasks.task import TaskSamples, find_runner, read_samples

MODULE = """
from pathlib import Path
from encoder_bench.data.readers import Reader
from encoder_bench.data.sample import Sample
from encoder_bench.metrics.metric import Metric, per_answer
from encoder_bench.tasks.task import Runner

RECIPE = Path(__file__).with_name("shouting.toml")


def read(files, task, source, split):
    image = files.root / "x.png"
    asked = [(n, f"{source} {n}?") for n in (1, 2)]
    return [Sample(f"{task}/{n}", task, n, image, text, ("YES",), "YES") for n, text in asked]


READER = Reader("loud-reader", read, {"whole": ("loud/questions.json",)})
RUNNER = Runner("shouting", parse=lambda text: text or None)
LOUD = Metric("loud", per_answer(lambda text, truths: 100.0 * text.isupper()), "shouting")
LENGTH = Metric(
    "vqa_length", per_answer(lambda text, truths: float(len(text))), "vqa",
    higher_is_better=False, unit="count", graded=True,
)
"""
ENTRIES = """
[encoder_bench.readers]
loud-reader = shouting_package:READER

[encoder_bench.metrics]
loud = shouting_package:LOUD
vqa_length = shouting_package:LENGTH

[encoder_bench.tasks]
shouting = shouting_package:RUNNER

[encoder_bench.task_recipes]
shouting = shouting_package:RECIPE
"""
TASK = """
description = "is it said loudly"
runner = "shouting"
reader = "loud-reader"
source = "whole"
prompt = "{question}"
metrics = ["loud"]
primary = "loud"
column = "Loud"
controls = []
"""

PEOPLE = """
description = "is a person in the image"
runner = "identification"
reader = "gvtbench"
source = "coco_mci"
prompt = "{question} Answer yes or no."
metrics = ["yesno_accuracy", "yes_rate"]
primary = "yesno_accuracy"
column = "People Acc"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "shouting_package.py").write_text(MODULE)
    (tmp_path / "shouting.toml").write_text(TASK)
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("shouting_package", None)


class Model:
    def answer(
        self, images: object, prompts: list[list[str]], decoding: object, candidates: object
    ) -> list[list[Reply]]:
        return [[Reply("YES" if "1" in text else "no") for text in group] for group in prompts]


def test_a_task_of_another_package_is_read_asked_and_scored(package: Path) -> None:
    recipe = load_task("shouting")
    task = read_samples(DataFolder("x", package), "shouting", recipe)
    scores = evaluate(
        Model(), [task], package / "out", batch_images=1, seed=0, reporter=QuietReporter()
    )["shouting"]
    assert scores.metrics["loud"].value == 50.0
    assert scores.definition["runner"] == "shouting"


def test_a_metric_of_another_package_scores_a_built_in_runners_answers(package: Path) -> None:
    recipe = load_task("vqa").model_copy(update={"metrics": ("vqa_accuracy", "vqa_length")})
    sample = Sample("vqa/1", "vqa", 1, package / "x.png", "1?", ("yes",) * 10, "yes")
    task = TaskSamples("vqa", recipe, [sample])
    scores = evaluate(
        Model(), [task], package / "out", batch_images=1, seed=0, reporter=QuietReporter()
    )["vqa"]
    assert scores.metrics["vqa_length"].value == 3.0
    assert scores.metric_versions == {"vqa_accuracy": 1, "vqa_length": 1}
    assert recorded_metric("vqa_length").higher_is_better is False


def test_a_metric_of_a_package_that_is_gone_is_no_error_in_a_record() -> None:
    assert recorded_metric("vqa_length").higher_is_better is None


def test_a_task_on_a_known_reader_is_one_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "people.toml"
    file.write_text(PEOPLE)
    recipe = load_task(str(file))
    task = read_samples(open_data("scenes:3:10:2:20"), "people", recipe, limit=6)
    assert len(task.samples) == 6
    scores = evaluate(Model(), [task], tmp_path, batch_images=2, seed=0, reporter=QuietReporter())[
        "people"
    ]
    assert scores.metrics["yesno_accuracy"].samples == 6
    assert (scores.column, scores.primary) == ("People Acc", "yesno_accuracy")


def test_names_of_other_packages_are_suggested(package: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'shouting'"):
        load_task("shoutin")
    with pytest.raises(UnknownNameError, match="did you mean 'loud-reader'"):
        DataFolder("x", package).samples("t", reader="loud-read", source="s", split="test")
    with pytest.raises(UnknownNameError, match="did you mean 'shouting'"):
        find_runner("shoutng")
    with pytest.raises(UnknownNameError, match="did you mean 'vqa_length'"):
        find_metric("vqa_lenght")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("[encoder_bench.metrics]\nloud = shouting_package:nothing", "cannot be loaded"),
        ("[encoder_bench.metrics]\nloud = shouting_package:READER", "not of type .*Metric"),
        ("[encoder_bench.tasks]\nshouting = shouting_package:LOUD", "not of type .*Runner"),
        ("[encoder_bench.task_recipes]\nshouting = nowhere_at_all:RECIPE", "cannot be loaded"),
    ],
)
def test_a_broken_entry_point_is_one_line(package: Path, entry: str, words: str) -> None:
    (package / "shouting-1.0.dist-info" / "entry_points.txt").write_text(entry)
    kind = "loud" if "metrics" in entry else "shouting"
    find = {"metrics": find_metric, "tasks": find_runner, "task_recipes": load_task}
    with pytest.raises(EncoderBenchError, match=rf"^entry point {kind} \(.*\): {words}"):
        find[entry.partition("]")[0].rpartition(".")[2]](kind)
