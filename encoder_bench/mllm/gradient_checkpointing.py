"""Gradient checkpointing: activations computed again in the backward pass instead of being kept.

What belongs here: switching it on in whatever library a model is from.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from encoder_bench.base.errors import RecipeError

_TRANSFORMERS = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
"""The later name first."""
_TIMM_AND_OPEN_CLIP = "set_grad_checkpointing"


def recompute_activations(module: nn.Module, *, key: str) -> None:
    """Switch recomputation on in a model, or in every model that it is joined from.

    Args:
        module: a part of an MLLM, changed in place.
        key: of the recipe that asks for it, for the error.

    Raises:
        RecipeError: a model in it cannot recompute; names its class.
    """
    if _switch_on(module, key):
        return
    children = list(module.children())
    if not children or any(True for _ in module.parameters(recurse=False)):
        raise RecipeError(f"{key}: a {type(module).__name__} cannot recompute its activations")
    for child in children:
        if any(True for _ in child.parameters()):
            recompute_activations(child, key=key)


def _switch_on(model: Any, key: str) -> bool:
    for name in _TRANSFORMERS:
        if hasattr(model, name):
            try:
                getattr(model, name)({"use_reentrant": False})
            except ValueError:
                raise RecipeError(
                    f"{key}: transformers' {type(model).__name__} cannot recompute its activations"
                ) from None
            return True
    if hasattr(model, _TIMM_AND_OPEN_CLIP):
        getattr(model, _TIMM_AND_OPEN_CLIP)(True)
        return True
    return False
