"""The multimodal LLM: encoder, projector and language model in one module.

Axes: B images, N patch tokens, D encoder width, M visual tokens, E LLM width, R rows, L tokens of
a row, T answer tokens, V vocabulary.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from encoder_bench.encoders.encoder import Encoder
from encoder_bench.mllm.attention import FLEX, training_kernel
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.packing import TrainingBatch, pack
from encoder_bench.mllm.projectors.projector import Projector


class MLLM(nn.Module):
    """Encoder `(B, 3, H, W) -> (B, N, D)`, projector `-> (B, M, E)` and language model."""

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

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Return the cross-entropy (nats) of the answers, summed over `batch.answer_tokens`.

        Only answer tokens, each with its end token, are taught. Raises as `logits`.
        """
        logits_TV, targets_T = self.logits(batch)
        return F.cross_entropy(logits_TV.float(), targets_T, reduction="sum")

    def logits(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return `(T, V)` logits and the answer tokens `(T,)` that they predict.

        Text is embedded and visual tokens are spliced into their places; the head is applied at
        the positions that predict an answer token and nowhere else.

        Raises:
            DataError: a question is longer than the context; names the image.
        """
        features, language = batch.images, self.language
        if features is not None and not batch.encoded:
            features = self.features(features)
        elif features is None and self.training and torch.is_grad_enabled():
            features = self._no_image()
        visual_BME = None if features is None else self.visual_tokens(features)
        rows = pack(batch, language, visual_tokens=0 if visual_BME is None else visual_BME.shape[1])
        rows = rows.to(language.device)
        input_RLE = language.embed(rows.input_ids)
        if visual_BME is not None:
            is_visual_RL = rows.visual_index >= 0
            flat = visual_BME.flatten(0, 1).to(input_RLE.dtype)
            input_RLE = input_RLE.index_put(
                is_visual_RL.nonzero(as_tuple=True), flat[rows.visual_index[is_visual_RL]]
            )
            if batch.images is None:
                input_RLE = input_RLE + 0 * flat.mean()
        with training_kernel(rows, language):
            logits_TV: Tensor = language(
                input_RLE,
                mask=rows.mask(flex=language.attention == FLEX),
                position_ids=rows.position_ids,
                at=(rows.loss_rows, rows.loss_columns),
            )
        return logits_TV, rows.targets

    def _no_image(self) -> Tensor:
        """Return patch tokens `(1, N, D)` of nothing, for a batch of text alone.

        So all that trains takes part in every backward pass, with a gradient of zero: shards are
        exchanged by all processes or none, and a loss needs something that trains.
        """
        encoder, device = self.encoder, next(self.projector.parameters()).device
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            return self.features(torch.zeros(1, 3, *encoder.resolution, device=device))
        return torch.zeros(1, encoder.num_tokens, encoder.width, device=device)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what is frozen stays free of dropout and running statistics.

        A frozen part goes to eval mode whole; in a part with low-rank adapters only the adapters'
        own modules train. Recomputation (gradient checkpointing) is switched by the `training`
        flag of the blocks themselves, so it is kept on where it was asked for, and the dropout that
        OPT's, BioGPT's and other blocks do by the same flag is 0 while they are frozen.

        A batch norm keeps the checkpoint's running statistics in a tuned part too, as where He et
        al. 2015 fine-tune (arXiv 1512.03385, appendix A); its scale and shift train. Statistics of
        a micro-batch would make a step depend on how it was cut, and one of text has no image.
        """
        super().train(mode)
        for part in self.parts().values():
            parameters = dict(part.named_parameters())
            adapted = any(".lora_" in name for name in parameters)
            trains = not adapted and any(p.requires_grad for p in parameters.values())
            for module in part.modules():
                if getattr(module, "gradient_checkpointing", False):
                    _set_dropout(module, on=trains)
            if trains:
                continue
            part.eval()
            for name, module in part.named_modules():
                adapter = adapted and "lora_" in name
                if adapter or getattr(module, "gradient_checkpointing", False):
                    module.training = mode
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


def _set_dropout(block: nn.Module, *, on: bool) -> None:
    """Give a block its own rates of dropout, or 0, which its `training` flag would apply."""
    own = vars(block).setdefault(
        "_own_dropout",
        {n: v for n, v in vars(block).items() if "dropout" in n and isinstance(v, float)},
    )
    for name, rate in own.items():
        setattr(block, name, rate if on else 0.0)
