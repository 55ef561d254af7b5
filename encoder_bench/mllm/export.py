"""Export to a standard `LlavaForConditionalGeneration` folder, with its processor.

What that class cannot express is refused with the part's name. Nothing is approximated: features
and pixels of the exported model are compared with ours before a file is written.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor, nn

from encoder_bench.base.errors import EncoderBenchError, WeightsError
from encoder_bench.base.files import atomic_folder
from encoder_bench.encoders.loading import quiet_loading
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors.linear import LinearProjector, MLPProjector
from encoder_bench.mllm.projectors.whitening import WhitenedProjector

_IMAGE_TOKEN = "<image>"
_TOLERANCE = 1e-4


def export_llava(mllm: MLLM, folder: Path, *, card: str | None = None) -> Path:
    """Write a folder that `LlavaForConditionalGeneration.from_pretrained` loads, and return it.

    Greedy outputs of the folder's model and processor equal `generate`'s. Low-rank adapters are
    merged into the language model. The folder is written whole or not at all; `card` becomes its
    README.md.

    Raises:
        WeightsError: a part that LLaVA's class cannot express; names it and says why.
        EncoderBenchError: the folder exists already or cannot be written.
    """
    if folder.exists():
        raise EncoderBenchError(f"{folder}: exists already; export into a new folder")
    model, processor = build_llava(mllm)
    with atomic_folder(folder) as partial, quiet_loading():
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        for path in partial.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@torch.no_grad()
def build_llava(mllm: MLLM) -> tuple[Any, Any]:
    """Return what `export_llava` writes, the model and its processor, in memory."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

    first, second, activation = _projector_layers(mllm)
    language = _merged(mllm.language)
    tokenizer = copy.deepcopy(mllm.language.tokenizer)
    tokenizer.name_or_path = ""
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE_TOKEN]})
    image_id = int(tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN))
    if image_id >= len(mllm.language.table):
        language.resize_token_embeddings(image_id + 1, mean_resizing=False)
    backbone = mllm.encoder.backbone
    if not isinstance(backbone, PreTrainedModel):
        raise WeightsError(
            f"encoder: its backbone is {type(backbone).__module__}.{type(backbone).__name__}; "
            "LLaVA's class takes vision models of transformers only"
        )
    tower = copy.deepcopy(backbone).cpu().float()
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=image_id,
        image_seq_length=mllm.projector.visual_tokens,
        projector_hidden_act=activation,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    places, decoder = model.model, language.get_decoder()
    for part, ours, theirs in (
        ("encoder", tower, places.vision_tower),
        ("LLM", decoder, places.language_model),
    ):
        if type(ours) is not type(theirs):
            raise WeightsError(
                f"{part}: it is a {type(ours).__name__}, LLaVA's class would build a "
                f"{type(theirs).__name__}"
            )
    places.vision_tower, places.language_model = tower, decoder
    model.lm_head = language.get_output_embeddings()
    places.multi_modal_projector.linear_1, places.multi_modal_projector.linear_2 = first, second
    config.vision_feature_layer, config.vision_feature_select_strategy = _feature_choice(
        mllm, tower
    )
    for part in (config, config.vision_config, config.text_config):
        part.name_or_path = ""  # else this machine's folder of the weights
    model.generation_config = copy.deepcopy(mllm.language.model.generation_config)
    model.generation_config.suppress_tokens = [image_id]
    return model.eval(), _processor(mllm, tokenizer, config)


def _projector_layers(mllm: MLLM) -> tuple[nn.Linear, nn.Linear, str]:
    """Return LLaVA's two linear layers and the activation between them."""
    projector = copy.deepcopy(mllm.projector).cpu().float()
    whitening = None
    if isinstance(projector, WhitenedProjector):
        whitening, projector = projector.whitening, projector.inner
    name = projector.settings.name
    pooled = getattr(projector, "target", projector.grid) != projector.grid
    if isinstance(projector, LinearProjector) and not pooled:
        last = nn.Linear(projector.llm_width, projector.llm_width)
        last.weight.copy_(torch.eye(projector.llm_width))
        last.bias.zero_()
        first, activation = projector.linear, "linear"
    elif isinstance(projector, MLPProjector) and projector.settings.depth == 2 and not pooled:
        first, last = (layer for layer in projector.layers if isinstance(layer, nn.Linear))
        activation = "gelu"
    else:
        detail = f" with {mllm.projector.visual_tokens} visual tokens" if pooled else ""
        raise WeightsError(
            f"projector {name}{detail}: LLaVA's class has one or two linear layers on each patch "
            "token and nothing else; only 'linear' and 'mlp' of depth 2, unpooled, can be exported"
        )
    if first.out_features != projector.llm_width:
        raise WeightsError(
            f"projector {name}: its hidden layer is {first.out_features} wide, LLaVA's class has "
            f"one as wide as the language model; train it with projector.hidden_width = "
            f"{projector.llm_width}"
        )
    return (first if whitening is None else whitening.folded_into(first)), last, activation


def _merged(language: LanguageModel) -> Any:
    """Return a copy of the causal LM on the CPU, low-rank adapters merged into its weights."""
    model = copy.deepcopy(language.model).cpu()
    for name, module in list(model.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model.requires_grad_(False)


def _feature_choice(mllm: MLLM, tower: Any) -> tuple[int | list[int], str]:
    """Find the layer and the token selection with which LLaVA's features are ours."""
    encoder = copy.deepcopy(mllm.encoder).cpu().float().eval()
    pixels = torch.randn(2, 3, *encoder.resolution, generator=torch.Generator().manual_seed(0))
    expected = encoder(pixels)
    hidden = tower.eval()(pixels, output_hidden_states=True).hidden_states
    # a positive block number counts the embeddings as 0
    layers = [layer if layer < 0 else layer + 1 for layer in encoder.layer]
    found = torch.cat([hidden[index] for index in layers], dim=-1)
    for strategy, tokens in (("default", found[:, 1:]), ("full", found)):
        if _close(tokens, expected):
            return (layers[0] if len(layers) == 1 else layers), strategy
    raise WeightsError(
        f"encoder {type(mllm.encoder.backbone).__name__}: its patch tokens are not a block's "
        "output with at most one leading token dropped, which is all that LLaVA's class can "
        "select; where a final norm follows the last block, encoder.layer = -2 can be exported"
    )


def _processor(mllm: MLLM, tokenizer: Any, config: Any) -> Any:
    from transformers import BaseImageProcessor, LlavaProcessor

    image_processor = getattr(mllm.encoder, "processor", None)
    if not isinstance(image_processor, BaseImageProcessor):
        raise WeightsError(
            "encoder: its image transform is not one of transformers' image processors, which "
            "LLaVA's processor needs"
        )
    noise = np.random.default_rng(0)
    for size in ((90, 120), (130, 70)):  # landscape and portrait
        image = Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
        theirs = image_processor(image, return_tensors="pt")["pixel_values"][0]
        if not _close(theirs, mllm.encoder.transform(image)):
            raise WeightsError(
                "encoder: its image transform and its image processor make different pixels "
                f"({mllm.encoder.transform_description}); the export would not answer as we do"
            )
    leading = 1 if config.vision_feature_select_strategy == "default" else 0
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=leading,
        chat_template=_chat_template(mllm.language),
        image_token=_IMAGE_TOKEN,
    )


def _close(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool((left - right).abs().max() <= _TOLERANCE)


_TURNS = """
{%- macro said(content) -%}
{%- if content is string -%}
{{ content | replace(TOKEN + '\n', TOKEN) | replace(TOKEN, IMAGE) }}
{%- else -%}
{%- for part in content -%}
{{ IMAGE if part.type in ('image', 'image_url') else part.text }}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set turn = namespace(head=HEAD, first=true) -%}
{%- for message in messages -%}
{%- if message.role in ('system', 'developer') -%}
{%- set turn.head = SYSTEM_HEAD + said(message.content) + SYSTEM_TAIL -%}
{%- elif message.role == 'user' -%}
{{ (turn.head if turn.first else BETWEEN) + said(message.content) + TAIL }}
{%- set turn.first = false -%}
{%- elif message.role == 'assistant' -%}
{{ JOINER + said(message.content) + END }}
{%- else -%}
{{ raise_exception('a turn is of system, user or assistant, not of ' + message.role) }}
{%- endif -%}
{%- endfor -%}
"""
"""Turns as training and `generate.Conversation` write them; content is a string or parts."""


def _chat_template(language: LanguageModel) -> str:
    """Return a Jinja template that puts image and question where training put them."""
    template, settings = language.template, language.settings
    system_head, system_tail = _system_turn(language)
    begin, heads = language.tokenizer.bos_token, [template.head, system_head]
    if begin and language.prefix_ids(image=True)[:1] == [language.tokenizer.bos_token_id]:
        heads = [begin + head.removeprefix(begin) for head in heads]
    texts = {
        "TOKEN": _IMAGE_TOKEN,
        "IMAGE": settings.image_prefix + _IMAGE_TOKEN + settings.image_suffix,
        "HEAD": heads[0],
        "SYSTEM_HEAD": heads[1],
        "SYSTEM_TAIL": system_tail,
        "TAIL": template.tail,
        "BETWEEN": template.between,
        "JOINER": template.joiner,
        "END": template.end,
    }
    constants = "".join(f"{{%- set {name} = {text!r} -%}}" for name, text in texts.items())
    return constants + _TURNS.strip()


def _system_turn(language: LanguageModel) -> tuple[str, str]:
    """Return what comes before a system message, and between it and the first question."""
    template, words = language.template, ("ENCODER-BENCH-SYSTEM", "ENCODER-BENCH-QUESTION")
    if template.tail:
        turns = [{"role": r, "content": w} for r, w in zip(("system", "user"), words, strict=True)]
        try:
            text = language.tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:  # a template without a system role
            text = ""
        head, found, rest = text.partition(words[0])
        if found and words[1] in rest:
            return head, rest.partition(words[1])[0]
    return template.head, "\n"
