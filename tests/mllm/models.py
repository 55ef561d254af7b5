"""Small real models for these tests: a ViT encoder, a seeded Llama, and what joins them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL.Image import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, ViTConfig, ViTModel

from encoder_bench.base.recipes import LanguageModelSettings, LoraSettings, ProjectorSettings
from encoder_bench.data.sample import Conversation
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.mllm.dialogue import ImageDialogue, tokenize_dialogues
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.packing import TrainingBatch, batch_dialogues
from encoder_bench.mllm.projectors import build_projector
from zoo.language import tiny_llama

seeded_llama = partial(tiny_llama, seed=20240607)
"""The same random weights at every call."""
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


class SmallViT(Encoder):
    """transformers' ViT on 32 px images: a grid of 4 x 4 patches, 48 wide."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        config = ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            hidden_dropout_prob=dropout,
        )
        self.backbone = ViTModel(config, add_pooling_layer=False)
        self.width, self.grid, self.resolution = 48, (4, 4), (32, 32)
        self.layer, self.pretrained, self.weights_revision = (-1,), False, None

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.backbone(pixel_values=pixels).last_hidden_state[:, 1:]
        return tokens

    def transform(self, image: Image) -> Tensor:
        pixels = np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float32)
        return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)

    @property
    def transform_description(self) -> str:
        return "resize 32"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes and three special tokens: every text, losslessly."""
    pad, begin, end = "<pad>", "<s>", "</s>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([pad, begin, end, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end
    )


def small_language(
    *, chat: bool = False, lora: LoraSettings | None = None, max_length: int = 2048, **text: str
) -> LanguageModel:
    """`seeded_llama` with sharpened attention so that its answers vary with its input."""
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT
    model = seeded_llama(tokenizer).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    settings = LanguageModelSettings(
        chat_template=chat, lora=lora or LoraSettings(), max_length=max_length, **text
    )
    return LanguageModel(model, tokenizer, settings, pretrained=False, source="seeded:tiny-llama")


def small_mllm(
    *,
    projector: str = "mlp",
    visual_tokens: int | None = None,
    language: LanguageModel | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    whiten: bool = False,
) -> MLLM:
    torch.manual_seed(seed)
    language = language or small_language()
    encoder = SmallViT(dropout)
    settings = ProjectorSettings(
        name=projector, visual_tokens=visual_tokens, heads=2, head_width=16, whiten=whiten
    )
    built = build_projector(settings, grid=(4, 4), width=48, llm_width=language.width)
    return MLLM(encoder, built, language).eval()


def pixels(images: int, seed: int = 1) -> Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def make_batch(
    language: LanguageModel,
    items: Sequence[ImageDialogue | Conversation],
    *,
    shared_prefix: bool,
    row_length: int | None = None,
    pixels: Tensor | None = None,
    features: Tensor | None = None,
) -> TrainingBatch:
    """Questions, one image each, or conversations, tokenised, with pixels or features."""
    images = pixels if features is None else features
    return batch_dialogues(
        language,
        tokenize_dialogues(language, items, image=images is not None),
        shared_prefix=shared_prefix,
        row_length=row_length,
        images=images,
        encoded=features is not None,
    )
