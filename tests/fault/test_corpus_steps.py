"""kill -9 of a corpus' writer between every two durable steps, and in the middle of writing: readers see whole versions at once, and the
next writer goes on to the same versions, bit for bit, as one that nobody disturbed.

Everything that counts on disk goes through `treadle_corpus._disk`, so the steps are the calls of that module. Journals and segments are
made small, so that rotation and sealing are among them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = '''
import json, os, shutil, sys
from pathlib import Path

from dying import Steps, child, told
from treadle_corpus import Corpus, CorpusWriter, Policy, _bodies, _disk, _journal, _store, versions
from treadle_corpus.testing import SelectAll, graded

_bodies.SEGMENT_BODIES = 8
_journal.ROTATE_BYTES, _journal.ROTATE_FACTOR = 1500, 0
_store._deeplake()  # loaded once, used by the children only

ROWS = int(sys.argv[2])
RECORDS = [graded(f"r{n}", task_id=f"t{n % 5}", reward=float(n % 3)) for n in range(ROWS)]
RECORDS += [graded(f"r{n}", task_id=f"t{n % 5}", reward=9.0, revision=2) for n in range(0, ROWS, 3)]
BATCH, RUN = 5, 10


def work(path):
    """Fold everything, a version every RUN records."""
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as corpus:
        offset = corpus.offsets.get(0, 0)
        while True:
            if offset % RUN == 0 and corpus.unfinished or offset == len(RECORDS):
                corpus.finish(SelectAll())
            if offset == len(RECORDS):
                return
            end = min(offset + BATCH, len(RECORDS))
            corpus.apply(RECORDS[offset:end], {0: end}, end)
            offset = end


def seen(path):
    """What readers see."""
    found = {}
    for number in versions(path):
        with Corpus.open(f"{path}@v{number}") as corpus:
            corpus.verify()
            found[number] = (corpus.manifest.content_hash, corpus.manifest.offsets)
    return found


root = Path(sys.argv[1])
plain = root / "plain"


def measured():
    steps = Steps(0)
    work(plain)
    return str(steps.count)


total = int(told(measured))
EXPECTED = {int(n): tuple(v) for n, v in json.loads(told(lambda: json.dumps(seen(plain)))).items()}
assert len(list((plain / "index").glob("*.log"))) > 2, "the journal never rotated"
assert len(list((plain / "bodies").glob("*.json"))) > 2, "no segment was sealed"
path = root / "killed"


def again():
    left = seen(path)
    assert {n: EXPECTED[n] for n in left} == left, "a reader sees another version after the kill"
    work(path)
    assert seen(path) == EXPECTED
    stray = [f for f in path.rglob("*.new")]
    assert not stray, stray


points = range(1, total + 1, int(sys.argv[3]))
for last in points:
    shutil.rmtree(path, ignore_errors=True)
    status = child(lambda: (Steps(last), work(path)))
    assert os.WIFSIGNALED(status), f"step {last} of {total} was never reached"
    print(last, end=" ", flush=True)
    assert child(again) == 0, f"after a kill at step {last} of {total}"
print(f"{len(points)} of {total} steps, {len(EXPECTED)} versions")
'''


@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("rows", "stride"), [(30, 9), pytest.param(40, 1, marks=pytest.mark.long)], ids=["some steps", "every step"]
)
def test_a_writer_killed_at_any_step_is_gone_on_with_by_the_next_and_no_reader_notices(
    tmp_path: Path, rows: int, stride: int
) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(rows), str(stride)]
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=1700, env={**os.environ, "PYTHONPATH": here}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
