"""The broker on real parts: start, attach, race, crash, refusal."""

from __future__ import annotations


def test_smoke(broker: str, workspace_name: str) -> None:
    assert broker
