"""A disk that takes nothing more: a real limit on the size of files, which a process of its own has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CHILD = """
import resource, sys
from rocksdict import Options, Rdict
from treadle_streams.worker._store import PartitionStore
from treadle_streams.worker.errors import StateUnwritable

store = PartitionStore(Rdict(sys.argv[1], Options(raw_mode=True)), "shop")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
written = 0
try:
    while written < 1_000:
        store.replay([(b"z%d" % written, b"x" * 1_000)], written)
        written += 1
except StateUnwritable as err:
    print(err.path, err.retriable, written, err, sep="\\n")
"""


def test_a_full_disk_is_an_error_that_names_the_folder_and_the_way_out(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", _CHILD, tmp_path / "db"], capture_output=True, text=True, check=True)
    path, retriable, written, said = ended.stdout.splitlines()
    assert (path, retriable) == (str(tmp_path / "db"), "True")
    assert 0 < int(written) < 200
    assert f"local state in {path} cannot be written: IO error" in said
    assert "Free some space, or set TREADLE_HOME" in said
