"""What tests of whole turns in the world of train_world share. A module with a world of its own has fixtures of the same names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from treadle_trainer.jobs import JobRunner

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def world_on_the_path() -> Iterator[None]:
    """Jobs and tests import train_world by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def runner(world_on_the_path: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRunner]:
    """Starts jobs that can import train_world."""
    with JobRunner(tmp_path_factory.mktemp("home") / "jobs") as made:
        made.warm()
        yield made


@pytest.fixture(scope="module")
def base(world_on_the_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has never seen the world."""
    from train_world import make_base  # type: ignore[import-not-found]

    folder = tmp_path_factory.mktemp("base") / "model"
    make_base(folder)
    return folder
