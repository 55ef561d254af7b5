"""What a contract costs: loading and forward of an encoder against the library's own.

Weights are random, written once in each library's own format.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Times, ratio, rounds
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.catalog import transformers_configs
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.hf_architectures import build_backbone
from encoder_bench.encoders.loading import quiet_loading
from encoder_bench.encoders.registry import load_encoder

VIT_B = "facebook/dino-vitb16"
_TIMM = "vit_base_patch16_224"
_OPEN_CLIP = "ViT-B-16"


def write_vit(folder: Path, repository: str) -> str:
    """Write a ViT of a known configuration with random weights; return its encoder name."""
    with quiet_loading():
        build_backbone(transformers_configs()[repository]["config"]).save_pretrained(folder)
    processor = tiny_processor()
    processor.size = {"height": 224, "width": 224}
    processor.save_pretrained(folder)
    return f"dir:{folder}"


Loaders = tuple[Callable[[], Encoder], Callable[[], Any], Callable[[Any, Tensor], Tensor]]
"""Ours, the library's own, and the library's own forward to patch tokens."""


def _hf(folder: Path) -> Loaders:
    import transformers

    name = write_vit(folder, VIT_B)

    def own() -> Any:
        transformers.AutoImageProcessor.from_pretrained(folder)
        return transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

    return (
        lambda: load_encoder(name),
        own,
        lambda model, pixels: model(pixels).last_hidden_state,
    )


def _timm(folder: Path) -> Loaders:
    import timm
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    save_file(timm.create_model(_TIMM, num_classes=0).state_dict(), file)

    def own() -> Any:
        overlay = {"file": str(file)}
        model = timm.create_model(
            _TIMM, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
        )
        timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        return model.eval()

    return (
        lambda: load_encoder(f"timm:{_TIMM}", weights=file),
        own,
        lambda model, pixels: model.forward_features(pixels),
    )


def _open_clip(folder: Path) -> Loaders:
    import open_clip
    from safetensors.torch import save_file

    from encoder_bench.encoders.loading import quiet_building

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


_SOURCES: dict[str, Callable[[Path], Loaders]] = {
    "hf": _hf,
    "timm": _timm,
    "open_clip": _open_clip,
}


def run_bench(
    *,
    batch: int = 8,
    repeats: int = 5,
    device: str = "cpu",
    sources: Sequence[str] = tuple(_SOURCES),
) -> dict[str, Any]:
    """Measure loading and throughput of ViT-B/16 from each library, and return JSON.

    `first_load_seconds` reads the whole file for its hash (later loads remember it);
    `loading_overhead` of 0.1 is a tenth slower than the library's own call for model and
    preprocessing; `throughput_ratio` of 1 is as many images per second as its own forward. Ratios
    are medians over rounds; those that end in `_cpu` are of processor time, which other work on
    the machine hardly changes, and None for a forward pass on a GPU. Loading, which is short, has
    five times as many rounds.
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
        for source in sources:
            folder = Path(temporary) / source
            folder.mkdir()
            report[source] = _measure(*_SOURCES[source](folder), batch, repeats, device)
    return report


def _measure(
    ours: Callable[[], Encoder],
    theirs: Callable[[], Any],
    forward: Callable[[Any, Tensor], Tensor],
    batch: int,
    repeats: int,
    device: str,
) -> dict[str, Any]:
    with redirect_stderr(StringIO()):
        start = time.perf_counter()
        encoder = ours().to(device)
        first = time.perf_counter() - start
        loads = rounds([ours, theirs], 5 * repeats)
        backbone = theirs().to(device)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        passes = rounds([lambda: encoder(pixels), lambda: forward(backbone, pixels)], repeats)
    on_cpu = device == "cpu"
    return {
        "first_load_seconds": first,
        "load": _seconds(*loads),
        "loading_overhead": ratio(loads[0].wall, loads[1].wall) - 1.0,
        "loading_overhead_cpu": ratio(loads[0].cpu, loads[1].cpu) - 1.0,
        "forward": _seconds(*passes),
        "throughput_ratio": ratio(passes[1].wall, passes[0].wall),
        "throughput_ratio_cpu": ratio(passes[1].cpu, passes[0].cpu) if on_cpu else None,
        "images_per_second": batch / statistics.median(passes[0].wall),
    }


def _seconds(ours: Times, library: Times) -> dict[str, float]:
    return {
        f"{who}_{kind}seconds": statistics.median(seconds)
        for who, times in (("ours", ours), ("library", library))
        for kind, seconds in (("", times.wall), ("cpu_", times.cpu))
    }
