"""One run, from an encoder's name to a record: read the numbered steps, 1 to 7."""

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
    EncoderFacts,
    LanguageModelFacts,
    RunRecord,
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
class _Stopwatch:
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


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Data and untrained model of a run, and the identity that they give it."""

    data: RunData
    mllm: MLLM
    encoder: EncoderFacts
    language: LanguageModelFacts
    identity: str
    warnings: tuple[str, ...]
    device: torch.device


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

    A finished run of the same identity is returned as it is. An interrupted one resumes from its
    last checkpoint and its last written prediction.

    Args:
        plan: what to run.
        reporter: where progress goes.
        force: discard what an earlier run of the same identity left, and run it again.
        trackers: experiment trackers that accelerate knows (`tensorboard`, `wandb`...).
        cache_limit_bytes: most that this run may add to the feature cache; None for 80% of the
            free disk.
        processes: this is the main one of these; the others call `run_worker` meanwhile.
        command: what the record says was called; this process's own arguments by default.

    Raises:
        EncoderBenchError: bad input, a failed check, a full disk...: one line, nothing lost.
    """
    from encoder_bench.pipeline.verify import is_trained

    watch = _Stopwatch()
    loaded = _load(plan, reporter, watch)

    # 3. The same run may be finished already.
    path = record_path(plan.results, loaded.identity)
    if path.is_file() and not force:
        processes.broadcast(None)
        return RunOutcome(read_record(path), path, found=True)
    folder = plan.results / "checkpoints" / loaded.identity
    with _only_this_process(folder):
        if force:
            _discard(plan.results, loaded.identity)

        # 4. A frozen encoder sees each image once; its patch tokens serve training and tasks.
        with watch.phase("features"):
            features = _features(plan, loaded, reporter, cache_limit_bytes)
        processes.broadcast(None if is_trained(folder) else folder)
        record = _train_and_score(plan, loaded, features, reporter, watch, trackers)
        if command:
            record = record.model_copy(update={"command": command})
        return RunOutcome(record, write_record(plan.results, record), found=False)


def _load(plan: RunPlan, reporter: Reporter, watch: _Stopwatch) -> _Loaded:
    from encoder_bench.pipeline.build import (
        build_mllm,
        encoder_facts,
        model_notes,
        random_weight_warnings,
    )

    device = choose_device(plan.device)

    # 1. Data: each task's test samples and the training samples, which never share an image.
    with watch.phase("data"):
        data = read_data(plan, reporter)

    # 2. Model: encoder, language model, projector. All that is initialised follows the seed.
    with watch.phase("load"):
        mllm = build_mllm(plan)
        encoder = encoder_facts(mllm.encoder, hash_parameters(mllm.encoder.backbone))
        language = LanguageModelFacts.model_validate(mllm.language.facts())
        identity = run_id(_determinants(plan, encoder.fingerprint, language, data, device))
    warnings = random_weight_warnings(mllm)
    for line in warnings:
        reporter.warn(line)
    for line in model_notes(mllm):
        reporter.note(line)
    return _Loaded(data, mllm, encoder, language, identity, warnings, device)


def _train_and_score(
    plan: RunPlan,
    loaded: _Loaded,
    features: Mapping[Path, Tensor] | None,
    reporter: Reporter,
    watch: _Stopwatch,
    trackers: Sequence[str],
) -> RunRecord:
    from encoder_bench.pipeline.predictor import ImagePredictor
    from encoder_bench.pipeline.verify import train_and_verify
    from encoder_bench.tasks.evaluate import evaluate

    # 5. Train, save, load, and check what trained; scores come from the weights as loaded.
    with watch.phase("training"):
        trained = train_and_verify(
            plan,
            loaded.mllm,
            loaded.data.training,
            folder=plan.results / "checkpoints" / loaded.identity,
            features=features,
            device=loaded.device,
            reporter=reporter,
            trackers=trackers,
        )

    # 6. Score every task and its blind baselines.
    scores = evaluate(
        ImagePredictor(trained.mllm, features, [s.image_path for s in loaded.data.training]),
        list(loaded.data.test.values()),
        plan.results / "predictions" / loaded.identity,
        batch_images=plan.adapter.evaluation_batch_images,
        seed=plan.seed,
        reporter=reporter,
        timed=watch.phase,
    )

    # 7. The record comes last, so that there is one only of a whole run.
    return RunRecord(
        run_id=loaded.identity,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        encoder=loaded.encoder,
        joint=plan.joint,
        language_model=loaded.language,
        adapter={"name": plan.adapter_name, **plan.adapter.model_dump(mode="json")},
        visual_tokens=trained.mllm.projector.visual_tokens,
        data=loaded.data.folder.description(),
        training_data=loaded.data.training_description(),
        seed=plan.seed,
        limit=plan.limit,
        tasks=scores,
        proof=trained.proof,
        training=trained.summary,
        versions=package_versions(),
        hardware=hardware_facts(loaded.device),
        seconds=watch.seconds,
        peak_memory_bytes=peak_memory(loaded.device),
        command=shlex.join(["encoder-bench", *sys.argv[1:]]),
        warnings=loaded.warnings,
    )


def run_worker(plan: RunPlan, processes: Processes, *, trackers: Sequence[str] = ()) -> None:
    """Do the training share of a process that is not the main one.

    Data and model are the main process's, by the seed; features are those that it has written by
    then. Everything else of the run, scores included, is the main process's work.

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
    plan: RunPlan, loaded: _Loaded, reporter: Reporter, limit_bytes: int | None
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
        loaded.mllm.encoder,
        loaded.data.images(),
        device=loaded.device,
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


@contextlib.contextmanager
def _only_this_process(folder: Path) -> Iterator[None]:
    """Hold a lock on the run; the system drops it when the process ends, however it ends.

    Raises:
        EncoderBenchError: another process has the run, or the results folder is read-only.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        results = folder.parent.parent
        raise EncoderBenchError(f"--results {results}: {error.strerror or error}") from error
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=1)  # `status` holds it for a moment
    except Timeout:
        raise EncoderBenchError(
            f"run {folder.name} is in progress in another process; wait for it, or use another "
            "--results folder"
        ) from None
    with lock:
        yield


def _discard(results: Path, identity: str) -> None:
    """Remove what an earlier run of the same identity left; the lock stays."""
    record_path(results, identity).unlink(missing_ok=True)
    shutil.rmtree(results / "predictions" / identity, ignore_errors=True)
    for entry in (results / "checkpoints" / identity).iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()
