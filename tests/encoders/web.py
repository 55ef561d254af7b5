"""A small web server on this machine that behaves as the Hub does, for tests of real downloads."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Web:
    """What is served, and how badly.

    Attributes:
        root: `ORG/NAME/FILE` are files of repositories, and plain files at the same path.
        interrupted: names of files whose first answer breaks off in the middle.
        tampered: owners of repositories whose weights are changed by one bit on the way.
        ranges: the `Range` headers that were asked for, in order.
    """

    root: Path
    interrupted: set[str] = field(default_factory=set)
    tampered: set[str] = field(default_factory=set)
    ranges: list[str] = field(default_factory=list)
    address: str = ""


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            about = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
            if about:
                self._send(json.dumps({"id": about[1], "sha": COMMIT, "siblings": []}).encode())
                return
            path = self.path.partition("?")[0].lstrip("/")
            file = web.root / re.sub(r"/resolve/[^/]+/", "/", path)
            if not file.is_file():
                self._send(b"", status=404, headers={"X-Error-Code": "EntryNotFound"}, body=body)
                return
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
            if path.partition("/")[0] in web.tampered and file.suffix == ".safetensors":
                data = data[:-1] + bytes([data[-1] ^ 1])
            self._send_file(file.name, data, headers, body=body)

        def _send_file(
            self, name: str, data: bytes, headers: dict[str, str], *, body: bool
        ) -> None:
            wanted = self.headers.get("Range")
            start = 0
            if wanted and body:
                web.ranges.append(wanted)
                start = int(re.match(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            part = data[start:]
            cut = None
            if body and name in web.interrupted:
                web.interrupted.discard(name)
                cut = len(part) // 2
            self._send(part, status=206 if start else 200, headers=headers, body=body, cut=cut)

        def _send(
            self,
            data: bytes,
            *,
            status: int = 200,
            headers: dict[str, str] | None = None,
            body: bool = True,
            cut: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[:cut])
            if cut is not None:
                self.close_connection = True

    return Handler


@contextmanager
def serving(root: Path) -> Iterator[Web]:
    web = Web(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(web))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
