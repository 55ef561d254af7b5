"""Which attention kernel reads a row of many questions: SDPA with a mask, or FlexAttention.

SDPA takes a dense mask and computes what it hides; FlexAttention skips the blocks of 128 by 128
tokens in which nothing may be seen, and is compiled for a GPU as training begins. Which tokens may
see each other is the same for both, see `packing.py`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.base.errors import TrainingError
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.packing import PackedRows

FLEX = "flex_attention"
_PROBE_TOKENS = 160
MAX_SHORT_ROW = 320
_MAX_WEIGHTS = 2**25
"""Tokens of a row, and attention weights of a layer, up to which plain products are taken."""
_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Largest difference from SDPA in units of the largest value; float32 products may run in TF32."""
_KERNEL_LOCK = threading.RLock()
"""torch's choice of an SDPA kernel holds for the whole process, in every thread."""


@contextlib.contextmanager
def training_attention(
    language: LanguageModel,
    device: torch.device,
    wanted: Literal["auto", "sdpa", "flex_attention"],
) -> Iterator[str]:
    """Use the attention that a recipe wants while a model trains, then what it had.

    `auto` and `sdpa` change nothing: no measured step was quicker with FlexAttention.

    Yields:
        The name of what is used, as transformers has it.

    Raises:
        TrainingError: FlexAttention is wanted and cannot train the model on this device.
    """
    before = language.attention
    if wanted == FLEX:
        if not trains_with_flex(language, device):
            raise TrainingError(
                f"training.attention = {FLEX!r}: it does not train {language.settings.name} on "
                f"{device.type} with SDPA's gradients; leave it at 'auto'"
            )
        language.model.set_attn_implementation(FLEX)
    try:
        yield language.attention
    finally:
        if language.attention != before:
            language.model.set_attn_implementation(before)


@contextlib.contextmanager
def training_kernel(rows: PackedRows, language: LanguageModel) -> Iterator[None]:
    """Let SDPA take plain matrix products where torch's fused CPU kernel is the slower one.

    That is the backward pass of short masked rows in bfloat16: a step of the tiny language model
    over 16 rows of 220 tokens takes 0.57 of the time. Long rows would hold too much memory.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    count, length = rows.input_ids.shape
    heads = getattr(language.config, "num_attention_heads", None)
    plain = (
        heads is not None
        and rows.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and length <= MAX_SHORT_ROW
        and count * heads * length**2 <= _MAX_WEIGHTS
        and not language.settings.gradient_checkpointing
    )
    if not plain:
        yield
        return
    with _KERNEL_LOCK, sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def usual_kernel(device: torch.device) -> Iterator[None]:
    """Keep `training_kernel` of other threads from changing the SDPA kernel of a pass on a CPU.

    A frozen encoder runs beside training, and its features must not depend on the moment.
    """
    with _KERNEL_LOCK if device.type == "cpu" else contextlib.nullcontext():
        yield


def trains_with_flex(language: LanguageModel, device: torch.device) -> bool:
    """Return whether FlexAttention trains a model on a device; it has no backward pass on CPUs.

    On a GPU it is tried: output and gradients on a row of packed questions must be SDPA's.
    """
    supported = getattr(language.model, "_supports_flex_attn", False)
    if device.type != "cuda" or not supported or not language.keeps_questions_apart:
        return False
    try:
        return _difference_from_sdpa(language, device) <= _TOLERANCE[language.dtype]
    except Exception:  # whatever the compiler raises: SDPA is always there
        return False


def _difference_from_sdpa(language: LanguageModel, device: torch.device) -> float:
    """Return the largest relative difference of output and gradients on one packed row."""
    from torch.nn.attention.flex_attention import flex_attention

    shape = (3, 1, language.heads, _PROBE_TOKENS, language.head_width)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(device, language.dtype).requires_grad_()
    half = _PROBE_TOKENS // 2  # one row of two images with two questions each, and padding
    turn = torch.tensor([*[0] * 20, *[1] * 30, *[2] * (half - 50)] * 2)[None]
    dialogue = torch.tensor([*[0] * half, *[1] * (half - 5), *[-1] * 5])[None]
    tensors = dict.fromkeys(PackedRows._fields[1:], turn) | {"dialogue": dialogue}
    rows = PackedRows(plain=False, **tensors).to(device)
    compiled = torch.compile(flex_attention)

    def differentiated(attend: Callable[..., Tensor], **mask: Tensor) -> tuple[Tensor, Tensor]:
        output = attend(*inputs, **mask)
        (gradient,) = torch.autograd.grad(output.float().square().sum(), inputs)
        return output.detach().float(), gradient.float()

    found = differentiated(compiled, block_mask=rows.mask(flex=True))
    expected = differentiated(F.scaled_dot_product_attention, attn_mask=rows.mask())
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )
