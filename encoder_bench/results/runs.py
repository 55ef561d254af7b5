"""Looking after a results folder: find, list and remove runs. Nothing here changes a record."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from encoder_bench.base.errors import RecordError
from encoder_bench.base.paths import remove_folder, visible
from encoder_bench.base.record import MODES, RunRecord, read_own, read_record, record_path
from encoder_bench.results.grouping import group_records

_ENCODER_MODE = re.compile(rf"(.+)/({'|'.join(MODES)})(?:/(\d+))?")


def inventory(results: Path) -> tuple[list[RunRecord], list[str]]:
    """Return a folder's readable records, oldest first, and one line for each that is damaged."""
    records, damaged = [], []
    for path in visible(results / "records", "*.json"):
        try:
            record = read_own(path)
            records += [record] if record else []
        except RecordError as error:
            damaged.append(str(error))
    records.sort(key=lambda record: (record.created, record.run_id))
    return records, damaged


def find_run(results: Path, name: str) -> RunRecord:
    """Return the run that `name` means.

    That is an id or its beginning, `ENCODER/MODE` or `ENCODER/MODE/SEED` (`dinov2-l/joint/0`), or
    the path of a record file.

    Raises:
        RecordError: no such run, more than one, or a damaged record.
    """
    return _only_one(results, name, _named(results, name))


def find_runs(results: Path, name: str) -> tuple[RunRecord, ...]:
    """Return the runs that `name` means: as `find_run`, but ENCODER/MODE means all of its seeds.

    Raises:
        RecordError: as `find_run`; or the runs of ENCODER/MODE are not seeds of one row.
    """
    found = _named(results, name)
    rows = [row for group in group_records(found) for row in group.rows]
    return rows[0].records if len(rows) == 1 else (_only_one(results, name, found),)


def _only_one(results: Path, name: str, found: Sequence[RunRecord]) -> RunRecord:
    if len(found) > 1:
        these = ", ".join(f"{r.run_id[:8]} (seed {r.seed})" for r in found[:6])
        raise RecordError(f"{results}: '{name}' means {len(found)} runs; choose one of {these}")
    return found[0]


def _named(results: Path, name: str) -> list[RunRecord]:
    """Return the run of an id's beginning or of a file, or all runs of ENCODER/MODE[/SEED]."""
    if name.endswith(".json"):
        return [read_record(Path(name))]
    if match := _ENCODER_MODE.fullmatch(name):
        encoder, mode, seed = match.groups()
        found = [
            record
            for record in inventory(results)[0]
            if (record.encoder.name, record.mode) == (encoder, mode)
            and seed in (None, str(record.seed))
        ]
        if not found:
            hint = f"`encoder-bench results ls --results {results}` lists them"
            raise RecordError(f"{results}: no run '{name}'; {hint}")
        return found
    paths = [p for p in visible(results / "records", "*.json") if p.stem.startswith(name)]
    own = [record for path in paths if name and (record := read_own(path))]
    if not own:
        rows = dict.fromkeys(f"{r.encoder.name}/{r.mode}" for r in inventory(results)[0])
        known = ", ".join([*rows][:8]) or "none"
        raise RecordError(f"{results}: no run '{name}'; give an id or one of {known}")
    if len(own) > 1:
        these = ", ".join(record.run_id for record in own[:4])
        raise RecordError(f"{results}: '{name}' begins {len(own)} runs ({these}); give more digits")
    return own


def remove_runs(results: Path, names: Sequence[str]) -> Iterator[str]:
    """Remove runs whole and yield the id of each then. Nothing is removed unless all are found.

    A record goes last, so that a run of which a file cannot be removed is still found.

    Raises:
        RecordError: a run does not exist or is ambiguous.
        OSError: a file cannot be removed.
    """
    identifiers = dict.fromkeys(find_run(results, name).run_id for name in names)
    for identifier in identifiers:
        for folder in ("checkpoints", "predictions"):
            remove_folder(results / folder / identifier)
        own = record_path(results, identifier)
        for path in (*own.parent.glob(f"*{identifier}*.json"), own):  # copies first
            path.unlink(missing_ok=True)
        yield identifier
