"""Conversations as token ids: those of the tokenizer's own template, and what the loss covers."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from encoder_bench.base.errors import DataError
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.data.sample import IMAGE, Conversation, Turn
from encoder_bench.mllm.dialogue import (
    ImageDialogue,
    Segment,
    tokenize_dialogues,
    tokenize_turns,
)
from encoder_bench.mllm.language import LanguageModel

from .models import seeded_llama, small_language

PATH = Path("a.png")
CORPUS = (
    "USER: What is in the picture? ASSISTANT: A red dog and two cats lie on a mat.",
    "user\nHow many people are there?\nassistant\nThere are 12 of them, all of them in coats.",
    "Answer with one word: yes or no. The sky is blue, the sea is grey; it will rain.",
)

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nBe a good model.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "<|start_header|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header|>assistant<|end_header|>\n\n{% endif %}"
)
VICUNA = (
    "{{ 'A curious user and an assistant. ' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SPACED = VICUNA.replace("{{ 'ASSISTANT:' }}", "{{ 'ASSISTANT: ' }}")
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, "bytes"),
    "headers": (HEADERS, "bytes"),
    "turns": (TURNS, "bytes"),
    "vicuna": (VICUNA, "words"),
    "vicuna, a space after the colon": (SPACED, "words"),
    "instruct": (INSTRUCT, "words"),
    "plain": (None, "bytes"),
    "plain words": (None, "words"),
}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's and Llama 3's, or Llama's BPE over words that begin with `▁`."""
    special = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    special += ["<|start_header|>", "<|end_header|>", "<|eot|>"]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = []
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    # learned word by word, so that no learned piece spans two words
    words = [f" {word}" for text in CORPUS for word in text.split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@functools.cache
def language(name: str, image_prefix: str = "") -> LanguageModel:
    template, kind = TEMPLATES[name]
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = template
    settings = LanguageModelSettings(image_prefix=image_prefix)
    return LanguageModel(seeded_llama(tokenizer), tokenizer, settings, source="seeded")


def ids_of(segments: tuple[Segment, ...]) -> list[int]:
    return [token for segment in segments for token in segment.ids or ()]


def assert_as_the_template(model: LanguageModel, turns: list[Turn]) -> None:
    tokenizer, segments = model.tokenizer, tokenize_turns(model, turns)
    ours, taught = ids_of(segments), [s.ids or () for s in segments if s.taught]
    if tokenizer.chat_template is None:
        answers = [f"{turn.user.strip()} {turn.assistant.strip()}</s>" for turn in turns]
        theirs = tokenizer("\n".join(answers), add_special_tokens=False)["input_ids"]
    else:
        messages = [
            {"role": role, "content": text.strip()}
            for turn in turns
            for role, text in (("user", turn.user), ("assistant", turn.assistant))
        ]
        theirs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ours == theirs[: len(ours)]
    assert tokenizer.decode(theirs[len(ours) :]).strip() == ""
    for ids, turn in zip(taught, turns, strict=True):
        assert ids[-1] == model.end_id
        assert tokenizer.decode(ids[:-1]).strip() == turn.assistant.strip()


LONG = [
    Turn("What is in the picture?", "A red dog."),
    Turn("  How many?\n", " 12 "),
    Turn("Answer with one word:\nyes or no", "no\n\nIt rains; ünd 私 🐕"),
    Turn("1", "2"),
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ids_are_those_of_the_template_on_the_whole_conversation(name: str, count: int) -> None:
    assert_as_the_template(language(name), LONG[:count])


TEXTS = st.text("aAbnoy 1.:?<|>é私\n", max_size=12).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(st.builds(Turn, TEXTS, TEXTS), min_size=1))
def test_any_conversation_has_the_ids_of_the_template(name: str, turns: list[Turn]) -> None:
    assert_as_the_template(language(name), turns)


@pytest.mark.parametrize("name", ["chatml", "vicuna", "plain"])
def test_one_turn_is_what_a_question_is(name: str) -> None:
    """So that a model trained on conversations is asked as it was trained."""
    model = language(name, image_prefix="<|im_start|>")
    (question,) = tokenize_dialogues(model, [ImageDialogue(1, (("How many?", "12"),))], image=True)
    turns = (Turn(f"{IMAGE}\nHow many?", "12"),)
    (row,) = tokenize_dialogues(model, [Conversation("a", (PATH,), turns)], image=True)
    assert [s._replace(turn=0) for s in question.segments] == list(row.segments)


def test_later_turns_are_what_a_chat_asks() -> None:
    """`generate.Conversation` joins earlier turns as text."""
    model = language("chatml")
    template = model.template
    *_, context, _ = tokenize_turns(model, LONG[:2])
    earlier = f"{LONG[0].user}{template.tail}{LONG[0].assistant}{template.end}{template.between}"
    asked = model.question_ids(earlier + "How many?", image=False)
    assert [*model.prefix_ids(image=False), *asked] == ids_of(tokenize_turns(model, LONG[:2])[:-1])
    assert tuple(asked[-len(context.ids or ()) :]) == context.ids


def test_images_stand_where_the_text_marks_them() -> None:
    model = language("chatml", image_prefix="<|eot|>")
    turns = [Turn(f"First {IMAGE}\nthen {IMAGE}", "a dog"), Turn(f"and this?\n{IMAGE}", "a cat")]
    segments = tokenize_turns(model, turns)
    said = ["[v]" if s.ids is None else model.tokenizer.decode(s.ids) for s in segments]
    assert said == [
        "<|im_start|>system\nBe a good model.<|im_end|>\n<|im_start|>user\nFirst <|eot|>",
        "[v]",
        "then <|eot|>",
        "[v]",
        "<|im_end|>\n<|im_start|>assistant\n",
        "a dog<|im_end|>",
        "\n<|im_start|>user\nand this?\n<|eot|>",
        "[v]",
        "<|im_end|>\n<|im_start|>assistant\n",
        "a cat<|im_end|>",
    ]
    assert [s.taught for s in segments] == [text.startswith("a ") for text in said]


def test_a_long_conversation_is_cut_at_a_turn_and_its_images_with_it() -> None:
    model = small_language()
    turns = (Turn(f"{IMAGE}a", "b"), Turn(f"{IMAGE}c", "d"), Turn("e", "f"))
    row = Conversation("r", (PATH, PATH), turns)
    (whole,) = tokenize_dialogues(model, [row], image=True)
    # <s> v a _b </s> | \n v c _d </s> | \n e _f </s>, with 10 visual tokens each
    assert whole.longest(10) == (35, 35)
    assert whole.length(10) == 34
    assert whole.cut(35, 10) == whole
    for length, kept in ((34, 2), (30, 2), (29, 1), (15, 1)):
        cut = whole.cut(length, 10)
        assert cut is not None
        assert cut.images == kept
        assert sum(segment.taught for segment in cut.segments) == kept
        assert cut.segments == whole.segments[: len(cut.segments)]
        assert cut.longest(10)[0] <= length
    assert whole.cut(14, 10) is None


def test_of_an_images_questions_those_that_do_not_fit_are_left_out() -> None:
    item = ImageDialogue(3, (("What?", "a dog"), ("Where? " * 30, "there"), ("Who?", "a cat")))
    (whole,) = tokenize_dialogues(small_language(), [item], image=True)
    lengths = [each.longest(10)[0] for each in whole.apart()]
    assert whole.cut(max(lengths), 10) == whole
    cut = whole.cut(max(lengths) - 1, 10)
    assert cut is not None
    assert {segment.turn for segment in cut.segments} == {0, 1, 3}
    assert cut.images == 1
    assert whole.cut(min(lengths) - 1, 10) is None


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (Conversation("r/1", (), ()), "row r/1: no turn"),
        (Conversation("r/1", (), (Turn("a", " "),)), "row r/1: .*empty answer"),
        (Conversation("r/1", (), (Turn(IMAGE, "b"),)), "row r/1: 0 images, but its texts mark 1"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(row: Conversation, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        tokenize_dialogues(small_language(), [row], image=True)
