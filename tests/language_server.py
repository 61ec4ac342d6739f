"""Real HTTP server on loopback that speaks the APIs of DashScope (text, images with their upload) and of OpenAI.

Run as a program it prints its address, and dies in the middle of its first answer.
"""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "A big red circle moves right on a navy background, seen from the front."
GARBAGE = b"<html>\x00\xff not what was asked"


class LanguageServer(ThreadingHTTPServer):
    """Server in a thread. `behave` has a way to answer for each request of a model; the last one stays.

    Ways: a text is the answer, a number the status of a refusal; HANG, TRICKLE, CUT, DIE, GARBAGE and OTHER are faults,
    and a function is called instead of an answer.
    """

    HANG, TRICKLE, CUT, DIE, GARBAGE, OTHER = (object() for _ in range(6))
    daemon_threads = True

    def __init__(self, *behave: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = list(behave) or [ANSWER]
        self.asked: list[dict[str, Any]] = []  # bodies of requests of a model, with their path and headers
        self.uploads: list[bytes] = []
        self.over = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> LanguageServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Stay silent when a client has gone."""


class Handler(BaseHTTPRequestHandler):
    server: LanguageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.send({"object": "list", "data": [{"id": "first-model", "object": "model"}, {"id": "second"}]})
        elif self.path.startswith("/api/v1/uploads"):
            fields = ("oss_access_key_id", "signature", "policy", "x_oss_object_acl", "x_oss_forbid_overwrite")
            policy = dict.fromkeys(fields, "x")
            self.send({"data": policy | {"upload_dir": "dir", "upload_host": f"{self.server.address}/upload"}})
        else:
            self.send({"error": "no such page"}, 404)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload":
            self.server.uploads.append(data[data.index(b"\x89PNG") :])
            self.send({})
            return
        body = json.loads(data) | {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        way = self.server.behave[min(len(self.server.asked), len(self.server.behave) - 1)]
        self.server.asked.append(body)
        if isinstance(way, int):
            key = self.headers["Authorization"].removeprefix("Bearer ")
            reason = f"refused, key {key}"
            self.send({"code": "Refused", "message": reason, "error": {"message": reason}}, way)
        elif way is self.server.HANG or callable(way):
            if callable(way):
                way()
            self.server.over.wait()
        elif way is self.server.GARBAGE:
            self.send(GARBAGE)
        elif way is self.server.OTHER:
            self.send({"output": [1], "choices": {"a": 2}})
        elif way in (self.server.CUT, self.server.DIE):
            self.begin(200, 1000)
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
            if way is self.server.DIE:
                os._exit(1)
        elif way is self.server.TRICKLE:
            self.begin(200, 10**6)
            while not self.server.over.wait(0.05):
                self.wfile.write(b" ")
        else:
            self.send(self.answer(way))

    def answer(self, text: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": [{"text": text}] if "multimodal" in self.path else text}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        if self.path == "/v1/chat/completions":
            return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
        return {"request_id": "1", "output": {"choices": choices}, "usage": {}}

    def send(self, value: Any, status: int = 200) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.begin(status, len(data))
        self.wfile.write(data)

    def begin(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()


if __name__ == "__main__":
    with LanguageServer(LanguageServer.DIE) as server:
        print(server.address, flush=True)
        server.over.wait()
