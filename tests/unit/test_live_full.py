"""A live index whose disk takes nothing more: a real limit on the size of files, which a process of its own has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CHILD = """
import resource, sys
from pathlib import Path
import treadle
from treadle.log import Record
from treadle.memory import MemorySink
from treadle_schemas.codec import make_headers
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings
from treadle_streams.live.errors import IndexFull
from treadle_streams.live.fold import Fold
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.index import LiveIndex

limit, folder = int(sys.argv[2]), IndexFolder(Path(sys.argv[1]), "shop")
settings = WorkspaceSettings(workspace="shop", partitions=1)
index = LiveIndex(folder, settings)
fold = Fold(index.rows, settings, index.erased)
where = (topic("shop", "interactions"), 0)
sink = MemorySink()
recorder = treadle.Recorder("shop", sink=sink, agent="desk", raise_errors=True)
begin = index.rows.positions().get(where, 0)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    for n in range(begin, 60):
        recorder.record(
            interaction_id=f"i{n}",
            episode_id=f"i{n}",
            messages=[{"role": "user", "content": f"word{n} " + "filler%d " % n * 400}, {"role": "assistant", "content": "yes"}],
        )
        with index.writing():
            index.rows.begin()
            for sent in sink.sent:  # its parts, and itself
                headers = list(make_headers(sent.event.type, "shop", source="test"))
                fold.take(Record(sent.topic, 0, n, 1_000 + n, sent.key, sent.value, headers))
        sink.sent.clear()
        index.commit(fold.changed, {where: n + 1})
        fold.changed.clear()
except IndexFull as err:
    print("full", "", err.retriable, err)
finally:
    index.close()
again = LiveIndex(folder, settings)
print("at", again.rows.positions().get(where, 0), again.rows.count().get("", 0))
again.close()
"""


@pytest.mark.parametrize("limit", [60_000, 150_000, 400_000])
def test_a_full_disk_is_a_typed_error_and_the_next_indexer_goes_on_from_the_last_commit(
    tmp_path: Path, limit: int
) -> None:
    def run(size: int) -> list[str]:
        command = [sys.executable, "-c", _CHILD, str(tmp_path), str(size)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    said, where = run(limit)
    assert said.startswith("full  True live index ")
    assert f"live index {tmp_path}" in said
    assert "free some space, or set TREADLE_HOME" in said
    at, shown = map(int, where.split()[1:])
    assert 0 <= at < 60
    assert shown == at
    assert run(0) == ["at 60 60"]
