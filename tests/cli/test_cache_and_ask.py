"""`cache build|ls|prune` and `ask`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner, Result

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.paths import list_features
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.record import read_record
from encoder_bench.cli.app import app
from encoder_bench.data.folder import open_data
from encoder_bench.pipeline.plan import make_plan
from encoder_bench.pipeline.run import run

_DATA = "scenes:5:24:2:6"
pytestmark = pytest.mark.usefixtures("without_meteor")
_BUILD = ["cache", "build", "--data", _DATA, "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))


def call(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=text)


def test_a_run_needs_nothing_more_than_what_build_kept(tmp_path: Path) -> None:
    built = call(*_BUILD)
    assert built.exit_code == 0, built.output
    (entry,) = list_features()
    assert f"features of {entry.items} images" in built.output
    shards = sorted(entry.folder.glob("*.safetensors"))
    plan = make_plan(data=_DATA, device="cpu", steps=1, results=tmp_path / "results")
    run(plan, QuietReporter())
    assert sorted(entry.folder.glob("*.safetensors")) == shards, "the run encoded again"
    listed = call("cache", "ls").output
    assert "tiny-deit (exact)" in listed
    assert "vqav2 test of" in listed
    removed = call("cache", "prune").output.splitlines()
    assert any(line.startswith("removed tiny-deit (exact): ") for line in removed)
    assert any(line.startswith("removed vqav2 test of ") for line in removed)
    assert call("cache", "ls").output.startswith("nothing is cached in ")
    assert "nothing to remove" in call("cache", "prune").output


def test_a_limit_too_small_is_told_and_nothing_is_written() -> None:
    built = call(*_BUILD, "--cache-limit", "0.000001")
    assert isinstance(built.exception, EncoderBenchError)
    assert "features of 0 of" in str(built.exception)
    assert not list_features()


def test_float16_features_are_kept_apart_and_their_error_is_printed(tmp_path: Path) -> None:
    built = call(*_BUILD, "--storage", "float16")
    assert built.exit_code == 0, built.output
    assert "relative error" in built.output
    assert [entry.of for entry in list_features()] == ["tiny-deit (float16)"]
    settings = {"training.feature_storage": "float16"}
    exact = make_plan(data=_DATA, device="cpu", steps=1, results=tmp_path)
    inexact = make_plan(data=_DATA, device="cpu", steps=1, results=tmp_path, settings=settings)
    losses = [
        read_record(run(plan, QuietReporter()).path).training["losses"] for plan in (exact, inexact)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    other = make_plan(data="scenes:6:24:2:6", device="cpu", results=tmp_path, settings=settings)
    with pytest.raises(EncoderBenchError, match="feature_storage float16"):
        run(other, QuietReporter(), cache_limit_bytes=10)


def test_ask_one_question_and_go_on(tmp_path: Path) -> None:
    plan = make_plan(data=_DATA, device="cpu", steps=1, results=tmp_path, tasks=["vqa"])
    record = run(plan, QuietReporter()).record
    sample = open_data(_DATA).samples("vqa", reader="vqav2", source="vqav2", split="test")[0]
    asked = ["ask", record.run_id[:6], str(sample.image_path)]
    flags = ["--results", str(tmp_path), "--device", "cpu", "--max-new-tokens", "4"]
    once = call(*asked, sample.question, *flags)
    assert once.exit_code == 0, once.output
    chat = call(*asked, "--chat", *flags, text=f"{sample.question}\nHow many are there?\n\nnever\n")
    assert chat.exit_code == 0, chat.output
    answers = chat.stdout.splitlines()
    assert len(answers) == 2
    assert answers[0] == once.stdout.strip()
    nothing = call(*asked, *flags)
    assert isinstance(nothing.exception, EncoderBenchError)


def test_export_writes_a_card_with_row_recipe_and_proof(tmp_path: Path) -> None:
    plan = make_plan(
        encoder="tiny-clip",
        data=_DATA,
        device="cpu",
        steps=1,
        results=tmp_path,
        tasks=["vqa"],
    )
    record = run(plan, QuietReporter()).record
    folder = tmp_path / "exported"
    flags = ["--results", str(tmp_path), "--push-to-hub", "someone/model"]
    exported = call("export", record.run_id[:6], str(folder), *flags)
    assert isinstance(exported.exception, EncoderBenchError), "there is no network in the tests"
    assert "someone/model: not uploaded" in str(exported.exception)
    card = (folder / "README.md").read_text()
    metadata = ModelCard(card).data
    assert (metadata.license, metadata.library_name) == ("apache-2.0", "transformers")
    assert metadata.datasets == [_DATA.partition(":")[0]]
    (result,) = metadata.eval_results or []
    scores = record.tasks["vqa"]
    assert result.metric_type == scores.primary
    assert result.metric_value == pytest.approx(scores.metrics[scores.primary].value, abs=0.01)
    assert "| VQA Acc |" in card
    assert f"`{record.proof.parts['projector'].sha256_after[:12]}`" in card
    assert '"learning_rate"' in card
    assert record.encoder.weights_sha256 in card
