"""A conversation about one image, turn after turn.

What belongs here: keeping what was said and putting it before the next question the way the
language model's own chat template does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL.Image import Image
from torch import Tensor

from encoder_bench.base.recipes import DecodingSettings
from encoder_bench.mllm.generate import generate
from encoder_bench.mllm.model import MLLM


@dataclass
class Conversation:
    """Questions and answers about one image.

    Attributes:
        mllm: the model, in eval mode.
        image: what is talked about; None for text only. It is encoded once.
        decoding: how answers are generated.
        turns: (question, answer) pairs so far, oldest first.
    """

    mllm: MLLM
    image: Image | None
    decoding: DecodingSettings = field(default_factory=lambda: DecodingSettings(max_new_tokens=64))
    turns: list[tuple[str, str]] = field(default_factory=list)
    _visual: Tensor | None = field(default=None, init=False, repr=False)

    def ask(self, question: str) -> str:
        """Return the answer to `question` after all that was said, and remember both.

        Raises:
            DataError: the conversation has outgrown the context.
        """
        answer = generate(self.mllm, self._visual_tokens(), [[self._said(question)]], self.decoding)
        self.turns.append((question, answer[0][0]))
        return answer[0][0]

    def _said(self, question: str) -> str:
        """Return all turns and the question as one prompt; the template closes it."""
        template = self.mllm.language.template
        said = [
            f"{asked}{template.tail}{template.joiner}{answer}{template.between}"
            for asked, answer in self.turns
        ]
        return "".join(said) + question

    @torch.inference_mode()
    def _visual_tokens(self) -> Tensor | None:
        if self.image is None or self._visual is not None:
            return self._visual
        pixels = self.mllm.encoder.transform(self.image)[None].to(self.mllm.language.device)
        self._visual = self.mllm.visual_tokens(self.mllm.features(pixels))
        return self._visual


def ask(
    mllm: MLLM, image: Image | None, question: str, decoding: DecodingSettings | None = None
) -> str:
    """Return the answer to one question about one image.

    Raises:
        DataError: the question does not fit into the context.
    """
    if decoding is None:
        return Conversation(mllm, image).ask(question)
    return Conversation(mllm, image, decoding).ask(question)
