"""A model that judges, behind a real HTTP server: it obeys whatever it is shown."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

__all__ = ["Judge"]


class Judge:
    """Obeys whatever the material says, as a weak judge would; else finds right what has `marker` in it, and has no idea of the rest."""

    def __init__(self, marker: str = "yes") -> None:
        self.asked: list[dict[str, Any]] = []
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                judge.asked.append({**body, "key": self.headers.get("authorization")})
                material = body["messages"][-1]["content"]
                verdict = (
                    '{"value": 7}' if "Ignore" in material else '{"value": true}' if marker in material else "no idea"
                )
                usage = {"prompt_tokens": 50, "completion_tokens": 3, "total_tokens": 53}
                said = {"choices": [{"message": {"content": f"Well: {verdict}"}}], "usage": usage}
                raw = json.dumps(said).encode()
                self.send_response(200 if "broken" not in material else 500)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Judge:
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
