"""A small Llama with fixed random weights and a byte tokenizer, where none is bundled.

What belongs here: the architecture that the bundled `tiny-llama` shares, built offline from a
seed. It knows nothing of language until it is trained, and every output of a run says so.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SEED = 20240607
_PAD, _BEGIN, _END = "<pad>", "<s>", "</s>"


def seeded_tokenizer() -> Any:
    """Return a tokenizer of 256 bytes and three special tokens: every text, losslessly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([_PAD, _BEGIN, _END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, vocabulary[_BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, bos_token=_BEGIN, eos_token=_END
    )


def tiny_llama_config(vocabulary: int, *, pad: int, begin: int, end: int) -> Any:
    """Return the architecture of `tiny-llama`: 192 wide, 4 layers, 6 heads, 2048 tokens."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=begin,
        eos_token_id=end,
    )


def seeded_config(tokenizer: Any) -> Any:
    """Return the architecture of `tiny-llama` for a tokenizer."""
    return tiny_llama_config(
        len(tokenizer),
        pad=tokenizer.pad_token_id,
        begin=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
    )


def seeded_tiny_llama(tokenizer: Any) -> Any:
    """Return the same random float32 weights at every call, leaving torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return LlamaForCausalLM(seeded_config(tokenizer))
