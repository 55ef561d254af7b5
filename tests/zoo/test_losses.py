"""Each objective's loss against hand-computed values and, where there is one, the library's own."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from zoo.clip import symmetric_info_nce
from zoo.dino import centred_and_sharpened, cross_view_loss
from zoo.dinov2 import (
    koleo_loss,
    masked_patch_cross_entropy,
    random_patch_mask,
    sinkhorn_knopp,
)
from zoo.mae import masked_patch_loss, patchify
from zoo.siglip import pairwise_sigmoid_loss

TINY_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 12,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


def test_info_nce_by_hand() -> None:
    # two orthogonal pairs at inverse temperature e^log(2): logits [[2, 0], [0, 2]].
    unit = torch.eye(2)
    expected = -math.log(math.exp(2.0) / (math.exp(2.0) + 1.0))
    loss = symmetric_info_nce(unit, unit, torch.tensor(math.log(2.0)))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_info_nce_equals_transformers_clip() -> None:
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(vision_config=TINY_VISION, text_config=TINY_TEXT, projection_dim=8)
    ).eval()
    ids = torch.tensor([[1, 5, 6, 3], [1, 9, 3, 0], [1, 7, 8, 3]])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=torch.randn(3, 3, 16, 16), return_loss=True)
        ours = symmetric_info_nce(out.image_embeds, out.text_embeds, model.logit_scale)
    torch.testing.assert_close(ours, out.loss, rtol=0, atol=1e-5)


def test_sigmoid_loss_by_hand() -> None:
    # t = 1, b = 0: diagonal logits 1, others 0, so (2 softplus(-1) + 2 log 2) / 2.
    unit = torch.eye(2)
    loss = pairwise_sigmoid_loss(unit, unit, torch.tensor(0.0), torch.tensor(0.0))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0)) + math.log(2.0), abs=1e-6)


def test_sigmoid_loss_equals_transformers_siglip() -> None:
    torch.manual_seed(0)
    text = TINY_TEXT | {"projection_size": 16}
    model = SiglipModel(SiglipConfig(vision_config=TINY_VISION, text_config=text)).eval()
    ids = torch.tensor([[5, 6, 3, 0], [9, 3, 0, 0], [7, 8, 4, 3]])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=torch.randn(3, 3, 16, 16), return_loss=True)
        ours = pairwise_sigmoid_loss(
            out.image_embeds, out.text_embeds, model.logit_scale, model.logit_bias
        )
    torch.testing.assert_close(ours, out.loss, rtol=0, atol=1e-5)


def test_patch_loss_by_hand() -> None:
    # patch (0, 2): mean 1, unbiased variance 2, so the target is (-1, 1) / sqrt 2;
    # a prediction of zeros errs by 1/2. The visible patch does not count.
    patches = torch.tensor([[[0.0, 2.0], [5.0, 9.0]]])
    loss = masked_patch_loss(patches, torch.zeros(1, 2, 2), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(0.5, abs=1e-5)


def test_patch_loss_equals_transformers_vit_mae() -> None:
    torch.manual_seed(0)
    config = ViTMAEConfig(
        **TINY_VISION | {"image_size": 32},
        norm_pix_loss=True,
        mask_ratio=0.75,
        decoder_hidden_size=16,
        decoder_intermediate_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
    )
    model = ViTMAEForPreTraining(config).eval()
    pixels, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        out = model(pixels, noise=noise)
    torch.testing.assert_close(patchify(pixels, 8), model.patchify(pixels))
    ours = masked_patch_loss(patchify(pixels, 8), out.logits, out.mask)
    torch.testing.assert_close(ours, out.loss, rtol=0, atol=1e-5)
    assert out.mask.sum(dim=1).tolist() == [12.0, 12.0]


def test_centring_and_sharpening_by_hand() -> None:
    # (log 3, 0) minus centre (0, 0) at temperature 1 and, doubled, at 0.5.
    logits = torch.tensor([[math.log(3.0), 0.0]])
    plain = centred_and_sharpened(logits, torch.zeros(2), 1.0)
    sharp = centred_and_sharpened(logits, torch.zeros(2), 0.5)
    centred = centred_and_sharpened(logits, logits[0], 0.1)
    torch.testing.assert_close(plain, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(sharp, torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(centred, torch.tensor([[0.5, 0.5]]))


def test_cross_view_loss_leaves_a_view_out_of_its_own_pair() -> None:
    certain, even = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    views = [torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])]
    # pairs: teacher 0 (certain) with view 1: -log 3/4; teacher 1 (even) with view 0: log 2.
    loss = cross_view_loss([certain, even], views, 1.0)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2.0)) / 2, abs=1e-6)


def test_sinkhorn_knopp_balances_prototypes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 8, generator=generator)
    mass = sinkhorn_knopp(logits, 1.0, iterations=50)
    torch.testing.assert_close(mass.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(mass.sum(dim=0), torch.full((8,), 8.0), rtol=1e-3, atol=0)


def test_sinkhorn_knopp_by_hand() -> None:
    # exp of the logits is [[1, 1], [1, 3]]; one iteration: columns become (1/2, 1/4), (1/2, 3/4)
    # each, then rows (2/3, 1/3) and (2/5, 3/5).
    mass = sinkhorn_knopp(torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]]), 1.0, iterations=1)
    torch.testing.assert_close(mass, torch.tensor([[2 / 3, 1 / 3], [2 / 5, 3 / 5]]))


def test_masked_patch_loss_weighs_images_alike() -> None:
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    student = torch.tensor([[0.0, 0.0], [0.0, 0.0], [math.log(3.0), 0.0]])
    loss = masked_patch_cross_entropy(teacher, student, mask, 1.0)
    assert loss.item() == pytest.approx((math.log(2.0) + math.log(4 / 3)) / 2, abs=1e-6)


def test_koleo_by_hand() -> None:
    # nearest neighbours on the circle: (1,0)-(0,1) at sqrt 2, (-1,0)-(0,1) at sqrt 2.
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert koleo_loss(features).item() == pytest.approx(-0.5 * math.log(2.0), abs=1e-5)


def test_patch_masks_hold_at_least_one_patch_in_some_image() -> None:
    for seed in range(5):
        mask = random_patch_mask(8, 64, torch.Generator().manual_seed(seed))
        counts = mask.sum(dim=1)
        assert counts.max() <= 32
        assert counts[0] >= 6
