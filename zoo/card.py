"""Model cards and the folder that ships: fp16 safetensors in transformers' own layout."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from encoder_bench.base.files import write_bytes, write_text
from encoder_bench.base.hashing import hash_file


def ship(
    model: Any, folder: Path, *, card: dict[str, Any], companions: tuple[Any, ...] = ()
) -> str:
    """Write a model as fp16 with its card and return the weights file's sha256.

    Args:
        model: a transformers model; it is left as it is.
        folder: where the files go, replaced file by file, the card last.
        card: JSON: what is known of the weights; `weights_sha256` and `parameters` are added.
        companions: tokenizer or image processor, saved by their own `save_pretrained`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary)
        copy.deepcopy(model).to(torch.float16).save_pretrained(staging)
        for companion in companions:
            companion.save_pretrained(staging)
        digest = hash_file(staging / "model.safetensors")
        for path in sorted(staging.iterdir()):
            if path.is_file():
                write_bytes(folder / path.name, path.read_bytes())
    full = {
        **card,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": digest,
    }
    write_text(folder / "card.json", json.dumps(full, indent=2, ensure_ascii=False) + "\n")
    return digest
