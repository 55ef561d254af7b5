"""While it is loaded, an encoder takes the memory of about one copy of its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.hf_architectures import build_backbone
from encoder_bench.encoders.loading import NoRandomFill

# Loads once, reads every weight once (a mapped page counts from then on), and prints how far the
# process grew above what it held with its libraries imported. The peak is Linux's VmHWM, in KiB:
# ru_maxrss would begin with the peak of the process that started this one.
_GROWTH = """
import importlib, json, sys
from pathlib import Path
import psutil
from encoder_bench.encoders.registry import load_encoder
library, name, weights, add_config = sys.argv[1:]
module = importlib.import_module(library)
if add_config:
    module.add_model_config(add_config)
if library == "transformers":
    load_encoder("tiny-dino")
before = psutil.Process().memory_info().rss
encoder = load_encoder(name, weights=Path(weights))
read = sum(float(tensor.sum()) for tensor in encoder.backbone.state_dict().values())
status = Path("/proc/self/status").read_text()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"growth": peak - before, "read": read}))
"""


def _filled(module: Any) -> dict[str, torch.Tensor]:
    """Return a state dict of the module's shapes; its weights lie on the meta device."""
    return {name: torch.full(t.shape, 0.01) for name, t in module.state_dict().items()}


def _hf(folder: Path) -> tuple[str, Path, str]:
    config = {"model_type": "vit", "num_hidden_layers": 7}  # the rest as ViT-B: 200 MB
    with torch.device("meta"):
        backbone = build_backbone(config)
    backbone.config.save_pretrained(folder)
    tiny_processor(64).save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(_filled(backbone), file, metadata={"format": "pt"})
    return f"dir:{folder}", file, ""


def _timm(folder: Path) -> tuple[str, Path, str]:
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_medium_patch16_gap_384", num_classes=0)
    file = folder / "model.safetensors"
    save_file(_filled(model), file)
    return "timm:vit_medium_patch16_gap_384", file, ""


def _open_clip(folder: Path) -> tuple[str, Path, str]:
    import open_clip

    config = open_clip.get_model_config("ViT-B-16")
    config["vision_cfg"]["layers"] = 6
    config["text_cfg"] |= {"layers": 1, "vocab_size": 512}
    (folder / "ViT-half-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    model = open_clip.create_model("ViT-half-test", pretrained=None, device="meta")
    file = folder / "open_clip_model.safetensors"
    save_file(_filled(model), file)
    return "open_clip:ViT-half-test/local", file, str(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("library", "write"), [("transformers", _hf), ("timm", _timm), ("open_clip", _open_clip)]
)
def test_loading_takes_one_copy_of_the_weights(
    library: str, write: Callable[[Path], tuple[str, Path, str]], tmp_path: Path
) -> None:
    name, file, add_config = write(tmp_path)
    weights = file.parent if name.startswith("dir:") else file
    result = subprocess.run(
        [sys.executable, "-c", _GROWTH, library, name, str(weights), add_config],
        capture_output=True,
        text=True,
        check=True,
    )
    copies = json.loads(result.stdout.splitlines()[-1])["growth"] / file.stat().st_size
    assert 0.5 < copies < 1.6, f"{copies:.2f} copies of {file.stat().st_size >> 20} MiB"


@pytest.mark.timeout(60)
def test_skipping_random_values_ends_whatever_lies_in_memory() -> None:
    used = torch.nn.Parameter(torch.full((64,), 9.0))  # memory that held something before
    plain = torch.full((64,), 9.0)
    with NoRandomFill():
        torch.nn.init.normal_(used)
        torch.nn.init.normal_(plain)
        assert (used == 9.0).all()
        assert (plain != 9.0).all()
        torch.nn.init.trunc_normal_(used, std=0.02, a=-2.0, b=2.0)
    assert used.abs().max() <= 2.0
