"""Pictures of patch features, probes and retrieval, through the command line and below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError, RecipeError, WeightsError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.cli.app import app
from encoder_bench.encoders.bundled import tiny_processor
from encoder_bench.encoders.encoder import encode_images as encode
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.encoders.text_tower import load_dual_encoder
from encoder_bench.inspection import probe
from encoder_bench.inspection.features import patch_features, principal_colours
from encoder_bench.inspection.labelled_images import HubColumns, read_labelled
from encoder_bench.inspection.probe import (
    linear_probe_scores,
    nearest_neighbour_scores,
    probe_encoder,
    probe_features,
    recall_at_one,
)

QUIET = QuietReporter()


def half_and_half() -> Image.Image:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, 32:] = (250, 40, 40)
    return Image.fromarray(pixels)


def write_classes(root: Path, *, count: int = 12, parts: tuple[str, ...] = ("",)) -> Path:
    """Write two classes that colour alone tells apart: reds and blues, no two files equal."""
    generator = np.random.default_rng(0)
    for part in parts:
        for name, channel in (("red", 0), ("blue", 2)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_components_tell_the_halves_of_a_picture_apart() -> None:
    view = patch_features(load_encoder("tiny-deit"), [half_and_half()], point=(0.1, 0.5))
    assert view.colours.shape == (1, 6, 6, 3)
    assert view.chosen == (3, 0)
    left, right = view.colours[0, :, :3].mean(dim=(0, 1)), view.colours[0, :, 3:].mean(dim=(0, 1))
    assert (left - right).abs().max() > 0.3
    assert view.similarity[0, 3, 0] == pytest.approx(1.0, abs=1e-5)
    assert view.similarity[0, :, :3].mean() > view.similarity[0, :, 3:].mean()
    assert view.pretrained
    assert not patch_features(load_encoder("tiny-random"), [half_and_half()]).pretrained
    with pytest.raises(RecipeError, match="shares from 0 to 1"):
        patch_features(load_encoder("tiny-deit"), [half_and_half()], point=(1.5, 0.5))


def test_principal_colours_of_known_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    strengths = torch.tensor([9.0, 3.0, 1.0, 0.01, 0.01])
    tokens = torch.randn(2, 400, 5, generator=generator) * strengths
    colours, explained = principal_colours(tokens)
    assert colours.shape == (2, 400, 3)
    assert explained > 0.99
    flat, first = colours.reshape(-1, 3)[:, 0], tokens.reshape(-1, 5)[:, 0]
    assert abs(float(torch.corrcoef(torch.stack([flat, first]))[0, 1])) > 0.97
    assert torch.equal(principal_colours(tokens)[0], colours)


def test_features_command_writes_a_picture(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    half_and_half().save(photo)
    output = tmp_path / "out.png"
    arguments = ["features", str(photo), "-e", "tiny-clip", "-e", "tiny-mae", "-q"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(output)])
    assert result.exit_code == 0, result.output
    with Image.open(output) as picture:
        assert picture.width > 2 * picture.height
    wrong = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out.gif")])
    assert isinstance(wrong.exception, RecipeError)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_colours_are_learned_from_class_folders(tmp_path: Path, parts: tuple[str, ...]) -> None:
    data = read_labelled(str(write_classes(tmp_path, parts=parts)), QUIET)
    assert data.class_names == ("blue", "red")
    assert not {i.name for i in data.train} & {i.name for i in data.test}
    report = probe_encoder(load_encoder("tiny-deit"), data, reporter=QUIET)
    assert report["measure"] == "accuracy"
    assert report["knn"]["percent"] == report["linear_probe"]["percent"] == 100.0
    assert report["chance_percent"] <= 80.0
    assert report["train_images"] + report["test_images"] == 24 * len(parts)


def test_a_limit_chooses_the_same_images_wherever_they_lie(tmp_path: Path) -> None:
    one, other = write_classes(tmp_path / "one"), write_classes(tmp_path / "a" / "longer" / "way")
    names = []
    for root in (one, other):
        found = read_labelled(str(root), QuietReporter(), limit=4)
        halves = (found.train, found.test)
        names.append([[Path(i.name).relative_to(root) for i in half] for half in halves])
    assert names[0] == names[1]
    assert all(names[0])


def test_the_same_image_in_both_halves_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, parts=("train", "val"))
    twin = tmp_path / "val" / "red" / "twin.png"
    twin.write_bytes((tmp_path / "train" / "red" / "3.png").read_bytes())
    with pytest.raises(DataError, match=r"twin\.png: the same image as .*3\.png"):
        read_labelled(str(tmp_path), QUIET)
    with pytest.raises(DataError, match="class 'red' is not in"):
        read_labelled(str(_without_red(tmp_path)), QUIET)


def _without_red(root: Path) -> Path:
    (root / "train" / "red").rename(root / "elsewhere")
    return root


def test_folders_without_labels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_labelled(str(tmp_path / "none"), QUIET)
    with pytest.raises(DataError, match="fewer than two class folders"):
        read_labelled(str(tmp_path), QUIET)


def test_labels_come_from_instances_where_there_are_any() -> None:
    data = read_labelled("scenes:0:60:10:20", QUIET, limit=20)
    assert data.several
    assert len(data.train) == len(data.test) == 20 or len(data.test) < 20
    report = probe_encoder(load_encoder("tiny-mae"), data, reporter=QUIET)
    assert report["measure"] == "label-ranking average precision"
    low, high = report["knn"]["interval"]
    assert low <= report["knn"]["percent"] <= high


def test_a_saved_data_set_is_read_by_its_columns(tmp_path: Path) -> None:
    import datasets

    root = write_classes(tmp_path / "files", parts=("train", "test"))
    files = {part: sorted((root / part).rglob("*.png")) for part in ("train", "test")}
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["red", "blue"])}
    )
    saved = datasets.DatasetDict(
        {
            part: datasets.Dataset.from_dict(
                {"picture": [str(p) for p in paths], "kind": [p.parent.name for p in paths]},
                features=features,
            )
            for part, paths in files.items()
        }
    )
    saved.save_to_disk(tmp_path / "saved")
    name = f"hub:{tmp_path / 'saved'}"
    data = read_labelled(name, QUIET, columns=HubColumns(image="picture", label="kind"))
    assert data.class_names == ("red", "blue")
    assert len(data.train) == len(data.test) == 24
    assert data.test[0].open().size == (40, 40)
    with pytest.raises(DataError, match=r"no column 'image'.*--image-column"):
        read_labelled(name, QUIET)


def save_labelled(folder: Path, labels: dict[str, list[int]]) -> str:
    import datasets

    picture = write_classes(folder / "files", parts=("train",)).rglob("*.png")
    image = str(next(iter(picture)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.DatasetDict(
        {
            part: datasets.Dataset.from_dict(
                {"image": [image] * len(numbers), "label": numbers}, features=features
            )
            for part, numbers in labels.items()
        }
    ).save_to_disk(folder / "saved")
    return f"hub:{folder / 'saved'}"


def test_whole_numbers_as_labels_are_names_and_no_indices(tmp_path: Path) -> None:
    name = save_labelled(tmp_path, {"train": [10, 9, 10, 2], "test": [2, 10]})
    data = read_labelled(name, QUIET)
    assert data.class_names == ("2", "9", "10")
    assert [image.classes for image in data.train] == [(2,), (1,), (2,), (0,)]
    assert [image.classes for image in data.test] == [(0,), (2,)]


def test_a_test_label_that_training_lacks_is_named(tmp_path: Path) -> None:
    name = save_labelled(tmp_path, {"train": [1, 2], "test": [3]})
    with pytest.raises(DataError, match="row 0 of split 'test': its label 3 is none of split"):
        read_labelled(name, QUIET)


def test_training_images_of_one_class_are_refused(tmp_path: Path) -> None:
    data = read_labelled(save_labelled(tmp_path, {"train": [1, 2], "test": [1]}), QUIET)
    one = data._replace(train=data.train[:1])
    with pytest.raises(DataError, match="training images are of one class"):
        probe_features(one, np.ones((1, 4)), np.ones((1, 4)))


def test_nearest_neighbours_by_hand() -> None:
    known = np.asarray([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    scores = nearest_neighbour_scores(known, np.eye(3), np.asarray([[3.0, 0.0]]))
    weights = np.exp(np.asarray([1.0, 0.0, -1.0]) / 0.07)
    assert scores == pytest.approx(weights[None] / weights.sum())


def test_a_class_of_all_images_or_of_none_does_not_stop_a_probe() -> None:
    known = np.random.default_rng(0).normal(size=(60, 4))
    labels = np.stack([known[:, 0] > 0, np.ones(60), np.zeros(60)], axis=1).astype(float)
    scores = linear_probe_scores(known[:40], labels[:40], known[40:])
    assert scores.shape == (20, 3)
    assert ((scores[:, 0] > 0) == labels[40:, 0]).mean() > 0.9
    assert (scores[:, 1] > scores[:, 2]).all()


def test_recall_at_one_by_hand() -> None:
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.9, 0.0, 0.2], [0.0, 0.8, 0.1]])
    report = recall_at_one(images, texts, [0, 1, 2, 1])
    # Texts 0, 1 and 3 find their picture, text 2 finds picture 0. Picture 2's best text is 2.
    assert report["text_to_image"]["percent"] == 75.0
    assert report["image_to_text"]["percent"] == 100.0
    assert report["chance_percent"] == 33.33


def test_captions_of_one_image_are_not_independent() -> None:
    images = torch.eye(40)
    texts = torch.eye(40).repeat_interleave(5, dim=0)
    texts[: 5 * 20] = -texts[: 5 * 20]  # all captions of half of the images are wrong
    owner = [number for number in range(40) for _ in range(5)]
    found = recall_at_one(images, texts, owner)
    low, high = found["text_to_image"]["interval"]
    alone_low, alone_high = found["image_to_text"]["interval"]
    assert high - low == pytest.approx(alone_high - alone_low, abs=2.0)


def write_dual(folder: Path) -> Path:
    """Write a small CLIP with both towers, tokenizer and processor, as a Hub repository has."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<end>", "a", "red", "blue", "picture"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
    )
    fast.save_pretrained(folder)
    small: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    text = small | {"vocab_size": 6, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text | {"max_position_embeddings": 8},
        vision_config=small | {"image_size": 64, "patch_size": 8},
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tiny_processor(64).save_pretrained(folder)
    return folder


def test_both_towers_of_a_checkpoint_embed_alike(tmp_path: Path) -> None:
    import transformers

    folder = write_dual(tmp_path)
    towers = load_dual_encoder(f"dir:{folder}")
    own = transformers.CLIPModel.from_pretrained(folder).eval()
    images = towers.embed_images([half_and_half()])
    pixels = tiny_processor(64)(images=half_and_half(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        projected = own.visual_projection(own.vision_model(pixels).pooler_output)
    assert torch.allclose(images, projected, atol=1e-5)
    assert towers.embed_texts(["a red picture", "blue"]).shape == (2, 16)
    with pytest.raises(WeightsError, match="no text tower"):
        load_dual_encoder("tiny-clip")


def test_probe_command_reports_every_number_or_why_not(tmp_path: Path) -> None:
    folder = write_dual(tmp_path / "clip")
    common = ["probe", "--data", "scenes:0:40:8:12", "-q"]
    result = CliRunner().invoke(app, [*common, "-e", f"dir:{folder}", "-e", "tiny-mae", "--json"])
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert first["retrieval"]["images"] == 12
    assert 0 <= first["retrieval"]["image_to_text"]["percent"] <= 100
    assert "no text tower" in second["retrieval"]["n/a"]
    shown = CliRunner().invoke(app, [*common, "-e", "tiny-random"])
    assert "random weights" in shown.output
    assert "n/a" in shown.output


def test_every_block_is_probed_from_one_pass_as_it_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = ["probe", "-e", "tiny-mae", "--data", "scenes:0:40:8:12", "--no-retrieval", "-q"]
    passes = []
    monkeypatch.setattr(probe, "encode_images", lambda *a, **k: passes.append(1) or encode(*a, **k))
    result = CliRunner().invoke(app, [*common, "--layers", "all", "--json"])
    assert result.exit_code == 0, result.output
    assert len(passes) == 2  # training and test images
    (report,) = json.loads(result.stdout)
    assert len(report["layers"]) == 6
    alone = json.loads(CliRunner().invoke(app, [*common, "--layer", "2", "--json"]).stdout)[0]
    assert report["layers"][2]["knn"] == alone["knn"]
    assert report["layers"][2]["linear_probe"] == alone["linear_probe"]
    best = report["best"]["knn"]
    percents = [each["knn"]["percent"] for each in report["layers"]]
    assert percents[best["layer"]] == max(percents)
    shown = CliRunner().invoke(app, [*common, "--layers", "all"]).output
    assert "tiny-mae, linear probe: block" in shown


def test_a_block_that_is_better_on_every_image_leads_and_noise_does_not() -> None:
    generator = np.random.default_rng(0)
    last = generator.random(200)
    noise = np.clip(last + generator.normal(0, 0.3, (11, 200)), 0, 1)
    lead = probe.lead_over_last(np.stack([*noise, last]))
    assert lead["interval"][0] < 0 < lead["interval"][1]
    lead = probe.lead_over_last(np.stack([last * 0.5 + 0.5, *noise, last]))
    assert lead["layer"] == 0
    assert lead["interval"][0] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--layers", "some"], "--layers some: give all"),
        (["--layers", "all", "--layer", "1"], "exclude each other"),
        (["--layers", "all", "-e", "tiny-mae+tiny-deit"], "plain stacks of blocks only"),
        (["--layers", "all", "-e", "random:timm:resnet10t"], "plain stacks of blocks only"),
        (["--layers", "all", "-e", "random:timm:hiera_tiny_224"], "plain stacks of blocks only"),
        (["-e", "random:timm:efficientvim_m1"], "several feature maps"),
    ],
)
def test_what_has_no_stack_of_blocks_is_refused(arguments: list[str], reason: str) -> None:
    named = arguments if "-e" in arguments else [*arguments, "-e", "tiny-mae"]
    result = CliRunner().invoke(app, ["probe", "--data", "scenes:0:40:8:12", "-q", *named])
    assert reason in str(result.exception)


def test_the_best_linear_probe_is_printed_first(capsys: pytest.CaptureFixture[str]) -> None:
    from encoder_bench.cli.inspection import _print

    def report(encoder: str, percent: float) -> dict[str, object]:
        score = {"percent": percent, "interval": None}
        facts = {"train_images": 9, "test_images": 9, "classes": 3, "chance_percent": 33.3}
        head = {"encoder": encoder, "pretrained": True, "measure": "accuracy", "data": "scenes"}
        return {**head, **facts, "knn": score, "linear_probe": score}

    _print([report("low", 40.0), report("high", 70.0), report("middle", 55.0)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["high", "middle", "low"]
