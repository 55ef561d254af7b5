"""An exported folder answers as we do, through transformers alone; what it cannot hold is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
)

from encoder_bench.base.errors import EncoderBenchError, WeightsError
from encoder_bench.base.recipes import DecodingSettings, ProjectorSettings, load_adapter
from encoder_bench.encoders.encoder import Encoder
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.export import build_llava, export_llava
from encoder_bench.mllm.generate import generate
from encoder_bench.mllm.language import LanguageModel
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors import build_projector
from encoder_bench.mllm.projectors.whitening import WhitenedProjector
from encoder_bench.mllm.trainable import set_trainable

from .models import small_language, small_mllm

QUESTIONS = ["What is it?", "Is it red or blue?"]


class SmallClip(Encoder):
    """transformers' CLIP tower and image processor on 32 px images."""

    def __init__(self, layer: int = -1) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            image_size=32,
            patch_size=8,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
        )
        self.backbone = CLIPVisionModel(config).eval()
        size = {"height": 32, "width": 32}
        self.processor = CLIPImageProcessor(size=size, crop_size=size)
        self.width, self.grid, self.resolution = 48, (4, 4), (32, 32)
        self.layer, self.pretrained, self.weights_revision = (layer,), False, None

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.backbone(pixels, output_hidden_states=True)
        tokens: Tensor = output.hidden_states[self.layer[0]][:, 1:]
        return tokens

    def transform(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    @property
    def transform_description(self) -> str:
        return "resize 32, crop 32, CLIP mean and std"


def clip_mllm(
    projector: str, language: LanguageModel, *, layer: int = -1, **settings_: object
) -> MLLM:
    torch.manual_seed(0)
    encoder = SmallClip(layer)
    settings = ProjectorSettings.model_validate({"name": projector, **settings_})
    built = build_projector(settings, grid=(4, 4), width=48, llm_width=language.width)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3.0)  # so that images change answers
    return MLLM(encoder, built, language).eval()


def images() -> list[Image.Image]:
    noise = np.random.default_rng(3)
    return [
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in ((40, 60), (80, 48))
    ]


def answers_of_transformers(folder: Path, *, tokens: int) -> list[list[str]]:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    found = []
    for image in images():
        group = []
        for question in QUESTIONS:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = processor(
                images=image, text=text, return_tensors="pt", add_special_tokens=False
            )
            ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            reply = ids[0, inputs["input_ids"].shape[1] :]
            group.append(processor.decode(reply, skip_special_tokens=True).strip())
        found.append(group)
    return found


def our_answers(mllm: MLLM, *, tokens: int) -> list[list[str]]:
    pixels = torch.stack([mllm.encoder.transform(image) for image in images()])
    with torch.no_grad():
        visual = mllm.visual_tokens(mllm.features(pixels))
    return generate(mllm, visual, [QUESTIONS] * 2, DecodingSettings(max_new_tokens=tokens))


@pytest.mark.parametrize(
    ("projector", "chat", "layer"), [("mlp", False, -2), ("mlp", True, -1), ("linear", True, -2)]
)
def test_greedy_outputs_are_ours(projector: str, chat: bool, layer: int, tmp_path: Path) -> None:
    language = small_language(chat=chat, image_prefix="<Img>", image_suffix="</Img>")
    mllm = clip_mllm(projector, language, layer=layer)
    folder = export_llava(mllm, tmp_path / "llava", card="# A card\n")
    expected = our_answers(mllm, tokens=10)
    assert answers_of_transformers(folder, tokens=10) == expected
    assert expected[0] != expected[1]
    assert (folder / "README.md").read_text() == "# A card\n"
    assert not [path for path in tmp_path.iterdir() if path != folder]


@pytest.mark.parametrize("projector", ["mlp", "linear"])
def test_whitening_is_folded_into_the_first_layer(projector: str, tmp_path: Path) -> None:
    mllm = clip_mllm(projector, small_language(), layer=-2, whiten=True)
    assert isinstance(mllm.projector, WhitenedProjector)
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    mllm.projector.whitening.fit(mllm.features(noise).flatten(0, 1))
    folder = export_llava(mllm, tmp_path / "llava")
    expected = our_answers(mllm, tokens=10)
    assert answers_of_transformers(folder, tokens=10) == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("name", ["deit", "clip", "siglip", "mae", "dino", "dinov2", "random"])
def test_the_default_recipe_of_every_tiny_encoder_is_exported(name: str) -> None:
    recipe, language = load_adapter("quick"), small_language()
    encoder = load_encoder(f"tiny-{name}", layer=recipe.encoder.layer)
    projector = build_projector(
        recipe.projector, grid=encoder.grid, width=encoder.width, llm_width=language.width
    )
    model, processor = build_llava(MLLM(encoder, projector, language).eval())
    assert model.config.image_seq_length == encoder.num_tokens
    assert processor.image_processor.size["height"] == encoder.resolution[0]


def test_a_hidden_layer_of_another_width_is_refused(tmp_path: Path) -> None:
    mllm = clip_mllm("mlp", small_language(), hidden_width=40)
    with pytest.raises(WeightsError, match=r"hidden layer is 40 wide.*projector\.hidden_width"):
        export_llava(mllm, tmp_path / "llava")


def test_adapters_are_merged_and_ours_stay_as_they_are(tmp_path: Path) -> None:
    mllm = clip_mllm("mlp", small_language())
    set_trainable(mllm, encoder=False, llm="lora")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in mllm.language.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    expected = our_answers(mllm, tokens=6)
    names = set(mllm.language.model.state_dict())
    folder = export_llava(mllm, tmp_path / "llava")
    assert answers_of_transformers(folder, tokens=6) == expected
    assert set(mllm.language.model.state_dict()) == names
    assert our_answers(mllm, tokens=6) == expected


@pytest.mark.parametrize("projector", ["resampler", "qformer", "pixel-shuffle", "c-abstractor"])
def test_a_projector_that_llava_lacks_is_named(projector: str, tmp_path: Path) -> None:
    mllm = clip_mllm(projector, small_language())
    with pytest.raises(WeightsError, match=f"projector {projector}"):
        export_llava(mllm, tmp_path / "llava")
    assert not list(tmp_path.iterdir())


def test_pooled_tokens_are_refused(tmp_path: Path) -> None:
    mllm = small_mllm(projector="mlp", visual_tokens=4)
    with pytest.raises(WeightsError, match="projector mlp with 4 visual tokens"):
        export_llava(mllm, tmp_path / "llava")


def test_features_that_llava_cannot_select_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = clip_mllm("mlp", small_language())
    encode = SmallClip.forward
    monkeypatch.setattr(SmallClip, "forward", lambda self, pixels: encode(self, pixels) * 1.01)
    with pytest.raises(WeightsError, match="encoder CLIPVisionModel: its patch tokens"):
        export_llava(mllm, tmp_path / "llava")


def test_another_image_transform_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = clip_mllm("mlp", small_language())
    plain = SmallClip.transform
    monkeypatch.setattr(SmallClip, "transform", lambda self, image: plain(self, image) + 0.01)
    with pytest.raises(WeightsError, match="make different pixels"):
        export_llava(mllm, tmp_path / "llava")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(EncoderBenchError, match="exists already"):
        export_llava(clip_mllm("mlp", small_language()), tmp_path)


@pytest.mark.parametrize("chat", [False, True])
def test_content_is_a_string_or_parts_for_every_role(chat: bool, tmp_path: Path) -> None:
    language = small_language(chat=chat, image_prefix="<Img>", image_suffix="</Img>")
    mllm = clip_mllm("mlp", language, layer=-2)
    processor = AutoProcessor.from_pretrained(export_llava(mllm, tmp_path / "llava"))

    def text(*turns: tuple[str, str], parts: bool) -> str:
        messages = []
        for role, content in turns:
            split = [{"type": "image"}] if "<image>" in content else []
            words = {"type": "text", "text": content.removeprefix("<image>\n")}
            messages.append({"role": role, "content": [*split, words] if parts else content})
        found: str = processor.apply_chat_template(messages, add_generation_prompt=True)
        return found

    turns = [("system", "Be short."), ("user", "<image>\nWhat?"), ("assistant", "A dog.")]
    turns += [("user", "Why?")]
    for number in (2, 3, 4):
        assert text(*turns[:number], parts=True) == text(*turns[:number], parts=False)
    whole, template = text(*turns, parts=False), language.template
    answer = f"{template.tail}{template.joiner}A dog.{template.end}"
    said = f"What?{answer}{template.between}Why?{template.tail}"
    assert whole.endswith(f"<Img><image></Img>{said}"), "as a conversation writes later turns"
    assert "Be short." in whole.partition("<Img>")[0]
    assert whole.count("<image>") == 1
    assert not chat or "<s>system\nBe short.</s>" in whole
    with pytest.raises(TemplateError, match="not of tool"):
        text(("tool", "4"), parts=False)


def test_an_export_is_readable_by_all_and_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    language = small_language()
    mllm = clip_mllm("mlp", language, layer=-2)
    for part in (language.tokenizer, language.model.config, mllm.encoder.backbone.config):
        part.name_or_path = "/home/someone/weights"
    folder = export_llava(mllm, tmp_path / "llava", card="# A card\n")
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
        assert path.suffix != ".json" or "/home/someone" not in path.read_text(), path
