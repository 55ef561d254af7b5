"""One run, from an encoder's name to a record: read the numbered steps of `run`.

What belongs here: the order of things, and gathering what each room returns into the record.
"""

from __future__ import annotations

import contextlib
import datetime
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.errors import DataError, EncoderBenchError
from encoder_bench.hardware import choose_device, hardware_facts, package_versions, peak_memory
from encoder_bench.hashing import hash_parameters
from encoder_bench.plan import RunPlan
from encoder_bench.progress import Reporter
from encoder_bench.results.record import (
    SCHEMA_VERSION,
    LanguageModelFacts,
    RunRecord,
    TaskScores,
    read_record,
    record_path,
    run_id,
    write_record,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from encoder_bench.data.folder import DataFolder
    from encoder_bench.data.sample import Sample
    from encoder_bench.mllm.model import MLLM

_SCORING_PACKAGES = (
    "encoder-bench",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "open_clip_torch",
)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run: its record, the record's file, and whether it was there already."""

    record: RunRecord
    path: Path
    found: bool


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run reads: the folders, the training samples, and each task's test samples.

    `corpora` holds the whole split for tasks with a metric that depends on it, where only a subset
    of it is tested.
    """

    folder: DataFolder
    training_folder: DataFolder
    training: list[Sample]
    test: Mapping[str, list[Sample]]
    corpora: Mapping[str, list[Sample]]

    def images(self) -> list[Path]:
        """Return every image that the run shows to the encoder, each once."""
        samples = [*self.training, *(s for group in self.test.values() for s in group)]
        return list(dict.fromkeys(sample.image_path for sample in samples))


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent, by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)


def run(plan: RunPlan, reporter: Reporter, *, force: bool = False) -> RunOutcome:
    """Train an adapter on an encoder, score it on every task, and write the record.

    A finished run of the same identity is returned as it is. A run that was killed goes on from
    its last checkpoint and its last written prediction.

    Args:
        plan: what to run.
        reporter: where progress goes.
        force: discard what an earlier run of the same identity left, and do it again.

    Raises:
        EncoderBenchError: bad input, a failed proof, a full disk...: one line, nothing lost.
    """
    from encoder_bench.assembly import build_mllm, encoder_facts, random_weight_warnings
    from encoder_bench.trained import train_and_prove

    watch = Stopwatch()
    device = choose_device(plan.device)

    # 1. Data: each task's test samples and the training samples, which never share an image.
    with watch.phase("data"):
        data = read_data(plan, reporter)

    # 2. Model: encoder, language model, projector. All that is initialised follows the seed.
    with watch.phase("load"):
        mllm = build_mllm(plan)
        facts = encoder_facts(mllm.encoder, hash_parameters(mllm.encoder.backbone))
        language = LanguageModelFacts.model_validate(mllm.language.facts())
        identity = run_id(_determinants(plan, facts.fingerprint, language, data, device))
    warnings = random_weight_warnings(mllm)
    for line in warnings:
        reporter.warn(line)

    # 3. The same run may be finished already.
    path = record_path(plan.results, identity)
    if path.is_file() and not force:
        return RunOutcome(read_record(path), path, found=True)

    with _only_this_process(plan.results, identity):
        if force:
            _discard(plan.results, identity)

        # 4. A frozen encoder sees each image once; its patch tokens serve training and tasks.
        with watch.phase("features"):
            features = _features(plan, mllm, data, device, reporter)

        # 5. Train, save, read back, and prove what trained; scores come from what was read back.
        with watch.phase("training"):
            trained = train_and_prove(
                plan,
                mllm,
                data.training,
                folder=plan.results / "checkpoints" / identity,
                features=features,
                device=device,
                reporter=reporter,
            )

        # 6. Score every task and its blind controls.
        scores = _score_tasks(plan, trained.mllm, data, features, identity, reporter, watch)

        # 7. The record is written last of all, so that there is one only of a whole run.
        record = RunRecord(
            run_id=identity,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            encoder=facts,
            joint=plan.joint,
            language_model=language,
            adapter={"name": plan.adapter_name, **plan.adapter.model_dump(mode="json")},
            visual_tokens=trained.mllm.projector.num_tokens(facts.tokens),
            data=data.folder.description(),
            training_data=_training_description(data),
            seed=plan.seed,
            limit=plan.limit,
            tasks=scores,
            proof=trained.proof,
            training=trained.summary,
            versions=package_versions(),
            hardware=hardware_facts(device),
            seconds=watch.seconds,
            peak_memory_bytes=peak_memory(device),
            command=shlex.join(["encoder-bench", *sys.argv[1:]]),
            warnings=warnings,
        )
        return RunOutcome(record, write_record(plan.results, record), found=False)


def read_data(plan: RunPlan, reporter: Reporter) -> RunData:
    """Read a plan's samples and check that training and test share no image.

    Raises:
        DataError: files are missing or malformed, a split is empty, or images are shared.
    """
    from encoder_bench.data.folder import check_disjoint, open_data
    from encoder_bench.tasks.registry import needs_corpus

    folder = open_data(plan.data, reporter=reporter)
    training_folder = (
        folder if plan.training_data == plan.data else open_data(plan.training_data, reporter)
    )
    with reporter.phase("data", len(plan.tasks) + len(plan.training_recipes), "sets") as phase:
        test: dict[str, list[Sample]] = {}
        corpora: dict[str, list[Sample]] = {}
        for name, recipe in plan.tasks.items():
            if plan.limit is not None and needs_corpus(recipe):
                corpora[name] = folder.samples(
                    name, reader=recipe.reader, source=recipe.source, split="test"
                )
            test[name] = folder.samples(
                name,
                reader=recipe.reader,
                source=recipe.source,
                split="test",
                limit=plan.limit,
                seed=plan.seed,
            )
            phase.advance(test=f"{name} {len(test[name])}")
        training: list[Sample] = []
        for name, recipe in plan.training_recipes.items():
            samples = training_folder.samples(
                name, reader=recipe.reader, source=recipe.source, split="train", seed=plan.seed
            )
            training += samples
            phase.advance(training=f"{name} {len(samples)}")
    if not training:
        raise DataError(f"--train-data {plan.training_data}: no training samples")
    check_disjoint(training, [sample for group in test.values() for sample in group])
    return RunData(folder, training_folder, training, test, corpora)


def _determinants(
    plan: RunPlan,
    encoder_fingerprint: str,
    language: LanguageModelFacts,
    data: RunData,
    device: torch.device,
) -> dict[str, Any]:
    """Return everything that determines the scores, as JSON."""
    versions = package_versions()
    return {
        "schema": SCHEMA_VERSION,
        **plan.scoring_settings(),
        "encoder_fingerprint": encoder_fingerprint,
        "llm_weights": language.weights_sha256,
        "data": data.folder.fingerprint(),
        "training_data": data.training_folder.fingerprint(),
        "versions": {name: versions[name] for name in _SCORING_PACKAGES},
        "device": device.type,
    }


def _features(
    plan: RunPlan, mllm: MLLM, data: RunData, device: torch.device, reporter: Reporter
) -> Mapping[Path, Tensor] | None:
    """Return the frozen encoder's patch tokens of every image, or None where they would move."""
    if plan.joint or not plan.adapter.training.feature_cache:
        return None
    from encoder_bench.training.feature_cache import open_features

    return open_features(mllm.encoder, data.images(), device=device, reporter=reporter)


def _score_tasks(
    plan: RunPlan,
    mllm: MLLM,
    data: RunData,
    features: Mapping[Path, Tensor] | None,
    identity: str,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, TaskScores]:
    from encoder_bench.answering import ImageAnswerer
    from encoder_bench.tasks.runner import evaluate

    scores = {}
    for name, recipe in plan.tasks.items():
        with watch.phase(name):
            scores[name] = evaluate(
                ImageAnswerer(mllm, features),
                name,
                recipe,
                data.test[name],
                predictions=plan.results / "predictions" / identity / f"{name}.jsonl",
                controls=recipe.controls,
                batch_images=plan.adapter.evaluation_batch_images,
                seed=plan.seed,
                reporter=reporter,
                corpus=data.corpora.get(name),
            )
    return scores


def _training_description(data: RunData) -> dict[str, Any]:
    images = {sample.image_id for sample in data.training}
    return data.training_folder.description() | {
        "training_samples": len(data.training),
        "training_images": len(images),
    }


@contextlib.contextmanager
def _only_this_process(results: Path, identity: str) -> Iterator[None]:
    """Hold a lock on the run; the system drops it when the process ends, however it ends.

    Raises:
        EncoderBenchError: another process is doing the same run now, or the folder is read-only.
    """
    from filelock import FileLock, Timeout

    folder = results / "checkpoints" / identity
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EncoderBenchError(f"--results {results}: {error.strerror or error}") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EncoderBenchError(
            f"run {identity} is being done by another process now; wait for it, or use another "
            "--results folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _discard(results: Path, identity: str) -> None:
    """Remove what an earlier run of the same identity left; the lock stays."""
    record_path(results, identity).unlink(missing_ok=True)
    shutil.rmtree(results / "predictions" / identity, ignore_errors=True)
    for entry in (results / "checkpoints" / identity).iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()
