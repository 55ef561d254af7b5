"""The language model of an MLLM: a causal LM of transformers, its tokenizer and chat template.

What belongs here: text to token ids (template, end of turn, tokenisation of answers), what the
model can do (context, masks, positions), and the facts that the record keeps. Finding and loading
weights is `language_sources.py`'s job.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.mllm.chat import plain_text, read_template
from encoder_bench.mllm.gradient_checkpointing import recompute_activations
from encoder_bench.mllm.head import head_only_at


class LanguageModel(nn.Module):
    """A causal language model with its tokenizer.

    Attributes:
        model: the library's own causal LM; the only module with weights here.
        tokenizer: the library's own tokenizer.
        settings: the recipe's `[llm]`.
        pretrained: False only for seeded random weights.
        source: where the weights came from, without a machine's paths.
        revision: Hub commit or file hash; None where there is neither.
        template: the text around a question.
        pad_id: fills batches. The tokenizer's pad token, else its unknown token, else its end
            token; attention masks hide it and losses pass over it, so sharing an id is harmless.
        end_id: taught after each answer: what the chat template puts there, else the end token.
        end_ids: every id that ends a generated answer.
        max_length: context in tokens: the recipe's, or the model's where that is shorter.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        settings: LanguageModelSettings,
        *,
        pretrained: bool,
        source: str,
        revision: str | None,
    ) -> None:
        """Read template, special tokens and context; hash the weights as they were loaded.

        Raises:
            WeightsError: a tokenizer without an end token, or a template that drops its content.
        """
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.pretrained = pretrained
        self.source = source
        self.revision = revision
        self.weights_sha256 = hash_parameters(model)
        self.template = (
            read_template(tokenizer, name=settings.name) if settings.chat_template else plain_text()
        )
        self.end_id = self._end_of_turn()
        self.end_ids = self._all_ends()
        self.pad_id = self._padding()
        self._forget_decoding_defaults()
        self.max_length = min(settings.max_length, self._context())

    @property
    def width(self) -> int:
        """D_llm, the size of an input embedding."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The type of the input embeddings."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the input embeddings are."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def attention(self) -> str:
        """The attention in use, as transformers names it: `sdpa`, `flex_attention`..."""
        return str(self.model.config.get_text_config()._attn_implementation)

    @property
    def takes_positions(self) -> bool:
        """Whether the model's forward has `position_ids`."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    @property
    def sliding_window(self) -> int | None:
        """Tokens that the narrowest attention layer sees; None where every layer sees all."""
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if kinds and kinds <= {"full_attention"}:
            return None
        return int(window) if window else None

    @property
    def keeps_questions_apart(self) -> bool:
        """Whether a mask and position ids can keep questions in one row from seeing each other.

        Not so with recurrent layers, without position ids, and where a sliding window is
        narrower than the context, since a mask that is given replaces the library's own.
        """
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
        if not self.takes_positions or not kinds <= {"full_attention", "sliding_attention"}:
            return False
        if self.attention not in ("sdpa", "eager", "flex_attention"):
            return False
        return self.sliding_window is None or self.sliding_window >= self.max_length

    @property
    def resumes_from_cache(self) -> bool:
        """Whether questions can go on from the keys and values of a shared prefix, padded."""
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
        return self.takes_positions and kinds <= {"full_attention", "sliding_attention"}

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token of one row takes."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 1  # none in recurrent models
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kept = getattr(config, "num_key_value_heads", None) or heads
        return int(2 * config.num_hidden_layers * kept * width * self.dtype.itemsize)

    def forward(
        self,
        embeddings: Tensor,
        *,
        at: tuple[Tensor, Tensor],
        mask: Any = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return `(T, vocabulary)` logits at T chosen places of `(R, L, D_llm)` embeddings.

        Args:
            embeddings: `(R, L, D_llm)`.
            at: rows and columns `(T,)` whose logits are wanted; the head sees no others.
            mask: `(R, K)` with 1 for tokens, 0 for padding, or `(R, 1, L, K)` booleans (True:
                may attend) that replace the causal mask; K counts cached tokens too. Under
                FlexAttention, its block mask.
            positions: `(R, L)` position ids.
            cache: the library's cache of keys and values, extended in place.
        """
        arguments: dict[str, Any] = {}
        if positions is not None and self.takes_positions:
            arguments["position_ids"] = positions
        if mask is not None:
            dense = isinstance(mask, Tensor) and mask.ndim == 4
            arguments["attention_mask"] = self.prepare_mask(mask) if dense else mask
        if cache is not None:
            arguments["past_key_values"] = cache
        with head_only_at(self.model, *at):
            output = self.model(inputs_embeds=embeddings, use_cache=cache is not None, **arguments)
        logits: Tensor = output.logits
        return logits

    def embed(self, ids: Tensor) -> Tensor:
        """Return input embeddings `(..., D_llm)` of token ids `(...)`."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def encode(self, text: str) -> list[int]:
        """Return token ids of text as it stands, with special tokens parsed and none added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids without special tokens or outer whitespace."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def prefix_ids(self, *, image: bool) -> list[int]:
        """Return the ids before the visual tokens, or before the question where there are none."""
        ids = self.encode(self.template.head + (self.settings.image_prefix if image else ""))
        tokenizer = self.tokenizer
        added: list[int] = tokenizer("")["input_ids"]
        begin = tokenizer.bos_token_id
        if begin is not None and begin in added and ids[:1] != [begin]:
            ids = [begin, *ids]
        return ids

    def question_text(self, prompt: str, *, image: bool) -> str:
        """Return all text between the visual tokens and the answer."""
        return (self.settings.image_suffix if image else "") + prompt + self.template.tail

    def question_ids(self, prompt: str, *, image: bool) -> list[int]:
        """Return the ids of `question_text`."""
        return self.encode(self.question_text(prompt, image=image))

    def turn_ids(self, prompt: str, answer: str, *, image: bool) -> tuple[list[int], list[int]]:
        """Return the ids of a question and of its answer, the end of turn included.

        The answer is tokenised in its context where the tokenizer lets the question's ids stand,
        so that what is taught is what the model would generate there.
        """
        text = self.question_text(prompt, image=image)
        question = self.encode(text)
        joiner = "" if not text or text[-1].isspace() else self.template.joiner
        joint = self.encode(text + joiner + answer)
        in_context = joint[: len(question)] == question
        reply = joint[len(question) :] if in_context else self.encode(joiner + answer)
        return question, [*reply, self.end_id]

    def prepare_mask(self, mask: Tensor) -> Tensor:
        """Return a mask `(R, 1, Q, K)` (True: may attend) in the form that the attention takes.

        SDPA takes booleans; eager attention adds its mask to the scores.
        """
        if self.attention == "sdpa":
            return mask
        blocked = torch.finfo(self.dtype).min
        return torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, blocked)

    def facts(self) -> dict[str, Any]:
        """Return the fields of `record.LanguageModelFacts`, of the weights as they were loaded."""
        adapters = ".lora_"
        kind, _, name = self.source.partition(":")
        local = kind in ("folder", "gguf") and Path(self.settings.name).name == name
        return {
            "name": name if local else self.settings.name,
            "source": self.source,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "pretrained": self.pretrained,
            "parameters": sum(
                p.numel() for name, p in self.model.named_parameters() if adapters not in name
            ),
            "vocabulary": int(self.model.get_input_embeddings().weight.shape[0]),
        }

    def _end_of_turn(self) -> int:
        end: int | None = self.tokenizer.eos_token_id
        if self.template.tail:
            after = self.encode(self.template.between.lstrip())
            special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
            if after and after[0] in special:
                return after[0]
        if end is None:
            raise WeightsError(
                f"LLM {self.settings.name}: its tokenizer has no end-of-sequence token, so an "
                "answer could never end; set eos_token in its tokenizer_config.json"
            )
        return end

    def _all_ends(self) -> frozenset[int]:
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        several = configured if isinstance(configured, list) else [configured]
        ends = {self.end_id, self.tokenizer.eos_token_id, *several}
        return frozenset(end for end in ends if end is not None)

    def _forget_decoding_defaults(self) -> None:
        """Drop sampling, penalties and lengths that a checkpoint sets: recipes decide on those."""
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig(
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self.pad_id,
        )

    def _padding(self) -> int:
        choices = (self.tokenizer.pad_token_id, self.tokenizer.unk_token_id, self.end_id)
        return next(choice for choice in choices if choice is not None)

    def _context(self) -> int:
        config = self.model.config.get_text_config()
        length = getattr(config, "max_position_embeddings", None)
        return int(length) if length else self.settings.max_length


def load_language_model(
    settings: LanguageModelSettings, *, weights: Path | None = None
) -> LanguageModel:
    """Load the language model that a recipe names, in eval mode, on the CPU.

    Args:
        settings: the recipe's `[llm]`; `name` is a registered name (`tiny-llama`,
            `smollm2-135m`), a folder, a `.gguf` file, or a Hub id.
        weights: a folder or `.gguf` file to load instead of the name's own source.

    Raises:
        UnknownNameError: not a name, a folder, a file or the form of a Hub id.
        WeightsError: unreachable, damaged, or not a causal language model.
    """
    from encoder_bench.mllm.language_sources import load_source

    loaded = load_source(settings.name, dtype=getattr(torch, settings.dtype), weights=weights)
    language = LanguageModel(
        loaded.model,
        loaded.tokenizer,
        settings,
        pretrained=loaded.pretrained,
        source=loaded.source,
        revision=loaded.revision,
    )
    if settings.gradient_checkpointing:
        recompute_activations(language.model, key="llm.gradient_checkpointing")
    return language.eval()


def count_parameters(settings: LanguageModelSettings) -> int | None:
    """Return a language model's parameters from its configuration alone; None if not at hand.

    No weights are read and the network is not used.
    """
    from transformers import AutoModelForCausalLM

    from encoder_bench.mllm.language_sources import find_config

    config = find_config(settings.name)
    if config is None:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(int(parameter.numel()) for parameter in model.parameters())
