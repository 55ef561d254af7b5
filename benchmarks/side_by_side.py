"""A whole small job, ours beside the way of LLaVA and nanoVLM, each in a process of its own.

The plain way runs the encoder in every step, reads each question as a padded sequence of its own,
and answers with the library's `generate`, one by one or in padded batches, encoding the question's
image each time. Model, optimizer, order and questions are the same, so that losses can be compared.

Reference: LLaVA's `llava/train/train.py` and `llava/eval/model_vqa_loader.py`, nanoVLM's
`train.py`.
Deviation: a step's questions are those of our step, an image's together, instead of all shuffled.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_task
from encoder_bench.data.images import load_image
from encoder_bench.data.sample import Sample
from encoder_bench.mllm.generate import cut_at_stop
from encoder_bench.mllm.model import MLLM
from encoder_bench.pipeline.build import build_mllm
from encoder_bench.pipeline.data import RunData, read_data
from encoder_bench.pipeline.plan import RunPlan, make_plan
from encoder_bench.pipeline.predictor import ImagePredictor
from encoder_bench.tasks.controls import ASKS_MODEL
from encoder_bench.tasks.predictions import predict
from encoder_bench.tasks.task import TaskSamples
from encoder_bench.training.batches import stage_order, training_images
from encoder_bench.training.feature_cache import open_features
from encoder_bench.training.optimizer import (
    make_optimizer,
    only_parts,
    schedule,
    set_learning_rates,
)
from encoder_bench.training.trainer import Trainer

_TASKS = ("vqa", "oc", "mci")
_BATCH = 16
_LEARNING_RATE = 2e-5
"""Of projector and LLM where the LLM is pretrained: LLaVA's second stage (`finetune.sh`).

At the default recipe's rates its losses leap, and rounding grows to 0.25 within four steps.
"""


@dataclass(frozen=True, slots=True)
class Job:
    """What is done.

    Attributes:
        encoder: a name that `--encoder` takes.
        joint: whether the encoder trains.
        questions: per image, in training and in the test.
        images: training images, of which a step shows 8.
        tests: test images.
        steps: of training.
        llm: the language model.
        device: a torch device.
    """

    encoder: str
    joint: bool
    questions: int
    images: int = 8
    tests: int = 8
    steps: int = 4
    llm: str = "tiny-llama"
    device: str = "cpu"

    def plan(self) -> RunPlan:
        """Return one stage, in which projector and LLM train, and the encoder where it does."""
        plan = make_plan(
            encoder=self.encoder,
            joint=self.joint,
            projector="average-pool",
            visual_tokens=64,
            llm=self.llm,
            steps=self.steps,
            tasks=_TASKS,
            data=f"scenes:0:{self.images}:2:{self.tests}",
            device=self.device,
            settings={
                "training.precision": "float32",
                "training.checkpoint_every": self.steps,
                "projector.whiten": False,
            },
        )
        update = {"images_per_step": 8, "samples_per_image": self.questions, "tasks": _TASKS}
        stage = plan.adapter.stages[-1].model_copy(update=update)
        if self.llm != "tiny-llama":
            slower = {
                part: settings.model_copy(update={"learning_rate": _LEARNING_RATE})
                for part in ("projector", "llm")
                if (settings := getattr(stage, part)) is not None
            }
            stage = stage.model_copy(update=slower)
        adapter = plan.adapter.model_copy(update={"stages": (stage,)})
        return replace(plan, adapter=adapter)


class Clock:
    """Seconds of wall-clock and processor time, by what they were spent on."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Keep what is spent inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = [time.perf_counter() - wall, time.process_time() - cpu]


def ours(job: Job, folder: Path) -> dict[str, Any]:
    """Do the job as `encoder-bench run` does; baselines and candidates are asked apart, after."""
    plan, data, mllm, tests = _start(job)
    clock, device, reporter = Clock(), torch.device(job.device), QuietReporter()
    features = None
    shown = training_images(data.training, plan.adapter, plan.seed)
    if not job.joint:
        order = [*shown, *(sample.image_path for sample in tests.samples)]
        features = open_features(mllm.encoder, order, device=device, reporter=reporter)
    with clock.measure("training"):
        losses = (
            Trainer(
                mllm,
                data.training,
                plan.adapter,
                plan.training_recipes,
                folder=folder,
                seed=plan.seed,
                reporter=reporter,
                device=device,
                features={} if features is None else features,
            )
            .train()
            .losses
        )
    # the second evaluation encodes the test images again, as if it were the only one
    trained = None if features is None else {path: features[path] for path in shown}
    found = {}
    baselines = tuple(name for name in tests.recipe.controls if name in ASKS_MODEL)
    for name, controls, known in (
        ("answers", (), features),
        ("answers_and_baselines", baselines, trained),
    ):
        with clock.measure(name):
            replies = predict(
                ImagePredictor(mllm, known, shown),
                tests,
                predictions=folder / f"{name}.jsonl",
                controls=controls,
                batch_images=plan.adapter.evaluation_batch_images,
                seed=0,
                reporter=reporter,
            )[None]
            found[name] = [reply.text for reply in replies]
    return {"losses": losses, "answers": found["answers"], "seconds": clock.seconds}


def plain(job: Job, folder: Path) -> dict[str, Any]:
    """Do the job the plain way; both kinds of evaluation, one after the other."""
    plan, data, mllm, tests = _start(job)
    clock = Clock()
    with clock.measure("training"):
        losses = _train_plainly(plan, data, mllm.to(job.device))
    answers = {}
    for name, size in (("one_by_one", 1), ("batched", _BATCH)):
        with clock.measure(name):
            answers[name] = [
                text
                for start in range(0, len(tests.samples), size)
                for text in _generate_plainly(mllm, tests, tests.samples[start : start + size])
            ]
    return {"losses": losses, "answers": answers["one_by_one"], "seconds": clock.seconds}


WAYS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {"ours": ours, "plain": plain}


def run_bench(
    *, encoder: str | None = None, llm: str = "tiny-llama", repeats: int = 3, device: str = "cpu"
) -> dict[str, Any]:
    """Measure frozen and joint jobs at one and five questions per image, and return JSON.

    The default encoder is a ViT-Ti/16 at 224 px of random weights. Ratios are plain over ours, as
    median, least and largest of the rounds.
    """
    from benchmarks.encoders import write_vit

    with tempfile.TemporaryDirectory() as temporary:
        name = encoder or write_vit(Path(temporary) / "vit-ti16", "facebook/deit-tiny-patch16-224")
        jobs = {
            f"{'joint' if joint else 'frozen'}, {questions} per image": Job(
                name, joint, questions, llm=llm, device=device
            )
            for joint in (False, True)
            for questions in (5, 1)
        }
        cache = Path(temporary) / "cache"
        _in_a_process("plain", replace(next(iter(jobs.values())), steps=1), cache)  # draws scenes
        return {
            "settings": {
                "encoder": encoder or "ViT-Ti/16, random weights, 224 px",
                "llm": llm,
                "device": device,
                "repeats": repeats,
                "threads": torch.get_num_threads(),
                "load": os.getloadavg()[0],
            },
            "side_by_side": {what: _compare(job, repeats, cache) for what, job in jobs.items()},
        }


def _compare(job: Job, repeats: int, cache: Path) -> dict[str, Any]:
    rounds = []
    for number in range(repeats):
        order = list(WAYS)[:: 1 if number % 2 else -1]
        done = {way: _in_a_process(way, job, cache) for way in order}
        rounds.append((done["ours"], done["plain"]))
    pairs = [zip(a["losses"], b["losses"], strict=True) for a, b in rounds]
    same = [x == y for a, b in rounds for x, y in zip(a["answers"], b["answers"], strict=True)]
    return {
        "largest_loss_difference": max(abs(x - y) for pair in pairs for x, y in pair),
        "equal_answers": sum(same) / len(same),
    } | {
        clock: {
            name: spread([ratio(*both, index) for both in rounds]) for name, ratio in RATIOS.items()
        }
        for index, clock in enumerate(("clock", "processor_time"))
    }


Done = dict[str, Any]


def _ratio(
    ours: Sequence[str], plain: Sequence[str], *, whole: bool = False
) -> Callable[[Done, Done, int], float]:
    """Return plain / ours of these parts, or of whole processes without these parts."""

    def of(done: Done, parts: Sequence[str], index: int) -> float:
        spent = sum(done["seconds"][part][index] for part in parts)
        return float(done["whole"][index] - spent if whole else spent)

    return lambda a, b, index: of(b, plain, index) / of(a, ours, index)


RATIOS = {
    "training": _ratio(["training"], ["training"]),
    "evaluation over one by one": _ratio(["answers"], ["one_by_one"]),
    "evaluation over batched": _ratio(["answers"], ["batched"]),
    "training and evaluation over one by one": _ratio(
        ["training", "answers"], ["training", "one_by_one"]
    ),
    "training and evaluation over batched": _ratio(
        ["training", "answers"], ["training", "batched"]
    ),
    "whole process over one by one": _ratio(["answers_and_baselines"], ["batched"], whole=True),
    "whole process over batched": _ratio(["answers_and_baselines"], ["one_by_one"], whole=True),
    "with all baselines, training and evaluation over one by one without": _ratio(
        ["training", "answers_and_baselines"], ["training", "one_by_one"]
    ),
    "with all baselines, whole process over one by one without": _ratio(
        ["answers"], ["batched"], whole=True
    ),
}


def spread(values: Sequence[float]) -> list[float]:
    """Return median, least and largest."""
    return [statistics.median(values), min(values), max(values)]


def _in_a_process(way: str, job: Job, cache: Path) -> Done:
    """Do the job in a new process without cached features, and time it whole."""
    shutil.rmtree(cache / "features", ignore_errors=True)
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.side_by_side", way, json.dumps(asdict(job))]
    environment = os.environ | {"ENCODER_BENCH_CACHE": str(cache)}
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done: Done = json.loads(printed.splitlines()[-1])
    return done | {"whole": [wall, cpu]}


def _start(job: Job) -> tuple[RunPlan, RunData, MLLM, TaskSamples]:
    """Return plan, data, model and the test's questions, as many per image as the job says."""
    plan = job.plan()
    data = read_data(plan, QuietReporter())
    by_image: dict[int | str, list[Sample]] = {}
    for task in data.test.values():
        for sample in task.samples:
            by_image.setdefault(sample.image_id, []).append(sample)
    asked = [sample for own in by_image.values() for sample in own[: job.questions]]
    return plan, data, build_mllm(plan), TaskSamples("vqa", load_task("vqa"), asked)


class _Questions(Dataset[tuple[Tensor, str, str]]):
    """Pixels, prompt and answer of each question; the image is decoded each time."""

    def __init__(self, plan: RunPlan, mllm: MLLM, samples: Sequence[Sample]) -> None:
        self._recipes, self._mllm, self._samples = plan.training_recipes, mllm, samples

    def __getitem__(self, index: int) -> tuple[Tensor, str, str]:
        sample = self._samples[index]
        recipe = self._recipes[sample.task]
        pixels = self._mllm.encoder.transform(load_image(sample.image_path))
        return pixels, recipe.fill_prompt(sample.question), recipe.fill_answer(sample.target)


def _train_plainly(plan: RunPlan, data: RunData, mllm: MLLM) -> list[float]:
    """Return the loss of each step."""
    (stage,), device = plan.adapter.stages, plan.device
    order, steps = stage_order(data.training, plan.adapter, 0, plan.seed)
    samples: list[Sample] = []
    batches = []
    for step in range(steps):
        first = len(samples)
        samples += [s for row in order.step(step) if isinstance(row, tuple) for s in row]
        batches.append(list(range(first, len(samples))))
    loader = DataLoader(
        _Questions(plan, mllm, samples),
        batch_sampler=batches,
        num_workers=min(2, os.cpu_count() or 1),
        collate_fn=list,
    )
    losses: list[float] = []
    with only_parts(mllm, stage) as parts:
        optimizer = make_optimizer(mllm, stage)
        trained = [parameter for own in parts.values() for parameter in own]
        mllm.train()
        for step, rows in enumerate(loader):
            set_learning_rates(optimizer, schedule(step, steps, stage))
            loss = _plain_loss(mllm, rows, device)
            loss.backward()  # type: ignore[no-untyped-call]
            if stage.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, stage.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    mllm.eval()
    return losses


def _plain_loss(mllm: MLLM, rows: Sequence[tuple[Tensor, str, str]], device: str) -> Tensor:
    """Return the library's own loss of right-padded rows, one question in each."""
    language = mllm.language
    pixels = torch.stack([row[0] for row in rows]).to(device)
    visual = mllm.visual_tokens(mllm.features(pixels))
    embeddings, labels = [], []
    for tokens, (_, prompt, answer) in zip(visual, rows, strict=True):
        question, reply = language.turn_ids(prompt, answer, image=True)
        ids = torch.tensor([*question, *reply], device=device)
        row = torch.cat([_prefix(mllm, tokens), language.embed(ids)])
        embeddings.append(row)
        hidden = torch.full((len(row) - len(reply),), -100, device=device)
        labels.append(torch.cat([hidden, torch.tensor(reply, device=device)]))
    mask = [torch.ones(len(row), dtype=torch.long, device=device) for row in embeddings]
    output = language.model(
        inputs_embeds=pad_sequence(embeddings, batch_first=True),
        attention_mask=pad_sequence(mask, batch_first=True),
        labels=pad_sequence(labels, batch_first=True, padding_value=-100),
    )
    loss: Tensor = output.loss
    return loss


def _prefix(mllm: MLLM, visual: Tensor) -> Tensor:
    language = mllm.language
    begin = torch.tensor(language.prefix_ids(image=True), dtype=torch.long, device=visual.device)
    return torch.cat([language.embed(begin), visual])


@torch.inference_mode()
def _generate_plainly(mllm: MLLM, task: TaskSamples, samples: Sequence[Sample]) -> list[str]:
    """Return the answers to a left-padded batch, each question with its image encoded."""
    language, device, decoding = mllm.language, mllm.language.device, task.recipe.decoding
    pixels = mllm.encoder.pixels(load_image(sample.image_path) for sample in samples)
    rows = []
    visual = mllm.visual_tokens(mllm.features(pixels.to(device)))
    for tokens, sample in zip(visual, samples, strict=True):
        prompt = task.recipe.fill_prompt(sample.question)
        ids = torch.tensor(language.question_ids(prompt, image=True), device=device)
        rows.append(torch.cat([_prefix(mllm, tokens), language.embed(ids)]))
    mask = [torch.ones(len(row), dtype=torch.long, device=device) for row in rows]
    found = language.model.generate(
        inputs_embeds=pad_sequence(rows, batch_first=True, padding_side="left"),
        attention_mask=pad_sequence(mask, batch_first=True, padding_side="left"),
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
    )
    ends = language.end_ids
    return [
        cut_at_stop(language.decode([*ids[: _end(ids, ends)]]), decoding.stop)
        for ids in found.tolist()
    ]


def _end(ids: Sequence[int], ends: frozenset[int]) -> int:
    return next((place for place, token in enumerate(ids) if token in ends), len(ids))


def main() -> None:
    """Do one job one way, as the arguments say, and print what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(WAYS[sys.argv[1]](Job(**json.loads(sys.argv[2])), Path(folder))))


if __name__ == "__main__":
    main()
