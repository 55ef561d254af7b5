"""Gradient checkpointing, switched on in whatever library a model is from."""

from __future__ import annotations

from typing import Any

from torch import nn

from encoder_bench.base.errors import RecipeError

_TRANSFORMERS = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
"""The later name first."""
_TIMM_AND_OPEN_CLIP = "set_grad_checkpointing"


def enable_gradient_checkpointing(module: nn.Module, *, key: str) -> None:
    """Switch gradient checkpointing on in a model, or in every model that it is joined from.

    Raises:
        RecipeError: a model in it cannot recompute; names its class and the recipe's `key`.
    """
    if _switch_on(module, key):
        return
    children = list(module.children())
    if not children or any(True for _ in module.parameters(recurse=False)):
        raise RecipeError(f"{key}: a {type(module).__name__} cannot recompute its activations")
    for child in children:
        if any(True for _ in child.parameters()):
            enable_gradient_checkpointing(child, key=key)


def _switch_on(model: Any, key: str) -> bool:
    enable = next((getattr(model, name) for name in _TRANSFORMERS if hasattr(model, name)), None)
    if enable is not None:
        try:
            enable({"use_reentrant": False})
        except ValueError:
            raise RecipeError(
                f"{key}: transformers' {type(model).__name__} cannot recompute its activations"
            ) from None
    elif hasattr(model, _TIMM_AND_OPEN_CLIP):
        getattr(model, _TIMM_AND_OPEN_CLIP)(True)
    else:
        return False
    return True
