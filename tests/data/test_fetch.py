"""Fetching: resumed, verified, unpacked, and in plain words where there is no network."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from encoder_bench.base.errors import DataError, UnknownNameError
from encoder_bench.base.network import download
from encoder_bench.base.progress import QuietReporter
from encoder_bench.cli.app import app
from encoder_bench.data import fetch as module
from encoder_bench.data.fetch import CatalogSet, catalog, fetch, find_set, unpack

QUIET = QuietReporter()


def zipped(**members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/"), text)
    return stream.getvalue()


CONTENT = {"/a.zip": zipped(in__a="first", b="second"), "/b.json": b"[1, 2, 3]" * 5000}


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`, with ranges; notes what was asked, and can hang up half-way."""

    asked: list[tuple[str, str | None]]
    cut: int | None = None
    content: dict[str, bytes]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        data = self.server.content.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.cut])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.asked, running.content = [], dict(CONTENT)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def digest(name: str) -> str:
    return hashlib.sha256(CONTENT[name]).hexdigest()


def one_set(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str, **facts: object
) -> CatalogSet:
    entry = CatalogSet.model_validate(
        {"description": "x", "files": [{"url": address(server) + name, "into": "place", **facts}]}
    )
    monkeypatch.setattr(module, "find_set", lambda _: entry)
    return entry


def test_a_download_that_was_cut_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    target, url = tmp_path / "b.json", address(server) + "/b.json"
    server.cut = 20_000
    with pytest.raises(DataError, match="ended at 20000 of 45000 bytes; run the same command"):
        download(url, target, QUIET, sha256=digest("/b.json"))
    assert not target.exists()
    server.cut = None
    assert download(url, target, QUIET, sha256=digest("/b.json")) == digest("/b.json")
    assert target.read_bytes() == CONTENT["/b.json"]
    assert server.asked == [("/b.json", None), ("/b.json", "bytes=20000-")]
    download(url, target, QUIET, sha256=digest("/b.json"))
    assert len(server.asked) == 2


def test_a_whole_part_of_a_killed_command_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "b.json.partial").write_bytes(CONTENT["/b.json"])
    url = address(server) + "/b.json"
    download(url, tmp_path / "b.json", QUIET, sha256=digest("/b.json"))
    assert server.asked == [("/b.json", "bytes=45000-")]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"sha256": "0" * 64}, "its sha256 is .*, 0000"),
        ({"sha1": ["12345678"]}, "one that begins with 12345678 was expected"),
        ({"size": 3}, "it has 45000 bytes, 3 were expected"),
    ],
)
def test_another_file_than_was_meant_is_removed(
    server: Server, tmp_path: Path, facts: dict[str, object], message: str
) -> None:
    target = tmp_path / "b.json"
    with pytest.raises(DataError, match=message):
        download(address(server) + "/b.json", target, QUIET, **facts)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    target.write_bytes(b"tampered with")
    with pytest.raises(DataError, match="was removed"):
        download(address(server) + "/b.json", target, QUIET, sha256=digest("/b.json"))


def test_no_network_says_what_to_put_where_and_then_takes_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_set(server, monkeypatch, "/a.zip", unpack=True, sha256=digest("/a.zip"))
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError) as error:
        fetch("x", tmp_path, QUIET)
    place = tmp_path / "downloads" / "a.zip"
    assert f"put it at {place} and run the same command again" in str(error.value)
    assert "\n" not in str(error.value)
    place.write_bytes(CONTENT["/a.zip"])
    fetch("x", tmp_path, QUIET)
    assert (tmp_path / "place" / "in" / "a").read_text() == "first"


def test_a_missing_page_is_refused_in_words(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/no\.zip: refused \(404"):
        download(address(server) + "/no.zip", tmp_path / "no.zip", QUIET)


def test_archives_are_unpacked_noted_and_dropped_on_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_set(server, monkeypatch, "/a.zip", unpack=True, sha256=digest("/a.zip"))
    (line,) = fetch("x", tmp_path, QUIET, keep_archives=False)
    assert "as published" in line
    assert not (tmp_path / "downloads" / "a.zip").exists()
    assert json.loads((tmp_path / "fetched.json").read_text()).popitem()[1]["unpacked"]
    (line,) = fetch("x", tmp_path, QUIET)
    assert "before" in line
    assert len(server.asked) == 1
    shutil.rmtree(tmp_path / "place" / "in")
    fetch("x", tmp_path, QUIET, keep_archives=False)
    assert (tmp_path / "place" / "in" / "a").read_text() == "first"


def test_a_file_without_a_published_hash_may_not_change_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_set(server, monkeypatch, "/b.json")
    (line,) = fetch("x", tmp_path, QUIET)
    assert "not published anywhere" in line
    (tmp_path / "place" / "b.json").unlink()
    server.content["/b.json"] = b"[]"
    with pytest.raises(DataError, match="not the expected file"):
        fetch("x", tmp_path, QUIET)


def test_members_that_leave_the_folder_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../outside", "x")
    with pytest.raises(DataError, match="leaves the folder"):
        unpack(bad, tmp_path / "into", QUIET)
    assert not (tmp_path / "outside").exists()
    bad.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"bad\.zip: cannot be unpacked"):
        unpack(bad, tmp_path / "into", QUIET)


def test_tar_archives_are_unpacked(tmp_path: Path) -> None:
    packed = tmp_path / "a.tgz"
    with tarfile.open(packed, "w:gz") as tar:
        info = tarfile.TarInfo("dataset_coco.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    unpack(packed, tmp_path / "into", QUIET)
    assert (tmp_path / "into" / "dataset_coco.json").read_text() == "{}"


def test_the_catalogue_is_whole_and_says_what_is_pinned() -> None:
    assert {"coco-val2017", "vqav2", "gvtbench", "karpathy", "pope"} <= set(catalog())
    for entry in catalog().values():
        for file in entry.files:
            assert file.url.startswith("http")
            assert ".." not in file.into
    assert find_set("vqav2-hub").revision == "32665d35052eb4a6d4414851c3c829a72754915a"
    assert find_set("coco-val2017").pinning == "hashes known"
    assert find_set("okvqa").pinning == "pinned on first use"
    with pytest.raises(UnknownNameError, match="did you mean 'vqav2'"):
        find_set("vqa2")


def test_the_command_lists_and_complains_in_one_line(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["data", "fetch", "--list"])
    assert len(listed.stdout.splitlines()) == len(catalog())
    with pytest.raises(DataError, match="lmms-lab/VQAv2"):
        CliRunner().invoke(
            app, ["data", "fetch", "vqav2-hub", "--to", str(tmp_path)], catch_exceptions=False
        )
