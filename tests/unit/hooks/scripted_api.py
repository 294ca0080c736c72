"""An HTTP server that answers from a script, for behaviour that a healthy API server does not show."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Reply:
    """One answer; ``lines`` are streamed as a watch, ``cut`` closes the connection without any answer."""

    code: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] | None = None
    cut: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


def status(code: int, message: str, reason: str = "", *causes: str, headers: dict[str, str] | None = None) -> Reply:
    details = {"causes": [{"reason": cause} for cause in causes]}
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message, "details": details}
    return Reply(code, {**body, "reason": reason} if reason else body, headers or {})


class ScriptedApi:
    """Answers with the replies given, in order; the last one is repeated."""

    def __init__(self, *replies: Reply, answer: Callable[[Request], Reply] | None = None) -> None:
        self.requests: list[Request] = []
        self._replies = list(replies)
        self._answer = answer
        self._lock = threading.Lock()
        self.url = ""

    def reply_to(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            if self._answer is not None:
                return self._answer(request)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def kubeconfig(self, folder: Path, **user: str) -> Path:
        path = folder / "kubeconfig"
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": user}],
        }
        path.write_text(json.dumps(config))
        return path


def _handler(script: ScriptedApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            body = json.loads(raw) if raw else None
            reply = script.reply_to(Request(self.command, self.path, dict(self.headers), body))
            if reply.cut:
                self.close_connection = True
                self.connection.close()
                return
            lines = reply.lines
            content = json.dumps(reply.body).encode() if not isinstance(reply.body, bytes) else reply.body
            self.send_response_only(reply.code)
            if "Date" not in reply.headers:
                self.send_header("Date", self.date_time_string())
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if lines is None:
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_header("Connection", "close")
            self.end_headers()
            for line in lines:
                self.wfile.write(json.dumps(line).encode() + b"\n")
            self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            return

    return Handler


@contextmanager
def serving(script: ScriptedApi) -> Iterator[ScriptedApi]:
    """The script behind a loopback port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
