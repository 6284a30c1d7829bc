"""Asking running proxies to load a release before its alias moves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import httpx
from treadle_schemas import ReleaseId

from treadle_trainer.errors import DeployFailed

__all__ = ["prepare"]

PREPARE_S: Final = 900.0
"""Longest time in which a proxy has to have loaded and probed a model."""


def prepare(targets: Sequence[str], release: ReleaseId) -> dict[str, float]:
    """Have each proxy (`http://HOST:PORT`) verify, load and probe a release: how many seconds each took.

    They are given TREADLE_SERVE_TOKEN, where it is set. Raises DeployFailed naming the target, at the first that cannot; nothing that
    serves was changed.
    """
    token = os.environ.get("TREADLE_SERVE_TOKEN")
    headers = {} if not token else {"Authorization": f"Bearer {token}"}
    took = {}
    with httpx.Client(headers=headers, timeout=httpx.Timeout(PREPARE_S, connect=5.0)) as client:
        for target in targets:
            try:
                answer = client.post(f"{target.rstrip('/')}/treadle/prepare", json={"release": str(release)})
                body = answer.json()
            except (httpx.HTTPError, ValueError) as err:
                raise DeployFailed(f"{target} did not load {release}: {type(err).__name__}: {err}") from err
            if answer.status_code != 200:
                why = body.get("error", {}).get("message") if isinstance(body, dict) else body
                raise DeployFailed(f"{target} did not load {release}: {why}")
            took[target] = float(body["seconds"])
    return took
