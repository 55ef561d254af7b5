"""The runs of a sweep: the matrix, and how each run stands by the files of its folder.

A job's folder `RESULTS/sweep/ID` holds `job.json` (what to run), `log.txt` (its output), `.lock`
(held while it runs), and `run_id.txt` or `error.txt` once it has ended; `slurm.txt` names its job
in a SLURM queue. Nothing else keeps state, so a killed process leaves nothing stale.
`python -m encoder_bench.sweep.jobs JOB RESULTS [--force]` is a process that does one.
"""

import contextlib
import datetime
import functools
import itertools
import json
import os
import shlex
import socket
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from encoder_bench.base.errors import DataError, EncoderBenchError, RecipeError, RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_json
from encoder_bench.base.paths import visible
from encoder_bench.base.record import MODES, read_own, record_path
from encoder_bench.data.folder import is_scenes, open_data
from encoder_bench.encoders.registry import RANDOM
from encoder_bench.pipeline.plan import RunPlan, make_plan, mixture_files

STARTED = "started on "
"""Begins the line that a job's log gets at each start."""
LOCK_TIMEOUT = 5.0
"""Seconds; a command that asks how a job stands holds its lock for a moment."""

State = Literal["planned", "queued", "running", "interrupted", "failed", "done", "damaged"]


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep; `settings` are further arguments of `make_plan`, as JSON."""

    encoder: str
    joint: bool
    seed: int
    adapter: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """A line for people: `dinov2-l frozen seed 0 (quick)`."""
        mode, adapter = MODES[self.joint], Path(self.adapter).stem
        return f"{self.encoder} {mode} seed {self.seed} ({adapter})"

    @property
    def command(self) -> str:
        """A command that does this run; what else was set is in the record's recipe."""
        words = ["encoder-bench", "sweep", "--encoders", self.encoder, "--modes", MODES[self.joint]]
        words += ["--seeds", str(self.seed), "--adapter", Path(self.adapter).name]
        data = self.settings.get("data") or "scenes"
        return shlex.join([*words, "--data", data if is_scenes(data) else "DIR"])

    def plan(self, results: Path) -> RunPlan:
        """Return the run's resolved plan.

        Raises:
            RecipeError: a recipe or a setting is wrong.
            UnknownNameError: no such encoder, recipe, projector or task.
        """
        weights = self.settings.get("weights")
        return make_plan(
            encoder=self.encoder, joint=self.joint, seed=self.seed, adapter=self.adapter,
            results=results,
            **{**self.settings, "weights": Path(weights) if weights else None},
        )  # fmt: skip

    def folder(self, results: Path) -> Path:
        """Return the job's folder, named by the hash of all that could change its scores."""
        plan = self.plan(results)
        files = [*filter(None, [plan.weights]), Path(plan.adapter.llm.name), *mixture_files(plan)]
        content = {
            **plan.scoring_settings(),
            "mixture_recipes": {n: r.model_dump(mode="json") for n, r in plan.mixtures.items()},
            "data": [_data_state(name) for name in (plan.data, plan.training_data)],
            "files": [_file_states(path) for path in files],
            "device": plan.device,
        }
        return results / "sweep" / hash_json(content)[:16]


@functools.cache
def _data_state(name: str) -> str:
    """Return what tells data from others under their name; the name, where they are not there."""
    if is_scenes(name):
        return name
    try:
        return open_data(name, images_required=False).fingerprint()
    except DataError:
        return name


def _file_states(place: Path) -> list[tuple[str, int, int]]:
    """Return path, bytes and time of change of a file, or of a folder's files; else the name."""
    files = [place] if place.is_file() else visible(place, "**/*") if place.is_dir() else []
    stats = [(path, path.stat()) for path in files if path.is_file()]
    # a node may reach them by other links, and know times by the second
    found = [(str(path.absolute()), each.st_size, int(each.st_mtime)) for path, each in stats]
    return found or [(str(place), 0, 0)]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands; `starts` is 0 and `job` None for one that no sweep started.

    `queued` is in a SLURM queue; `interrupted` resumes when it is run again. The message is the
    error, or the last line of the log.
    """

    name: str
    state: State
    message: str = ""
    run_id: str = ""
    starts: int = 0
    job: Job | None = None

    @property
    def ended(self) -> bool:
        """Whether no process will change it."""
        return self.state in ("done", "failed", "damaged")


def make_jobs(
    encoders: Sequence[str],
    modes: Sequence[str],
    seeds: Sequence[int],
    adapters: Sequence[str],
    settings: Mapping[str, Any],
    weights: Mapping[str, Path],
) -> list[Job]:
    """Return the matrix, encoder by encoder, so that cached features are used while warm.

    Raises:
        RecipeError: an empty or repeated entry, an unknown mode, or weights of no encoder.
    """
    axes = {"encoders": encoders, "modes": modes, "seeds": seeds, "adapter": adapters}
    for flag, values in axes.items():
        if not values:
            raise RecipeError(f"--{flag} is empty; name at least one")
        if len(set(values)) < len(values):
            raise RecipeError(f"--{flag} names one twice: {', '.join(map(str, values))}")
    for mode in set(modes) - set(MODES):
        raise RecipeError(f"--modes {mode}: choose from {', '.join(MODES)}")
    for name in set(weights) - set(encoders):
        raise RecipeError(f"--weights {name}=...: --encoders does not name {name}")
    own = {name: {"weights": str(path)} for name, path in weights.items()}
    return [
        Job(encoder, mode == "joint", seed, adapter, {**settings, **own.get(encoder, {})})
        for encoder, adapter, mode, seed in itertools.product(encoders, adapters, modes, seeds)
    ]


def with_twins(
    encoders: Sequence[str], weights: Mapping[str, Path]
) -> tuple[list[str], dict[str, Path]]:
    """Return encoders, each followed by its random twin, which reads the same configuration."""
    pairs = {name: f"{RANDOM}{name}" for name in encoders if not name.startswith(RANDOM)}
    names = dict.fromkeys(each for name in encoders for each in (name, pairs.get(name, name)))
    twins = {pairs[name]: path for name, path in weights.items() if name in pairs}
    return list(names), {**twins, **weights}


def write_job(job: Job, results: Path) -> Path:
    """Write down what a job is, so that another process can do it, and return its folder."""
    folder = job.folder(results)
    write_text(folder / "job.json", json.dumps(asdict(job), indent=1) + "\n")
    return folder


def read_job(folder: Path) -> Job:
    """Return the job that a folder describes.

    Raises:
        RecordError: `job.json` is missing or damaged.
    """
    path = folder / "job.json"
    try:
        return Job(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RecordError(f"{path}: not a sweep's job ({error}); run the sweep again") from error


def job_status(
    folder: Path, results: Path, job: Job | None = None, *, queue: Collection[str] | None = None
) -> RunStatus:
    """Return how a job stands now; one whose record was removed is `planned` again.

    Where `job` is passed, the folder may not be there yet. `queue` are the ids of SLURM's jobs, if
    they are known.

    Raises:
        RecordError: `job.json` is missing or damaged.
    """
    job = job or read_job(folder)
    log = text_of(folder / "log.txt").splitlines()
    starts, last = sum(line.startswith(STARTED) for line in log), log[-1] if log else ""
    run_id, error = text_of(folder / "run_id.txt"), text_of(folder / "error.txt")

    def status(state: State, message: str = "", run_id: str = "") -> RunStatus:
        return RunStatus(job.name, state, message, run_id, starts, job)

    if _is_locked(folder):
        return status("running", last)
    if run_id and record_path(results, run_id).is_file():
        return status("done", run_id=run_id)
    if error:
        return status("failed", error)
    number = text_of(folder / "slurm.txt")
    if number and (queue is None or number in queue or not _is_own(folder / "slurm.txt")):
        return status("queued")
    return status("planned") if run_id or not (starts or number) else status("interrupted", last)


def _is_own(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_uid == os.getuid()
    return False


def all_runs(results: Path, *, queue: Collection[str] | None = None) -> list[RunStatus]:
    """Return every run of a results folder: jobs of sweeps oldest first, then the others.

    Unfinished runs that no sweep started are known by their checkpoints alone; they are left out
    while a job is unfinished, whose checkpoints they may be.

    Raises:
        RecordError: a `job.json` is damaged.
    """
    paths = list((results / "sweep").glob("*/job.json"))
    paths.sort(key=lambda path: path.stat().st_mtime)
    found = [job_status(path.parent, results, queue=queue) for path in paths]
    of_jobs = {run.run_id for run in found}
    records = visible(results / "records", "*.json")
    folders = visible(results / "checkpoints", "*")
    if any(run.state != "done" for run in found):
        folders = []
    recorded = (_recorded(path) for path in records if path.stem not in of_jobs)
    found += [run for run in recorded if run is not None]
    finished = {path.stem for path in records}
    found += [_unfinished(each) for each in folders if each.is_dir() and each.name not in finished]
    return found


def text_of(path: Path) -> str:
    """Return a file's text without the blanks around it; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _recorded(path: Path) -> RunStatus | None:
    try:
        record = read_own(path)
    except RecordError as error:
        return RunStatus(path.name, "damaged", str(error))
    if record is None:
        return None
    adapter = str(record.adapter.get("name"))
    name = Job(record.encoder.name, record.joint, record.seed, adapter, {}).name
    return RunStatus(name, "done", record.created, record.run_id)


def _unfinished(folder: Path) -> RunStatus:
    message = "trained, being scored" if (folder / "final").is_dir() else "training"
    if _is_locked(folder):
        return RunStatus(f"run {folder.name}", "running", message)
    message += "; the same command resumes it"
    return RunStatus(f"run {folder.name}", "interrupted", message)


def _is_locked(folder: Path) -> bool:
    """Return whether a process holds the folder's lock; the system releases a dead one's."""
    path = folder / ".lock"
    try:
        if path.is_file():
            with FileLock(path, timeout=0):
                return False
    except Timeout:
        return True
    except OSError:  # another user's folder
        pass
    return False


def _do_job(folder: Path, results: Path, *, force: bool) -> bool:
    """Do a job's run, or resume it, and write down how it ended; return whether it is done.

    A process of several that is not the main one does its share of the training.

    Raises:
        RecordError: `job.json` is missing or damaged.
    """
    from encoder_bench.base.progress import PlainReporter
    from encoder_bench.pipeline.run import run_here

    job = read_job(folder)
    if os.environ.get("RANK", "0") != "0":
        run_here(job.plan(results), PlainReporter())
        return True
    try:
        with FileLock(folder / ".lock", timeout=LOCK_TIMEOUT):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            print(f"{STARTED}{socket.gethostname()} at {now}", file=sys.stderr, flush=True)
            (folder / "error.txt").unlink(missing_ok=True)
            try:
                if job.folder(results).name != folder.name:
                    raise RecipeError(
                        "its recipe, weights or data have changed since this run was planned; run "
                        "the sweep again"
                    )
                outcome = run_here(
                    job.plan(results), PlainReporter(), force=force, command=job.command
                )
                assert outcome is not None, "the main process has a record"
                write_text(folder / "run_id.txt", f"{outcome.record.run_id}\n")
            except EncoderBenchError as error:
                write_text(folder / "error.txt", f"{error}\n")
            except Exception as error:  # recorded, like any other failure
                traceback.print_exc()
                write_text(folder / "error.txt", f"{type(error).__name__}: {error}\n")
            (folder / "slurm.txt").unlink(missing_ok=True)
    except Timeout:
        print("another process is doing this run", file=sys.stderr)
    return job_status(folder, results, job).state == "done"


if __name__ == "__main__":
    job_folder, results_folder, *rest = sys.argv[1:]
    sys.exit(not _do_job(Path(job_folder), Path(results_folder), force="--force" in rest))
