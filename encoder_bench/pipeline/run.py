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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.hardware import choose_device, hardware_facts, package_versions, peak_memory
from encoder_bench.base.hashing import hash_parameters
from encoder_bench.base.processes import Processes
from encoder_bench.base.progress import QuietReporter, Reporter
from encoder_bench.base.record import (
    SCHEMA_VERSION,
    LanguageModelFacts,
    RunRecord,
    TaskScores,
    read_record,
    record_path,
    run_id,
    write_record,
)
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.pipeline.run_data import RunData, read_data

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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


def run(
    plan: RunPlan,
    reporter: Reporter,
    *,
    force: bool = False,
    trackers: Sequence[str] = (),
    cache_limit_bytes: int | None = None,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
    command: str | None = None,
) -> RunOutcome:
    """Train an adapter on an encoder, score it on every task, and write the record.

    A finished run of the same identity is returned as it is. A run that was killed goes on from
    its last checkpoint and its last written prediction.

    Args:
        plan: what to run.
        reporter: where progress goes.
        force: discard what an earlier run of the same identity left, and do it again.
        trackers: experiment trackers that accelerate knows (`tensorboard`, `wandb`...).
        cache_limit_bytes: most that this run may add to the feature cache; None for 80% of the
            free disk.
        processes: this is the main one of these; the others call `run_worker` meanwhile.
        command: what the record says was called; this process's own arguments by default.

    Raises:
        EncoderBenchError: bad input, a failed proof, a full disk...: one line, nothing lost.
    """
    from encoder_bench.pipeline.build import (
        build_mllm,
        encoder_facts,
        model_notes,
        random_weight_warnings,
    )
    from encoder_bench.pipeline.verify import is_trained, train_and_verify

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
    for line in model_notes(mllm):
        reporter.note(line)

    # 3. The same run may be finished already.
    path = record_path(plan.results, identity)
    if path.is_file() and not force:
        processes.broadcast(None)
        return RunOutcome(read_record(path), path, found=True)

    folder = plan.results / "checkpoints" / identity
    with _only_this_process(plan.results, identity):
        if force:
            _discard(plan.results, identity)

        # 4. A frozen encoder sees each image once; its patch tokens serve training and tasks.
        with watch.phase("features"):
            features = _features(plan, mllm, data, device, reporter, cache_limit_bytes)

        # 5. Train, save, read back, and prove what trained; scores come from what was read back.
        processes.broadcast(None if is_trained(folder) else folder)
        with watch.phase("training"):
            trained = train_and_verify(
                plan,
                mllm,
                data.training,
                folder=folder,
                features=features,
                device=device,
                reporter=reporter,
                trackers=trackers,
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
            training_data=data.training_description(),
            seed=plan.seed,
            limit=plan.limit,
            tasks=scores,
            proof=trained.proof,
            training=trained.summary,
            versions=package_versions(),
            hardware=hardware_facts(device),
            seconds=watch.seconds,
            peak_memory_bytes=peak_memory(device),
            command=command or shlex.join(["encoder-bench", *sys.argv[1:]]),
            warnings=warnings,
        )
        return RunOutcome(record, write_record(plan.results, record), found=False)


def run_worker(plan: RunPlan, processes: Processes, *, trackers: Sequence[str] = ()) -> None:
    """Do the share of a run's training of a process that is not the main one.

    Data and model are the same as the main process', by the seed; features are those that it has
    written by then. Everything else of the run, scores included, is the main process' work.

    Raises:
        EncoderBenchError: as `run`; or another process has stopped.
    """
    from encoder_bench.pipeline.build import build_mllm
    from encoder_bench.training.feature_cache import find_features
    from encoder_bench.training.trainer import train

    device = choose_device(plan.device)
    data = read_data(plan, QuietReporter())
    mllm = build_mllm(plan)
    folder: Path | None = processes.broadcast(None)
    if folder is None:
        return
    features = None
    if _caches_features(plan):
        storage = plan.adapter.training.feature_storage
        features = find_features(mllm.encoder, data.images(), storage=storage)
    train(
        mllm,
        data.training,
        plan.adapter,
        plan.training_recipes,
        folder=folder,
        seed=plan.seed,
        reporter=QuietReporter(),
        device=device,
        features=features,
        trackers=trackers,
    )


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


def _caches_features(plan: RunPlan) -> bool:
    """Return whether patch tokens stay what they are through the whole run."""
    return plan.adapter.training.feature_cache and not plan.joint


def _features(
    plan: RunPlan,
    mllm: MLLM,
    data: RunData,
    device: torch.device,
    reporter: Reporter,
    limit_bytes: int | None,
) -> Mapping[Path, Tensor] | None:
    """Return the frozen encoder's patch tokens of every image, or None where they would move.

    Raises:
        EncoderBenchError: features that are stored inexactly do not all fit.
    """
    if not _caches_features(plan):
        return None
    from encoder_bench.training.feature_cache import open_features

    storage = plan.adapter.training.feature_storage
    features = open_features(
        mllm.encoder,
        data.images(),
        device=device,
        reporter=reporter,
        limit_bytes=limit_bytes,
        storage=storage,
    )
    if storage != "exact" and (features is None or features.missing()):
        raise EncoderBenchError(
            f"training.feature_storage {storage}: the features of some images could not be kept, "
            "and computed again they would differ; make room, or set it to exact"
        )
    return features


def _score_tasks(
    plan: RunPlan,
    mllm: MLLM,
    data: RunData,
    features: Mapping[Path, Tensor] | None,
    identity: str,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, TaskScores]:
    from encoder_bench.pipeline.predictor import ImagePredictor
    from encoder_bench.tasks.evaluate import evaluate

    return evaluate(
        ImagePredictor(mllm, features),
        list(data.test.values()),
        plan.results / "predictions" / identity,
        batch_images=plan.adapter.evaluation_batch_images,
        seed=plan.seed,
        reporter=reporter,
        timed=watch.phase,
    )


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
        lock.acquire(timeout=1)  # `status` holds it for a moment
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
