"""Training on conversations: what is shown and taught, in which order, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_bench.base.errors import TrainingError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import AdapterRecipe
from encoder_bench.data.mixture import Mixture, open_mixture
from encoder_bench.data.sample import IMAGE, Conversation, Turn
from encoder_bench.mllm.dialogue import tokenize_dialogues
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import pack
from encoder_bench.training.batches import BatchMaker, stage_order, training_images
from encoder_bench.training.checkpoint import TrainingSummary
from encoder_bench.training.feature_cache import open_features
from tests.mllm.models import small_mllm
from tests.training import world
from tests.training.world import CPU, model, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixture")


@pytest.fixture(scope="module")
def rows(folder: Path) -> Mixture:
    return world.mixture(folder)


@pytest.fixture(scope="module")
def small() -> MLLM:
    return small_mllm()


def adapter(training: dict[str, object] | None = None, **stage: object) -> AdapterRecipe:
    return recipe(stage={"mixture": "m", "tasks": [], **stage}, training=training or {})


def train(
    mllm: MLLM, folder: Path, rows: Mixture, chosen: AdapterRecipe, **options: object
) -> TrainingSummary:
    return world.run(mllm, folder, chosen, mixtures={"m": rows}, **options)


def maker(mllm: MLLM, **options: object) -> BatchMaker:
    every: dict[str, object] = {"micro_batch_images": 99, "shared_prefix": True, **options}
    return BatchMaker(mllm, {}, **every)  # type: ignore[arg-type]


def gradients(
    mllm: MLLM, batches: list[list[Conversation]], **options: object
) -> tuple[float, dict[str, torch.Tensor]]:
    mllm.zero_grad()
    loss, tokens = 0.0, 0
    for batch in batches:
        for micro in maker(mllm, **options).make(batch).micro:
            summed = mllm(micro)
            summed.backward()
            loss, tokens = loss + summed.item(), tokens + micro.answer_tokens
    found = {name: p.grad for name, p in mllm.named_parameters() if p.grad is not None}
    return loss / tokens, found


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("row_length", [None, 400])
def test_packed_conversations_train_as_rows_one_by_one(
    rows: Mixture, joint: bool, row_length: int | None
) -> None:
    """Rows of text alone, of one image and of two, beside each other."""
    mllm = model(joint=joint, llm="full").train()
    expected, separate = gradients(mllm, [[row] for row in rows])
    found, packed = gradients(mllm, [list(rows)], row_length=row_length)
    assert found == pytest.approx(expected, rel=1e-5)
    assert packed.keys() == separate.keys()
    for name, gradient in separate.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((packed[name] - gradient).abs().max()) < 2e-5 * scale, name


TEXTS = st.text("ab .\n", min_size=1, max_size=6).filter(lambda text: text.strip())
ASKED = st.lists(st.one_of(TEXTS, st.just(IMAGE)), min_size=1, max_size=4).map("".join)
CONVERSATIONS = st.lists(
    st.lists(st.builds(Turn, ASKED.filter(str.strip), TEXTS), min_size=1, max_size=3).map(tuple),
    min_size=1,
    max_size=5,
)


@settings(max_examples=15, deadline=None)
@given(rows=CONVERSATIONS, row_length=st.sampled_from([None, 150, 900]), size=st.integers(1, 5))
def test_any_conversations_have_the_loss_of_rows_one_by_one(
    small: MLLM, rows: list[tuple[Turn, ...]], row_length: int | None, size: int
) -> None:
    shown = [sum(turn.user.count(IMAGE) for turn in turns) for turns in rows]
    tokens = torch.randn(max(shown), 16, 48, generator=torch.Generator().manual_seed(0))
    features = {Path(f"{place}.png"): each for place, each in enumerate(tokens)}
    conversations = [
        Conversation(f"m/{number}", tuple(features)[:count], turns)
        for number, (count, turns) in enumerate(zip(shown, rows, strict=True))
    ]

    def loss(batches: list[list[Conversation]], **options: object) -> tuple[float, int]:
        found, taught = 0.0, 0
        for batch in batches:
            for micro in maker(small, features=features, **options).make(batch).micro:
                found += small(micro).item()
                taught += micro.answer_tokens
        return found, taught

    with torch.no_grad():
        expected, count = loss([[row] for row in conversations], shared_prefix=False)
        packed, same = loss([conversations], micro_batch_images=size, row_length=row_length)
    assert same == count
    assert packed == pytest.approx(expected, rel=1e-5)


def test_a_turn_sees_those_before_it_and_no_other_row(rows: Mixture) -> None:
    mllm = small_mllm().eval()
    two = next(row for row in rows if len(row.turns) > 1 and len(row.images) == 1)
    first = replace(two, turns=two.turns[:1])
    other = replace(two, turns=(replace(two.turns[0], assistant="a blue cat"), *two.turns[1:]))

    def logits(*batch: Conversation) -> torch.Tensor:
        (micro,) = maker(mllm, row_length=900).make(batch).micro
        assert len(pack(micro, mllm.language, visual_tokens=16).input_ids) == 1
        with torch.no_grad():
            return mllm.logits(micro)[0]

    alone, whole = logits(first), logits(two)
    near = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    near(whole[: len(alone)], alone)
    assert (logits(other)[-3:] - whole[-3:]).abs().max() > 1e-2, "later turns see earlier ones"
    near(logits(other, two)[-len(whole) :], whole)  # the longest is packed first


def test_cached_features_give_the_curve_of_pixels(rows: Mixture, tmp_path: Path) -> None:
    mllm = model()
    features = open_features(
        mllm.encoder, list(rows.images()), device=CPU, reporter=QuietReporter()
    )
    cached = train(mllm, tmp_path / "a", rows, adapter(), features=features)
    assert cached.losses == pytest.approx(train(model(), tmp_path / "b", rows, adapter()).losses)


def test_it_learns_conversations(rows: Mixture, tmp_path: Path) -> None:
    summary = train(model(llm="full"), tmp_path, rows, adapter(steps=20, images_per_step=8))
    assert summary.losses[-1] < 0.5 * summary.losses[0]
    assert summary.images == 20 * sum(len(row.images) for row in rows)
    assert (summary.cut_rows, summary.skipped_rows) == (0, 0)


@pytest.mark.parametrize("joint", [False, True])
def test_a_micro_batch_of_text_alone_trains(rows: Mixture, tmp_path: Path, joint: bool) -> None:
    """Each row its own micro-batch: the loss of text alone reaches no frozen part."""
    options: dict[str, object] = {"images_per_step": 8, "steps": 2}
    apart = train(
        model(joint=joint), tmp_path / "a", rows, adapter(micro_batch_images=1, **options)
    )
    whole = train(model(joint=joint), tmp_path / "b", rows, adapter(**options))
    assert apart.losses == pytest.approx(whole.losses, rel=1e-4)
    only = [row for row in rows if not row.images]
    mllm = model(joint=joint).train()
    _, found = gradients(mllm, [only])
    assert found.keys() == {n for n, p in mllm.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in found.values())


def test_each_epoch_sees_every_row_as_often_as_its_weight_says(folder: Path, rows: Mixture) -> None:
    toml = (folder / "mixture.toml").read_text() + "weight = 1.5\n"
    (folder / "weighted.toml").write_text(toml)
    weighted = open_mixture(str(folder / "weighted.toml"), folder, QuietReporter())
    order, steps = stage_order([], adapter(steps=None), 0, 3, {"m": weighted})
    assert steps == 3
    visits = [row for step in range(6) for row in order.step(step)]
    for epoch in (visits[:12], visits[12:]):
        assert sorted(row.row_id for row in epoch) == sorted(row.row_id for row in weighted)
        assert len({row.row_id.partition("+")[0] for row in epoch}) == 8
    assert visits[:12] != visits[12:]
    again, _ = stage_order([], adapter(steps=None), 0, 3, {"m": weighted})
    assert again.step(4) == visits[16:20]


@pytest.mark.parametrize("processes", [1, 2])
def test_images_to_come_are_known_before_training(rows: Mixture, processes: int) -> None:
    chosen = adapter(steps=3, images_per_step=2)
    order, _ = stage_order([], chosen, 0, 3, {"m": rows})
    for index in range(processes):
        shown = [
            path
            for step in range(3)
            for row in order.step(step)[index::processes]
            for path in row.images
        ]
        found = training_images([], chosen, 3, {"m": rows}, index=index, processes=processes)
        assert found == list(dict.fromkeys(shown))


def test_long_rows_are_cut_at_a_turn_or_skipped_and_counted(rows: Mixture, tmp_path: Path) -> None:
    mllm = model()
    firsts = [replace(row, turns=row.turns[:1]) for row in rows]
    lengths = [
        [item.longest(16)[0] for item in tokenize_dialogues(mllm.language, some, image=True)]
        for some in (rows, firsts)
    ]
    mllm.language.max_length = 50
    cut = sum(first <= 50 < whole for whole, first in zip(*lengths, strict=True))
    skipped = sum(first > 50 for first in lengths[1])
    assert min(cut, skipped) > 0
    made = maker(mllm).make(list(rows))
    assert (made.cut_rows, made.skipped_rows) == (cut, skipped)
    assert len(made.micro[0].dialogues) == 8 - skipped
    summary = train(mllm, tmp_path, rows, adapter(steps=2, images_per_step=8))
    assert (summary.cut_rows, summary.skipped_rows) == (2 * cut, 2 * skipped)
    assert summary.images == 2 * made.images


def test_a_step_in_which_nothing_fits_changes_nothing(rows: Mixture, tmp_path: Path) -> None:
    mllm = model()
    mllm.language.max_length = 8
    before = [parameter.clone() for parameter in mllm.parameters()]
    summary = train(mllm, tmp_path, rows, adapter(steps=3, images_per_step=2))
    assert summary.skipped_rows == 6
    assert (summary.losses, summary.steps) == ([], {"instruct": 3})
    assert all(torch.equal(a, b) for a, b in zip(before, mllm.parameters(), strict=True))


def test_another_mixture_is_another_training(rows: Mixture, tmp_path: Path) -> None:
    train(model(), tmp_path, rows, adapter())
    other = world.mixture(tmp_path / "other", images=5)
    with pytest.raises(TrainingError, match="other data"):
        train(model(), tmp_path, other, adapter())
