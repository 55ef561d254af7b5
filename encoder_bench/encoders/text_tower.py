"""Image and text in one space: both towers of weakly supervised encoders, for retrieval.

Adapters never use it; an encoder's patch tokens come from its loader alone.

Axes: P images, T texts, E joint embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.catalog import EncoderSpec, parse_source
from encoder_bench.encoders.loading import explained, quiet_loading, require_here_or_reachable
from encoder_bench.encoders.registry import find_spec

_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_TEXT_LENGTH = {"siglip": 64}
"""SigLIP was trained with texts padded to 64 tokens and reads its last one."""


@dataclass(frozen=True, slots=True)
class DualEncoder:
    """Both towers of one checkpoint: images to `(P, E)`, texts to `(T, E)`."""

    name: str
    embed_images: Callable[[Sequence[Image]], Tensor]
    embed_texts: Callable[[Sequence[str]], Tensor]


def load_dual_encoder(
    name: str, *, weights: Path | None = None, device: torch.device | None = None
) -> DualEncoder:
    """Load image and text tower of an encoder from the first of its sources that has both.

    Raises:
        UnknownNameError: no such encoder.
        WeightsError: it has no text tower, or its weights are unreachable or damaged.
    """
    spec = find_spec(name)
    place = device or torch.device("cpu")
    if spec.source in ("hf", "dir") and not spec.random_weights:
        return _hf(spec, str(weights or spec.locator), place)
    for source in spec.sources if not spec.random_weights else ():
        form, locator = parse_source(source)
        if form == "open_clip":
            return _open_clip(replace(spec, source=form, locator=locator), weights, place)
    raise WeightsError(f"encoder {name}: its checkpoint has no text tower, so no retrieval")


def _hf(spec: EncoderSpec, place: str, device: torch.device) -> DualEncoder:
    import transformers

    require_here_or_reachable(spec, place)
    with explained(spec.name, place), quiet_loading():
        config = transformers.AutoConfig.from_pretrained(place, revision=spec.revision)
        if config.model_type not in _CLASSES:
            raise WeightsError(
                f"encoder {spec.name}: a '{config.model_type}' checkpoint has no text tower, so no "
                "retrieval"
            )
        model, report = getattr(transformers, _CLASSES[config.model_type]).from_pretrained(
            place, revision=spec.revision, output_loading_info=True
        )
        if report.get("missing_keys"):
            raise WeightsError(
                f"encoder {spec.name}: {place} has no text tower: "
                f"{len(report['missing_keys'])} parameters are missing"
            )
        processor = transformers.AutoImageProcessor.from_pretrained(place, revision=spec.revision)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, revision=spec.revision)
    model = model.to(device).eval()
    length = _TEXT_LENGTH.get(config.model_type)

    @torch.no_grad()
    def images(batch: Sequence[Image]) -> Tensor:
        pixels = processor(images=list(batch), return_tensors="pt")["pixel_values"]
        return _pooled(model.get_image_features(pixel_values=pixels.to(device)))

    @torch.no_grad()
    def texts(batch: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(batch),
            padding="max_length" if length else True,
            truncation=True,
            max_length=length or int(config.text_config.max_position_embeddings),
            return_tensors="pt",
        ).to(device)
        if length:  # SigLIP reads padding as text
            tokens.pop("attention_mask", None)
        return _pooled(model.get_text_features(**tokens))

    return DualEncoder(spec.name, images, texts)


def _pooled(output: Any) -> Tensor:
    """Return the embeddings, whether the library gives them or an output that holds them."""
    tensor: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return tensor.float().cpu()


def _open_clip(spec: EncoderSpec, weights: Path | None, device: torch.device) -> DualEncoder:
    import open_clip

    from encoder_bench.encoders.open_clip import read_open_clip

    model, transform, _ = read_open_clip(spec, weights, vision_only=False)
    tokenizer = open_clip.get_tokenizer(spec.locator.partition("/")[0])
    model = model.to(device=device, dtype=torch.float32).eval()

    @torch.no_grad()
    def images(batch: Sequence[Image]) -> Tensor:
        pixels = torch.stack([transform(image) for image in batch])
        return _pooled(model.encode_image(pixels.to(device)))

    @torch.no_grad()
    def texts(batch: Sequence[str]) -> Tensor:
        return _pooled(model.encode_text(tokenizer(list(batch)).to(device)))

    return DualEncoder(spec.name, images, texts)
