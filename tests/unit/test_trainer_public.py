"""The trainer's public face: every name is there, and asking for one costs only what it needs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import treadle_trainer
from treadle_trainer.cli import COMMANDS


def test_every_public_name_can_be_had() -> None:
    for name in treadle_trainer.__all__:
        assert getattr(treadle_trainer, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = treadle_trainer.nothing


@pytest.mark.parametrize(
    "module", ["registry", "guard", "jobs", "methods", "evaluate", "policy", "gate", "turn", "data"]
)
def test_what_a_module_promises_it_has(module: str) -> None:
    found = importlib.import_module(f"treadle_trainer.{module}")
    assert sorted(found.__all__) == sorted(set(found.__all__))
    assert all(hasattr(found, name) for name in found.__all__)


def test_every_command_of_the_table_exists() -> None:
    for target, text in COMMANDS.values():
        module, _, attribute = target.partition(":")
        assert getattr(importlib.import_module(module), attribute).help
        assert text.endswith(".")


def test_the_package_itself_is_light() -> None:
    code = "import sys, treadle_trainer, treadle_trainer.cli; print([m for m in ('numpy', 'torch', 'confluent_kafka') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
