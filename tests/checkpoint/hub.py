"""Server on loopback that speaks the interfaces of Hugging Face and ModelScope, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
SMALL = (".json", ".md", ".gitattributes")  # kept in git itself, the others in its large file storage


@dataclass
class Hub:
    """Repository of the files below `folder`. Tests set the faults, and read what was asked.

    `cut` maps the path of a file to the numbers of bytes after which its next answers end. `altered` maps it to a
    function of its bytes. `before` is called with the path before a file is sent.
    """

    folder: Path
    name: str
    token: str | None = None
    cut: dict[str, list[int]] = field(default_factory=dict)
    altered: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    before: Callable[[str], None] = lambda path: None
    status: int = 200
    asked: list[tuple[str, int]] = field(default_factory=list)  # (path, first byte) of each file that was sent
    seen: list[dict[str, str]] = field(default_factory=list)  # headers of all requests
    address: str = ""

    def listing(self) -> list[tuple[str, bytes]]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [(str(path.relative_to(self.folder)), path.read_bytes()) for path in paths]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Say nothing: a client that goes away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, url = self.hub, urlsplit(self.path)
        hub.seen.append(dict(self.headers))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if hub.token and f"Bearer {hub.token}" != self.headers.get("Authorization"):
            self._send(401, b'{"error": "Invalid username or password."}')
        elif hub.status != 200:
            self._send(hub.status, b'{"error": "out of order"}')
        elif re.fullmatch(rf"/api/models/{hub.name}(/revision/\w+)?", url.path):
            self._json({"id": hub.name, "sha": REVISION, "siblings": [*map(_sibling, hub.listing())]})
        elif url.path == f"/api/v1/models/{hub.name}/repo/files":
            self._json({"Code": 200, "Success": True, "Data": {"Files": [*map(_entry, hub.listing())]}})
        elif url.path == f"/api/v1/models/{hub.name}/repo":
            self._file(query["FilePath"])
        elif match := re.fullmatch(rf"/(?:models/)?{hub.name}/resolve/\w+/(.+)", url.path):
            self._file(unquote(match[1]))
        else:
            self._send(404, b'{"error": "Entry not found"}')

    def _json(self, value):
        self._send(200, json.dumps(value).encode())

    def _file(self, path):
        content = (self.hub.folder / path).read_bytes()
        content = self.hub.altered.get(path, bytes)(content)
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if self.command == "GET":
            self.hub.asked.append((path, first))
            self.hub.before(path)
        cuts = self.hub.cut.get(path) if self.command == "GET" else None
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": REVISION}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206 if first else 200, content[first:], headers, cuts.pop(0) if cuts else None)

    def _send(self, status, content, headers=None, cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), "Content-Type": "application/json"}.items():
            self.send_header(name, str(value))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def _sibling(file):
    path, content = file
    found = {
        "rfilename": path,
        "size": len(content),
        "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if not path.endswith(SMALL):
        found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


def _entry(file):
    path, content = file
    return {"Path": path, "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest(), "Type": "blob"}
