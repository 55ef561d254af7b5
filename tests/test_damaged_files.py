"""Every command on damaged input files: an exit status and words, never a traceback.

A valid file of each kind is damaged at random (a value of another type, a key gone, bytes cut,
other encodings), and the command that reads it runs. `ENCODER_BENCH_FUZZ=1000` asks for so many
inputs; the suite takes fewer.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encoder_bench.base.errors import EncoderBenchError, WeightsError
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.base.record import write_record
from encoder_bench.cli.app import app
from encoder_bench.data.folder import open_data
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.mllm.loading import empty_model, load_language_model
from tests.result_builders import make_record

INPUTS = int(os.environ.get("ENCODER_BENCH_FUZZ", "60"))
BUNDLED = Path(__file__).resolve().parents[1] / "encoder_bench/bundled/encoders/tiny-deit"
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1.5, 1e400, float("nan"), "", " ", "\x00", "\ud800", "ä" * 300, [],
    [[]], {}, {"a": {}}, [None], "../../etc/passwd", "12", "1e5", ["x"] * 3, {"image_id": 1},
)  # fmt: skip


def damaged_tree(content: Any, rng: random.Random) -> Any:
    """Change one to three places of a JSON tree."""
    for _ in range(rng.randint(1, 3)):
        place, key = content, None
        parent: Any = None
        while isinstance(place, dict | list) and place and (parent is None or rng.random() < 0.8):
            parent, key = (
                place,
                rng.choice(list(place) if isinstance(place, dict) else range(len(place))),
            )
            place = place[key]
        if parent is None:
            return rng.choice(JUNK)
        change = rng.random()
        if change < 0.6:
            parent[key] = rng.choice(JUNK)
        elif change < 0.75:
            del parent[key]
        elif isinstance(parent, list):
            parent.append(place)
        else:
            parent[str(key) + "?"] = parent.pop(key)
    return content


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a file's bytes with something wrong with them."""
    kind = rng.random()
    if kind < 0.75 and b" = " in data and not data.startswith((b"{", b"[")):  # TOML
        lines = data.splitlines()
        line = rng.choice([number for number, text in enumerate(lines) if b" = " in text])
        junk = rng.choice([b"-1", b"1e999", b"nan", b'""', b"[]", b"{}", b'"{x}"', b"true", b"'a"])
        lines[line] = lines[line].partition(b" = ")[0] + b" = " + junk
        return b"\n".join(lines)
    if kind < 0.75:
        with contextlib.suppress(ValueError):
            lines = data.splitlines() if b"\n{" in data else [data]
            line = rng.randrange(len(lines))
            tree = damaged_tree(json.loads(lines[line]), rng)
            lines[line] = json.dumps(tree, ensure_ascii=True).encode()
            return b"\n".join(lines)
    if kind < 0.85:
        return data[: rng.randrange(len(data))]
    if kind < 0.9:
        return data.decode().encode("utf-16")
    if kind < 0.95:
        return b"\xef\xbb\xbf" + data
    middle = rng.randrange(len(data))
    return (
        data[:middle]
        + rng.choice([b"\xff\xfe", b"\x00", b"[" * 50_000, b'"', b"\r"])
        + data[middle:]
    )


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("valid")
    scenes = open_data("scenes:4:12:2:6").root
    shutil.copytree(scenes, root / "data")
    predictions = root / "predictions.jsonl"
    samples = open_data(str(root / "data")).samples(
        "vqa", reader="vqav2", source="vqav2", split="test"
    )
    predictions.write_text(
        "\n".join(json.dumps({"sample_id": s.sample_id, "prediction": s.target}) for s in samples)
    )
    turns = [
        ("human", "<image>\nWhat is it?"),
        ("gpt", "A ring."),
        ("human", "Sure?"),
        ("gpt", "Yes."),
    ]
    said = [{"from": who, "value": text} for who, text in turns]
    images = sorted((root / "data" / "coco" / "train2017").iterdir())
    rows = [{"id": p.stem, "image": p.name, "conversations": said} for p in images]
    (root / "rows.json").write_text(json.dumps(rows))
    (root / "mixture.toml").write_text(
        'description = "scenes"\n[[sources]]\nname = "scenes"\nformat = "llava"\n'
        'path = "rows.json"\nimages = "data/coco/train2017"\nweight = 0.5\n'
    )
    for record in (make_record("tiny-mae"), make_record("tiny-dino", joint=True)):
        write_record(root / "results", record)
    shutil.copytree(BUNDLED, root / "encoder")
    write_timm(root / "timm")
    write_open_clip(root / "open_clip")
    adapters = Path(__file__).resolve().parents[1]
    for kind, name in (("adapters", "quick"), ("tasks", "vqa")):
        shutil.copy(adapters / kind / f"{name}.toml", root / f"{kind}.toml")
    return {"root": root}


def write_timm(folder: Path) -> None:
    """A small checkpoint with a configuration of its own, in timm's layout."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir()
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    save_file(model.state_dict(), folder / "model.safetensors")
    facts = {
        "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
        "interpolation": "bicubic", "crop_mode": "center",
    }  # fmt: skip
    arguments = {"img_size": 32, "depth": 6, "class_token": True}
    config = {"architecture": "test_vit", "pretrained_cfg": facts, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))


def write_open_clip(folder: Path) -> None:
    """Likewise in open_clip's layout."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    facts = {
        "mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32], "mode": "RGB",
        "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
    }  # fmt: skip
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, "quick_gelu": False}
    config = {"model_cfg": model, "preprocess_cfg": facts}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")


def survives(arguments: list[str], what: str) -> None:
    """The command ends with an exit status, and its error is one line."""
    result = CliRunner().invoke(app, arguments)
    error = result.exception
    if error is None or isinstance(error, SystemExit):
        return
    assert isinstance(error, EncoderBenchError), f"{what}: {arguments}: {error!r}"
    assert str(error), f"{what}: an error without words"
    str(error).encode()


def draws(encoder: str, file: Path, root: Path) -> list[str]:
    """The command that draws an image's features by the encoder in a file's folder."""
    image = next((root / "data/coco/val2017").iterdir())
    return ["features", str(image), "-e", encoder, "--weights", str(file.parent),
            "--output", str(root.parent / "out.png")]  # fmt: skip


KINDS: dict[str, tuple[str, Callable[[Path, Path], list[str]]]] = {
    "annotations": ("data/**/*.json", lambda file, root: ["data", "check", str(root / "data")]),
    "lint": (
        "data/**/*.json",
        lambda file, root: ["data", "lint", "--no-images", str(root / "data")],
    ),
    "predictions": (
        "predictions.jsonl",
        lambda file, root: ["score", "vqa", "--predictions", str(file), "--data",
                            str(root / "data"), "--answered-only"],
    ),
    "records": (
        "results/records/*.json", lambda file, root: ["table", "--results", str(root / "results")]
    ),
    "recipes": (
        "adapters.toml",
        lambda file, root: ["run", "--dry-run", "--adapter", str(file), "--data",
                            str(root / "data"), "--results", str(root / "runs")],
    ),
    "mixtures": (
        "mixture.toml",
        lambda file, root: ["data", "check", str(file), "--train-data", str(root)],
    ),
    "rows of a mixture": (
        "rows.json",
        lambda file, root: ["data", "check", str(root / "mixture.toml"), "--train-data", str(root)],
    ),
    "encoders": (
        "encoder/*.json",
        lambda file, root: draws(f"dir:{file.parent}", file, root),
    ),
    "timm": ("timm/config.json", partial(draws, "timm:test_vit")),
    "open_clip": (
        "open_clip/open_clip_config.json", partial(draws, "open_clip:ViT-S-32-alt/local")
    ),
    "tasks": (
        "tasks.toml",
        lambda file, root: ["run", "--dry-run", "--tasks", str(file), "--data",
                            str(root / "data"), "--results", str(root / "runs")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_words_and_a_status(
    valid: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    pattern, command = KINDS[kind]
    root = tmp_path / "copy"
    shutil.copytree(valid["root"], root)
    files = sorted(root.glob(pattern))
    for number in range(max(1, INPUTS // len(KINDS))):
        rng = random.Random(f"{kind} {number}")
        file = rng.choice(files)
        kept = file.read_bytes()
        file.write_bytes(damaged(kept, rng))
        others = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
        survives(command(file, root), f"{kind} {number} {file.name}")
        assert {path: path.stat().st_size for path in others} == others  # nothing is lost
        file.write_bytes(kept)


@pytest.mark.parametrize(
    ("folder", "name", "key"),
    [
        ("encoder", "dir", "num_hidden_layers"),
        ("timm", "timm:test_vit", "depth"),
        ("open_clip", "open_clip:ViT-S-32-alt/local", "layers"),
    ],
)
def test_an_encoder_of_endless_layers_is_refused(
    valid: dict[str, Path],
    folder: str,
    name: str,
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("encoder_bench.encoders.loading._MAX_MODULES", 300)
    root = Path(shutil.copytree(valid["root"] / folder, tmp_path / folder))
    load = partial(load_encoder, f"dir:{root}" if name == "dir" else name)
    weights = None if name == "dir" else root
    with_layers(root, key, 10**6)
    with pytest.raises(WeightsError, match="over 300 modules"):
        load(weights=weights)
    with_layers(root, key, 8)  # no more than the limit, but more than the checkpoint has
    with pytest.raises(WeightsError, match="random values"):
        load(weights=weights)


def test_a_language_model_of_endless_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoder_bench.mllm.loading._MAX_MODULES", 300)
    root = Path(shutil.copytree(BUNDLED.parents[1] / "llm" / "tiny-llama", tmp_path / "llm"))
    with_layers(root, "num_hidden_layers", 10**6)
    with pytest.raises(WeightsError, match="over 300 modules"):
        load_language_model(LanguageModelSettings(name=str(root)))
    assert empty_model(str(root)) is None


def with_layers(folder: Path, key: str, layers: int) -> None:
    """Write another number of layers into a folder's configuration."""
    (file,) = (f for f in folder.glob("*config.json") if f'"{key}":' in f.read_text())
    file.write_text(re.sub(rf'"{key}": \d+', f'"{key}": {layers}', file.read_text(), count=1))
