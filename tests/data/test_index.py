from __future__ import annotations

import os
import subprocess
import sys

import pyarrow as pa
import pytest

from encoder_bench.base.errors import DataError
from encoder_bench.base.paths import cache_dir
from encoder_bench.data.index import open_index

SCHEMA = pa.schema([("number", pa.int64()), ("words", pa.list_(pa.string()))])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))


def rows(count: int):
    for number in range(count):
        yield {"number": number, "words": [str(number)] * (number % 3)}
    return {"skipped": 3}


def never():
    raise AssertionError("made again")
    yield


def test_rows_come_back_in_order_with_what_was_remembered():
    made = open_index("key", SCHEMA, lambda: rows(20_000))
    assert made.about == {"skipped": 3}
    assert made.table.slice(12_347, 1).to_pylist() == [{"number": 12_347, "words": ["12347"] * 2}]
    again = open_index("key", SCHEMA, never)
    assert again.table.equals(made.table)
    assert again.about == made.about


def test_another_key_or_schema_is_another_index():
    open_index("key", SCHEMA, lambda: rows(3))
    assert open_index("other", SCHEMA, lambda: rows(5)).table.num_rows == 5
    assert open_index("key", SCHEMA.remove(1), lambda: rows(7)).table.num_rows == 7


def test_indexes_that_are_not_used_for_long_go_when_another_is_made():
    for key in ("old", "used", "new"):
        open_index(key, SCHEMA, lambda: rows(1))
        for about in cache_dir("index").glob("*/about.json"):
            os.utime(about, (1, 1))
        if key == "old":
            continue
        open_index("used", SCHEMA, never)
    open_index("another", SCHEMA, lambda: rows(1))
    assert len(list(cache_dir("index").glob("*/rows.arrow"))) == 2
    open_index("used", SCHEMA, never)


def test_an_error_on_the_way_leaves_nothing():
    def breaks():
        yield {"number": 1, "words": []}
        raise DataError("row 1: no")

    with pytest.raises(DataError, match="row 1"):
        open_index("key", SCHEMA, breaks)
    assert open_index("key", SCHEMA, lambda: rows(2)).table.num_rows == 2


def test_a_torn_index_is_one_line_that_says_what_to_do():
    open_index("key", SCHEMA, lambda: rows(9_000))
    (path,) = cache_dir("index").glob("*/rows.arrow")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged .*remove it and run it again"):
        open_index("key", SCHEMA, never)


def test_two_processes_that_want_one_index_make_it_once():
    script = (
        "import sys, time, pyarrow as pa\n"
        "from encoder_bench.data.index import open_index\n"
        "def make():\n"
        "    print('made', flush=True); time.sleep(1)\n"
        "    yield {'number': 1}\n"
        "    return {}\n"
        "print(open_index('k', pa.schema([('number', pa.int64())]), make).table.num_rows)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ)
        for _ in range(2)
    ]
    said = [process.communicate()[0].split() for process in running]
    assert sorted(map(len, said)) == [1, 2]
    assert all(words[-1] == b"1" for words in said)
