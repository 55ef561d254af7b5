"""The multimodal LLM: encoder, projector and language model in one module.

Axes: B images, N patch tokens, D encoder width, M visual tokens, E LLM width, R rows, L tokens of
a row, T answer tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.mllm.attention import FLEX, training_kernel
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.packing import TrainingBatch, pack
from encoder_bench.mllm.projectors.projector import Projector


@dataclass(frozen=True, slots=True)
class LossSum:
    """A sum of token cross-entropies (nats) and the number of tokens in it.

    Divide the sums of all micro-batches and processes by the sum of their tokens: that is the
    mean over the global batch, however it was cut.
    """

    total: Tensor
    tokens: int


class MLLM(nn.Module):
    """Encoder -> projector -> language model.

    Attributes:
        encoder: `(B, 3, H, W) -> (B, N, D)`.
        projector: `(B, N, D) -> (B, M, E)`.
        language: the causal language model with its tokenizer.
    """

    def __init__(self, encoder: Encoder, projector: Projector, language: LanguageModel) -> None:
        """Join the three parts as they are; `trainable.set_trainable` says what trains."""
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.language = language

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that are trained, frozen and verified each on its own."""
        return {"encoder": self.encoder, "projector": self.projector, "llm": self.language.model}

    def features(self, pixels: Tensor) -> Tensor:
        """Return patch tokens `(B, N, D)` of `(B, 3, H, W)` pixels.

        No graph is recorded exactly when no parameter of the encoder is trainable. A frozen
        encoder computes in its own dtype, not under autocast, as the feature cache has it.
        """
        if any(parameter.requires_grad for parameter in self.encoder.parameters()):
            tuned: Tensor = self.encoder(pixels)
            return tuned
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            frozen: Tensor = self.encoder(pixels)
        return frozen

    def visual_tokens(self, features: Tensor) -> Tensor:
        """Return `(B, M, E)` visual tokens of `(B, N, D)` patch tokens."""
        dtype = next(self.projector.parameters()).dtype
        tokens: Tensor = self.projector(features.to(dtype))
        return tokens

    def loss(self, batch: TrainingBatch) -> LossSum:
        """Return the cross-entropy of the answers, summed over their tokens.

        Only answer tokens, each with its end token, are taught.

        Raises:
            DataError: a question is longer than the context; names the image.
        """
        logits_TV, targets_T = self._predict(batch)
        total = F.cross_entropy(logits_TV.float(), targets_T, reduction="sum")
        return LossSum(total, len(targets_T))

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Return the sum of `loss(batch)` alone: wrappers such as FSDP follow tensors only."""
        return self.loss(batch).total

    def logits(self, batch: TrainingBatch) -> Tensor:
        """Return `(T, V)` logits that predict the answer tokens of a batch.

        Raises:
            DataError: a question is longer than the context; names the image.
        """
        return self._predict(batch)[0]

    def _predict(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return `(T, V)` logits and the answer tokens `(T,)` that they predict.

        Text is embedded and visual tokens are spliced into their places; the head is applied at
        the positions that predict an answer token and nowhere else.
        """
        visual_BME = None
        if batch.features is not None:
            visual_BME = self.visual_tokens(batch.features)
        elif batch.pixels is not None:
            visual_BME = self.visual_tokens(self.features(batch.pixels))
        rows = pack(batch, visual_tokens=0 if visual_BME is None else visual_BME.shape[1])
        rows = rows.to(self.language.device)
        input_RLE = self.language.embed(rows.input_ids)
        if visual_BME is not None:
            is_visual_RL = rows.visual_index >= 0
            flat = visual_BME.flatten(0, 1).to(input_RLE.dtype)
            input_RLE = input_RLE.index_put(
                is_visual_RL.nonzero(as_tuple=True), flat[rows.visual_index[is_visual_RL]]
            )
        with training_kernel(rows, self.language):
            logits_TV: Tensor = self.language(
                input_RLE,
                mask=rows.block_mask() if self.language.attention == FLEX else rows.mask(),
                position_ids=rows.position_ids,
                at=(rows.loss_rows, rows.loss_columns),
            )
        return logits_TV, rows.targets

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a part without trainable parameters stays in eval mode."""
        super().train(mode)
        for part in self.parts().values():
            _quieten(part)
        return self


def _quieten(part: nn.Module) -> None:
    """Keep what is frozen free of dropout and of running statistics.

    A frozen part goes to eval mode whole; in a part with low-rank adapters only the adapters'
    own modules train. Recomputation (gradient checkpointing) is switched by the `training` flag
    of the blocks themselves, which holds no dropout, so it is kept on where it was asked for.
    """
    training = part.training
    parameters = dict(part.named_parameters())
    has_adapters = any(".lora_" in name for name in parameters)
    if not has_adapters and any(p.requires_grad for p in parameters.values()):
        return
    part.eval()
    for name, module in part.named_modules():
        adapter = has_adapters and "lora_" in name
        if adapter or getattr(module, "gradient_checkpointing", False):
            module.training = training
