"""A small real world to train in: drawn images, questions about their colour, a real tiny model.

Also a program: `python world.py FOLDER [--dropout]` trains in FOLDER, so that tests can kill it
or launch it on several processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import AdapterRecipe, TaskRecipe
from encoder_bench.data.mixture import Mixture, open_mixture
from encoder_bench.data.sample import Sample
from encoder_bench.encoders.registry import find_spec
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.trainable import set_trainable
from encoder_bench.training.checkpoint import trained_state
from encoder_bench.training.trainer import Trainer, TrainingSummary
from tests.mllm.models import small_language, small_mllm

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
CPU = torch.device("cpu")


def draw(folder: Path, images: int = 6) -> list[Path]:
    """Draw images of one colour with noise; image i has colour i modulo 3."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(images):
        colour = list(COLOURS.values())[index % 3]
        noise = np.random.default_rng(index).integers(0, 30, (32, 32, 3))
        path = folder / f"{index:03}.png"
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def questions(paths: list[Path]) -> list[Sample]:
    """Two questions and a caption of each image."""
    samples = []
    for index, path in enumerate(paths):
        colour = list(COLOURS)[index % 3]
        for task, number, question, answer in (
            ("vqa", 0, "What colour is it?", colour),
            ("vqa", 1, "Is it red?", "yes" if colour == "red" else "no"),
            ("captioning", 0, "", f"a {colour} square"),
        ):
            name = f"{task}/{index}-{number}"
            samples.append(Sample(name, task, index, path, question, (answer,), answer))
    return samples


def recipe(**changes: object) -> AdapterRecipe:
    """A recipe of four steps; keys of `stage` and `training` are merged into the defaults."""
    own: dict[str, object] = changes.pop("stage", {})  # type: ignore[assignment]
    stage: dict[str, object] = {
        "name": "instruct",
        "tasks": ["vqa", "captioning"],
        "steps": 4,
        "images_per_step": 4,
        "samples_per_image": 2,
        "projector": {"learning_rate": 1e-3, "weight_decay": 0.1},
        "encoder": {"learning_rate": 1e-3, "layer_decay": 0.9},
        "llm": {"learning_rate": 1e-3},
        **own,
    }
    return AdapterRecipe.model_validate({"description": "test", "stages": [stage], **changes})


TURNS = (
    ("<image>\nWhat colour is it?", "{}"),
    ("Is it red? Answer yes or no.", "no"),
    ("Say what you see, in a sentence.", "It is a {} square."),
)


def conversations(paths: list[Path]) -> list[dict[str, object]]:
    """Rows in LLaVA's format: of several turns, of two images, of text alone, of a caption."""
    rows: list[dict[str, object]] = []
    for index, path in enumerate(paths):
        colour, other = list(COLOURS)[index % 3], paths[(index + 1) % len(paths)]
        row: dict[str, object] = {"id": f"row-{index}"}
        if index % 4 < 2:
            turns = [(ask, answer.format(colour)) for ask, answer in TURNS[: 1 + index % 3]]
            row["image"] = path.name
        elif index % 4 == 2:
            turns = [("<image>\n and <image>\nAre they alike?", "no"), ("Sure?", "Yes, sure.")]
            row["image"] = [path.name, other.name]
        else:
            turns = [("What is the sum of one and two?", "It is three.")]
        row["conversations"] = [
            {"from": speaker, "value": text}
            for turn in turns
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ]
        rows.append(row)
    return rows


def mixture(folder: Path, images: int = 8) -> Mixture:
    """Write and open a mixture of so many conversations about the images of `folder/images`."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # the processes of one run all come here
        if not (folder / "mixture.toml").exists():
            paths = sorted((folder / "images").glob("*.png")) or draw(folder / "images", images)
            (folder / "rows.json").write_text(json.dumps(conversations(paths)))
            source = 'name = "m"\nformat = "llava"\npath = "rows.json"\nimages = "images"'
            (folder / "mixture.toml").write_text(f'description = "d"\n[[sources]]\n{source}\n')
    return open_mixture(str(folder / "mixture.toml"), folder, QuietReporter())


def tasks() -> dict[str, TaskRecipe]:
    shared = {"description": "", "reader": "r", "source": "s", "metrics": ["m"], "primary": "m"}
    return {
        "vqa": TaskRecipe(runner="vqa", column="V", prompt="Question: {question}", **shared),
        "captioning": TaskRecipe(runner="captioning", column="C", prompt="Describe.", **shared),
    }


def model(
    *, joint: bool = False, llm: str = "frozen", dropout: float = 0.0, whiten: bool = False
) -> MLLM:
    mllm = small_mllm(language=small_language(max_length=256), dropout=dropout, whiten=whiten)
    mllm.encoder.spec = find_spec("tiny-dino")
    set_trainable(mllm, encoder=joint, llm=llm)  # type: ignore[arg-type]
    return mllm


def run(
    mllm: MLLM, folder: Path, adapter: AdapterRecipe | None = None, **options: object
) -> TrainingSummary:
    """Train on the images of `folder/images`, drawn when they are not there."""
    paths = sorted((folder / "images").glob("*.png")) or draw(folder / "images")
    return Trainer(
        mllm,
        questions(paths),
        adapter or recipe(),
        tasks(),
        folder=folder / "run",
        seed=3,
        reporter=options.pop("reporter", QuietReporter()),  # type: ignore[arg-type]
        device=CPU,
        **options,  # type: ignore[arg-type]
    ).train()


def whole_training(folder: Path, *, dropout: float) -> None:
    """Train jointly for six steps, half of them on a mixture, then write weights and summary."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    mllm = model(joint=True, llm="full", dropout=dropout, whiten=True)
    training = {"checkpoint_every": 1, "keep_checkpoints": 9}
    adapter = recipe(stage={"steps": 3}, training=training)
    (asked,) = adapter.stages
    # each row by itself: one process has text alone while the other has images
    rows = {"mixture": "m", "tasks": (), "micro_batch_images": 1}
    told = asked.model_copy(update={"name": "converse", **rows})
    adapter = adapter.model_copy(update={"stages": (asked, told)})
    summary = run(mllm, folder, adapter, mixtures={"m": mixture(folder)})
    if os.environ.get("RANK", "0") == "0":
        tensors = {name: tensor.clone() for name, tensor in trained_state(mllm).items()}
        save_file(tensors, folder / "end.safetensors")
        (folder / "summary.json").write_text(json.dumps(summary.as_json()))
    torch.set_num_threads(threads)


if __name__ == "__main__":
    whole_training(Path(sys.argv[1]), dropout=0.1 if "--dropout" in sys.argv else 0.0)
