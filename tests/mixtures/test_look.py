"""`data check` and `data preview` of mixtures and folders, as a user calls them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.cli.app import app
from encoder_bench.data.mixture import open_mixture
from encoder_bench.data.sample import Turn
from encoder_bench.data.scenes.build import SceneSizes, write_scenes
from encoder_bench.mllm.dialogue import tokenize_dialogues, tokenize_turns
from encoder_bench.mllm.loading import load_language_model
from tests.mixtures.conftest import COCO, VG, turns

Call = Callable[..., str]
ROWS = [
    {"image": COCO, "conversations": turns("<image>\nWhat [b]is[/b] it?", "A dog.", "Big?", "No.")},
    {"image": VG, "conversations": turns("A \x1b[31mred</pre> one?", "Yes & no.")},
    {"conversations": turns("Two and two?", "Four.")},
    {"image": "absent.jpg", "conversations": turns("What?", "That.")},
    {"conversations": turns("What?")},
]


@pytest.fixture
def call(root: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs a command on a mixture of `ROWS` and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "80")
    (root / "rows.json").write_text(json.dumps(ROWS))
    (root / "mix.toml").write_text(
        'description = "d"\n[[sources]]\nname = "own"\nformat = "llava"\npath = "rows.json"\n'
    )

    def run(command: str, *arguments: str, error: str | None = None) -> str:
        words = ["data", command, str(root / "mix.toml"), "--train-data", str(root), *arguments]
        result = CliRunner().invoke(app, words)
        if error is None:
            assert result.exit_code == 0, result.output
        else:
            assert isinstance(result.exception, EncoderBenchError), result.output
            assert re.search(error, str(result.exception))
        return result.stdout

    return run


def test_check_prints_counts_reasons_and_problems(call: Call) -> None:
    said = call("check", error=r"mix\.toml: 2 problems")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines == [
        "source rows skipped overlap used images turns words",
        "own 5 2 0 3 2 4 19",
        "no test set to compare with; --data names them",
        "PROBLEM own: 1 no answer; first rows.json: row 4: turn 0, the last, is a question",
        "PROBLEM own: 1 missing image; first rows.json: row 3: absent.jpg",
    ]
    assert max(map(len, said.splitlines()[:2])) <= 80


def test_check_counts_the_tokens_that_training_will_read(call: Call, root: Path) -> None:
    said = call("check", "--llm", "tiny-llama", error="2 problems").splitlines()[1]
    mixture = open_mixture(str(root / "mix.toml"), root, QuietReporter())
    language = load_language_model(LanguageModelSettings())
    segments = [s for d in tokenize_dialogues(language, mixture, image=True) for s in d.segments]
    assert int(said.split()[-1]) == sum(len(segment.ids or ()) for segment in segments)


def test_check_compares_with_every_test_set(call: Call, root: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    write_scenes(drawn, SceneSizes(seed=3, train=6, val=2, test=2), QuietReporter())
    shown = sorted((drawn / "coco/val2017").iterdir())[-1]
    (root / VG).write_bytes(shown.read_bytes())
    said = call("check", "--data", str(drawn), error="2 problems")
    assert "captioning: 1 rows show one of its test images, by id, bytes" in said
    assert f"own: dropped, first rows.json: row 1: {VG} is the test image coco/" in " ".join(
        said.split()
    )
    recipe = (root / "mix.toml").read_text()
    (root / "mix.toml").write_text(f'on_overlap = "refuse"\n{recipe}')
    said = call("check", "--data", str(drawn), error="3 problems")
    assert "PROBLEM  1 rows show a test image, which on_overlap refuses" in said


def test_one_broken_source_does_not_hide_the_others(call: Call, root: Path) -> None:
    with (root / "mix.toml").open("a") as recipe:
        recipe.write('[[sources]]\nname = "b"\nformat = "llava"\npath = "absent.json"\n')
    said = call("check", error="3 problems")
    assert "own" in said
    assert "PROBLEM  source 'b': no file" in said


def test_preview_marks_what_the_loss_covers(call: Call) -> None:
    said = call("preview", "--rows", "3")
    assert "[image 000000000123.jpg]" in said
    assert "What [b]is[/b] it?" in said
    assert "\x1b" not in said
    assert re.findall(r"\[\[(.+?)\]\]", said)[1:] == [
        " A dog.</s>",
        " No.</s>",
        " Yes & no.</s>",
        " Four.</s>",
    ]
    assert "2 of them taught" not in said.splitlines()[0]


def test_preview_as_html(call: Call, tmp_path: Path) -> None:
    call("preview", "--html", str(tmp_path / "page.html"), "--llm", "tiny-llama")
    page = (tmp_path / "page.html").read_text()
    assert [unescape(text) for text in re.findall("<mark>(.+?)</mark>", page)[1:]] == [
        " A dog.</s>",
        " No.</s>",
        " Yes & no.</s>",
        " Four.</s>",
    ]
    assert page.count('<img src="data:image/png;base64,') == 2
    assert "red&lt;/pre&gt;" in page
    assert "\x1b" not in page


def test_preview_of_a_folder_keeps_questions_apart(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    write_scenes(drawn, SceneSizes(seed=3, train=6, val=2, test=2), QuietReporter())
    words = ["data", "preview", str(drawn), "--tasks", "oc,captioning", "--rows", "2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("[image 0") == 2
    assert "(question 2, which sees no other)" in result.stdout


def test_preview_reads_rows_as_the_adapter_says(call: Call) -> None:
    said = call("preview", "--set", "llm.image_prefix=<Img>", "--set", "llm.image_suffix=</Img>")
    assert re.search(r"<Img>\s*\[image 000000000123\.jpg\]\s*</Img>", said)


def test_without_weights_the_token_ids_are_the_same() -> None:
    empty = load_language_model(LanguageModelSettings(), with_weights=False)
    assert all(parameter.is_meta for parameter in empty.parameters())
    words = [Turn("<image>\nWhat is it?", "A dog."), Turn("Where?", "In the grass.")]
    own = load_language_model(LanguageModelSettings())
    assert tokenize_turns(empty, words) == tokenize_turns(own, words)


def test_a_name_that_is_no_mixture_is_a_folder() -> None:
    for name, said in (("llava-instrct", "did you mean 'llava-instruct'"), ("x", "no such folder")):
        with pytest.raises(EncoderBenchError, match=said):
            CliRunner().invoke(app, ["data", "check", name], catch_exceptions=False)
