"""What an architecture says of itself: built without weights, on the meta device.

`python -m encoder_bench.encoders.facts` computes the catalogue's `facts.json` again.
"""

import json
from typing import Any

import torch

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.files import write_text
from encoder_bench.encoders.catalog import CATALOG, FACTS_FILE, EncoderSpec, transformers_configs
from encoder_bench.encoders.encoder import Encoder, LoadOptions

_NAMES = ("parameters", "width", "depth", "patch", "resolution", "tokens", "prefix_tokens")


def build_without_weights(spec: EncoderSpec) -> Encoder:
    """Return the encoder of a source on the meta device.

    Raises:
        UnknownNameError: the library has no such architecture.
        WeightsError: the repository's shape is not written down.
    """
    from encoder_bench.encoders.open_clip import OpenClipEncoder, build_open_clip
    from encoder_bench.encoders.timm import TimmEncoder, build_timm

    with torch.device("meta"):
        if spec.source == "timm":
            return TimmEncoder(spec, build_timm(spec).eval(), LoadOptions())
        if spec.source == "open_clip":
            model, transform = build_open_clip(spec, device="meta")
            return OpenClipEncoder(spec, model.visual.eval(), transform, LoadOptions())
        return _hf(spec)


def _hf(spec: EncoderSpec) -> Encoder:
    from transformers import ViTImageProcessor

    from encoder_bench.encoders.bundled import tiny_backbone, tiny_processor
    from encoder_bench.encoders.hf import HfEncoder
    from encoder_bench.encoders.hf_architectures import build_backbone

    if spec.source == "bundled":
        backbone, processor = tiny_backbone(spec.family), tiny_processor()
    elif can_be_computed(spec):
        entry = transformers_configs()[spec.locator]
        backbone, side = build_backbone(entry["config"]), int(entry["resolution"])
        processor = ViTImageProcessor(size={"height": side, "width": side})
    else:
        raise WeightsError(f"encoder {spec.name}: the shape of {spec.locator} is not known")
    return HfEncoder(spec, backbone.eval(), processor, LoadOptions())


def can_be_computed(spec: EncoderSpec) -> bool:
    """Return whether an encoder's architecture is known without its weights."""
    return spec.source != "hf" or spec.locator in transformers_configs()


def architecture_facts(spec: EncoderSpec, *, gflops: bool = True) -> dict[str, Any]:
    """Return what `EncoderSpec` states of an architecture; counting operations takes longest."""
    encoder = build_without_weights(spec)
    facts = {name: getattr(encoder.spec, name) for name in _NAMES}
    return facts | ({"gflops": count_gflops(encoder)} if gflops else {})


def count_gflops(encoder: Encoder) -> float:
    """Return 1e9 floating-point operations per image, rounded to 0.01.

    PyTorch's counter counts matrix products, convolutions and attention, a multiply-add as two;
    papers on vision often print half of it under the same name.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(encoder.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        encoder(torch.zeros(1, 3, *encoder.resolution, device=device))
    return round(counter.get_total_flops() / 1e9, 2)


def main() -> None:
    """Compute every encoder's facts and replace the catalogue's file."""
    facts: dict[str, dict[str, Any]] = {}
    for spec in filter(can_be_computed, CATALOG.values()):
        facts[spec.sources[0]] = architecture_facts(spec)
        print(spec.name, facts[spec.sources[0]])
    lines = [f" {json.dumps(key)}: {json.dumps(facts[key])}" for key in sorted(facts)]
    write_text(FACTS_FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
