"""Image processors of transformers: the size that they give, another size, and how they are told.

What belongs here: reading and changing a processor's settings. It keeps its own arithmetic.
"""

from __future__ import annotations

from typing import Any

from encoder_bench.base.errors import WeightsError

_DESCRIBED = (
    "do_center_crop", "crop_size", "do_resize", "size", "resample", "image_mean", "image_std",
    "rescale_factor",
)  # fmt: skip


def output_size(processor: Any) -> tuple[int, int]:
    """Return (H, W) after a processor's resize and crop.

    Raises:
        WeightsError: the processor keeps each image's own size.
    """
    settings = processor.to_dict()
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, int):
        return size, size
    size = dict(size or {})
    if "height" in size and "width" in size and size["height"]:
        return int(size["height"]), int(size["width"])
    raise WeightsError(f"its image processor gives no fixed size ({size}); pass --resolution")


def resized(processor: Any, resolution: int) -> Any:
    """Return the processor with another output size; resize and crop keep their ratio."""
    settings = processor.to_dict()
    square = {"height": resolution, "width": resolution}
    changes: dict[str, Any] = {}
    if settings.get("do_center_crop") and settings.get("crop_size"):
        changes["crop_size"] = square
        edge = dict(settings["size"]).get("shortest_edge")
        crop = dict(settings["crop_size"])["height"]
        changes["size"] = {"shortest_edge": round(edge * resolution / crop)} if edge else square
    else:
        changes["size"] = square
    return type(processor).from_dict(settings | changes)


def described(processor: Any) -> str:
    """Return the settings that decide the pixels, in a fixed order; part of the fingerprint."""
    settings = processor.to_dict()
    return ", ".join(
        f"{key}={settings[key]}" for key in _DESCRIBED if settings.get(key) is not None
    )
