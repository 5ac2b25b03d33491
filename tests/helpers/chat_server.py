"""A real HTTP server that speaks the part of the OpenAI API that a judge uses; a script says what it answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # status, body: JSON, or bytes as they are


def labels(**logprobs: float) -> Reply:
    """A reply whose first token has these candidates."""
    top = [{"token": t, "logprob": x, "bytes": None} for t, x in logprobs.items()]
    return chat(next(iter(logprobs)), {"content": [{**top[0], "top_logprobs": top}]})


def chat(text: str, logprobs: Any = None) -> Reply:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": logprobs,
        "message": {"role": "assistant", "content": text},
    }
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def failure(status: int, message: str, code: str | None = None) -> Reply:
    return status, {"error": {"message": message, "type": "error", "code": code}}


class ChatServer:
    """`script(request number, text)` answers each; `texts` and `keys` are what was asked, in order of arrival.

    Args:
        seconds: before each reply.
        headers: more of them.
        drip: seconds between the bytes of a reply.
    """

    def __init__(
        self,
        script: Callable[[int, str], Reply],
        seconds: float = 0.0,
        headers: Mapping[str, str] | None = None,
        drip: float = 0.0,
    ) -> None:
        self.texts: list[str] = []
        self.keys: set[str | None] = set()
        self.most_at_once = self._now = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.texts)
                    outer.texts.append(body["messages"][0]["content"])
                    outer.keys.add(self.headers.get("Authorization"))
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                status, reply = script(number, outer.texts[number])
                time.sleep(seconds)
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                with lock:
                    outer._now -= 1
                try:
                    self.send_response(status)
                    fields = {"Content-Type": "application/json", "Content-Length": str(len(data))}
                    for name, value in (fields | dict(headers or {})).items():
                        self.send_header(name, value)
                    self.end_headers()
                    for part in [data[i : i + 1] for i in range(len(data))] if drip else [data]:
                        self.wfile.write(part)
                        time.sleep(drip)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client no longer waits

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
