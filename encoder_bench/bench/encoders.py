"""What a contract costs: loading and forward of an encoder against the library's own.

What belongs here: ratios within one run, from the medians of interleaved repeats. Weights are
random, written once in each library's own format; nothing here asserts a speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder_bench.bench.timing import medians
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.catalog import transformers_configs
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.encoders.transformers_architectures import build_backbone

_REPOSITORY = "facebook/dino-vitb16"
_TIMM = "vit_base_patch16_224"
_OPEN_CLIP = "ViT-B-16"


def run_bench(*, batch: int = 8, repeats: int = 5, device: str = "cpu") -> dict[str, Any]:
    """Measure loading and throughput of ViT-B/16 from each library, and return JSON.

    Args:
        batch: images of a forward pass.
        repeats: timed repeats of each way, after one that is not counted.
        device: where the forward pass runs; loading is to the CPU.

    Returns:
        `settings`, and for each source `load` and `forward`: seconds of both ways;
        `loading_overhead` (0.1 means a tenth slower than the library's own call) and
        `throughput_ratio` (1 means as many images a second as the library's own forward).
    """
    report: dict[str, Any] = {
        "settings": {
            "model": "ViT-B/16, random weights, 224 px",
            "batch": batch,
            "repeats": repeats,
            "device": device,
            "threads": torch.get_num_threads(),
        }
    }
    with tempfile.TemporaryDirectory() as temporary:
        for source, prepare in (("hf", _hf), ("timm", _timm), ("open_clip", _open_clip)):
            folder = Path(temporary) / source
            folder.mkdir()
            report[source] = _measure(*prepare(folder), batch, repeats, device)
    return report


Loaders = tuple[Callable[[], Encoder], Callable[[], Any], Callable[[Any, Tensor], Tensor]]
"""Ours, the library's own, and the library's own forward to patch tokens."""


def _measure(
    ours: Callable[[], Encoder],
    theirs: Callable[[], Any],
    forward: Callable[[Any, Tensor], Tensor],
    batch: int,
    repeats: int,
    device: str,
) -> dict[str, Any]:
    with redirect_stderr(StringIO()):
        our_load, their_load = medians(
            [lambda: _ignore(ours()), lambda: _ignore(theirs())], repeats
        )
        encoder, backbone = ours().to(device), theirs().to(device)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        our_forward, their_forward = medians(
            [lambda: _ignore(encoder(pixels)), lambda: _ignore(forward(backbone, pixels))], repeats
        )
    return {
        "load": {"ours_seconds": our_load, "library_seconds": their_load},
        "loading_overhead": our_load / their_load - 1.0,
        "forward": {"ours_seconds": our_forward, "library_seconds": their_forward},
        "throughput_ratio": their_forward / our_forward,
        "images_a_second": batch / our_forward,
    }


def _ignore(_: Any) -> None:
    """Drop a result, so that a way to do something returns nothing."""


def _hf(folder: Path) -> Loaders:
    import transformers

    build_backbone(transformers_configs()[_REPOSITORY]["config"]).save_pretrained(folder)
    processor = tiny_processor()
    processor.size = {"height": 224, "width": 224}
    processor.save_pretrained(folder)
    return (
        lambda: load_encoder(f"dir:{folder}"),
        lambda: transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval(),
        lambda model, pixels: model(pixels).last_hidden_state,
    )


def _timm(folder: Path) -> Loaders:
    import timm
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    save_file(timm.create_model(_TIMM, num_classes=0).state_dict(), file)

    def own() -> Any:
        overlay = {"file": str(file)}
        return timm.create_model(
            _TIMM, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
        ).eval()

    return (
        lambda: load_encoder(f"timm:{_TIMM}", weights=file),
        own,
        lambda model, pixels: model.forward_features(pixels),
    )


def _open_clip(folder: Path) -> Loaders:
    import open_clip
    from safetensors.torch import save_file

    from encoder_bench.encoders.reading import quiet_building

    file = folder / "open_clip_model.safetensors"
    with quiet_building():
        state = open_clip.create_model(_OPEN_CLIP, pretrained=None).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)

    def own() -> Any:
        model = open_clip.create_model_and_transforms(_OPEN_CLIP, pretrained=str(file))[0].visual
        model.output_tokens = True
        return model.eval()

    return (
        lambda: load_encoder(f"open_clip:{_OPEN_CLIP}/local", weights=file),
        own,
        lambda model, pixels: model(pixels)[1],
    )
