"""A results folder with records, predictions, breakdowns and pictures, as runs leave them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from result_builders import (
    COLUMNS,
    encoder_facts,
    make_record,
    score,
    task_scores,
    write_predictions,
)

from encoder_bench.base.record import RunRecord, write_record

CONTROLS = {"no-image": 31.0, "shuffled-images": 30.0, "constant": 25.0, "question-majority": 33.0}
QUESTIONS = {
    "vqa": ("What colour is the largest shape?", ("red", "blue", "green")),
    "captioning": ("", ("a red square left of a disc", "two discs on grass", "one blue disc")),
    "oc": ("How many discs are there in the image?", ("0", "1", "2", "3")),
    "mci": ("Does disc exist in the image?", ("Yes.", "No.")),
}


def draw_pictures(folder: Path, count: int) -> dict[str, Path]:
    """Draw `count` small pictures; return image id -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for number in range(count):
        chance = random.Random(number)
        image = Image.new("RGB", (64, 64), (200 - number % 60, 220, 180))
        draw = ImageDraw.Draw(image)
        for _ in range(chance.randint(1, 4)):
            x, y = chance.randint(0, 44), chance.randint(0, 44)
            colour = chance.choice(["red", "blue", "green", "black"])
            draw.ellipse((x, y, x + 16, y + 16), fill=colour)
        path = folder / f"{number}.png"
        image.save(path)
        pictures[str(number)] = path
    return pictures


def predictions(task: str, skill: float, count: int, seed: int) -> list[dict[str, Any]]:
    """Return answers of which about a share `skill` are right."""
    question, answers = QUESTIONS[task]
    primary = COLUMNS[task][1]
    lines = []
    for number in range(count):
        truth = answers[random.Random(f"{task}{number}").randrange(len(answers))]
        chance = random.Random(f"{task}{number}{seed}")
        said = truth if chance.random() < skill else chance.choice(answers)
        unparsable = chance.random() < 0.02
        right = said == truth and not unparsable
        lines.append(
            {
                "sample_id": f"{task}/{number}",
                "image_id": number // 2,
                "question": question,
                "prompt": question,
                "prediction": "" if unparsable else said,
                "parsed": None if unparsable else said,
                "outcome": "unparsable" if unparsable else "scored",
                "references": [truth] * 3,
                "scores": {primary: 100.0 if right else 0.0},
                "control": None,
            }
        )
    return lines


def make_run(
    results: Path,
    encoder: str,
    *,
    joint: bool,
    skill: float,
    count: int = 40,
    seed: int = 0,
    blind: Mapping[str, float] | None = None,
) -> RunRecord:
    """Write one run, record and predictions (of controls too, by skill), and return its record."""
    draft = make_record(encoder, joint=joint, seed=seed)
    tasks = {}
    for task, (_, primary) in COLUMNS.items():
        lines = predictions(task, skill, count, seed + joint * 100 + len(encoder))
        controls = [
            line | {"control": name}
            for place, (name, share) in enumerate((blind or {}).items())
            for line in predictions(task, share, count, seed + 1000 * (place + 1))
        ]
        folder = results / "predictions" / draft.run_id
        sha = write_predictions(folder, task, [*lines, *controls])
        values = [line["scores"][primary] for line in lines]
        filled = task_scores(
            task,
            sum(values) / count,
            half=4.0,
            controls=CONTROLS,
            samples=count,
            parse_failures=sum(line["outcome"] == "unparsable" for line in lines),
            sha256=sha,
        )
        facet = {str(n): score(sum(values) / count - 6 * n, 5.0) for n in range(1, 6)}
        tasks[task] = filled.model_copy(
            update={"breakdown": {"count": facet} if task in ("vqa", "oc") else {}}
        )
    losses = [4.0 * 0.99 ** (step * (1 + skill)) + 0.5 for step in range(200)]
    facts = encoder_facts(
        encoder, pretrained=encoder != "mae" and not encoder.startswith("random:")
    ).model_copy(update={"parameters": 20_000_000 * len(encoder.removeprefix("random:"))})
    record = make_record(encoder, joint=joint, seed=seed, tasks=tasks, facts=facts).model_copy(
        update={
            "run_id": draft.run_id,
            "training": {"losses": losses, "images_per_second": 20.0},
            "seconds": {"training": 100.0 * len(encoder) * (1 + joint), "vqa": 20.0},
        }
    )
    write_record(results, record)
    return record


def make_results(results: Path, *, encoders: tuple[str, ...], count: int = 40) -> None:
    """Write frozen and joint runs of several encoders."""
    for number, encoder in enumerate(encoders):
        for joint in (False, True):
            make_run(
                results, encoder, joint=joint, skill=0.2 + 0.1 * number + 0.08 * joint, count=count
            )
