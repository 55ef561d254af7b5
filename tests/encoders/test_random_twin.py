"""`random:NAME`: an encoder's architecture and preprocessing with fresh weights by the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import ModuleList

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.encoders.registry import encoder_card, find_spec, load_encoder
from tests.encoders.test_contract import write_open_clip, write_timm, write_transformers


def write(kind: str, folder: Path) -> tuple[str, Path | None]:
    if kind == "hf":
        return "dir:" + str(write_transformers("dinov2", folder)), None
    if kind == "timm":
        return "timm:vit_tiny_patch16_224", write_timm(folder)
    if kind == "open_clip":
        return "open_clip:ViT-S-32-alt/local", write_open_clip(folder)
    return "tiny-clip", None


@pytest.mark.parametrize("kind", ["hf", "timm", "open_clip", "bundled"])
def test_a_twin_differs_in_its_weights_alone(kind: str, tmp_path: Path) -> None:
    name, weights = write(kind, tmp_path)
    encoder = load_encoder(name, weights=weights)
    state = torch.random.get_rng_state()
    twin, again, other = (
        load_encoder(f"random:{name}", weights=weights, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert twin.transform_description == encoder.transform_description
    assert (twin.grid, twin.width, twin.resolution) == (
        encoder.grid, encoder.width, encoder.resolution,
    )  # fmt: skip
    own, fresh = encoder.backbone.state_dict(), twin.backbone.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in fresh.items()}
    assert not torch.equal(next(encoder.parameters()), next(twin.parameters()))
    assert (encoder.pretrained, twin.pretrained) == (True, False)
    assert twin.spec.name == f"random:{name}"
    assert (twin.spec.pretraining_data, twin.spec.supervision) == ("none", "none")
    assert twin.weights_revision is None
    assert twin.fingerprint() == again.fingerprint()
    assert len({e.fingerprint() for e in (encoder, twin, other)}) == 3
    pixels = twin.transform(Image.new("RGB", (50, 40), (200, 60, 10)))[None]
    assert torch.isfinite(twin(pixels)).all()


def test_the_same_pixels_are_described_alike_from_a_folder_and_by_name(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    folder = load_encoder(name, weights=write_timm(tmp_path))
    assert folder.transform_description == load_encoder(f"random:{name}").transform_description


def test_the_twin_has_the_librarys_own_initialisation(tmp_path: Path) -> None:
    import timm

    twin = load_encoder("random:timm:vit_tiny_patch16_224", seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        own = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    assert all(torch.equal(own[k], v) for k, v in twin.backbone.state_dict().items())


def test_a_twin_of_two_encoders_is_random_in_both() -> None:
    twin, both = (load_encoder(f"{prefix}tiny-clip+tiny-siglip") for prefix in ("random:", ""))
    assert not twin.pretrained
    assert twin.width == both.width
    for ours, theirs in zip(twin.backbone, both.backbone, strict=True):
        assert not torch.equal(next(ours.parameters()), next(theirs.parameters()))


def test_one_of_two_encoders_may_be_a_twin() -> None:
    mixed = load_encoder("tiny-clip+random:tiny-siglip", seed=3)
    assert isinstance(mixed.backbone, ModuleList)
    own, twin = mixed.backbone
    assert hash_parameters(own.backbone) == hash_parameters(load_encoder("tiny-clip").backbone)
    assert hash_parameters(twin.backbone) != hash_parameters(load_encoder("tiny-siglip").backbone)
    assert not mixed.pretrained
    again, other = (load_encoder("tiny-clip+random:tiny-siglip", seed=s) for s in (3, 4))
    assert again.fingerprint() == mixed.fingerprint() != other.fingerprint()


def test_a_twins_name_is_exact_and_its_card_says_that_it_learned_nothing() -> None:
    assert find_spec("random:dinov2-l").parameters == find_spec("dinov2-l").parameters
    for name in ("random:tiny-mae", "random:clip-l"):
        card = encoder_card(name)
        assert (card["pretraining_data"], card["supervision"]) == ("none", "none")
    with pytest.raises(UnknownNameError, match="did you mean 'dinov2-l'"):
        find_spec("random:dinov2-L")
    with pytest.raises(WeightsError, match=r"--weights PATH.*; random:dinov2-l@timm needs no"):
        load_encoder("random:dinov2-l")


def test_a_twins_record_says_that_it_is_not_pretrained() -> None:
    from encoder_bench.pipeline.build import encoder_facts

    facts = [
        encoder_facts(load_encoder("random:tiny-deit", seed=seed), "0" * 64) for seed in (0, 1)
    ]
    assert not any(fact.pretrained for fact in facts)
    assert facts[0].fingerprint != facts[1].fingerprint
    assert facts[0].name == "random:tiny-deit"
