"""The tiny language model's tokenizer: whole words, then characters, then bytes.

A known word is one token together with the space before it; an unknown one is spelled in printable
ASCII; anything else is spelled in bytes, so that every text encodes and, but for runs of spaces at
its start, decodes to itself.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

PAD, EOS, BOS = "<pad>", "</s>", "<s>"
SPACE = "▁"
_PIECE = r"▁?\p{L}+|▁?\p{N}|▁?[^▁\p{L}\p{N}]"
_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")


def words_of(texts: Iterable[str]) -> list[str]:
    """Return the distinct words, digits and signs of texts, the most frequent first.

    >>> words_of(["two red cups.", "a red cup"])[:2]
    ['red', '.']
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def build_tokenizer(words: Iterable[str]) -> Any:
    """Return a `transformers` tokenizer that holds `words` with and without a space before them.

    Ids: `<pad>` 0, `</s>` 1, `<s>` 2, then 256 bytes, the space, printable ASCII, then the words.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, EOS, BOS, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE]
    pieces += string.ascii_letters + string.digits + string.punctuation
    pieces += (f"{SPACE}{word}" for word in words)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True, fuse_unk=False
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (PAD, EOS, BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
