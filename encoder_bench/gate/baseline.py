"""A committed baseline: runs that were accepted, why, and how much worse others may be.

It is a results folder (records, packed predictions, trained weights of a few runs), so that every
tool reads it, with `baseline.json` beside them.
"""

import datetime
import gzip
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder_bench.base.errors import RecordError
from encoder_bench.base.files import write_bytes, write_text
from encoder_bench.base.hashing import hash_json
from encoder_bench.base.record import RunRecord, read_record, record_path, write_record
from encoder_bench.results.grouping import scoring_recipe
from encoder_bench.results.runs import find_run
from encoder_bench.tasks.predictions import predictions_content, predictions_path, read_predictions


class Acceptance(BaseModel):
    """When which runs were accepted, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: str
    runs: tuple[str, ...]
    reason: str


class Baseline(BaseModel):
    """The content of `baseline.json`.

    Attributes:
        margin: points that a score may never get worse by, whatever its interval.
        runs: `identity` -> the accepted run's id.
        history: every acceptance, oldest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    margin: float = Field(default=5.0, gt=0)
    runs: dict[str, str] = Field(default_factory=dict)
    history: tuple[Acceptance, ...] = ()


def identity(record: RunRecord) -> str:
    """Return what a run is found by in a baseline: names, not hashes, so that a hash may differ."""
    parts = [
        record.encoder.name,
        record.mode,
        f"adapter {record.adapter.get('name')}",
        f"LLM {record.language_model.name}",
        f"data {record.data.get('name')}",
        f"seed {record.seed}",
    ]
    if record.limit is not None:
        parts.append(f"limit {record.limit}")
    return ", ".join(parts)


def check_distinct(records: Iterable[RunRecord]) -> None:
    """Check that runs of one identity, of which a baseline holds one, have one recipe.

    Raises:
        RecordError: two were made with different settings; names them and the keys.
    """
    found: dict[str, RunRecord] = {}
    for record in records:
        other = found.setdefault(identity(record), record)
        if changed := changed_settings(other, record):
            raise RecordError(
                f"runs {other.run_id} and {record.run_id} are one to a baseline "
                f"({identity(record)}) and differ in {changed}; accept one of them by its id, or "
                "give the settings an adapter file of their own"
            )


def changed_settings(a: RunRecord, b: RunRecord) -> str:
    """Return the keys of the adapter recipe that differ and may change scores."""
    return changed_keys(scoring_recipe(a.adapter), scoring_recipe(b.adapter))


def changed_keys(a: Mapping[str, object], b: Mapping[str, object]) -> str:
    """Return the keys whose values differ, with commas."""
    return ", ".join(sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)))


def read_baseline(folder: Path) -> Baseline:
    """Return the content of `FOLDER/baseline.json`.

    Raises:
        RecordError: it is missing, damaged or edited; names the file.
    """
    path = folder / "baseline.json"
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        if outer["sha256"] != hash_json(outer["baseline"]):
            raise RecordError(f"{path}: checksum and content disagree; it was edited or damaged")
        return Baseline.model_validate(outer["baseline"])
    except FileNotFoundError as error:
        raise RecordError(
            f"{path}: no baseline there; make one with `encoder-bench baseline accept`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{path}: not a whole baseline ({reason})") from error


def baseline_records(folder: Path, baseline: Baseline) -> dict[str, RunRecord]:
    """Return identity -> accepted record.

    Raises:
        RecordError: a record is missing or damaged.
    """
    return {name: read_record(record_path(folder, run)) for name, run in baseline.runs.items()}


def weights_folder(folder: Path, record: RunRecord) -> Path:
    """Return where a run's trained weights are, in a baseline as in any results folder."""
    return folder / "checkpoints" / record.run_id / "final"


def accept(
    folder: Path,
    results: Path,
    names: Sequence[str],
    *,
    reason: str,
    margin: float | None = None,
    keep_weights: bool = False,
) -> Baseline:
    """Put runs into a baseline, in place of those of the same identity, and say why.

    Several processes may accept at once; each one's runs and reason are kept.

    `names` are run ids or their beginnings; a margin of None keeps the one there. Kept weights let
    `check --rerun quick` ask the trained model again.

    Raises:
        RecordError: no reason, no run, no weights, or damaged predictions; nothing is changed then.
    """
    if not reason.strip():
        raise RecordError("--reason is empty; say in one line why these scores are right")
    if not names:
        raise RecordError("no run was named; give the ids of the runs to accept")
    records = [find_run(results, name) for name in names]
    check_distinct(records)
    for record in records:
        for task in record.tasks:
            read_predictions(results, record, task)
        if keep_weights and not weights_folder(results, record).is_dir():
            raise RecordError(
                f"{weights_folder(results, record)}: the trained weights are not there; run "
                f"{record.run_id} again, or accept it without --keep-weights"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        known = read_baseline(folder) if (folder / "baseline.json").is_file() else Baseline()
        for record in records:
            _copy(folder, results, record, keep_weights=keep_weights)
        runs = known.runs | {identity(record): record.run_id for record in records}
        entry = Acceptance(
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            runs=tuple(record.run_id for record in records),
            reason=reason.strip(),
        )
        updated = Baseline(
            margin=known.margin if margin is None else margin,
            runs=dict(sorted(runs.items())),
            history=(*known.history, entry),
        )
        body = updated.model_dump(mode="json")
        outer = {"sha256": hash_json(body), "baseline": body}
        write_text(folder / "baseline.json", json.dumps(outer, indent=1, ensure_ascii=False) + "\n")
        replaced = set(known.runs.values()) - set(updated.runs.values())
        for run in replaced if folder.resolve() != results.resolve() else ():
            record_path(folder, run).unlink(missing_ok=True)
            for kind in ("predictions", "checkpoints"):
                shutil.rmtree(folder / kind / run, ignore_errors=True)
    return updated


def _copy(folder: Path, results: Path, record: RunRecord, *, keep_weights: bool) -> None:
    """Copy a run; predictions are packed, to a twentieth or so, since they are committed."""
    if folder.resolve() == results.resolve():
        return
    for task in record.tasks:
        target = predictions_path(folder, record, task)
        if not target.is_file():
            packed = gzip.compress(predictions_content(results, record, task), mtime=0)
            write_bytes(target.with_name(target.name + ".gz"), packed)
    if keep_weights:
        target = weights_folder(folder, record)
        partial = target.with_name(".final.partial")
        for place in (partial, target):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(weights_folder(results, record), partial)
        partial.rename(target)
    write_record(folder, record)
