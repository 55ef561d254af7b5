"""Every finding of `data lint` on data that has it, and none on data that has not."""

from __future__ import annotations

import itertools
import json
import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import TaskRecipe, load_task
from encoder_bench.cli.app import app
from encoder_bench.data import fetch
from encoder_bench.data.folder import open_data
from encoder_bench.data.images import (
    NEAR_GREY,
    NEAR_SHARE,
    Fingerprint,
    fingerprint,
    fingerprints,
    near_duplicates,
    same_files,
)
from encoder_bench.data.lint import check_folder, lint_samples
from encoder_bench.data.sample import Sample, Split
from encoder_bench.data.sample_table import SampleTable


def sample(number: int, image: int, question: str, answer: str) -> Sample:
    return Sample(f"t/{number}", "t", image, Path("x"), question, (answer,), answer)


def clean(count: int = 400) -> list[Sample]:
    """Yes/no questions whose answer the words do not tell, each kind as often yes as no."""
    kinds = ["dog", "cat", "bus", "cup"]
    return [
        sample(i, i // 2, f"Does {kinds[i // 2 % 4]} exist {i}?", ("Yes.", "No.")[i % 2])
        for i in range(count)
    ]


def kinds(samples: list[Sample]) -> list[str]:
    return [finding.kind for finding in lint_samples("t", samples)]


def test_clean_questions_have_no_finding() -> None:
    assert kinds(clean()) == []


def test_a_typo_that_tells_the_answer_is_found() -> None:
    """GVTBench's VCR-MCI says "exis" where the answer is no."""
    leaking = [
        sample(i, i // 2, f"Does {random.Random(i).choice('abcd')} {verb} in the image?", answer)
        for i in range(400)
        for verb, answer in [(("exist", "Yes."), ("exis", "No."))[i % 2]]
    ]
    (finding,) = [f for f in lint_samples("t", leaking) if f.kind == "text-leak"]
    assert "100.0% without the image" in finding.message


def test_a_constant_answer_a_gap_and_a_majority_are_found() -> None:
    counts = [sample(i, i, "How many?", "1" if i % 4 else "3") for i in range(200)]
    assert set(kinds(counts)) == {"skew", "missing-class"}
    told = [sample(i, i, f"Is it {i % 2}?", ("yes", "no")[i % 2]) for i in range(200)]
    assert "majority-leak" in kinds(told)
    once = [sample(i, i, f"Is it {i}?", ("yes", "no")[i % 2]) for i in range(200)]
    assert "majority-leak" not in kinds(once)  # an oracle is right in each
    assert "missing-class" in kinds([sample(i, i, "Is it?", "yes") for i in range(9)])


def test_repeats_and_conflicts_are_told_apart() -> None:
    twice = [*clean(40), sample(90, 0, "does DOG exist  0?", "Yes."),
             sample(91, 1, "Does cat exist 2?", "No.")]  # fmt: skip
    found = {f.kind: f.message for f in lint_samples("t", twice)}
    assert "t/90" in found["duplicate"]
    assert "t/91" in found["conflict"]


def photo(seed: int, side: int = 128) -> Image.Image:
    """A picture with structure at all scales, as photographs have it."""
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            ),
            dtype=float,
        )
        for n in (4, 9, 20)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def test_a_scaled_and_compressed_picture_is_a_near_duplicate_and_another_is_not(
    tmp_path: Path,
) -> None:
    for number in range(6):
        photo(number).save(tmp_path / f"{number}.png")
    stream = BytesIO()
    photo(2).resize((64, 64)).save(stream, "JPEG", quality=60)
    (tmp_path / "again.jpg").write_bytes(stream.getvalue())
    (tmp_path / "same.png").write_bytes((tmp_path / "3.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    read, unreadable = fingerprints(sorted(tmp_path.iterdir()), QuietReporter())
    assert [str(tmp_path / "broken.png") in line for line in unreadable] == [True]
    train = {path: read[path] for path in read if path.stem.isdigit()}
    test = {path: read[path] for path in read if not path.stem.isdigit()}
    assert [(a.name, b.name) for a, b in same_files(train, test)] == [("3.png", "same.png")]
    assert [(a.name, b.name) for a, b, _ in near_duplicates(train, test)] == [
        ("2.png", "again.jpg")
    ]


def test_no_near_duplicate_is_lost_to_comparing_few() -> None:
    rng = np.random.default_rng(0)

    def drawn(name: str, count: int) -> dict[Path, Fingerprint]:
        return {
            Path(f"{name}{n}"): Fingerprint(
                f"{name}{n // 2}" if n < 4 else f"{n}",
                np.packbits(hashes[n % 5] ^ (rng.random(256) < rng.choice([0.02, 0.1, 0.5]))),
                base[n % 5] + rng.integers(-9, 10, (32, 32), dtype=np.int16) * (n % 3),
            )
            for n in range(count)
        }

    hashes = rng.random((5, 256)) < 0.5
    base = rng.integers(60, 90, (5, 32, 32), dtype=np.int16)
    train, test = drawn("a", 60), drawn("b", 40)
    expected = []
    for (path, one), (other, two) in itertools.product(test.items(), train.items()):
        assert one.bits is not None
        assert two.bits is not None
        bits = int(np.bitwise_count(one.bits ^ two.bits).sum())
        limit = NEAR_SHARE * (np.bitwise_count(one.bits).sum() + np.bitwise_count(two.bits).sum())
        alike = np.abs(one.grey - two.grey).mean() <= NEAR_GREY
        if bits <= limit and alike and one.digest != two.digest:
            expected.append((other, path, bits))
    assert near_duplicates(train, test) == expected
    assert 0 < len(expected) < 5 * 8 * 12


def test_flat_pictures_are_not_alike(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "grey").save(tmp_path / "flat.png")
    assert fingerprint(tmp_path / "flat.png").bits is None


@pytest.fixture
def leaking_folder(tmp_path: Path) -> Path:
    rows = [
        {
            "image_id": i // 2,
            "text_in": f"Does it {('exist', 'exis')[i % 2]} in the image?",
            "text_out": ("Yes.", "No.")[i % 2],
            "n_obj_exist": 1,
        }
        for i in range(60)
    ]
    (tmp_path / "gvtbench").mkdir()
    (tmp_path / "gvtbench" / "coco_mci.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_command_reads_questions_without_images_and_exits_one(leaking_folder: Path) -> None:
    arguments = ["data", "lint", str(leaking_folder), "--tasks", "mci"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "text-leak" in result.stdout
    assert "unreadable" in result.stdout
    assert "skipped" in result.stdout
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert {"task", "kind", "message"} == set(found[0])


def test_a_known_version_of_a_file_is_named(
    leaking_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    content = (leaking_folder / "gvtbench" / "coco_mci.json").read_bytes()
    known = {hashlib.sha1(content).hexdigest()[:8]: {"name": "one of two", "caution": "beware"}}
    monkeypatch.setitem(fetch._content(), "versions", known)
    result = CliRunner().invoke(app, ["data", "lint", str(leaking_folder), "--tasks", "mci"])
    assert "coco_mci.json is one of two: beware" in result.stdout
    shown = CliRunner().invoke(app, ["data", "check", str(leaking_folder)]).stdout
    assert "gvtbench/coco_mci.json is one of two" in shown


def test_a_check_prints_each_split_as_it_is_read(
    leaking_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_data(str(leaking_folder), images_required=False)
    read, task_samples = [], folder.task_samples

    def counted(name: str, recipe: TaskRecipe, split: Split) -> SampleTable:
        read.append(split)
        return task_samples(name, recipe, split)

    monkeypatch.setattr(folder, "task_samples", counted)
    tasks = {"mci": load_task("mci")}
    lines = check_folder(folder, tasks, decode=False, reporter=QuietReporter())
    for number in (1, 2):
        next(lines)
        assert len(read) == number


def test_vcr_is_looked_at_where_it_is_and_its_misprint_found(tmp_path: Path) -> None:
    things = ["ties", "people", "cups", "hotdogs"]
    rows = [
        {
            "image_id": f"movieclips_{i // 2}/x@{i}.jpg",
            "text_in": f"Does {things[i // 2 % 4]} {('exist', 'exis')[i % 2]} in the image?",
            "text_out": ("Yes.", "No.")[i % 2],
            "n_obj_exist": 3,
        }
        for i in range(200)
    ]
    (tmp_path / "gvtbench").mkdir()
    (tmp_path / "gvtbench" / "vcr_mci.json").write_text(json.dumps(rows))
    shown = CliRunner().invoke(app, ["data", "lint", str(tmp_path), "--no-images", "--json"])
    found = {(f["task"], f["kind"]): f["message"] for f in json.loads(shown.stdout)}
    assert "answers 100.0% without the image" in found["vcr_mci", "text-leak"]
    assert "other images is right in 100.0%" in found["vcr_mci", "majority-leak"]


def test_the_real_slice_shows_what_is_known_of_gvtbench() -> None:
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
    if not (root / "gvtbench").is_dir():
        pytest.skip("the real slice is not beside this checkout")
    result = CliRunner().invoke(app, ["data", "lint", str(root), "--no-images", "--json"])
    found = {(f["task"], f["kind"]) for f in json.loads(result.stdout)}
    assert {("oc", "skew"), ("oc", "missing-class"), ("mci", "majority-leak")} <= found
