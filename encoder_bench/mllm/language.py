"""The language model of an MLLM: a causal LM of transformers, its tokenizer and chat template.

Axes: R rows, L tokens of a row, K tokens attended to, T wanted positions, E embedding width.
"""

import inspect
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.recipes import LanguageModelSettings

_CONTENT, _REPLY, _NEXT = (f"ENCODER-BENCH-{word}" for word in ("CONTENT", "REPLY", "NEXT"))
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


_DATE = (
    "{% macro strftime_now(format) %}{{ format|replace('%d', '01')|replace('%m', '01')"
    "|replace('%b', 'Jan')|replace('%B', 'January')|replace('%Y', '2025')|replace('%y', '25')"
    "|replace('%H', '00')|replace('%M', '00')|replace('%S', '00') }}{% endmacro %}"
)
"""Before a chat template: what it reads as now, so that the same scores come on every day."""


Before = Literal["nothing", "answer", "image"]
"""What stands before a text: the sequence begins, an answer with its end token, or an image."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The text around questions and answers; the default is no template at all.

    `head` comes before the question (system message, start of the user's turn), `tail` before the
    answer, `end` after it (nothing but whitespace and the end token), and `between` before the next
    question; `joiner` goes before an answer whose context does not end in whitespace.
    """

    end: str
    head: str = ""
    tail: str = ""
    between: str = "\n"
    joiner: str = " "


def _read_template(tokenizer: Any, settings: LanguageModelSettings) -> ChatTemplate:
    """Cut the recipe's or tokenizer's chat template around its content; without, plain text."""
    if isinstance(settings.chat_template, str):
        tokenizer.chat_template = settings.chat_template
    if not settings.chat_template or not getattr(tokenizer, "chat_template", None):
        return ChatTemplate(_end_token(tokenizer, settings))
    roles = zip(("user", "assistant", "user"), (_CONTENT, _REPLY, _NEXT), strict=True)
    turns = [{"role": role, "content": text} for role, text in roles]
    try:
        template = _DATE + tokenizer.get_chat_template()
        render = partial(tokenizer.apply_chat_template, tokenize=False, chat_template=template)
        first, whole = render(turns[:1], add_generation_prompt=True), render(turns)
    except Exception as error:  # a template is a program of the checkpoint's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"LLM {settings.name}: its chat template fails ({reason}); "
            "set llm.chat_template = false"
        ) from error
    head, *tails = first.split(_CONTENT)
    if len(tails) != 1:
        raise WeightsError(
            f"LLM {settings.name}: its chat template does not keep a question as it is; "
            "set llm.chat_template = false"
        )
    # a space before the answer belongs to the answer's first token
    tail = tails[0].rstrip(" ")
    before, _, after = whole.partition(_CONTENT)[2].partition(_REPLY)
    joiner = before.removeprefix(tail) if before.startswith(tail) else ""
    between = after.partition(_NEXT)[0]
    end = _end_of_turn(tokenizer, between) or _end_token(tokenizer, settings)
    return ChatTemplate(
        end, head, tail, between.removeprefix(end), joiner if joiner.isspace() else ""
    )


def _end_of_turn(tokenizer: Any, between: str) -> str:
    """Return the special token with which text after an answer begins, and whitespace before it."""
    text = between.lstrip()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids and ids[0] in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
        token = str(tokenizer.convert_ids_to_tokens(ids[0]))
        if text.startswith(token):
            return between[: len(between) - len(text)] + token
    return ""


def _end_token(tokenizer: Any, settings: LanguageModelSettings) -> str:
    if tokenizer.eos_token is None:
        raise WeightsError(
            f"LLM {settings.name}: its tokenizer has no end-of-sequence token, so an "
            "answer could never end; set eos_token in its tokenizer_config.json"
        )
    return str(tokenizer.eos_token)


class LanguageModel(nn.Module):
    """A causal language model with its tokenizer.

    Attributes:
        model: transformers' causal LM; the only module with weights here.
        source: where the weights came from, without a machine's paths.
        revision: Hub commit or file hash; None where there is neither.
        pad_id: fills batches. The tokenizer's pad token, else its unknown token, else its end
            token; attention masks hide it and losses skip it, so sharing an id is harmless.
        end_id: taught after each answer: what the chat template puts there, else the end token.
        configured_end_ids: those that the model's own configuration names, none where it has none.
        end_ids: every id that ends a generated answer.
        generates: whether the library's own `generate` takes embeddings, as beam search needs.
        max_length: context in tokens: the recipe's, or the model's where that is shorter.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        settings: LanguageModelSettings,
        *,
        source: str,
        revision: str | None = None,
        pretrained: bool = True,
    ) -> None:
        """Read template, special tokens and context; hash the weights as they were loaded.

        Raises:
            WeightsError: a tokenizer without an end token, a template that drops its content, or a
                model that does not take embeddings in the place of token ids.
        """
        from transformers import GenerationConfig

        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.source, self.revision, self.pretrained = source, revision, pretrained
        self.weights_sha256 = hash_parameters(model)
        taken = inspect.signature(self.model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._cache_argument = "cache" if "cache" in taken else "past_key_values"  # before 5.24
        self._takes_cache = self._cache_argument in taken
        prepares: Any = self.model.prepare_inputs_for_generation
        self.generates = "inputs_embeds" in inspect.signature(prepares).parameters
        self.template = _read_template(tokenizer, settings)
        self.end_id = int(tokenizer.convert_tokens_to_ids(self.template.end.lstrip()))
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        several = configured if isinstance(configured, list) else [configured]
        self.configured_end_ids = frozenset({*several} - {None})
        self.end_ids = self.configured_end_ids | ({self.end_id, tokenizer.eos_token_id} - {None})
        choices = (tokenizer.pad_token_id, tokenizer.unk_token_id, self.end_id)
        self.pad_id: int = next(choice for choice in choices if choice is not None)
        # sampling, penalties and lengths that a checkpoint sets go: recipes decide on those
        self.model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self.pad_id,
        )
        self._check_model()
        self._check_ids()
        context = getattr(self.config, "max_position_embeddings", None) or settings.max_length
        self.max_length = min(settings.max_length, int(context))

    @property
    def config(self) -> Any:
        """The library's configuration of the decoder."""
        return self.model.config.get_text_config()

    @property
    def table(self) -> Tensor:
        """The input embeddings `(vocabulary, E)`."""
        table: Tensor = self.model.get_input_embeddings().weight
        return table

    @property
    def width(self) -> int:
        """E, the size of an input embedding."""
        return int(self.table.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The type of the input embeddings."""
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        """Where the input embeddings are."""
        return self.table.device

    @property
    def attention(self) -> str:
        """The attention in use, as transformers names it: `sdpa`, `flex_attention`..."""
        return str(self.config._attn_implementation)

    @property
    def sliding_window(self) -> int | None:
        """Tokens that the narrowest attention layer sees; None where every layer sees all."""
        window = getattr(self.config, "sliding_window", None)
        return int(window) if window and self._layer_types != {"full_attention"} else None

    @property
    def _layer_types(self) -> set[str]:
        return set(getattr(self.config, "layer_types", None) or ())

    @property
    def resumes_from_cache(self) -> bool:
        """Whether questions can go on from the keys and values of a shared prefix, padded.

        Not so with recurrent layers, without position ids, and with GPT-Neo's local layers, whose
        window counts padding.
        """
        local = "local" in (getattr(self.config, "attention_layers", None) or ())
        return self._takes_positions and self._layer_types <= _ATTENTION_LAYERS and not local

    @property
    def keeps_questions_apart(self) -> bool:
        """Whether a mask and position ids can keep questions in one row from seeing each other.

        Not so where they cannot go on from a shared prefix either, where a sliding window is
        narrower than the context, since a mask that is given replaces the library's own, and where
        distances are read off the mask (Falcon with ALiBi).
        """
        masked = self.attention in ("sdpa", "eager", "flex_attention")
        masked = masked and not getattr(self.config, "alibi", False)
        window = self.sliding_window or self.max_length
        return masked and self.resumes_from_cache and window >= self.max_length

    @property
    def heads(self) -> int:
        """Attention heads of a layer; 1 for recurrent models, which have none."""
        return self._largest("num_attention_heads") or 1

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self._largest("head_dim") or int(self.config.hidden_size) // self.heads

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token of one row takes."""
        kept = self._largest("num_key_value_heads") or self.heads
        per_layer = 2 * kept * self.head_width * self.dtype.itemsize
        return int(self.config.num_hidden_layers * per_layer)

    def _largest(self, setting: str) -> int | None:
        """Return a setting of the decoder; of layers that differ in it (Gemma 4), the largest."""
        layers = getattr(self.config, "per_layer_config", None) or [self.config]
        return max((getattr(each, setting, None) or 0 for each in layers), default=0) or None

    def forward(
        self,
        embeddings: Tensor,
        *,
        at: tuple[Any, Any],
        mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return `(T, vocabulary)` logits at T chosen places of `(R, L, E)` embeddings.

        Args:
            embeddings: of text and visual tokens.
            at: rows and columns `(T,)` whose logits are wanted; the head sees no others.
            mask: `(R, K)` with 1 for tokens, 0 for padding, or `(R, 1, L, K)` booleans (True:
                may attend) that replace the causal mask, or FlexAttention's block mask.
            position_ids: `(R, L)`.
            cache: transformers' cache of keys and values, extended in place.
        """
        arguments: dict[str, Any] = {}
        if position_ids is not None and self._takes_positions:
            arguments["position_ids"] = position_ids
        if mask is not None:
            dense = isinstance(mask, Tensor) and mask.ndim == 4
            arguments["attention_mask"] = self.prepare_mask(mask) if dense else mask
        if cache is not None:
            arguments[self._cache_argument] = cache
        # the head is the widest layer of a small model; what follows it in the library's models
        # (scaling, soft-capping) is elementwise, so choosing its inputs holds for any of them
        head = self.model.get_output_embeddings()
        with head.register_forward_pre_hook(lambda _, inputs: (inputs[0][at], *inputs[1:])):
            output = self.model(inputs_embeds=embeddings, use_cache=cache is not None, **arguments)
        logits: Tensor = output.logits
        return logits

    def prepare_mask(self, mask: Tensor) -> Tensor:
        """Return a mask `(R, 1, L, K)` (True: may attend) in the form that the attention takes.

        SDPA takes booleans; eager attention adds its mask to the scores.
        """
        if self.attention == "sdpa":
            return mask
        blocked = torch.finfo(self.dtype).min
        return torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, blocked)

    def embed(self, ids: Tensor) -> Tensor:
        """Return input embeddings `(..., E)` of token ids `(...)`."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def encode(self, text: str, *, after: Before = "image") -> list[int]:
        """Return token ids of text as it stands, with special tokens parsed.

        The begin token is added before a sequence that the tokenizer begins with one. What stands
        after an answer is read as it is after the end token.
        """
        end = self.template.end.lstrip() if after == "answer" else ""
        ids: list[int] = self.tokenizer(end + text, add_special_tokens=False)["input_ids"]
        if end:
            return ids[1:] if ids[:1] == [self.end_id] else self.encode(text)
        begin = self.tokenizer.bos_token_id
        wanted = after == "nothing" and begin is not None and ids[:1] != [begin]
        return [begin, *ids] if wanted and begin in self.tokenizer("")["input_ids"] else ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids without special tokens or outer whitespace."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def prefix_ids(self, *, image: bool) -> list[int]:
        """Return the ids before the visual tokens, or before the question where there are none."""
        prefix = self.settings.image_prefix if image else ""
        return self.encode(self.template.head + prefix, after="nothing")

    def question_ids(self, prompt: str, *, image: bool) -> list[int]:
        """Return the ids of all text between the visual tokens and the answer."""
        return self.encode(self._question_text(prompt, image=image))

    def turn_ids(self, prompt: str, answer: str, *, image: bool) -> tuple[list[int], list[int]]:
        """Return the ids of a question and of its answer, the end of turn included."""
        return self.answered_ids(self._question_text(prompt, image=image), answer)

    def answered_ids(
        self, text: str, answer: str, *, after: Before = "image"
    ) -> tuple[list[int], list[int]]:
        """Return the ids of text and of the answer to it, the end of turn included.

        The answer is tokenised in its context where the tokenizer lets the text's ids stand, so
        that what is taught is what the model would generate there.
        """
        ids = self.encode(text, after=after)
        joiner = "" if not text or text[-1].isspace() else self.template.joiner
        answer = joiner + answer + self.template.end.removesuffix(self.template.end.lstrip())
        joint = self.encode(text + answer, after=after)
        reply = joint[len(ids) :] if joint[: len(ids)] == ids else self.encode(answer)
        return ids, [*reply, self.end_id]

    def facts(self) -> dict[str, Any]:
        """Return the fields of `record.LanguageModelFacts`, of the weights as they were loaded."""
        kind, _, file = self.source.partition(":")
        local = kind in ("folder", "gguf") and Path(self.settings.name).name == file
        plain = self.template == ChatTemplate(self.template.end)
        own = (p for name, p in self.model.named_parameters() if ".lora_" not in name)
        return {
            "name": file if local else self.settings.name,
            "source": self.source,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "pretrained": self.pretrained,
            "parameters": sum(parameter.numel() for parameter in own),
            "vocabulary": int(self.table.shape[0]),
            "template": None if plain else asdict(self.template),
            "end_token": self.template.end.lstrip(),
        }

    def _question_text(self, prompt: str, *, image: bool) -> str:
        return (self.settings.image_suffix if image else "") + prompt + self.template.tail

    def _check_model(self) -> None:
        """Refuse models whose input is more than embeddings, which is all that an image has."""
        kind, why = type(self.model).__name__, ""
        if not self.generates and not (self._takes_cache and self.resumes_from_cache):
            why = "does not generate from embeddings"
        elif getattr(self.config, "hidden_size_per_layer_input", None):
            why = "has further embeddings of each token id in its layers"
        if why:
            raise WeightsError(
                f"LLM {self.settings.name}: transformers' {kind} {why}, so that it cannot be shown "
                "an image as visual tokens; choose another language model"
            )

    def _check_ids(self) -> None:
        """Refuse a tokenizer whose own or template's tokens have no embedding."""
        template = self.template
        used = self.encode(template.head + template.tail + template.end + template.between)
        used += [self.pad_id, *self.end_ids, *self.prefix_ids(image=False)]
        beyond = [token for token in used if token >= len(self.table)]
        if beyond:
            token = self.tokenizer.convert_ids_to_tokens(beyond[0])
            raise WeightsError(
                f"LLM {self.settings.name}: its token {token!r} is id {beyond[0]}, beyond the "
                f"{len(self.table)} embeddings; resize them and save the model again, or remove "
                "the token from the tokenizer's files"
            )
