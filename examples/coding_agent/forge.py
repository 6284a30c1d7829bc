"""A stand-in for GitHub: pull requests in a JSON file, and the webhook that GitHub would send, with its headers and signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

REPOSITORY = "acme/tools"


def pulls(hub: Path) -> list[dict[str, Any]]:
    """All pull requests, in the form of GitHub's API."""
    found: list[dict[str, Any]] = json.loads(hub.read_text()) if hub.exists() else []
    return found


def open_pull(hub: Path, title: str, body: str) -> int:
    """Open a pull request; its number."""
    known = pulls(hub)
    number = len(known) + 1
    url = f"https://github.com/{REPOSITORY}/pull/{number}"
    made = {"number": number, "html_url": url, "title": title, "body": body, "state": "open", "merged": False}
    hub.write_text(
        json.dumps([*known, made | {"user": {"login": "coding-agent"}, "merged_at": None, "closed_at": None}])
    )
    return number


def close(hub: Path, number: int, *, merge: bool) -> dict[str, Any]:
    """A reviewer merges the pull request or closes it without; what it is then."""
    known = pulls(hub)
    moment = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    known[number - 1] |= {
        "state": "closed",
        "merged": merge,
        "merged_at": moment if merge else None,
        "closed_at": moment,
        "updated_at": moment,
    }
    hub.write_text(json.dumps(known))
    return known[number - 1]


def webhook(pull: dict[str, Any], secret: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the delivery that tells of a closed pull request."""
    said = {
        "action": "closed",
        "number": pull["number"],
        "pull_request": pull,
        "repository": {"full_name": REPOSITORY, "html_url": f"https://github.com/{REPOSITORY}"},
        "sender": {"login": "reviewer"},
    }
    body = json.dumps(said).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return body, {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/stand-in",
        "X-GitHub-Event": "pull_request",
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": f"sha256={signature}",
    }


def deliver(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Send a delivery; the HTTP status. Raises HTTPError where the receiver refuses it."""
    with urlopen(Request(url, body, headers), timeout=10) as answer:  # noqa: S310  (an address of this machine)
        return int(answer.status)
