"""The evaluation loop with models whose answers are known: scores, controls, resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from encoder_bench.base.errors import DataError, RecipeError, UnknownNameError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import DecodingSettings, TaskRecipe, load_task
from encoder_bench.base.record import TaskScores
from encoder_bench.data.sample import Sample
from encoder_bench.tasks.controls import MEAN_IMAGE, majority_answers, shuffled_images
from encoder_bench.tasks.evaluate import evaluate
from encoder_bench.tasks.predictions import Images, Predictor, Prompts, Reply
from encoder_bench.tasks.task import TaskSamples, find_runner

ANSWERS = {
    "vqa": ["red", "two", "yes", "left"],
    "captioning": ["a red dog runs", "two cats sleep", "a blue bus stops", "one big tree stands"],
    "oc": ["0", "1", "2", "7"],
    "mci": ["Yes.", "No.", "Yes.", "No."],
}


def sample(task: str, image: int, question: int) -> Sample:
    answer = ANSWERS[task][image % 4]
    return Sample(
        sample_id=f"{task}/{image}/{question}",
        task=task,
        image_id=image,
        image_path=Path(f"/images/{image}.png"),
        question="" if task == "captioning" else f"Question {question} ?",
        references=(*[answer] * 9, "other") if task == "vqa" else (answer,),
        target=answer,
        facets={"answer": answer},
    )


def samples(task: str, images: int = 12) -> list[Sample]:
    questions = 1 if task == "captioning" else 2
    return [sample(task, image, q) for image in range(images) for q in range(questions)]


class Model:
    """Answers by image, as its table says; blind without one. Counts how often it is asked."""

    def __init__(self, task: str, answers: dict[str, str] | None = None, fail_at: int = 0) -> None:
        self.answers = answers or {str(s.image_path): s.target for s in samples(task)}
        self.asked: list[tuple[Path | None, str]] = []
        self.fail_at = fail_at

    def answer(
        self,
        images: Images,
        prompts: Prompts,
        decoding: DecodingSettings,
        candidates: Sequence[str] = (),
    ) -> list[list[Reply]]:
        if self.fail_at and len(self.asked) >= self.fail_at:
            raise KeyboardInterrupt
        self.asked += [
            (path, prompt) for path, group in zip(images, prompts, strict=True) for prompt in group
        ]
        return [
            [self.reply(path, prompt, candidates) for prompt in group]
            for path, group in zip(images, prompts, strict=True)
        ]

    def reply(self, path: Path | None, prompt: str, candidates: Sequence[str]) -> Reply:
        blind = path is None or path == MEAN_IMAGE
        choice = candidates[len(prompt) % len(candidates)] if candidates else None
        return Reply("blind" if blind else self.answers[str(path)], choice)


def run(
    task: str, model: Predictor, folder: Path, recipe: TaskRecipe | None = None, batch: int = 3
) -> TaskScores:
    asked = TaskSamples(task, recipe or load_task(task), samples(task))
    return evaluate(model, [asked], folder, batch_images=batch, seed=0, reporter=QuietReporter())[
        task
    ]


@pytest.mark.parametrize("task", ["vqa", "oc", "mci"])
def test_a_model_that_is_right_scores_a_hundred(task: str, tmp_path: Path) -> None:
    scores = run(task, Model(task), tmp_path)
    own = scores.metrics[scores.primary]
    assert own.value == pytest.approx(100.0)
    assert (own.samples, own.images) == (24, 12)
    assert scores.parse_failures == 0
    for control in ("no-image", "mean-image", "shuffled-images", "constant", "question-majority"):
        blind = scores.controls[control][scores.primary]
        assert blind.value is not None
        assert blind.value < 80


def test_the_record_says_which_definition_of_a_metric_was_used(tmp_path: Path) -> None:
    versions = run("oc", Model("oc"), tmp_path).metric_versions
    assert versions["counting_accuracy"] == versions["counting_accuracy@likelihood"] == 5
    assert versions["counting_accuracy_gvt"] == 1


def test_other_metrics_are_broken_down_too(tmp_path: Path) -> None:
    scores = run("mci", Model("mci"), tmp_path)
    recall = scores.more_breakdowns["yesno_recall"]["answer"]
    assert recall["Yes."].value == 100.0
    assert recall["No."].value is None
    assert "yesno_accuracy" not in scores.more_breakdowns


def test_captions_have_no_majority_and_spice_says_why_it_is_missing(tmp_path: Path) -> None:
    recipe = load_task("captioning").model_copy(update={"metrics": ("cider", "spice")})
    scores = run("captioning", Model("captioning"), tmp_path, recipe=recipe)
    assert "question-majority" not in scores.controls
    cider = scores.metrics["cider"].value
    assert cider is not None
    assert cider > 900  # ten at most, in percent; captions of three words have no 4-grams
    assert scores.metrics["spice"].value is None
    assert "CoreNLP" in (scores.metrics["spice"].reason or "")


def test_a_model_that_does_not_answer_is_unparsed_and_not_wrong_in_disguise(tmp_path: Path) -> None:
    silent = {str(s.image_path): "I cannot tell" for s in samples("oc")}
    scores = run("oc", Model("oc", silent), tmp_path)
    assert scores.parse_failures == 24
    assert scores.metrics["counting_accuracy"].value == 0.0
    assert scores.metrics["counting_error"].value is None
    rows = [json.loads(line) for line in (tmp_path / "oc.jsonl").read_text().splitlines()]
    assert {row["outcome"] for row in rows if row["control"] is None} == {"unparsable"}


def test_precision_recall_and_rate_of_a_model_that_says_yes(tmp_path: Path) -> None:
    yes = {str(s.image_path): "Yes" for s in samples("mci")}
    values = {k: v.value for k, v in run("mci", Model("mci", yes), tmp_path).metrics.items()}
    assert values["yes_rate"] == 100.0
    assert values["yesno_recall"] == 100.0
    assert values["yesno_precision"] == 50.0
    assert values["yesno_f1"] == pytest.approx(200 / 3)


def test_an_interrupted_evaluation_resumes_and_ends_the_same(tmp_path: Path) -> None:
    whole = run("oc", Model("oc"), tmp_path / "whole")
    killed = Model("oc", fail_at=12)
    with pytest.raises(KeyboardInterrupt):
        run("oc", killed, tmp_path / "killed")
    with (tmp_path / "killed" / "oc.partial.jsonl").open("a") as stream:
        stream.write('{"sample_id": "oc/11/0", "predic')  # half a line
    again = Model("oc")
    resumed = run("oc", again, tmp_path / "killed")
    assert resumed == whole
    assert len(killed.asked) >= 12
    assert len(killed.asked) + len(again.asked) == (12 + 2) * 2
    assert not (tmp_path / "killed" / "oc.partial.jsonl").exists()


def test_a_prompt_is_asked_once_of_an_image_and_once_blind(tmp_path: Path) -> None:
    for task, prompts in (("captioning", 1), ("oc", 2)):
        model = Model(task)
        run(task, model, tmp_path)
        assert len(model.asked) == len(set(model.asked)) == (12 + 2) * prompts


def test_choices_of_an_earlier_version_are_asked_again(tmp_path: Path) -> None:
    whole = run("oc", Model("oc"), tmp_path / "whole")
    (tmp_path / "old").mkdir()
    rows = [
        {"sample_id": "oc/0/0", "prediction": "3", "control": None},
        {"sample_id": "oc/0/0", "prediction": "3", "control": "@likelihood"},
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "old" / "oc.partial.jsonl").write_text(text)
    assert run("oc", Model("oc"), tmp_path / "old") == whole


def test_a_finished_file_is_not_asked_again(tmp_path: Path) -> None:
    first = run("vqa", Model("vqa"), tmp_path)
    again = Model("vqa")
    assert run("vqa", again, tmp_path) == first
    assert again.asked == []


def test_the_batch_size_changes_nothing(tmp_path: Path) -> None:
    one = run("vqa", Model("vqa"), tmp_path / "one", batch=1)
    assert run("vqa", Model("vqa"), tmp_path / "many", batch=50) == one


def test_no_image_keeps_its_own_when_shuffled() -> None:
    for seed in range(20):
        for image_id, path in shuffled_images(samples("oc"), seed).items():
            assert path != Path(f"/images/{image_id}.png")


def asked(question: str, target: str, image: int) -> Sample:
    name = f"{image}/{question}"
    return Sample(name, "vqa", image, Path(f"{image}.png"), question, (target,), target)


def test_the_majority_is_fitted_on_training_answers() -> None:
    training = [asked("colour?", "red", 1), asked("colour?", "red", 2), asked("kind?", "cat", 3)]
    test = [asked("colour?", "blue", 7), asked("colour?", "blue", 8), asked("new?", "x", 8)]
    assert majority_answers(test, training) == ["red", "red", "red"]


def test_without_training_answers_no_image_tells_its_own() -> None:
    # Every question is asked of one image alone: the oracle scores 100, cross-fitting 0.
    test = [asked(f"what {n}?", f"answer {n}", n) for n in range(40)]
    assert all(a != s.target for a, s in zip(majority_answers(test), test, strict=True))
    shared = [asked("how many?", "2" if n % 4 else "3", n) for n in range(40)]
    assert majority_answers(shared) == ["2"] * 40
    assert majority_answers(shared[:1]) == [""]


def test_a_run_fits_the_majority_on_its_training_samples(tmp_path: Path) -> None:
    test = samples("oc")
    training = [replace(test[0], question=s.question, target="31", image_id=-1) for s in test]
    task = TaskSamples("oc", load_task("oc"), test, training=training)
    evaluate(Model("oc"), [task], tmp_path, batch_images=3, seed=0, reporter=QuietReporter())
    lines = map(json.loads, (tmp_path / "oc.jsonl").read_text().splitlines())
    said = {line["prediction"] for line in lines if line["control"] == "question-majority"}
    assert said == {"31"}


def test_unknown_runner_metric_and_repeated_sample(tmp_path: Path) -> None:
    recipe = load_task("oc")
    with pytest.raises(UnknownNameError, match="did you mean 'counting'"):
        find_runner("countin")
    wrong = recipe.model_copy(update={"metrics": ("counting_acuracy",)})
    with pytest.raises(RecipeError, match="did you mean 'counting_accuracy'"):
        run("oc", Model("oc"), tmp_path, wrong)
    missing = recipe.model_copy(update={"primary": "counting_error", "metrics": recipe.metrics[:1]})
    with pytest.raises(RecipeError, match="primary"):
        run("oc", Model("oc"), tmp_path, missing)
    with pytest.raises(DataError, match="occurs twice"):
        TaskSamples("oc", recipe, [samples("oc")[0]] * 2).check()
    unclear = replace(samples("oc")[0], references=("some",))
    with pytest.raises(DataError, match=r"oc/0/0: its answer 'some' is none that 'counting'"):
        TaskSamples("oc", recipe, [unclear]).check()
    with pytest.raises(DataError, match="no samples"):
        TaskSamples("oc", recipe, []).check()
