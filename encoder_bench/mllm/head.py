"""The language model's head, applied only where logits are wanted.

What belongs here: one hook. The vocabulary is the widest layer of a small language model, and
most positions of a training row predict nothing that is taught.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def head_only_at(model: Any, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let a causal LM's head see only the hidden states at `(rows, columns)`, each `(T,)`.

    Inside, the model's logits are `(T, vocabulary)`. What follows the head in the library's
    models (scaling, soft-capping) is elementwise, so it holds for any of them.
    """
    head: nn.Module = model.get_output_embeddings()

    def select(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][rows, columns], *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
