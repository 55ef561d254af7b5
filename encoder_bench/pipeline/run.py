"""One run, from an encoder's name to a record: read the numbered steps, 1 to 7."""

import contextlib
import datetime
import functools
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from encoder_bench.base.errors import EncoderBenchError, TrainingError
from encoder_bench.base.hardware import (
    Processes,
    choose_device,
    emulates_bfloat16,
    hardware_facts,
    join_processes,
    package_versions,
    peak_memory,
)
from encoder_bench.base.hashing import hash_json, hash_parameters, hash_text
from encoder_bench.base.paths import remove_folder
from encoder_bench.base.progress import QuietReporter, Reporter
from encoder_bench.base.record import (
    SCHEMA_VERSION,
    LanguageModelFacts,
    RunRecord,
    read_record,
    record_path,
    run_id,
    write_record,
)
from encoder_bench.data.images import IMAGE_LOADING
from encoder_bench.encoders.hf import computing_settings
from encoder_bench.mllm.model import MLLM
from encoder_bench.mllm.projectors.whitening import images_to_fit
from encoder_bench.pipeline.build import build_mllm, encoder_facts, model_notes, model_warnings
from encoder_bench.pipeline.data import RunData, read_data
from encoder_bench.pipeline.plan import RunPlan
from encoder_bench.pipeline.predictor import MEAN_OF, ImagePredictor
from encoder_bench.pipeline.verify import is_trained, train_and_verify
from encoder_bench.tasks.evaluate import evaluate
from encoder_bench.training.batches import sample_images, training_images
from encoder_bench.training.feature_cache import FeatureStore, open_features
from encoder_bench.training.trainer import Trainer

_PACKAGES = ("encoder-bench", "torch", "torchvision", "transformers", "timm", "open_clip_torch")
"""Whose versions may change scores."""


class RunOutcome(NamedTuple):
    """A finished run: its record, the record's file, and whether it was there already."""

    record: RunRecord
    path: Path
    found: bool


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds[name] + time.perf_counter() - start, 3)


@dataclass(frozen=True, slots=True)
class _Share:
    """What one of a run's processes works with."""

    plan: RunPlan
    data: RunData
    mllm: MLLM
    reporter: Reporter
    trackers: Sequence[str]
    processes: Processes

    def features(self, limit_bytes: int | None = None) -> FeatureStore | None:
        """Return the frozen encoder's patch tokens of every image, or None if they would move."""
        plan = self.plan
        if plan.joint or not plan.adapter.training.feature_cache:
            return None
        return open_features(
            self.mllm.encoder,
            self._images_in_order(),
            device=choose_device(plan.device),
            reporter=self.reporter,
            limit_bytes=limit_bytes,
            storage=plan.adapter.training.feature_storage,
        )

    def _images_in_order(self) -> list[Path]:
        """Return the images that the process shows to the encoder, in the order of their first use.

        The main process has, besides its share of training, the mean image and the tests.
        """
        plan, data, processes = self.plan, self.data, self.processes
        ordered = functools.partial(
            training_images, data.training, plan.adapter, plan.seed, data.mixtures
        )
        shown = images = ordered()
        if processes.count > 1:
            images = ordered(index=processes.index, processes=processes.count)
        first = sample_images(data.training, shown)
        if plan.adapter.projector.whiten:
            images = [*first[: images_to_fit(self.mllm.encoder)], *images]
        if not processes.is_main:
            return images
        if any("mean-image" in recipe.controls for recipe in plan.tasks.values()):
            images = [*images, *first[:MEAN_OF]]
        tests = (task.samples for task in data.test.values())
        return [*images, *(sample.image_path for samples in tests for sample in samples)]

    def trainer(self, folder: Path, features: FeatureStore | None) -> Trainer:
        """Return what trains the model, with checkpoints in `folder`."""
        return Trainer(
            self.mllm,
            self.data.training,
            self.plan.adapter,
            self.plan.training_recipes,
            folder=folder,
            seed=self.plan.seed,
            reporter=self.reporter,
            device=choose_device(self.plan.device),
            features={} if features is None else features,
            mixtures=self.data.mixtures,
            trackers=self.trackers,
        )


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

    A finished run of the same identity is returned as it is, unless `force` discards it. An
    interrupted one resumes from its last checkpoint and its last written prediction. This is the
    main one of `processes`; the others train their share meanwhile. `command` is what the record
    says was called; this process's own arguments by default.

    Raises:
        EncoderBenchError: bad input, a failed check, a full disk...: one line, nothing lost.
    """
    watch, device = _Stopwatch(), choose_device(plan.device)

    # 1. Data: each task's test samples and the training samples, which never share an image.
    with watch.phase("data"):
        data = read_data(plan, reporter)

    # 2. Model: encoder, language model, projector. All that is initialised follows the seed.
    with watch.phase("load"):
        mllm = build_mllm(plan)
        facts = _facts(plan, data, mllm, device)
    for line in facts["warnings"]:
        reporter.warn(line)
    for line in model_notes(mllm):
        reporter.note(line)

    # 3. The same run may be finished already.
    path = record_path(plan.results, facts["run_id"])
    if path.is_file() and not force:
        processes.broadcast(None)
        return RunOutcome(read_record(path), path, found=True)
    check_precision(plan, mllm, device, reporter)
    folder = plan.results / "checkpoints" / facts["run_id"]
    with _only_this_process(folder):
        if force:
            _discard(plan.results, facts["run_id"])

        # 4. A frozen encoder sees each image once, when training or a task first asks for it.
        with watch.phase("features"):
            share = _Share(plan, data, mllm, reporter, trackers, processes)
            features = share.features(cache_limit_bytes)
        processes.broadcast(None if is_trained(folder) else folder)

        facts["command"] = command or shlex.join(["encoder-bench", *sys.argv[1:]])
        with contextlib.nullcontext() if features is None else contextlib.closing(features):
            record = _train_and_score(share, features, facts, watch)
        return RunOutcome(record, write_record(plan.results, record), found=False)


def check_precision(plan: RunPlan, mllm: MLLM, device: torch.device, reporter: Reporter) -> None:
    """Say where a GPU has no bfloat16 of its own, in which the recipe computes.

    Raises:
        TrainingError: it cannot: cuDNN has no convolution in bfloat16 for such a GPU, as an
            encoder begins with and some projectors have.
    """
    if not emulates_bfloat16(device):
        return
    layers = mllm.projector.modules()
    convolves = plan.joint or any(isinstance(layer, torch.nn.Conv2d) for layer in layers)
    trained = plan.adapter.training.precision == "bfloat16"
    if plan.adapter.encoder.dtype == "bfloat16":
        key, other = "encoder.dtype", "float16"
    elif trained and convolves:
        key, other = "training.precision", "float32"
    else:
        if trained:
            advice = "--set training.precision=float32 is likely quicker"
            reporter.warn(f"this GPU emulates bfloat16, which is slow; {advice}")
        return
    raise TrainingError(
        f"{key} bfloat16: this GPU has no convolutions in bfloat16, which are needed here; "
        f"--set {key}={other}"
    )


def _facts(plan: RunPlan, data: RunData, mllm: MLLM, device: torch.device) -> dict[str, Any]:
    """Return what the record says of a run before it trains; its identity follows from that."""
    encoder = encoder_facts(mllm.encoder, hash_parameters(mllm.encoder.backbone))
    language = LanguageModelFacts.model_validate(mllm.language.facts())
    versions = package_versions()
    determinants = {
        "schema": SCHEMA_VERSION,
        **plan.scoring_settings(),
        "encoder_fingerprint": encoder.fingerprint,
        "llm_weights": language.weights_sha256,
        "data": data.folder.fingerprint(),
        "training_data": data.training_fingerprint(),
        "versions": {name: versions[name] for name in _PACKAGES},
        "device": device.type,
    }
    if not language.source.startswith("bundled:"):  # a folder's files can be edited
        tokenizer = getattr(mllm.language.tokenizer, "backend_tokenizer", None)
        text = tokenizer.to_str() if tokenizer is not None else ""
        settings = computing_settings(mllm.language.model.config)
        determinants["llm_reading"] = [hash_json(settings), hash_text(text)]
    if language.template is not None:  # plain text leaves an identity what it was
        determinants["llm_template"] = language.template
    return {
        "run_id": run_id(determinants),
        "encoder": encoder,
        "joint": plan.joint,
        "language_model": language,
        "adapter": {"name": plan.adapter_name, **plan.adapter.model_dump(mode="json")},
        "visual_tokens": mllm.projector.visual_tokens,
        "image_loading": IMAGE_LOADING,
        "data": data.folder.description(),
        "training_data": data.training_description(),
        "seed": plan.seed,
        "limit": plan.limit,
        "versions": versions,
        "hardware": hardware_facts(device),
        "warnings": model_warnings(mllm),
    }


def _train_and_score(
    share: _Share, features: FeatureStore | None, facts: Mapping[str, Any], watch: _Stopwatch
) -> RunRecord:
    plan, data = share.plan, share.data

    # 5. Train, save, load, and check what trained; scores come from the weights as loaded.
    folder = plan.results / "checkpoints" / facts["run_id"]
    with watch.phase("training"):
        trainer = share.trainer(folder, features)
        loaded, proof, summary = train_and_verify(plan, trainer)

    # 6. Score every task and its blind baselines.
    if features is not None:
        features.use(loaded.encoder)
    shown = training_images(data.training, plan.adapter, plan.seed, data.mixtures)
    scores = evaluate(
        ImagePredictor(loaded, features, sample_images(data.training, shown)),
        list(data.test.values()),
        plan.results / "predictions" / facts["run_id"],
        batch_images=plan.adapter.evaluation_batch_images,
        seed=plan.seed,
        reporter=share.reporter,
        timed=watch.phase,
    )

    # 7. The record comes last, so that there is one only of a whole run.
    if features is not None:
        share.reporter.note(features.summary())
        watch.seconds["encoding"] = round(features.seconds, 3)
    return RunRecord(
        **facts,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tasks=scores,
        proof=proof,
        training=summary,
        seconds=dict(watch.seconds),
        peak_memory_bytes=peak_memory(trainer.device),
    )


def run_here(
    plan: RunPlan,
    reporter: Reporter,
    *,
    force: bool = False,
    trackers: Sequence[str] = (),
    cache_limit_bytes: int | None = None,
    command: str | None = None,
) -> RunOutcome | None:
    """Do `run`, or as one of several processes the share that is this one's (then None)."""
    processes = join_processes(cpu=choose_device(plan.device).type == "cpu")
    if not processes.is_main:
        _work(plan, processes, trackers)
        return None
    return run(
        plan, reporter, force=force, trackers=trackers, cache_limit_bytes=cache_limit_bytes,
        processes=processes, command=command,
    )  # fmt: skip


def _work(plan: RunPlan, processes: Processes, trackers: Sequence[str]) -> None:
    """Do the training share of a process that is not the main one, which does all else.

    Data and model are the main process's, by the seed; it encodes the images of its own share.
    """
    quiet = QuietReporter()
    share = _Share(plan, read_data(plan, quiet), build_mllm(plan), quiet, trackers, processes)
    folder: Path | None = processes.broadcast(None)
    if folder is None:
        return
    features = share.features()
    with contextlib.nullcontext() if features is None else contextlib.closing(features):
        share.trainer(folder, features).train()


@contextlib.contextmanager
def _only_this_process(folder: Path) -> Iterator[None]:
    """Hold a lock on the run; the system drops it when the process ends, however it ends."""
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
    except (OSError, NotImplementedError) as error:  # NFS without its lock service
        reason = getattr(error, "strerror", None) or error
        raise EncoderBenchError(
            f"--results {folder.parent.parent}: files cannot be locked there ({reason}); choose a "
            "folder of another file system"
        ) from error
    with lock:
        yield


def _discard(results: Path, identity: str) -> None:
    """Remove what an earlier run of the same identity left; the lock stays."""
    record_path(results, identity).unlink(missing_ok=True)
    remove_folder(results / "predictions" / identity)
    for entry in (results / "checkpoints" / identity).iterdir():
        if entry.is_dir():
            remove_folder(entry)
        elif entry.name != ".lock":
            entry.unlink()
