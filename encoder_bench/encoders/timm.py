"""Encoders in timm's layout: by name from the Hub, or with a checkpoint on disk.

timm's own data configuration gives resize, crop, mean and std.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.reading import explained, require_reachable
from encoder_bench.encoders.spec import EncoderSpec
from encoder_bench.errors import UnknownNameError, WeightsError
from encoder_bench.hub import is_cached

_HEADS = ("head.", "head_dist.", "fc.", "classifier.", "fc_norm.")


class TimmEncoder(Encoder):
    """A timm backbone without its head; hierarchical ones give their last stage as tokens."""

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Any,
        *,
        layer: tuple[int, ...],
        resolution: int | None,
        revision: str | None,
    ) -> None:
        """Wrap a loaded backbone.

        Raises:
            WeightsError: layers are asked for of a model that is no plain stack of blocks, or a
                layer that it does not have.
        """
        import timm

        super().__init__()
        self.backbone = backbone
        self.layer = layer
        self.pretrained = True
        self.weights_revision = revision
        config = timm.data.resolve_model_data_config(backbone)
        if resolution:
            config["input_size"] = (3, resolution, resolution)
        self._data_config = config
        self._transform = timm.data.create_transform(**config, is_training=False)
        self.resolution = (int(config["input_size"][1]), int(config["input_size"][2]))
        self._blocks = len(backbone.blocks) if hasattr(backbone, "blocks") else None
        self._check_layers(spec)
        with torch.no_grad():
            probe = torch.zeros(1, 3, *self.resolution, dtype=next(backbone.parameters()).dtype)
            tokens, self.grid = self._tokens(probe)
        self.width = int(tokens.shape[-1])
        self.spec = replace(
            spec,
            width=self.width,
            depth=self._blocks,
            resolution=self.resolution[0],
            patch=self.resolution[0] // self.grid[0],
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        )

    def _check_layers(self, spec: EncoderSpec) -> None:
        if self.layer == (-1,):
            return
        if self._blocks is None or not hasattr(self.backbone, "forward_intermediates"):
            raise WeightsError(f"encoder {spec.name}: --layer works on plain stacks of blocks only")
        for index in self.layer:
            if not -self._blocks <= index < self._blocks:
                raise WeightsError(
                    f"encoder {spec.name}: --layer {index} is none of its {self._blocks} blocks"
                )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, N, D)` patch tokens; see `Encoder.forward`.

        Layer -1 is `forward_features`, with the final norm; earlier layers are the blocks' own
        outputs.
        """
        return self._tokens(pixels)[0]

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if self.layer == (-1,):
            return _flat(self.backbone.forward_features(pixels), self.backbone)
        assert self._blocks is not None
        last = self._blocks - 1
        parts = []
        for index in (index % self._blocks for index in self.layer):
            if index == last:
                tokens, grid = _flat(self.backbone.forward_features(pixels), self.backbone)
            else:
                (maps,) = self.backbone.forward_intermediates(
                    pixels, indices=[index], intermediates_only=True, output_fmt="NCHW"
                )
                tokens, grid = maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])
            parts.append(tokens)
        return torch.cat(parts, dim=-1), grid

    def transform(self, image: Image) -> Tensor:
        """Return `(3, H, W)` pixels as timm's data configuration makes them."""
        pixels: Tensor = self._transform(image)
        return pixels.float()

    @property
    def transform_description(self) -> str:
        """The data configuration that timm resolved."""
        return ", ".join(f"{key}={value}" for key, value in sorted(self._data_config.items()))


def _flat(features: Tensor, backbone: Any) -> tuple[Tensor, tuple[int, int]]:
    """Return row-major `(B, N, D)` tokens and their grid from what `forward_features` gives.

    ViTs give `(B, P + N, D)` with P prefix tokens; others a map, `(B, D, h, w)` or `(B, h, w, D)`.
    """
    if features.ndim == 3:
        tokens = features[:, int(getattr(backbone, "num_prefix_tokens", 0)) :]
        embedding = getattr(backbone, "patch_embed", None)
        grid = getattr(embedding, "grid_size", None)
        count = tokens.shape[1]
        if grid is None or grid[0] * grid[1] != count:
            side = round(count**0.5)
            grid = (side, side)
        if grid[0] * grid[1] != count:
            raise WeightsError(f"{count} tokens do not lie on a square grid; use another encoder")
        return tokens, (int(grid[0]), int(grid[1]))
    if features.shape[-1] == backbone.num_features and features.shape[1] != backbone.num_features:
        features = features.permute(0, 3, 1, 2)
    return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])


def load_timm(
    spec: EncoderSpec,
    weights: Path | None,
    *,
    layer: tuple[int, ...],
    resolution: int | None,
    dtype: torch.dtype,
) -> TimmEncoder:
    """Load a timm model.

    Args:
        spec: the catalogue's record; `locator` is timm's name.
        weights: a safetensors file, or a folder with `model.safetensors`, instead of the Hub.
        layer: blocks whose tokens are returned.
        resolution: pixels of a side; position embeddings are interpolated by timm.
        dtype: of the weights.

    Raises:
        UnknownNameError: timm has no such model.
        WeightsError: unreachable, damaged, or not whole.
    """
    import timm

    base = spec.locator.split(".")[0]
    if not timm.is_model(base):
        raise UnknownNameError("timm model", base, timm.list_models())
    _refuse_wrong_activation(spec)
    arguments: dict[str, Any] = {"num_classes": 0}
    if resolution and _takes_image_size(base):
        arguments["img_size"] = resolution
    if weights is not None:
        file = _checkpoint_file(spec.name, weights)
        arguments["pretrained_cfg_overlay"] = {"file": str(file)}
        _check_whole(spec, file, timm.create_model(spec.locator, num_classes=0))
    else:
        facts = timm.get_pretrained_cfg(spec.locator)
        repository = facts.hf_hub_id if facts is not None else None
        if repository and not is_cached(repository):
            require_reachable(spec.name, repository)
    with explained(spec.name, str(weights or spec.locator)):
        backbone = timm.create_model(spec.locator, pretrained=True, **arguments)
    return TimmEncoder(
        spec, backbone.to(dtype).eval(), layer=layer, resolution=resolution, revision=None
    )


def _refuse_wrong_activation(spec: EncoderSpec) -> None:
    """Refuse OpenAI's CLIP weights in an architecture with plain GELU, which timm would build.

    Raises:
        WeightsError: names the architecture that has QuickGELU.
    """
    base, _, tag = spec.locator.partition(".")
    if "_clip_" in base and "quickgelu" not in base and tag.startswith("openai"):
        right = base.replace("_clip_", "_clip_quickgelu_")
        raise WeightsError(
            f"encoder {spec.name}: OpenAI's CLIP weights need QuickGELU; use timm:{right}.{tag}"
        )


def _check_whole(spec: EncoderSpec, file: Path, model: Any) -> None:
    """Check that a checkpoint has every parameter of the model, and none besides but a head's.

    timm itself loads with `strict=False` in places and leaves what is missing at random values.

    Raises:
        WeightsError: names the first parameter that is missing or unexpected.
    """
    from safetensors import safe_open

    with explained(spec.name, str(file)), safe_open(file, framework="pt") as handle:
        held: set[str] = set(handle.keys())
    wanted = set(model.state_dict())
    missing, surplus = sorted(wanted - held), sorted(held - wanted)
    surplus = [name for name in surplus if not name.startswith(_HEADS)]
    if missing:
        raise WeightsError(
            f"encoder {spec.name}: {file} leaves {len(missing)} parameters at random values, the "
            f"first {missing[0]}"
        )
    if surplus:
        raise WeightsError(
            f"encoder {spec.name}: {file} holds {len(surplus)} parameters that {spec.locator} does "
            f"not have, the first {surplus[0]}"
        )


def _takes_image_size(name: str) -> bool:
    import inspect

    import timm

    build = timm.model_entrypoint(name)
    module = inspect.getmodule(build)
    return module is not None and module.__name__.endswith(("vision_transformer", "deit", "eva"))


def _checkpoint_file(name: str, weights: Path) -> Path:
    """Return the safetensors file; pickled checkpoints are refused.

    Raises:
        WeightsError: there is none.
    """
    file = weights / "model.safetensors" if weights.is_dir() else weights
    if file.suffix != ".safetensors" or not file.is_file():
        raise WeightsError(
            f"encoder {name}: --weights {weights}: no model.safetensors; a pickled checkpoint is "
            "not read, convert it with safetensors first"
        )
    return file
