"""Ways in which joint tuning fails silently elsewhere: here each is an error, or right.

One test a way, on the whole road where it takes the whole road. What the proof catches part by
part is tested in `tests/mllm/test_trainable.py`, wrong features in `tests/encoders/`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from encoder_bench.base.errors import ProofError, UnknownNameError, WeightsError
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.record import RunRecord
from encoder_bench.encoders.registry import find_spec, load_encoder
from encoder_bench.mllm.model import MLLM
from encoder_bench.pipeline import build as trained
from encoder_bench.pipeline.build import build_mllm, load_run
from encoder_bench.pipeline.plan import RunPlan, make_plan
from encoder_bench.pipeline.run import run
from encoder_bench.training.checkpoint import load_mllm_weights

DATA = "scenes:5:24:2:6"


def plan(results: Path, **options: object) -> RunPlan:
    chosen = {"data": DATA, "device": "cpu", "steps": 2, "tasks": ["vqa"], "limit": 2}
    chosen |= {"joint": True}
    return make_plan(results=results, **{**chosen, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    results = tmp_path_factory.mktemp("joint")
    return results, run(plan(results), QuietReporter()).record


def test_no_graph_through_an_unfrozen_encoder_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`@torch.no_grad()` on the vision tower: what is called unfrozen never trains."""
    features = MLLM.features

    def without_graph(self: MLLM, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return features(self, pixels)

    monkeypatch.setattr(MLLM, "features", without_graph)
    with pytest.raises(ProofError, match="encoder: should train, yet its relative change is 0"):
        run(plan(tmp_path), QuietReporter())
    assert not list(tmp_path.glob("records/*"))


def test_the_encoders_own_learning_rate_is_used(
    joint: tuple[Path, RunRecord], tmp_path: Path
) -> None:
    """A vision learning rate that is declared and never read."""
    _, record = joint
    before = plan(tmp_path)
    stages = []
    for stage in before.adapter.stages:
        encoder = stage.encoder and stage.encoder.model_copy(update={"learning_rate": 5e-7})
        stages.append(stage.model_copy(update={"encoder": encoder}))
    adapter = before.adapter.model_copy(update={"stages": tuple(stages)})
    slow = replace(before, adapter=adapter)
    parts = run(slow, QuietReporter()).record.proof.parts
    recipe = before.adapter.stages[-1].encoder
    assert recipe is not None
    assert recipe.learning_rate == pytest.approx(5e-5)
    fast = record.proof.parts
    ratio = fast["encoder"].relative_change / parts["encoder"].relative_change
    assert ratio == pytest.approx(100, rel=0.2)
    assert parts["projector"].relative_change == pytest.approx(
        fast["projector"].relative_change, rel=0.05
    )


def test_scores_come_from_the_tuned_encoder_read_back(joint: tuple[Path, RunRecord]) -> None:
    """The tuned tower is not loaded at evaluation."""
    results, record = joint
    encoder = record.proof.parts["encoder"]
    assert encoder.sha256_after != encoder.sha256_before
    found = load_run(results, record, device="cpu")
    assert hash_parameters(found.encoder) == encoder.sha256_after


def test_a_tuned_encoder_that_is_not_read_back_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, by a loader that reads projector and LLM alone."""

    def without_encoder(mllm: MLLM, folder: Path) -> None:
        fresh = {name: tensor.clone() for name, tensor in mllm.encoder.state_dict().items()}
        load_mllm_weights(mllm, folder)
        mllm.encoder.load_state_dict(fresh)

    monkeypatch.setattr(trained, "load_mllm_weights", without_encoder)
    with pytest.raises(ProofError, match="the model read back disagrees with the trained one"):
        run(plan(tmp_path), QuietReporter())
    assert not list(tmp_path.glob("records/*"))


def test_lora_leaves_a_frozen_encoder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA adapters land inside a tower that is called frozen."""
    lora = plan(tmp_path, joint=False, llm_train="lora")
    built = build_mllm(lora)
    monkeypatch.setattr("encoder_bench.pipeline.run.build_mllm", lambda _: built)
    record = run(lora, QuietReporter()).record
    assert all(p.is_meta for p in built.parameters()), "the trained model still takes memory"
    encoder, llm = record.proof.parts["encoder"], record.proof.parts["llm"]
    assert encoder.trainable_parameters == 0
    assert encoder.sha256_after == encoder.sha256_before
    assert 0 < llm.trainable_parameters < llm.parameters
    assert encoder.parameters == record.encoder.parameters


def test_siglip_keeps_its_first_patch(tmp_path: Path) -> None:
    """SigLIP has no class token, yet token 0 is dropped."""
    encoder = load_encoder("tiny-siglip")
    picture = Image.new("RGB", (64, 64), (40, 40, 40))
    changed = picture.copy()
    changed.paste((250, 10, 10), (0, 0, 8, 8))
    pixels = torch.stack([encoder.transform(picture), encoder.transform(changed)])
    with torch.inference_mode():
        tokens = encoder(pixels)
        whole = encoder.backbone(pixel_values=pixels).last_hidden_state
    assert tokens.shape[1] == encoder.num_tokens == whole.shape[1]
    assert torch.equal(tokens, whole)
    moved = (tokens[0] - tokens[1]).norm(dim=-1)
    assert int(moved.argmax()) == 0


def test_openai_clip_through_timm_needs_quick_gelu() -> None:
    """OpenAI's CLIP weights behind the wrong activation."""
    with pytest.raises(WeightsError, match="quickgelu"):
        load_encoder("timm:vit_base_patch16_clip_224.openai")


@pytest.mark.parametrize("name", ["facebook/dinov2-large", "facebook/nothing", "clip", "dinov2-l "])
def test_a_name_that_nothing_has_is_an_error(name: str) -> None:
    """An id that matches nothing becomes a CLIP tower with random weights."""
    with pytest.raises(UnknownNameError, match=f"unknown encoder '{name}'"):
        find_spec(name)


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    """The same, by a folder: missing weights must not be filled with random values."""
    import transformers
    from safetensors.torch import load_file, save_file

    from encoder_bench.encoders.bundled import tiny_processor

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=64, patch_size=8,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    tiny_processor(64).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state.pop(next(name for name in state if "1" in name))
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError):
        load_encoder(f"dir:{tmp_path}")
