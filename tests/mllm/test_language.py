"""Names, templates, special tokens and contexts of language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoder_bench.base.errors import UnknownNameError, WeightsError
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.paths import cache_dir, list_language_models, prune
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.base.record import LanguageModelFacts
from encoder_bench.mllm.dialogue import ImageDialogue
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.loading import count_parameters, load_language_model
from encoder_bench.mllm.trainable import set_trainable
from encoder_bench.pipeline.build import model_notes

from .models import byte_tokenizer, make_batch, pixels, seeded_llama, small_language, small_mllm


def joined(tokenizer: Any, model: Any = None) -> LanguageModel:
    model = model or seeded_llama(byte_tokenizer())
    return LanguageModel(model, tokenizer, LanguageModelSettings(), source="seeded")


def test_tiny_llama_loads_offline_with_facts() -> None:
    language = load_language_model(LanguageModelSettings(name="tiny-llama"))
    facts = LanguageModelFacts.model_validate(language.facts())
    assert facts.name == "tiny-llama"
    assert facts.pretrained == language.pretrained == facts.source.startswith("bundled")
    assert facts.weights_sha256 == hash_parameters(language.model)
    assert facts.parameters == count_parameters("tiny-llama")
    assert language.width == 192
    assert not language.training


def test_a_folder_is_loaded_in_the_asked_dtype(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = seeded_llama(tokenizer)
    model.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    settings = LanguageModelSettings(name=str(tmp_path / "llm"), dtype="bfloat16")
    language = load_language_model(settings)
    assert language.dtype == torch.bfloat16
    assert language.pretrained
    assert str(tmp_path) not in str(language.facts())
    assert language.facts()["name"] == "llm"
    exact = load_language_model(settings.model_copy(update={"dtype": "float32"}))
    assert exact.weights_sha256 == hash_parameters(model)


def test_a_model_without_pad_token_is_padded_by_a_token_that_it_has() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    language = joined(tokenizer)
    assert language.pad_id == tokenizer.eos_token_id
    (note,) = model_notes(small_mllm(language=language))
    assert note.startswith("LLM tiny-llama has no pad token; '</s>' fills rows")
    assert model_notes(small_mllm()) == ()


def test_a_model_without_end_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(WeightsError, match="no end-of-sequence token"):
        joined(tokenizer)


def test_a_chat_template_is_used_where_there_is_one() -> None:
    language = small_language(chat=True, image_prefix="<Img>", image_suffix="</Img>")
    assert language.tokenizer.decode(language.prefix_ids(image=True)) == "<s>user\n<Img>"
    assert language.tokenizer.decode(language.prefix_ids(image=False)) == "<s>user\n"
    question, answer = language.turn_ids("What?", "a dog", image=True)
    assert language.tokenizer.decode(question) == "</Img>What?</s>\n<s>assistant\n"
    assert language.tokenizer.decode(answer) == "a dog</s>"
    rendered = language.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What?"}], tokenize=False, add_generation_prompt=True
    )
    ids = [*language.prefix_ids(image=False), *language.question_ids("What?", image=False)]
    assert language.tokenizer.decode(ids) == rendered


def test_without_a_template_text_begins_with_the_begin_token_and_answers_with_a_space() -> None:
    language = small_language()
    assert language.prefix_ids(image=True) == [language.tokenizer.bos_token_id]
    question, answer = language.turn_ids("Answer:", "2", image=True)
    assert language.tokenizer.decode(question) == "Answer:"
    assert language.tokenizer.decode(answer) == " 2</s>"
    assert language.tokenizer.decode(language.turn_ids("A: ", "2", image=True)[1]) == "2</s>"


def test_a_template_that_changes_its_content_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content|lower }}{% endfor %}"
    with pytest.raises(WeightsError, match=r"llm\.chat_template = false"):
        joined(tokenizer)


@pytest.mark.parametrize(
    "template", ["{% for", "{{ raise_exception('no such role') }}", "{{ 1/0 }}"]
)
def test_a_template_that_fails_is_one_line_with_the_way_out(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(WeightsError, match=r"fails.*llm\.chat_template = false") as caught:
        joined(tokenizer)
    assert "\n" not in str(caught.value)


def test_a_template_that_prints_the_date_is_the_same_on_every_day() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    )
    assert joined(tokenizer).template.head == "01 Jan 2025["


@pytest.mark.parametrize("kind", ["pad", "chat"])
def test_a_token_without_an_embedding_is_found_at_load(kind: str) -> None:
    tokenizer = byte_tokenizer()
    model = seeded_llama(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    if kind == "pad":
        tokenizer.pad_token = "<new>"
    else:
        tokenizer.chat_template = "<new>{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(WeightsError, match=r"'<new>' is id \d+, beyond the \d+ embeddings"):
        joined(tokenizer, model)


def test_the_shorter_context_holds() -> None:
    assert small_language(max_length=64).max_length == 64
    assert small_language(max_length=100_000).max_length == 2048


def test_decoding_defaults_of_a_checkpoint_are_dropped() -> None:
    tokenizer = byte_tokenizer()
    model = seeded_llama(tokenizer)
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.eos_token_id = [2, 9]
    language = joined(tokenizer, model)
    assert language.end_ids == {2, 9}
    assert language.model.generation_config.repetition_penalty in (None, 1.0)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tiny-lama", UnknownNameError, "did you mean 'tiny-llama'"),
        ("nobody/nothing-of-the-kind", WeightsError, "pass --llm FOLDER"),
        ("gone.gguf", WeightsError, "no such file or folder"),
        ("~nobody-here/llm", WeightsError, "no such file or folder"),
        ("x" * 300, WeightsError, "File name too long"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(
    name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        load_language_model(LanguageModelSettings(name=name))
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_language_model(LanguageModelSettings(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=f"LLM folder {tmp_path} cannot be loaded"):
        load_language_model(LanguageModelSettings(name=str(tmp_path)))


def test_a_damaged_gguf_file_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(WeightsError, match=r"broken\.gguf cannot be loaded"):
        load_language_model(LanguageModelSettings(name=str(file)))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    seeded_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 weights .*layers\.2\.mlp\.up_proj"):
        load_language_model(LanguageModelSettings(name=str(tmp_path)))


def test_a_bfloat16_model_trains_a_float32_projector() -> None:
    mllm = small_mllm(language=load_language_model(LanguageModelSettings(dtype="bfloat16")))
    set_trainable(mllm, encoder=False, llm="lora")
    batch = make_batch(
        mllm.language,
        [ImageDialogue(1, (("What?", "a dog"), ("Red?", "No.")))],
        shared_prefix=True,
        pixels=pixels(1),
    )
    loss = mllm(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    trained = [p for p in mllm.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert next(mllm.projector.parameters()).grad.abs().max() > 0


def test_a_gguf_file_is_copied_once_and_holds_the_same_weights(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    expected = write_small_gguf(file)
    language = load_language_model(LanguageModelSettings(name=str(file)))
    state = language.model.state_dict()
    assert torch.equal(state["model.embed_tokens.weight"], expected)
    copies = list(cache_dir("llm").glob("small-*"))
    assert len(copies) == 1
    stamp = (copies[0] / "model.safetensors").stat().st_mtime_ns
    again = load_language_model(LanguageModelSettings(name=str(file)))
    assert again.weights_sha256 == language.weights_sha256
    assert (copies[0] / "model.safetensors").stat().st_mtime_ns == stamp
    assert language.revision is not None
    assert language.revision.startswith("sha256:")
    assert count_parameters(str(file)) == sum(p.numel() for p in language.model.parameters())
    (entry,) = [entry for entry in list_language_models() if entry.folder == copies[0]]
    assert entry.size_bytes > 4 * expected.numel()
    assert [*prune([entry], 0)] == [entry]
    assert load_language_model(LanguageModelSettings(name=str(file))).end_ids == language.end_ids


def test_a_gguf_files_own_special_tokens_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under transformers 5.17, which makes the end token of SmolLM2's file the begin token."""
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained

    def misread(folder: str, **options: Any) -> Any:
        tokenizer = read(folder, **options)
        if "gguf_file" in options:
            tokenizer.eos_token = tokenizer.bos_token
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", misread)
    write_small_gguf(tmp_path / "special.gguf")
    settings = LanguageModelSettings(name=str(tmp_path / "special.gguf"), chat_template=False)
    language = load_language_model(settings)
    assert (language.tokenizer.bos_token, language.tokenizer.eos_token) == ("<s>", "</s>")
    assert language.facts()["end_token"] == "</s>"
    assert language.end_ids == {2}


def test_a_tokenizer_and_a_configuration_that_end_otherwise_are_said() -> None:
    language = small_language()
    own = language.tokenizer.eos_token_id
    assert language.configured_end_ids <= {own}
    language.configured_end_ids = frozenset({own + 5})
    (note,) = model_notes(small_mllm(language=language))
    assert f"ends text with {language.tokenizer.eos_token!r} by its tokenizer" in note


def write_small_gguf(file: Path) -> torch.Tensor:
    """Write a one-layer Llama with the gguf library and return its embeddings."""
    words = ["<unk>", "<s>", "</s>", "ab", *(chr(c) for c in range(33, 127)), "Ġ", "Ċ"]
    width, inner, noise = 32, 64, np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    embeddings = noise.standard_normal((len(words), width), dtype=np.float32)
    writer.add_tensor("token_embd.weight", embeddings)
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width, width),
        "attn_v": (width, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
        "attn_norm": (width,),
        "ffn_norm": (width,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"blk.0.{name}.weight", noise.standard_normal(shape, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return torch.from_numpy(embeddings)
