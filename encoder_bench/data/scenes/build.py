"""Drawing the embedded data set to disk, once, in the official layouts.

The same name always gives the same bytes.
"""

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from encoder_bench.base.errors import DataError
from encoder_bench.base.files import atomic_folder, write_text
from encoder_bench.base.limits import usable_cores
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from encoder_bench.data.scenes.grammar import (
    NUMBERS,
    Question,
    captions,
    counting_questions,
    identification_questions,
    visual_questions,
)
from encoder_bench.data.scenes.graph import CANVAS, KINDS, MAX_THINGS, Scene, render, sample_scene

GENERATOR_VERSION = 3
_STREAMS = {"train": 1, "val": 2, "test": 3}
_FIRST_ID = {"train": 1_000_001, "val": 2_000_001, "test": 3_000_001}
_FOLDER = {"train": "train2017", "val": "val2017", "test": "val2017"}
_ANSWER_TYPES = {
    **dict.fromkeys(("yes", "no"), "yes/no"),
    **dict.fromkeys(map(str, range(MAX_THINGS + 1)), "number"),
}
_TOGETHER, _FEW = 4096, 256
"""Scenes that are drawn at once, on all cores; and how many are not worth a process."""
_Draw = Callable[[Iterable[Scene]], Iterable[tuple[str, bytes]]]
_PR_SET_PDEATHSIG = 1
_CONFIDENCE = ("yes", "yes", "yes", "maybe")


class SceneSizes(NamedTuple):
    """How many images of each split, and the seed that decides everything else."""

    seed: int = 0
    train: int = 4000
    val: int = 200
    test: int = 300


def parse_sizes(name: str, flag: str = "--data") -> SceneSizes:
    """Read `scenes`, `scenes:SEED` or `scenes:SEED:TRAIN:VAL:TEST`."""
    parts = name.split(":")[1:]
    if len(parts) in (0, 1, 4) and all(part.isdecimal() for part in parts):
        sizes = SceneSizes(*map(int, parts))
        if all(number > 0 for number in sizes[1:]):
            return sizes
    raise DataError(f"{flag} {name}: give scenes, scenes:SEED or scenes:SEED:TRAIN:VAL:TEST")


def scenes_folder(name: str, reporter: Reporter, flag: str = "--data") -> Path:
    """Return the folder of an embedded data set, drawn first where the cache lacks it."""
    sizes = parse_sizes(name, flag)
    seed, *numbers = map(str, sizes)
    folder = cache_dir("scenes", "-".join((f"v{GENERATOR_VERSION}", f"seed{seed}", *numbers)))
    if not folder.is_dir():
        with atomic_folder(folder) as partial:
            write_scenes(partial, sizes, reporter)
    return folder


def scene_stream(seed: int, split: str) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Yield the endless scenes of a split and each one's own generator of language.

    Streams of different splits have different seeds, so that text made from the training stream
    never describes a test scene, duplicates aside, which `write_scenes` drops.
    """
    root = np.random.SeedSequence([seed, _STREAMS[split], GENERATOR_VERSION])
    while True:
        for child in root.spawn(256):
            rng = np.random.default_rng(child)
            yield sample_scene(rng), rng


class _Drawn(NamedTuple):
    """A scene on disk: its id and sentences, and the generator for what is asked of it."""

    image_id: int
    scene: Scene
    captions: list[str]
    rng: np.random.Generator

    @property
    def row(self) -> dict[str, Any]:
        name = f"{self.image_id:012}.png"
        return {"id": self.image_id, "file_name": name, "width": CANVAS, "height": CANVAS}


def write_scenes(root: Path, sizes: SceneSizes, reporter: Reporter) -> None:
    """Draw all splits into `root` and write their files in the official layouts.

    No two images of the data set are alike: a scene whose picture was drawn before, in any
    split, is skipped.
    """
    seen: set[str] = set()
    drawn: dict[str, list[_Drawn]] = {}
    total = sum(sizes[1:])
    with reporter.phase("drawing scenes", total, "images") as phase, _drawing(total) as draw:
        for split, number in (("test", sizes.test), ("val", sizes.val), ("train", sizes.train)):
            drawn[split] = _draw_split(root, sizes.seed, split, number, seen, draw, phase.advance)
    contents: dict[str, Any] = {"coco/dataset_coco.json": _karpathy(drawn)}
    for part, splits in (("train", ("train",)), ("val", ("val", "test"))):
        items = [item for split in splits for item in drawn[split]]
        images = {"images": [item.row for item in items]}
        contents[f"coco/annotations/captions_{part}2017.json"] = {**images, **_captions(items)}
        contents[f"coco/annotations/instances_{part}2017.json"] = {**images, **_instances(items)}
    for part, split in (("train", "train"), ("val", "test")):
        questions, annotations = _vqa(drawn[split], split)
        contents[f"vqav2/v2_OpenEnded_mscoco_{part}2014_questions.json"] = questions
        contents[f"vqav2/v2_mscoco_{part}2014_annotations.json"] = annotations
    for source, make in (("oc", counting_questions), ("mci", identification_questions)):
        contents[f"gvtbench/coco_{source}.json"] = _gvtbench(drawn["test"], make)
    for name, content in contents.items():
        write_text(root / name, json.dumps(content, separators=(",", ":")) + "\n")
    about = {"seed": sizes.seed, "generator_version": GENERATOR_VERSION}
    write_text(root / "ABOUT.json", json.dumps(about) + "\n")


@contextlib.contextmanager
def _drawing(number: int) -> Iterator[_Draw]:
    """Yield what draws scenes: forked processes, since threads wait for the interpreter's lock."""
    if number < _FEW or sys.platform != "linux":
        yield functools.partial(map, _picture)
        return
    with ProcessPoolExecutor(
        usable_cores(), mp_context=get_context("fork"), initializer=_follow, initargs=(os.getpid(),)
    ) as pool:
        yield functools.partial(pool.map, _picture, chunksize=16)


def _follow(parent: int) -> None:
    """End this process with its parent, however that ends; Ctrl-C is the parent's to answer.

    The signal comes when the thread ends that opened the pool. Reference: prctl(2),
    PR_SET_PDEATHSIG.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the signal was asked for
        os._exit(1)


def _draw_split(
    root: Path,
    seed: int,
    split: str,
    number: int,
    seen: set[str],
    draw: _Draw,
    advance: Callable[[], None],
) -> list[_Drawn]:
    folder = root / "coco" / _FOLDER[split]
    folder.mkdir(parents=True, exist_ok=True)
    items: list[_Drawn] = []
    stream = scene_stream(seed, split)
    while len(items) < number:
        some = list(islice(stream, min(_TOGETHER, number - len(items))))
        pictures = draw(scene for scene, _ in some)
        for (scene, rng), (digest, png) in zip(some, pictures, strict=True):
            if digest in seen:
                continue
            seen.add(digest)
            image_id = _FIRST_ID[split] + len(items)
            items.append(_Drawn(image_id, scene, captions(scene, rng), rng))
            (folder / items[-1].row["file_name"]).write_bytes(png)
            advance()
    return items


def _picture(scene: Scene) -> tuple[str, bytes]:
    """Return the digest of a scene's pixels and its PNG file."""
    image, file = render(scene), BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return hashlib.sha256(image.tobytes()).hexdigest(), file.getvalue()


def _captions(items: Sequence[_Drawn]) -> dict[str, Any]:
    rows = [(item.image_id, caption) for item in items for caption in item.captions]
    annotations = [
        {"image_id": image_id, "id": number, "caption": caption}
        for number, (image_id, caption) in enumerate(rows, start=1)
    ]
    return {"annotations": annotations}


def _instances(items: Sequence[_Drawn]) -> dict[str, Any]:
    things = [
        (item.image_id, thing, 2 * thing.radius) for item in items for thing in item.scene.things
    ]
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": KINDS.index(thing.kind) + 1,
            "bbox": [
                round(value, 2)
                for value in (thing.x - thing.radius, thing.y - thing.radius, width, width)
            ],
            "area": round(width * width, 2),
            "iscrowd": 0,
        }
        for number, (image_id, thing, width) in enumerate(things, start=1)
    ]
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, start=1)]
    return {"annotations": annotations, "categories": categories}


def _karpathy(drawn: dict[str, list[_Drawn]]) -> dict[str, Any]:
    images = [
        {
            "filepath": _FOLDER[split],
            "filename": item.row["file_name"],
            "cocoid": item.image_id,
            "imgid": item.image_id,
            "split": split,
            "sentences": [
                {"raw": c, "tokens": c.split(), "imgid": item.image_id} for c in item.captions
            ],
        }
        for split in _FOLDER
        for item in drawn[split]
    ]
    return {"dataset": "coco", "images": images}


def _vqa(items: Sequence[_Drawn], split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    used: Counter[Question] = Counter()
    questions, annotations = [], []
    for item in items:
        candidates = visual_questions(item.scene, item.rng, 12)
        chosen = _balanced(candidates, 6 if split == "train" else 3, used)
        for number, (kind, text, answer, _) in enumerate(chosen, start=100 * item.image_id):
            ids = {"image_id": item.image_id, "question_id": number}
            questions.append({**ids, "question": text})
            annotations.append(
                {
                    **ids,
                    "question_type": kind,
                    "answer_type": _ANSWER_TYPES.get(answer, "other"),
                    "multiple_choice_answer": answer,
                    "answers": _ten_answers(answer, item.rng),
                }
            )
    head = {"data_type": "scenes", "data_subtype": split}
    questions_head = {"task_type": "Open-Ended", **head}
    return {**questions_head, "questions": questions}, {**head, "annotations": annotations}


def _ten_answers(answer: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return ten human-like answers: at least eight the true one, others with the number in words.

    The metric reads both alike.
    """
    other = ("zero", *NUMBERS[1:])[int(answer)] if answer.isdigit() else answer
    written = [other if rng.random() < 0.1 else answer for _ in range(10)]
    for index in range(10):
        if written.count(answer) < 8:
            written[index] = answer
    return [
        {"answer": text, "answer_confidence": str(rng.choice(_CONFIDENCE)), "answer_id": number}
        for number, text in enumerate(written, start=1)
    ]


def _gvtbench(
    items: Sequence[_Drawn], make: Callable[[Scene, np.random.Generator], list[Question]]
) -> list[dict[str, Any]]:
    used: Counter[Question] = Counter()
    return [
        {
            "image_id": item.image_id,
            "text_in": question.text,
            "text_out": question.answer,
            "n_obj_exist": len(item.scene.things),
        }
        for item in items
        for question in _balanced(make(item.scene, item.rng), 2, used)
    ]


def _balanced(candidates: list[Question], number: int, used: Counter[Question]) -> list[Question]:
    """Return the candidates used least so far, so that each answer comes up about equally often."""
    chosen = sorted(candidates, key=lambda question: used[question])[:number]
    used.update(chosen)
    return chosen
