"""What an architecture says of itself: built without weights, on the meta device.

What belongs here: parameters, width, depth, tokens and floating-point operations of a source,
computed by the same encoder classes that loaders use, with no memory for weights and no Hub.
"""

from __future__ import annotations

from typing import Any

import torch

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.catalog import transformers_configs
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.loading import quiet_building
from encoder_bench.encoders.spec import EncoderSpec

_LAST = (-1,)
FACT_NAMES = (
    "parameters",
    "width",
    "depth",
    "patch",
    "resolution",
    "tokens",
    "prefix_tokens",
)


def build_without_weights(spec: EncoderSpec, *, layer: tuple[int, ...] = _LAST) -> Encoder:
    """Return the encoder of a source on the meta device.

    Args:
        spec: `source` and `locator` say which; `hf` repositories must be in `configs.toml`.
        layer: blocks whose tokens are returned.

    Raises:
        UnknownNameError: the library has no such architecture.
        WeightsError: the repository's shape is not written down.
    """
    with torch.device("meta"):
        if spec.source == "timm":
            return _timm(spec, layer)
        if spec.source == "open_clip":
            return _open_clip(spec, layer)
        return _transformers(spec, layer)


def architecture_facts(spec: EncoderSpec, *, gflops: bool = True) -> dict[str, Any]:
    """Return what `EncoderSpec` states of an architecture: `FACT_NAMES` and `gflops`.

    Args:
        spec: see `build_without_weights`.
        gflops: whether operations are counted too, which takes most of the time.

    Raises:
        UnknownNameError: the library has no such architecture.
        WeightsError: the repository's shape is not written down.
    """
    encoder = build_without_weights(spec)
    facts = {name: getattr(encoder.spec, name) for name in FACT_NAMES}
    return facts | ({"gflops": count_gflops(encoder)} if gflops else {})


def count_gflops(encoder: Encoder) -> float:
    """Return 1e9 floating-point operations of one image's patch tokens, rounded to 0.01.

    PyTorch's counter counts matrix products, convolutions and attention, a multiply-add as two;
    papers on vision often print half of it under the same name.
    """
    from torch.utils.flop_counter import FlopCounterMode

    first = next(encoder.parameters())
    pixels = torch.zeros(1, 3, *encoder.resolution, dtype=first.dtype, device=first.device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        encoder(pixels)
    return round(counter.get_total_flops() / 1e9, 2)


def _timm(spec: EncoderSpec, layer: tuple[int, ...]) -> Encoder:
    from encoder_bench.encoders.timm import build_timm
    from encoder_bench.encoders.timm_encoder import TimmEncoder

    return TimmEncoder(spec, build_timm(spec).eval(), layer=layer, resolution=None, revision=None)


def _open_clip(spec: EncoderSpec, layer: tuple[int, ...]) -> Encoder:
    import open_clip

    from encoder_bench.encoders.open_clip import build_options, image_size, open_clip_name
    from encoder_bench.encoders.open_clip_encoder import OpenClipEncoder

    architecture, _, facts = open_clip_name(spec, tagged=True)
    with quiet_building():
        model, _, transform = open_clip.create_model_and_transforms(
            architecture,
            pretrained=None,
            pretrained_hf=False,
            device="meta",
            **build_options(facts),
        )
    return OpenClipEncoder(
        spec, model.visual.eval(), transform, layer=layer, resolution=image_size(model),
        revision=None,
    )  # fmt: skip


def _transformers(spec: EncoderSpec, layer: tuple[int, ...]) -> Encoder:
    from transformers import ViTImageProcessor

    from encoder_bench.encoders.bundled import seeded_backbone, tiny_processor
    from encoder_bench.encoders.hf_architectures import build_backbone
    from encoder_bench.encoders.hf_encoder import TransformersEncoder

    processor: Any
    if spec.source == "bundled":
        backbone, processor = seeded_backbone(spec.family), tiny_processor()
    else:
        if spec.locator not in transformers_configs():
            raise WeightsError(f"encoder {spec.name}: the shape of {spec.locator} is not known")
        entry = transformers_configs()[spec.locator]
        backbone = build_backbone(entry["config"])
        side = int(entry["resolution"])
        processor = ViTImageProcessor(size={"height": side, "width": side})
    return TransformersEncoder(
        spec, backbone.eval(), processor, layer=layer, resolution=None, pretrained=False,
        revision=None,
    )  # fmt: skip
