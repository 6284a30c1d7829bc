"""Takes GitHub's webhooks: `python -m coding_agent.receiver PORT` serves on this machine until it is stopped.

A delivery counts only with a signature under the secret in WEBHOOK_SECRET. Its pull request carries the handle in its body; id and time of
the outcome are the pull request's, so that a delivery which GitHub repeats is the same outcome.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import treadle

MAX_BYTES = 25 * 1024 * 1024  # GitHub sends no more
HANDLE = re.compile(r"^treadle: (\S+)$", re.MULTILINE)


class Receiver(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        """Check the signature, then report. The name is http.server's."""
        size = int(self.headers.get("Content-Length") or 0)
        if size > MAX_BYTES:
            self._answer(413)
            return
        body = self.rfile.read(size)
        secret = os.environ["WEBHOOK_SECRET"].encode()
        expected = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, self.headers.get("X-Hub-Signature-256") or ""):
            self._answer(401)
            return
        if self.headers.get("X-GitHub-Event") == "pull_request":
            self._report(body)
        self._answer(204)

    def _report(self, body: bytes) -> None:
        said = json.loads(body)
        pull = said["pull_request"]
        found = HANDLE.search(pull["body"] or "")
        if said["action"] == "closed" and found is not None:
            name = f"pr_merged/{said['repository']['full_name']}#{pull['number']}/{pull['closed_at']}"
            treadle.outcome(found[1], "pr_merged", pull["merged"], outcome_id=name, observed_at=pull["closed_at"])

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing a request."""


def main(port: int) -> None:
    """Kafka comes from TREADLE_BOOTSTRAP_SERVERS; the handle says the workspace. SIGTERM lets outcomes drain."""
    with HTTPServer(("127.0.0.1", port), Receiver) as server:
        print(f"listening on {server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
