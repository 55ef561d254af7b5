"""METEOR against its own program, SPICE from a file, CIDEr with a split's frequencies."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from encoder_bench.base.errors import DataError, MissingDependencyError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_task
from encoder_bench.data.sample import Sample
from encoder_bench.metrics import java, spice
from encoder_bench.metrics.caption import cider
from encoder_bench.metrics.java import (
    find_java,
    heap_mebibytes,
    java_version,
    meteor_counts,
    meteor_score,
    scorer_folder,
)
from encoder_bench.metrics.metric import find_metric, measure_java_once
from encoder_bench.tasks.controls import constant_answer
from encoder_bench.tasks.evaluate import evaluate
from encoder_bench.tasks.predictions import Reply
from encoder_bench.tasks.task import TaskSamples

pytestmark = pytest.mark.timeout(900)  # METEOR starts ten times as slowly on a busy machine
GUESSES = [
    "the man is riding horses",
    "a cat sits",
    "a red bus on a street",
    "over it the fox quickly jumps",
    "a cat",
    "",
]
TRUTHS = [
    ("a man riding a horse", "the man rides on a brown horse"),
    ("a cat sits",),
    ("two dogs play in the park", "dogs running"),
    ("the quick brown fox jumps over it",),
    ("a cat sits on the big sofa", "a kitten"),
    ("nothing",),
]
ONE_REFERENCE, SEPARATOR = (GUESSES[0], TRUTHS[0][:1]), ("a ||| cat", ("a cat ||| dog",))


@pytest.fixture(scope="module")
def all_counts() -> np.ndarray:
    """The counts of all pairs above, from one start of the program, which takes seconds."""
    pairs = [*zip(GUESSES, TRUTHS, strict=True), ONE_REFERENCE, SEPARATOR]
    return meteor_counts([text for text, _ in pairs], [truths for _, truths in pairs])


@pytest.fixture
def counts(all_counts: np.ndarray) -> np.ndarray:
    return all_counts[: len(GUESSES)]


def official(rows: np.ndarray) -> list[float]:
    """Return what METEOR's own EVAL says of each row, and of all together."""
    java, _ = find_java()
    asked = "EVAL" + "".join(" ||| " + " ".join(f"{value:g}" for value in row) for row in rows)
    command = [java, "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    answer = subprocess.run(
        command,
        input=asked + "\n",
        cwd=scorer_folder("meteor"),
        capture_output=True,
        text=True,
        check=True,
    )
    return [100 * float(line) for line in answer.stdout.split()]


def test_meteor_equals_its_own_program_by_image_and_over_a_corpus(counts: np.ndarray) -> None:
    expected = official(counts)
    assert meteor_score(counts) == pytest.approx(expected[:-1], abs=1e-10)
    assert meteor_score(counts.sum(axis=0, keepdims=True))[0] == pytest.approx(
        expected[-1], abs=1e-10
    )
    assert meteor_score(counts)[[1, 2, 5]] == pytest.approx([100.0, 0.0, 0.0])


def test_the_best_reference_counts(all_counts: np.ndarray) -> None:
    best, worse = meteor_score(all_counts[[0, len(GUESSES)]])
    assert best >= worse


def test_a_separator_in_a_caption_is_no_separator(all_counts: np.ndarray) -> None:
    assert all_counts.shape == (len(GUESSES) + 2, 23)
    assert 0 < meteor_score(all_counts[-1:])[0] < 100


def test_without_java_the_metric_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "_candidates", lambda: ["/no/java"])
    find_java.cache_clear()
    monkeypatch.setattr(java, "_KNOWN", {})
    reason = find_metric("meteor").measure(["a dog"], [("a cat",)]).reason
    find_java.cache_clear()
    assert "encoder-bench[java]" in str(reason)


def test_a_program_that_answers_in_another_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "run_java", lambda *a, **k: ["1 2 3"])
    with pytest.raises(MissingDependencyError, match=r"not version 1\.5's"):
        meteor_counts(["a"], [("a",)])


def test_java_facts() -> None:
    assert java_version("/no/such/java") is None
    assert 256 <= heap_mebibytes(512) <= 512


def missing() -> str:
    """Return why SPICE cannot be tried, or nothing."""
    try:
        spice.check_installed()
    except MissingDependencyError as error:
        return str(error)
    return ""


FAKE_MAVEN = """#!{python}
import json, pathlib, sys
pathlib.Path({log!r}).open("a").write(json.dumps(sys.argv[1:]) + chr(10))
given = dict(word[2:].split("=", 1) for word in sys.argv if word.startswith("-D"))
_, name, version, *rest = given["artifact"].split(":")
if {broken!r} == name:
    print("[INFO] Scanning")
    print("[ERROR] Checksum validation failed")
    sys.exit(1)
target = pathlib.Path(given["outputDirectory"]) / "-".join([name, version, *rest[1:]])
target.with_name(target.name + ".jar").write_text("published")
"""


def program(file: Path, text: str, **values: str) -> Path:
    """Write an executable Python program in the place of a real one."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text.format(python=sys.executable, **values))
    file.chmod(0o755)
    return file


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let `mvn` publish small files, and install into an empty cache; return what it logs."""
    log = tmp_path / "mvn.log"
    program(tmp_path / "bin/mvn", FAKE_MAVEN, log=str(log), broken="")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"published").hexdigest()
    small = {name: (where, digest) for name, (where, _) in spice.ARTIFACTS.items()}
    monkeypatch.setattr(spice, "ARTIFACTS", small)
    return log


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_spice_is_installed_through_maven_whole_or_not_at_all(maven: Path, tmp_path: Path) -> None:
    before = files_of(scorer_folder("spice"))
    assert "setup spice" in missing()
    hashes = spice.install(None, QuietReporter())
    calls = [json.loads(line) for line in maven.read_text().splitlines()]
    assert [next(w for w in call if "-Dartifact=" in w) for call in calls] == [
        "-Dartifact=edu.stanford.nlp:stanford-corenlp:3.6.0",
        "-Dartifact=edu.stanford.nlp:stanford-corenlp:3.6.0:jar:models",
        "-Dartifact=org.mozilla:rhino:1.7.15",
        "-Dartifact=org.mozilla:rhino-engine:1.7.15",
    ]
    assert all("--strict-checksums" in call for call in calls)
    assert missing() == ""
    assert set(hashes) >= {*spice.ARTIFACTS, "spice.jar", "Meteor-1.5.jar"}
    assert files_of(scorer_folder("spice")) == before
    # the jars are no real ones, so that the program starts and fails, and says why
    with pytest.raises(MissingDependencyError, match=r"SPICE's Java program failed: .*Error"):
        spice.spice_scores(["a"], [("a",)])

    program(tmp_path / "bin/mvn", FAKE_MAVEN, log=str(maven), broken="rhino")
    with pytest.raises(MissingDependencyError, match=r"rhino:1\.7\.15: \[ERROR\] Checksum"):
        spice.install(None, QuietReporter())
    assert missing() == ""
    changed = FAKE_MAVEN.replace('"published"', '"something else"')
    program(tmp_path / "bin/mvn", changed, log=str(maven), broken="")
    with pytest.raises(DataError, match="was published"):
        spice.install(None, QuietReporter())
    assert missing() == ""
    (spice.spice_folder() / "lib" / "ejml-0.23.jar").write_bytes(b"another one")
    assert "another file than was installed" in missing()


def test_spice_is_installed_from_a_file_or_folder(
    maven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "given" / f"{spice.ARCHIVE}.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(f"{spice.ARCHIVE}/{spice.CORENLP[0]}", b"one")
    with pytest.raises(DataError, match=r"models\.jar"):
        spice.install(archive, QuietReporter())
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(f"{spice.ARCHIVE}/{spice.CORENLP[1]}", b"two")
    hashes = spice.install(archive, QuietReporter())
    assert hashes[spice.CORENLP[1]] == hashlib.sha256(b"two").hexdigest()
    assert len(maven.read_text().splitlines()) == 2  # the script engine, which it lacks
    with pytest.raises(DataError, match="--sha256 00 was expected"):
        spice.install(archive, QuietReporter(), sha256="00")
    (tmp_path / "no.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"no\.zip"):
        spice.install(tmp_path / "no.zip", QuietReporter())

    monkeypatch.setattr(spice.shutil, "which", lambda name: None)
    monkeypatch.setattr(spice, "find_java", lambda: ("java", 17))
    with pytest.raises(MissingDependencyError, match="install Maven, or pass a folder"):
        spice.install(archive.parent, QuietReporter())
    for name in spice.RHINO:
        (archive.parent / name).write_bytes(b"engine")
    assert (
        spice.install(archive.parent, QuietReporter())[spice.CORENLP[0]] == hashes[spice.CORENLP[0]]
    )
    archive.unlink()
    with pytest.raises(DataError, match=f"no {spice.CORENLP[0]} in it"):
        spice.install(archive.parent, QuietReporter())
    assert missing() == ""


FAKE_JAVA = """#!{python}
import json, pathlib, sys, time
words = sys.argv[1:]
pathlib.Path({log!r}).open("a").write(json.dumps(words) + chr(10))
output = pathlib.Path(words[words.index("-out") + 1])
rows = json.loads(pathlib.Path(words[words.index("edu.anu.spice.SpiceScorer") + 1]).read_text())
first = rows[0]["test"]
answers = [
    {{"image_id": row["image_id"], "scores": {{"All": {{"f": len(row["refs"]) / 4}}}}}}
    for row in rows if row["test"] != "left out"
]
output.write_text("" if first == "nothing said" else json.dumps(answers))
if first == "not a number":
    output.write_text(json.dumps(answers).replace("0.25", "NaN"))
if first == "wait":
    time.sleep(60)
if first == "memory":
    print("Terminating due to java.lang.OutOfMemoryError: Java heap space")
    sys.exit(3)
if first == "crash":
    print("Parsing reference captions")
    print("java.lang.NullPointerException: why", file=sys.stderr)
    sys.exit("    at edu.anu.spice")
"""


@pytest.fixture
def spice_log(maven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install SPICE with a program for a Java that writes down each of its starts, a line each."""
    spice.install(None, QuietReporter())
    log = tmp_path / "log"
    java_program = str(program(tmp_path / "java", FAKE_JAVA, log=str(log)))
    for module in (java, spice):
        monkeypatch.setattr(module, "find_java", lambda: (java_program, 25))
    monkeypatch.setattr(java, "_KNOWN", {})
    return log


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("memory", r"SPICE ran out of memory \(a heap of \d+ MiB\)"),
        ("crash", "SPICE's Java program failed: java.lang.NullPointerException: why$"),
        ("nothing said", "output lacks scores"),
        ("left out", "output lacks scores"),
        ("not a number", "not a number"),
        ("wait", "SPICE took more than 2 s"),
    ],
)
def test_what_spice_cannot_score_is_not_available_for_a_reason(
    caption: str, reason: str, spice_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spice, "START_SECONDS", 2.0 if caption == "wait" else 60.0)
    monkeypatch.setattr(spice, "CAPTION_SECONDS", 0.0)
    measure = find_metric("spice").measure([caption, "a dog"], [("a",), ("b",)])
    assert measure.score is None
    assert re.match(f".*{reason}", measure.reason or "")


@pytest.mark.slow
def test_the_real_spice_scores_captions_alike_with_and_without_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENCODER_BENCH_CACHE")
    if missing():
        pytest.skip(f"{missing()}")
    library = spice.spice_folder() / "lib"
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path))
    (tmp_path / "spice").mkdir()
    (tmp_path / "spice" / "lib").symlink_to(library)
    first = spice.spice_scores(GUESSES, TRUTHS)
    assert spice.spice_scores(GUESSES, TRUTHS).tolist() == first.tolist()
    # what pycocoevalcap's own start of the program says
    assert first.tolist() == pytest.approx([0.5, 1.0, 0.0, 1 / 3, 0.0, 0.0])


@pytest.fixture
def meteor_log(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace METEOR's program by one whose starts are noted, each with its number of captions."""
    starts: list[int] = []

    def run(name: str, *arguments: object, text: str, **limits: object) -> list[str]:
        lines = text.splitlines()
        starts.append(len(lines))
        return [" ".join(["4 5", *["1"] * (java.METEOR_COUNTS - 2)]) for _ in lines]

    monkeypatch.setattr(java, "run_java", run)
    monkeypatch.setattr(java, "_KNOWN", {})
    return starts


class Captioner:
    """Says one of three things about an image, and another without one."""

    def answer(
        self,
        images: Sequence[Path | None],
        prompts: Sequence[Sequence[str]],
        decoding: object,
        candidates: object,
    ) -> list[list[Reply]]:
        return [
            [Reply(GUESSES[int(path.stem) % 3] if path else "nothing") for _ in group]
            for path, group in zip(images, prompts, strict=True)
        ]


def test_one_start_of_each_program_serves_all_caption_tasks_of_a_run_and_their_controls(
    tmp_path: Path, spice_log: Path, meteor_log: list[int]
) -> None:
    tasks = []
    for task, number in (("captioning", 0), ("nocaps", 3)):
        recipe = load_task(task).model_copy(
            update={
                "metrics": ("cider", "spice", "meteor"),
                "controls": ("no-image", "shuffled-images"),
            }
        )
        samples = [
            Sample(str(i), task, i, Path(f"{number + i}"), "", truths, truths[0])
            for i, truths in enumerate(TRUTHS[number : number + 3])
        ]
        tasks.append(TaskSamples(task, recipe, samples))
    scores = evaluate(
        Captioner(), tasks, tmp_path, batch_images=2, seed=0, reporter=QuietReporter()
    )
    assert len(spice_log.read_text().splitlines()) == 1
    assert len(meteor_log) == 1
    for found in scores.values():
        for name in ("spice", "meteor"):
            assert found.metrics[name].value is not None
            assert found.controls["no-image"][name].value is not None
            assert found.controls["shuffled-images"][name].value is not None


def test_no_caption_is_scored_twice(meteor_log: list[int]) -> None:
    sets = [GUESSES, ["a cat"] * len(GUESSES)]
    measure_java_once((["meteor"], texts, TRUTHS) for texts in sets)
    for texts in sets:
        find_metric("meteor").measure(texts, TRUTHS)
    assert meteor_log == [len(GUESSES) * 2 - 1]


def test_the_best_constant_answer_is_found_with_one_start(meteor_log: list[int]) -> None:
    samples = [
        Sample(str(i), "captioning", i, Path("x"), "", truths, truths[0])
        for i, truths in enumerate(TRUTHS)
    ]
    assert len(set(constant_answer(samples, "meteor"))) == 1
    assert len(meteor_log) == 1


def test_spice_is_started_once_within_its_own_folders_and_limits(
    spice_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    sets = [GUESSES, ["a cat"] * len(GUESSES)]
    measure_java_once((["spice"], texts, TRUTHS) for texts in sets)
    scores = [find_metric("spice").measure(texts, TRUTHS) for texts in sets]
    assert scores[0].values[:, 0].tolist() == [0.5, 0.25, 0.5, 0.25, 0.5, 0.25]
    (started,) = [json.loads(line) for line in spice_log.read_text().splitlines()]
    assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in started
    assert set(started[started.index("-cp") + 1].split(os.pathsep)) >= {"spice.jar", *spice.RHINO}
    assert any(word.startswith("-Xmx") for word in started)
    temporary = next(word for word in started if word.startswith("-Djava.io.tmpdir="))
    assert "site-packages" not in temporary
    assert not Path(temporary.partition("=")[2]).exists()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    spice.spice_scores(["a dog"], [("a",)])
    without = json.loads(spice_log.read_text().splitlines()[1])
    assert started[started.index("-cache") + 1] == str(spice.spice_folder() / "parsed")
    assert "-cache" not in without


def test_cider_with_the_splits_own_frequencies() -> None:
    assert cider(GUESSES, TRUTHS, TRUTHS) == pytest.approx(cider(GUESSES, TRUTHS))
    subset = cider(GUESSES[3:], TRUTHS[3:], TRUTHS)
    assert subset == pytest.approx(cider(GUESSES, TRUTHS)[3:])
    assert subset.mean() != pytest.approx(cider(GUESSES[3:], TRUTHS[3:]).mean())
