"""A data folder of the size of COCO and VQAv2, and what reading it takes.

The files have the official layouts and sizes; texts are drawn from short lists, pictures are hard
links to a few drawn ones. `python -m benchmarks.full_size DIR` only writes the folder.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import msgspec
import numpy as np
import typer
from PIL import Image

_COLOURS = ("red", "blue", "green", "white", "black")
_THINGS = ("person", "car", "boat", "bird", "cat", "dog", "tie", "cup", "bowl", "apple", "pizza",
           "chair", "couch", "laptop", "clock", "vase")  # fmt: skip
_NOUNS = tuple(f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS)
_KINDS = ("yes/no", "number", "other")
_MAX_ID = 581_929
_PICTURES = 16
_CATEGORIES = [{"id": n, "name": name} for n, name in enumerate(_NOUNS, start=1)]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many of each there are; the defaults are those of COCO 2017, VQAv2 and GVTBench."""

    train: int = 118_287
    val: int = 5_000
    train_captions: int = 591_435
    train_objects: int = 860_001
    val_objects: int = 36_781
    train_questions: int = 443_757
    val_questions: int = 214_354
    val2014: int = 40_504
    test_questions: int = 10_000

    def scaled(self, share: float) -> Sizes:
        """Return these sizes times `share`, at least 10 of each."""
        return Sizes(*(max(10, round(getattr(self, name) * share)) for name in self.__slots__))


def write_folder(root: Path, sizes: Sizes, seed: int = 0) -> None:
    """Write a data folder of these sizes into `root`."""
    rng = random.Random(seed)
    numbers = rng.sample(range(1, _MAX_ID), sizes.train + sizes.val)
    val, train = sorted(numbers[: sizes.val]), sorted(numbers[sizes.val :])
    _link_pictures(root, {"train2017": train, "val2017": val}, rng)
    for part, images, captions, objects in (
        ("train", train, sizes.train_captions, sizes.train_objects),
        ("val", val, 5 * sizes.val + 14, sizes.val_objects),
    ):
        entries = [_image(number, part) for number in images]
        folder = root / "coco" / "annotations"
        _write(folder / f"captions_{part}2017.json", images=entries,
               annotations=_captions(images, captions, rng))  # fmt: skip
        _write(folder / f"instances_{part}2017.json", images=entries, categories=_CATEGORIES,
               annotations=_objects(images, objects, rng))  # fmt: skip
    asked = numbers[: sizes.val2014], numbers[sizes.val2014 :]
    for part, images, count in (
        ("val", asked[0], sizes.val_questions), ("train", asked[1], sizes.train_questions),
    ):  # fmt: skip
        folder, chosen = root / "vqav2", _spread(images, count)
        _write(folder / f"v2_OpenEnded_mscoco_{part}2014_questions.json",
               questions=_questions(chosen, rng))  # fmt: skip
        _write(folder / f"v2_mscoco_{part}2014_annotations.json",
               annotations=_answers(chosen, rng))  # fmt: skip
    for name, words, answers in (
        ("coco_oc", "How many {}s are there in the image?", [str(n) for n in range(5)]),
        ("coco_mci", "Does {} exist in the image?", ["Yes.", "No."]),
    ):
        rows = [
            {"image_id": number, "text_in": words.format(rng.choice(_NOUNS)),
             "text_out": rng.choice(answers), "n_obj_exist": rng.randrange(30)}
            for number in _spread(val, sizes.test_questions)
        ]  # fmt: skip
        _write_bytes(root / "gvtbench" / f"{name}.json", [msgspec.json.encode(rows)])


def _spread(images: list[int], count: int) -> list[int]:
    """Return as many image ids as wanted, each image's together."""
    return [images[place * len(images) // count] for place in range(count)]


def _link_pictures(root: Path, parts: dict[str, list[int]], rng: random.Random) -> None:
    place = root / "pictures"
    place.mkdir(parents=True)
    drawn = []
    for index in range(_PICTURES):
        noise = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        drawn.append(place / f"{index}.jpg")
        picture.save(drawn[-1], quality=90)
    for name, numbers in parts.items():
        folder = root / "coco" / name
        folder.mkdir(parents=True)
        for number in numbers:
            os.link(rng.choice(drawn), folder / f"{number:012}.jpg")


def _image(number: int, part: str) -> Row:
    name = f"{number:012}.jpg"
    return {
        "license": 3, "file_name": name, "coco_url": f"http://images.example/{part}2017/{name}",
        "height": 480, "width": 640, "date_captured": "2013-11-14 17:02:52", "id": number,
    }  # fmt: skip


def _captions(images: list[int], count: int, rng: random.Random) -> Iterator[Row]:
    for place, number in enumerate(_spread(images, count)):
        one, two, three = rng.sample(_NOUNS, 3)
        text = f"A {one} next to a {two} and a {three} in front of a wall."
        yield {"image_id": number, "id": place + 1, "caption": text}


def _objects(images: list[int], count: int, rng: random.Random) -> Iterator[Row]:
    polygons = [
        [round(rng.uniform(0, 640), 2) for _ in range(2 * rng.randrange(8, 48))] for _ in range(997)
    ]
    for place in range(count):
        number = images[rng.randrange(len(images))] if place % 3 else images[place % len(images)]
        yield {
            "segmentation": [polygons[place % 997]], "area": 2765.15,
            "iscrowd": int(place % 90 == 0), "image_id": number,
            "bbox": [199.84, 200.46, 77.71, 70.88],
            "category_id": min(int(rng.expovariate(0.12)), len(_NOUNS) - 1) + 1, "id": place + 1,
        }  # fmt: skip


def _ids(images: list[int]) -> Iterator[tuple[int, int]]:
    for number, group in itertools.groupby(images):
        yield from ((number, 1000 * number + place) for place, _ in enumerate(group))


def _questions(images: list[int], rng: random.Random) -> Iterator[Row]:
    for number, question in _ids(images):
        text = f"What is the {rng.choice(_NOUNS)} next to the {rng.choice(_NOUNS)}?"
        yield {"image_id": number, "question": text, "question_id": question}


def _answers(images: list[int], rng: random.Random) -> Iterator[Row]:
    for number, question in _ids(images):
        common = rng.choice(_NOUNS)
        given = [rng.choice(_NOUNS) if rng.random() < 0.3 else common for _ in range(10)]
        yield {
            "question_type": "what is the", "multiple_choice_answer": common,
            "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": place}
                        for place, text in enumerate(given, start=1)],
            "image_id": number, "answer_type": rng.choice(_KINDS), "question_id": question,
        }  # fmt: skip


def _write(path: Path, **tables: Iterable[Row]) -> None:
    """Write a file of tables, row by row."""

    def pieces() -> Iterator[bytes]:
        yield b'{"info": {"description": "drawn"}, "licenses": []'
        for name, rows in tables.items():
            yield f', "{name}": ['.encode()
            for place, row in enumerate(rows):
                yield (b", " if place else b"") + msgspec.json.encode(row)
            yield b"]"
        yield b"}"

    _write_bytes(path, pieces())


def _write_bytes(path: Path, pieces: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.writelines(pieces)


def run_bench(*, share: float = 1.0, images: int = 512) -> dict[str, Any]:
    """Measure reading and encoding at a share of the full size, and return JSON.

    Each reading is a process of its own: what a run of a few steps does before its first one, model
    apart; bytes are above those of the program itself.
    `of_a_dataloader` is the images per second of the feature store over those of a plain
    torchvision DataLoader with as many workers as there are cores, before the same encoder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root, cache = Path(temporary, "data"), Path(temporary, "cache")
        write_folder(root, Sizes().scaled(share))
        env = {**os.environ, "ENCODER_BENCH_CACHE": str(cache)}
        command = [sys.executable, "-c", f"from {__name__} import report; report({str(root)!r})"]
        found = {}
        for name in ("first_index", "later_start"):
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout)
        index = sum(path.stat().st_size for path in cache.glob("index/*/*"))
        return {
            "settings": {"share": share, "images": images, "cores": os.cpu_count()},
            "samples": found["later_start"]["samples"],
            "index_bytes": index,
            "full_size": found,
            "encode": _encode(Path(temporary), images),
        }


def report(root: str) -> None:
    """Print what a run of a few steps takes before its first one, as JSON."""
    from encoder_bench.base.progress import QuietReporter
    from encoder_bench.pipeline.data import read_data
    from encoder_bench.pipeline.plan import make_plan
    from encoder_bench.training.batches import stage_order

    plan = make_plan(data=root, limit=100, steps=40)
    before, wall, cpu = _resident(), time.perf_counter(), time.process_time()
    data = read_data(plan, QuietReporter())
    order, _ = stage_order(data.training, plan.adapter, 0, 0)
    order.step(0)
    seconds, processor, samples = time.perf_counter(), time.process_time(), len(data.training)
    peak, after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, _resident()
    figures = {
        "seconds": seconds - wall,
        "processor_seconds": processor - cpu,
        "own_bytes": after["RssAnon"] - before["RssAnon"],
        "mapped_bytes": after["RssFile"] - before["RssFile"],
        "peak_bytes": peak - before["VmRSS"],
        "samples": samples,
        "bytes_per_sample": (after["RssAnon"] - before["RssAnon"]) / samples,
    }
    print(json.dumps(figures))


def _resident() -> dict[str, int]:
    """Return this process's memory: all, its own, and pages of files, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows if row[-1:] == ["kB"]}


def _encode(place: Path, images: int) -> dict[str, float]:
    """Return images per second of the feature store and of a plain DataLoader."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from encoder_bench.base.progress import QuietReporter
    from encoder_bench.encoders.registry import load_encoder
    from encoder_bench.training.feature_cache import open_features

    encoder = load_encoder("tiny-deit").eval().requires_grad_(False)
    (place / "pictures" / "one").mkdir(parents=True)
    drawn = [path.read_bytes() for path in sorted((place / "data" / "pictures").iterdir())]
    paths = [place / "pictures" / "one" / f"{number:06}.jpg" for number in range(images)]
    for number, path in enumerate(paths):  # of different content, since the store keeps each once
        path.write_bytes(drawn[number % len(drawn)] + str(number).encode())
    cores = os.cpu_count() or 1
    dataset = ImageFolder(str(place / "pictures"), transform=encoder.transform)
    start = time.perf_counter()
    with torch.inference_mode():
        for pixels, _ in DataLoader(dataset, batch_size=32, num_workers=cores):
            encoder(pixels)
    plain = time.perf_counter() - start
    cpu, start = torch.device("cpu"), time.perf_counter()
    with mock.patch.dict(os.environ, ENCODER_BENCH_CACHE=str(place / "features")):
        open_features(encoder, paths, device=cpu, reporter=QuietReporter()).fill()
    own = time.perf_counter() - start
    return {
        "images_per_second": images / own,
        "dataloader_images_per_second": images / plain,
        "of_a_dataloader": plain / own,
    }


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    share: Annotated[float, typer.Option(help="Of the full size.")] = 1.0,
) -> None:
    """Write a data folder of COCO's and VQAv2's size, or a share of it."""
    write_folder(folder, Sizes().scaled(share))


if __name__ == "__main__":
    typer.run(main)
