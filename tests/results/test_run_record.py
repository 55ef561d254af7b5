"""The record itself: whole or refused, never lost, old versions read."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_builders import make_run
from result_builders import make_record

import encoder_bench
from encoder_bench.base import record as record_module
from encoder_bench.base.errors import RecordError
from encoder_bench.base.hashing import hash_json
from encoder_bench.base.record import (
    SCHEMA_FILE,
    read_record,
    read_records,
    record_path,
    schema_text,
    write_record,
)


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    record = make_record()
    assert read_record(write_record(tmp_path, record)) == record


def test_a_retired_key_is_read_and_not_written(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(tmp_path, record)
    body = json.loads(path.read_text())["record"]
    assert "reload_identical" not in body["proof"]
    body["proof"]["reload_identical"] = True
    path.write_text(json.dumps({"sha256": hash_json(body), "record": body}))
    assert read_record(path) == record


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_older_and_rearranged_files_are_the_same_record(tmp_path: Path, indent: int | None) -> None:
    record = make_record(values=(50.1, None, 1e-7, 1e22), controls={"constant": 1 / 3})
    path = write_record(tmp_path, record)
    outer = json.loads(path.read_text())
    assert outer["sha256"] != hash_json(outer["record"]), "1e-07 and 1e-7 are one number"
    for older in (
        outer,
        {"sha256": hash_json(outer["record"]), "record": outer["record"]},
        outer | {"text_sha256": "0" * 64},
    ):
        path.write_text(json.dumps(dict(reversed(older.items())), indent=indent))
        read = read_record(path)
        assert read == record
        assert list(read.tasks) == list(record.tasks)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("a recipe", "a  recipe"),
        ("a recipe", "a \nrecipe"),
        ("a recipe", "a Recipe"),
        ('"seed": 0', '"seed": 1'),
        ('"seed": 0', '"seed": 0.0'),
        ('"seed": 0,', ""),
        ("2026-01-01", "2026-01-\n01"),
        ('"sha256": "', '"sha256": "0'),
        ('"sha256": "', '"sha256": "0", "x": "'),
        ("\n}\n", "\n"),
        ("\n}\n", ""),
    ],
)
def test_no_edit_is_read(tmp_path: Path, was: str, now: str) -> None:
    path = write_record(tmp_path, make_record())
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, now))
    with pytest.raises(RecordError, match=r"edited or damaged|not a whole run record"):
        read_record(path)


@pytest.mark.parametrize("length", [0, 1, 50, 500])
def test_a_half_written_record_is_refused(tmp_path: Path, length: int) -> None:
    path = write_record(tmp_path, make_record())
    path.write_text(path.read_text()[:length])
    with pytest.raises(RecordError, match="not a whole run record"):
        read_record(path)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', '{"record": 1}', "{}"])
def test_json_that_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"x\.json: not a whole run record"):
        read_record(path)


def test_an_edited_score_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    outer = json.loads(path.read_text())
    outer["record"]["tasks"]["vqa"]["metrics"]["vqa_accuracy"]["value"] = 99.0
    path.write_text(json.dumps(outer))
    with pytest.raises(RecordError, match="edited or damaged"):
        read_record(path)


def signed(body: Any) -> str:
    return json.dumps({"sha256": hash_json(body), "record": body})


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_a_version_that_has_no_migration_is_named(tmp_path: Path, version: object) -> None:
    path = tmp_path / "x.json"
    path.write_text(signed(make_record().model_dump(mode="json") | {"schema_version": version}))
    with pytest.raises(RecordError, match="schema version"):
        read_record(path)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(signed(make_record().model_dump(mode="json") | {"extra": 1}))
    with pytest.raises(RecordError, match="1 fields do not fit"):
        read_record(path)


def test_an_edited_checksum_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    text = path.read_text()
    place = len('{\n "sha256": "')
    digit = "1" if text[place] == "0" else "0"
    path.write_text(text[:place] + digit + text[place + 1 :])
    with pytest.raises(RecordError, match="edited or damaged"):
        read_record(path)


def test_migrations_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record()
    old = record.model_dump(mode="json") | {"schema_version": 1}
    old["order"] = old.pop("command")
    path = tmp_path / "old.json"
    path.write_text(signed(old))

    def rename(body: dict[str, Any]) -> dict[str, Any]:
        return {("command_line" if key == "order" else key): v for key, v in body.items()}

    def rename_again(body: dict[str, Any]) -> dict[str, Any]:
        return {("command" if key == "command_line" else key): v for key, v in body.items()}

    monkeypatch.setattr(record_module, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(record_module, "MIGRATIONS", {1: rename, 2: rename_again})
    assert read_record(path) == record.model_copy(update={"schema_version": 3})


def _write_many(results: Path, first: int) -> None:
    for number in range(first, first + 5):
        write_record(results, make_record(seed=number))
        write_record(results, make_record(seed=999))


def test_eight_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, 5 * n)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    records = read_records(tmp_path)
    assert sorted(record.seed for record in records) == [*range(40), 999]
    assert not list((tmp_path / "records").glob(".*"))


def test_records_are_found_by_their_id(tmp_path: Path) -> None:
    record = make_record()
    assert write_record(tmp_path, record) == record_path(tmp_path, record.run_id)


def test_the_package_itself_reads_results_and_stays_quick_to_import(tmp_path: Path) -> None:
    make_run(tmp_path, "dino", joint=False, skill=0.5, count=4)
    frame = encoder_bench.load_results(tmp_path)
    assert set(frame["task"]) == {"vqa", "captioning", "oc", "mci"}
    program = (
        "import sys, encoder_bench; sys.exit('pandas' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'load_result'"):
        _ = encoder_bench.load_result


def test_the_published_schema_is_the_records(tmp_path: Path) -> None:
    # It fails after a change of the record: raise SCHEMA_VERSION, add the migration to MIGRATIONS,
    # and write the file again with `python -m encoder_bench.base.record`.
    if not SCHEMA_FILE.is_file():
        pytest.skip("docs/ is not beside an installed package")
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_a_record_fits_its_published_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    content = json.loads(write_record(tmp_path, make_record()).read_text())
    jsonschema.validate(content, json.loads(schema_text()))
    content["record"]["joint"] = "maybe"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads(schema_text()))


def test_every_committed_record_reads() -> None:
    folder = Path(__file__).resolve().parents[2] / "results"
    if not (folder / "records").is_dir():
        pytest.skip("no committed records here")
    assert len(read_records(folder)) == len(list((folder / "records").glob("*.json")))
