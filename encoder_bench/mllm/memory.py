"""How much memory a training step of the language model takes, before anything is loaded.

The counts of saved tensors were taken with autograd's own hooks on transformers' Llama (and a test
takes them again); other decoders of the same shape differ by a few tensors per layer.
"""

from typing import Any, NamedTuple

import torch

from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.mllm.loading import empty_model
from encoder_bench.mllm.trainable import add_lora

ADAMW_BYTES = 12
"""Gradient and both moments of one float32 parameter."""


class MemoryEstimate(NamedTuple):
    """Bytes of one training step of the language model.

    Attributes:
        weights: all parameters in the recipe's dtype.
        optimizer: gradients and AdamW's moments of what trains.
        activations: what the forward pass keeps for the backward pass.
        logits: of the answer tokens, their float32 copy and its gradient.
    """

    weights: int
    optimizer: int
    activations: int
    logits: int


def estimate(
    settings: LanguageModelSettings,
    *,
    images: int,
    questions_per_image: int,
    visual_tokens: int,
    question_tokens: int = 16,
    answer_tokens: int = 4,
    shared_prefix: bool = True,
) -> MemoryEstimate | None:
    """Return the memory of one step; None without a configuration at hand.

    Tokens are counted per image (visual) and per question, whose template counts too.
    """
    model = empty_model(settings.name)
    if model is None:
        return None
    config, parameters = model.config.get_text_config(), _count(model)
    if settings.train == "lora":
        with torch.device("meta"):
            add_lora(model, settings.lora)
    trained = {"full": parameters, "frozen": 0, "lora": _count(model) - parameters}
    size = getattr(torch, settings.dtype).itemsize
    asked = question_tokens + answer_tokens
    answers = images * questions_per_image * answer_tokens
    return MemoryEstimate(
        weights=parameters * size,
        optimizer=trained[settings.train] * ADAMW_BYTES,
        activations=activation_bytes(
            config,
            rows=images if shared_prefix else images * questions_per_image,
            length=visual_tokens + (questions_per_image * asked if shared_prefix else asked),
            size=size,
            trained=settings.train != "frozen",
            masked=shared_prefix and questions_per_image > 1,
            recomputed=settings.gradient_checkpointing,
        ),
        logits=answers * config.vocab_size * (size + 8),
    )


def activation_bytes(
    config: Any, *, rows: int, length: int, size: int, trained: bool, masked: bool, recomputed: bool
) -> int:
    """Return the bytes that a decoder's layers keep for the backward pass.

    `config` is that of a Llama-like decoder, `length` the tokens of each row, `size` the bytes of
    one activation. Unless its own weights are `trained`, inputs of linear maps are not kept; where
    attention is `masked` each layer keeps a copy of the mask.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    kept = (10 * width + 4 * inner) if trained else (6 * width + 3 * inner)
    kept += 0 if size == 4 else 2 * width  # norms compute in float32
    kept += config.num_attention_heads + 2 + (length if masked else 0)
    if recomputed:
        return int(rows * length * (layers * width + kept) * size)
    return int(rows * length * layers * kept * size)


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
