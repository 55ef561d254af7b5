"""Training: what it learns, what it leaves alone, and what stops it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from encoder_bench.base.errors import DataError, TrainingError, UnknownNameError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.trainable import prove, snapshot
from encoder_bench.training.batches import training_images
from encoder_bench.training.feature_cache import open_features
from encoder_bench.training.optimizer import only_parts
from tests.training.world import CPU, draw, model, questions, recipe, run


def weights(mllm: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in mllm.state_dict().items()}


def test_it_learns_the_colours(tmp_path: Path) -> None:
    summary = run(model(llm="full"), tmp_path, recipe(stage={"steps": 40}))
    assert len(summary.losses) == 40
    assert summary.losses[-1] < 0.5 * summary.losses[0]
    assert summary.images == 160
    assert summary.steps == {"instruct": 40}


@pytest.mark.parametrize(
    ("joint", "llm"), [(False, "frozen"), (True, "frozen"), (False, "lora"), (True, "full")]
)
def test_what_trains_moves_and_what_is_frozen_keeps_every_bit(
    tmp_path: Path, joint: bool, llm: str
) -> None:
    mllm = model(joint=joint, llm=llm)
    before = snapshot(mllm)
    summary = run(mllm, tmp_path)
    should = {"encoder": joint, "projector": True, "llm": llm != "frozen"}
    proofs = prove(mllm, before, should_train=should, gradient_norms=summary.gradient_norms)
    for part, proof in proofs.items():
        assert (proof.relative_change > 0) == should[part]
        assert (proof.first_gradient_norm is not None) == should[part]


def test_loss_does_not_depend_on_micro_batches(tmp_path: Path) -> None:
    """Unequal numbers of answer tokens: the mean of micro-batch means would differ."""
    curves, ends = [], []
    for size in (4, 3, 1):
        mllm = model(joint=True, llm="full")
        run_folder = tmp_path / str(size)
        curves.append(run(mllm, run_folder, recipe(stage={"micro_batch_images": size})).losses)
        ends.append(weights(mllm))
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], rel=1e-4)


def test_cached_features_give_the_same_curve(tmp_path: Path) -> None:
    mllm = model()
    paths = draw(tmp_path / "images")
    features = open_features(mllm.encoder, paths, device=CPU, reporter=QuietReporter())
    assert len(features) == len(paths)
    cached = run(mllm, tmp_path / "a", features=_relocated(features, tmp_path / "a", paths)).losses
    assert cached == pytest.approx(run(model(), tmp_path / "b").losses, rel=1e-4)


def _relocated(features: object, folder: Path, paths: list[Path]) -> dict[Path, torch.Tensor]:
    moved = draw(folder / "images")
    return {new: features[old] for new, old in zip(moved, paths, strict=True)}  # type: ignore[index]


def test_a_non_finite_loss_names_the_samples_and_changes_nothing(tmp_path: Path) -> None:
    mllm = model()
    paths = draw(tmp_path / "images")
    broken = {path: torch.zeros(16, 48) for path in paths}
    broken[paths[2]] = torch.full((16, 48), float("nan"))
    before = weights(mllm)
    adapter = recipe(stage={"images_per_step": 6, "micro_batch_images": 1, "steps": 1})
    with pytest.raises(TrainingError, match=r"step 0: the loss is nan.*/2-") as caught:
        run(mllm, tmp_path, adapter, features=broken)
    assert "/1-" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in mllm.state_dict().items())


@pytest.mark.parametrize("cached", [False, True])
def test_a_corrupt_image_stops_with_its_name_and_keeps_what_was_learned(
    tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))

    def train(folder: Path) -> list[float]:
        mllm, paths = model(), sorted((folder / "images").glob("*.png"))
        order = training_images(questions(paths), adapter, 3)
        store = open_features(mllm.encoder, order, device=CPU, reporter=QuietReporter())
        return run(mllm, folder, adapter, features=store if cached else {}).losses

    paths = draw(tmp_path / "images", images=12)
    good = paths[7].read_bytes()
    paths[7].write_bytes(good[:60])
    adapter = recipe(stage={"images_per_step": 1, "steps": 12})
    with pytest.raises(DataError, match=paths[7].name):
        train(tmp_path)
    paths[7].write_bytes(good)
    mended = train(tmp_path)
    (tmp_path / "whole").mkdir()
    draw(tmp_path / "whole" / "images", images=12)
    assert mended == train(tmp_path / "whole")


def test_a_part_without_an_optimizer_rests_for_a_stage(tmp_path: Path) -> None:
    adapter = recipe()
    align = adapter.stages[0].model_copy(update={"name": "align", "llm": None, "encoder": None})
    mllm = model(llm="full")
    before = weights(mllm.language)
    with only_parts(mllm, align) as parameters:
        assert list(parameters) == ["projector"]
        assert not any(p.requires_grad for p in mllm.language.parameters())
    assert all(p.requires_grad for p in mllm.language.parameters())
    run(mllm, tmp_path, adapter.model_copy(update={"stages": (align,)}))
    assert all(torch.equal(before[k], v) for k, v in mllm.language.state_dict().items())
    assert all(p.grad is None for p in mllm.language.parameters())


def test_nothing_to_train_is_one_clear_line(tmp_path: Path) -> None:
    mllm = model()
    mllm.projector.requires_grad_(False)
    with pytest.raises(TrainingError, match="stage 'instruct': nothing to train"):
        run(mllm, tmp_path)
    with pytest.raises(TrainingError, match="no samples of oc"):
        run(model(), tmp_path, recipe(stage={"tasks": ["oc"]}))


def test_memory_running_out_halves_the_micro_batch_and_keeps_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(model(), tmp_path / "whole").losses
    mllm = model()
    forward = mllm.forward

    def of_two_at_most(batch: object) -> object:
        if len(batch.dialogues) > 2:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("full")
        return forward(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(mllm, "forward", of_two_at_most)
    assert run(mllm, tmp_path / "halved").losses == pytest.approx(expected, rel=1e-4)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    exact = run(model(joint=True), tmp_path / "a").losses
    rough = run(
        model(joint=True), tmp_path / "b", recipe(training={"precision": "bfloat16"})
    ).losses
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tensorboard'"):
        run(model(), tmp_path, trackers=["tensorbord"])


def test_a_length_budget_packs_images_and_keeps_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    embed = LanguageModel.embed

    def watched(self: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return embed(self, ids)

    monkeypatch.setattr(LanguageModel, "embed", watched)
    unpacked = run(model(), tmp_path / "a").losses
    before, shapes[:] = list(shapes), []
    packed = run(model(), tmp_path / "b", recipe(training={"row_length": 400}))
    assert packed.losses == pytest.approx(unpacked, rel=1e-4)
    assert packed.attention == "sdpa"
    assert all(length <= 400 for _, length in shapes)
    assert sum(rows for rows, _ in shapes) < sum(rows for rows, _ in before)


def test_memory_running_out_on_a_cpu_is_known_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(model(), tmp_path / "whole").losses
    mllm = model()
    forward, calls = mllm.forward, []

    def once_too_large(batch: object) -> object:
        calls.append(batch)
        if len(calls) == 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return forward(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(mllm, "forward", once_too_large)
    assert run(mllm, tmp_path / "halved").losses == pytest.approx(expected, rel=1e-4)
    assert len(calls[1].dialogues) == 2  # type: ignore[attr-defined]


def test_an_error_that_is_not_about_memory_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> object:
        raise RuntimeError("a mistake")

    mllm = model()
    monkeypatch.setattr(mllm, "forward", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        run(mllm, tmp_path)
