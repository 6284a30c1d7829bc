"""`Releases.watch` on a real broker and a real registry: verified, within a second, and the last good one when anything fails."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from treadle import Releases
from treadle.releases import Serving
from treadle_schemas import ReleaseId, WorkspaceSettings
from treadle_streams import workspaces
from treadle_trainer.registry import Outbox, Registry

MEGABYTE = b"w" * 1_000_000


class World:
    """A registry whose moves are told at once, and a watcher whose findings come through a queue with their times."""

    def __init__(self, broker: str, name: str, home: Path) -> None:
        workspaces.create(broker, WorkspaceSettings(workspace=name, partitions=1))
        self.registry = Registry(home / "registry", name)
        self._outbox = Outbox(self.registry, broker)
        self.releases = Releases(name, bootstrap_servers=broker, registry=home / "registry")
        self.model = home / "model"
        self.model.mkdir()
        (self.model / "weights").write_bytes(MEGABYTE)
        self._found: queue.SimpleQueue[tuple[float, Serving]] = queue.SimpleQueue()

    def start(self) -> None:
        self._ending = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """One more move, at which the watcher looks up and goes."""
        self._ending = True
        self.promoted()
        self.tell()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _watch(self) -> None:
        with self.releases:
            for serving in self.releases.watch():
                self._found.put((time.monotonic(), serving))
                if self._ending:
                    return

    def promoted(self) -> ReleaseId:
        release = self.registry.register(self.model)
        self.registry.promote(release, expect=self.registry.champion, reason="next")
        return release

    def tell(self) -> float:
        """Publish what was decided; the flip is when that is done. Returns its time."""
        self._outbox.publish()
        return time.monotonic()

    def next(self) -> tuple[float, Serving]:
        return self._found.get(timeout=10)

    def none_for(self, seconds: float) -> bool:
        try:
            self._found.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


@pytest.fixture
def world(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[World]:
    made = World(broker, workspace_name, tmp_path)
    first = made.promoted()
    made.tell()
    made.start()
    assert made.next()[1].champion.name == str(first)
    yield made
    made.end()


def test_a_move_is_yielded_verified_within_a_second(world: World) -> None:
    for _ in range(3):
        release = world.promoted()
        flipped = world.tell()
        seen, serving = world.next()
        assert (serving.champion.name, serving.event.event) == (str(release), "promoted")
        assert (serving.champion.folder / "weights").read_bytes() == MEGABYTE
        assert seen - flipped < 1.0
    canary = world.registry.register(world.model)
    world.registry.admit(canary, share=0.5, expect=world.registry.champion, reason="try")
    flipped = world.tell()
    seen, serving = world.next()
    assert seen - flipped < 1.0
    assert {serving.pick(f"e{n}").name for n in range(50)} == {str(canary), str(release)}


def test_a_release_that_is_not_what_the_registry_said_leaves_the_last_good_one(world: World) -> None:
    bad = world.promoted()
    weights = world.registry.folder(bad) / "weights"
    weights.write_bytes(b"x" + MEGABYTE[1:])
    world.tell()
    assert world.none_for(1.0)
    assert world.releases.trouble is not None
    assert str(weights) in world.releases.trouble
    weights.unlink()
    assert world.none_for(0.7)
    weights.write_bytes(MEGABYTE)  # the right file arrives late
    assert world.next()[1].champion.name == str(bad)
    assert world.releases.trouble is None

    # a manifest that was changed together with its file: its own hash came by the topic
    worse = world.promoted()
    folder = world.registry.folder(worse)
    (folder / "weights").write_bytes(b"y" + MEGABYTE[1:])
    from treadle.release_files import sha256_file

    manifest = (folder / "manifest.json").read_text()
    old = world.registry.manifest(worse).files["weights"]
    (folder / "manifest.json").write_text(manifest.replace(old, sha256_file(folder / "weights")))
    world.tell()
    assert world.none_for(1.0)
    assert "manifest.json: was changed after" in str(world.releases.trouble)


def test_a_canary_that_cannot_be_verified_fails_open_to_the_champion(world: World) -> None:
    champion = str(world.registry.champion)
    canary = world.registry.register(world.model)
    world.registry.admit(canary, share=0.5, expect=world.registry.champion, reason="try")
    (world.registry.folder(canary) / "weights").unlink()
    world.tell()
    serving = world.next()[1]
    assert serving.canary is None
    assert {serving.pick(f"e{n}").name for n in range(50)} == {champion}
