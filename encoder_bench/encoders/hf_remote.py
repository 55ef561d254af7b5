"""A vision tower whose class is a repository's own code, as `--trust-remote-code` allows.

What belongs here: what must be true of such a model, checked on a blank image. Its tokens are read
like any other's by `transformers_encoder.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from encoder_bench.base.errors import WeightsError
from encoder_bench.encoders.hf_architectures import Architecture, plain_architecture
from encoder_bench.encoders.hf_processor import output_size

REMOTE = plain_architecture("AutoModel", 0, other_sizes="never")
"""How such a model is loaded; `checked_architecture` finds out how many prefix tokens it has."""

_NEEDED = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")


def has_own_class(config: Any) -> bool:
    """Return whether a configuration names a model class of its repository's own."""
    return "AutoModel" in (getattr(config, "auto_map", None) or {})


def checked_architecture(
    name: str, place: str, backbone: Any, processor: Any, layer: tuple[int, ...]
) -> Architecture:
    """Run the model once on a blank image and return how its tokens are laid out.

    Patch tokens are the last h * w of `last_hidden_state`, on the grid that image size and patch
    give; class and register tokens stand before them.

    Args:
        name: the encoder, for errors.
        place: its repository or folder, for errors.
        backbone: the loaded model, in eval mode.
        processor: its image processor.
        layer: blocks that are asked for; others than the last need `hidden_states`.

    Raises:
        WeightsError: the configuration or the output is not that of a plain vision transformer.
    """
    problem = f"encoder {name}: {place}: its own model class cannot be used as an encoder: "
    config = backbone.config
    missing = [key for key in _NEEDED if not isinstance(getattr(config, key, None), int)]
    if missing:
        raise WeightsError(f"{problem}its configuration gives no whole number {missing[0]}")
    height, width = output_size(processor)
    grid = (height // config.patch_size, width // config.patch_size)
    first = next(backbone.parameters())
    blank = torch.zeros(1, 3, height, width, dtype=first.dtype, device=first.device)
    only_last = set(layer) <= {-1, config.num_hidden_layers - 1}
    deep = {} if only_last else {"output_hidden_states": True}
    try:
        with torch.no_grad():
            output = backbone(pixel_values=blank, **deep)
    except Exception as error:  # foreign code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{problem}its forward pass fails: {reason}") from error
    tokens = getattr(output, "last_hidden_state", None)
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3:
        raise WeightsError(f"{problem}it gives no last_hidden_state of (images, tokens, width)")
    prefix = tokens.shape[1] - grid[0] * grid[1]
    if prefix < 0 or tokens.shape[2] != config.hidden_size:
        raise WeightsError(
            f"{problem}{tokens.shape[1]} tokens of width {tokens.shape[2]} for {height} x {width} "
            f"pixels; expected at least {grid[0] * grid[1]} patches of width {config.hidden_size}"
        )
    if deep and len(getattr(output, "hidden_states", None) or ()) != config.num_hidden_layers + 1:
        raise WeightsError(f"{problem}it gives no hidden_states of each block, so no --layer")
    registers = int(getattr(config, "num_register_tokens", 0) or 0)
    return replace(REMOTE, prefix_tokens=prefix - registers)
