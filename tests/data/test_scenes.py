"""The embedded scenes: true, disjoint, balanced, and the same bytes from the same seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.base.errors import DataError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.data.folder import DataFolder, open_data
from encoder_bench.data.scenes.build import SceneSizes, parse_sizes, scenes_folder, write_scenes
from encoder_bench.data.scenes.grammar import (
    captions,
    counting_questions,
    describe,
    identification_questions,
    visual_questions,
)
from encoder_bench.data.scenes.graph import (
    CANVAS,
    KINDS,
    MAX_HIDDEN,
    MAX_THINGS,
    MIN_HIDDEN,
    Thing,
    covered,
    render,
    sample_scene,
)


def digest(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, SceneSizes(seed=3, train=30, val=5, test=20), QuietReporter())
    assert digest(tmp_path) == digest(drawn)


def test_another_seed_gives_other_pictures(drawn: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, SceneSizes(seed=4, train=2, val=1, test=1), QuietReporter())
    pictures = {value for name, value in digest(tmp_path).items() if name.endswith(".png")}
    assert len(pictures) == 4
    assert not pictures & set(digest(drawn).values())


def test_no_picture_is_in_two_splits(drawn: Path) -> None:
    pictures = [value for name, value in digest(drawn).items() if name.endswith(".png")]
    assert len(pictures) == 55
    assert len(set(pictures)) == 55


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_every_statement_about_a_scene_is_true(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    assert 1 <= len(scene.things) <= MAX_THINGS
    for thing in scene.things:
        assert 0 < thing.x < CANVAS
        assert 0 < thing.y < CANVAS
        assert thing.hidden == 0 or MIN_HIDDEN < thing.hidden < MAX_HIDDEN
    for question in counting_questions(scene, rng):
        kind = next(k for k in KINDS if k in question.text.replace("crosses", "cross"))
        assert int(question.answer) == sum(t.kind == kind for t in scene.things)
    for question in identification_questions(scene, rng):
        kind = question.text.split()[1]
        assert (question.answer == "Yes.") == any(t.kind == kind for t in scene.things)
    for question in visual_questions(scene, rng, 10):
        words = question.text.rstrip("?").split()
        if question.kind == "what color":
            same = sorted((t for t in scene.things if t.kind == words[-1]), key=lambda t: t.radius)
            assert len(same) == (2 if words[-2] in ("larger", "smaller") else 1)
            assert same[-1 if words[-2] != "smaller" else 0].colour == question.answer
        if question.kind == "how many":
            kind = next(k for k in KINDS if k in question.text)
            assert int(question.answer) == sum(
                t.kind == kind and not t.hidden for t in scene.things
            )
        if question.kind == "is the":
            a, b = (next(t for t in scene.things if t.kind == w) for w in (words[2], words[-1]))
            true = a.x < b.x if "left" in words else a.y < b.y
            assert question.answer == ("yes" if true else "no")
        if question.kind == "is there":
            held = any(t.colour == words[-2] and t.kind == words[-1] for t in scene.things)
            assert question.answer == ("yes" if held else "no")
    page = describe(scene, rng)
    assert page.count(".") == len(scene.things)
    lines = captions(scene, rng)
    assert len(set(lines)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_is_drawn_where_it_is_said_to_be(kind: str) -> None:
    for seed in range(20):
        scene = sample_scene(np.random.default_rng(seed))
        thing = Thing(kind, "red", "large", 24.0, 40.0, 16.0, angle=0.3, tilt=0.8, tilt_angle=1.0)
        there, empty = (
            np.asarray(render(replace(scene, things=things)), dtype=np.float64)
            for things in ((thing,), ())
        )
        redness = [pixels[..., 0] - pixels[..., 1:].mean(axis=2) for pixels in (there, empty)]
        rows, columns = np.nonzero(redness[0] - redness[1] > 40)
        if len(rows) > 60:  # not on a red background
            assert np.hypot(columns.mean() + 0.5 - thing.x, rows.mean() + 0.5 - thing.y) < 2.5
            assert np.hypot(columns - thing.x, rows - thing.y).max() < 1.3 * thing.radius
            return
    pytest.fail(f"no {kind} is seen")


def test_what_is_hidden_is_measured_on_what_later_things_cover() -> None:
    found = [
        scene
        for seed in range(60)
        if (scene := sample_scene(np.random.default_rng(seed))) and scene.things[0].hidden
    ]
    assert found
    for scene in found:
        first, *later = (covered(thing) for thing in scene.things)
        hidden = first & np.logical_or.reduce(later)
        assert scene.things[0].hidden == pytest.approx(hidden.sum() / first.sum())


def test_answers_are_balanced_so_that_the_image_is_needed(tmp_path: Path) -> None:
    write_scenes(tmp_path, SceneSizes(seed=0, train=5, val=1, test=120), QuietReporter())
    folder = DataFolder("scenes", tmp_path)
    for task, most in (("oc", 0.40), ("mci", 0.56)):
        samples = folder.samples(task, reader="gvtbench", source=f"coco_{task}", split="test")
        by_question: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            by_question[sample.question][sample.target] += 1
        right = sum(counts.most_common(1)[0][1] for counts in by_question.values())
        assert right / len(samples) < most
    counts = Counter(
        s.target for s in folder.samples("oc", reader="gvtbench", source="coco_oc", split="test")
    )
    assert counts["0"] > 0


def test_vqa_answers_are_ten_and_agree_with_the_truth(drawn: Path) -> None:
    path = drawn / "vqav2" / "v2_mscoco_val2014_annotations.json"
    for row in json.loads(path.read_text())["annotations"]:
        answers = [answer["answer"] for answer in row["answers"]]
        assert len(answers) == 10
        assert answers.count(row["multiple_choice_answer"]) >= 8
        assert [answer["answer_id"] for answer in row["answers"]] == list(range(1, 11))


def test_the_cache_is_filled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path))
    folder = scenes_folder("scenes:1:3:1:2", QuietReporter())
    before = digest(folder)
    assert open_data("scenes:1:3:1:2").root == folder
    assert digest(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["scenes:x", "scenes:1:2", "scenes:0:0:1:1", "scenes:-1"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"scenes:SEED"):
        parse_sizes(name)
