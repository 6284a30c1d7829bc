"""kill -9 of a writer before every request that changes an object store: readers see whole versions at once, and the next writer, here
or on a machine with an empty home, goes on to the same versions as one that nobody disturbed.
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

import s3fs  # loaded once; no process but the children talks to the server
from dying import StoreSteps, child, told
from treadle_corpus import Corpus, CorpusWriter, Policy, _bodies, _journal, _store, resolve_target, versions
from treadle_corpus.objects import ObjectStore, lease
from treadle_corpus.testing import SelectAll, graded

_bodies.SEGMENT_BODIES = 8
_journal.ROTATE_BYTES, _journal.ROTATE_FACTOR = 1500, 0
_store._deeplake()

BUCKET, ROOT, STRIDE = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
RECORDS = [graded(f"r{n}", task_id=f"t{n % 5}", reward=float(n % 3)) for n in range(12)]
RECORDS += [graded(f"r{n}", task_id=f"t{n % 5}", reward=9.0, revision=2) for n in range(0, 12, 3)]
RUN = 4


def work(url):
    """Fold everything, a version every RUN records."""
    with CorpusWriter.open(resolve_target(url), workspace="w", policy=Policy()) as corpus:
        offset = corpus.offsets.get(0, 0)
        while True:
            if corpus.unfinished:
                corpus.finish(SelectAll())
            if offset == len(RECORDS):
                return
            end = min(offset + RUN, len(RECORDS))
            corpus.apply(RECORDS[offset:end], {0: end}, end)
            offset = end


def seen(url):
    """What readers see."""
    found = {}
    for number in versions(resolve_target(url)):
        with Corpus.open(f"{url}@v{number}") as corpus:
            corpus.verify()
            found[number] = (corpus.manifest.content_hash, corpus.manifest.offsets)
    return found


def measured():
    steps = StoreSteps(0)
    work(f"{BUCKET}/plain")
    return json.dumps([steps.count, seen(f"{BUCKET}/plain")])


os.environ["TREADLE_HOME"] = str(ROOT / "plain")
total, expected = json.loads(told(measured))
EXPECTED = {int(n): tuple(v) for n, v in expected.items()}
assert len(EXPECTED) == 4, EXPECTED


def again(url):
    left = seen(url) if "corpus.json" in ObjectStore(url).names() else {}
    assert {n: EXPECTED[n] for n in left} == left, "a reader sees another version after the kill"
    work(url)
    assert seen(url) == EXPECTED


points = range(1, total + 1, STRIDE)
for last in points:
    url = f"{BUCKET}/killed-{last}"
    os.environ["TREADLE_HOME"] = str(ROOT / "killed")
    status = child(lambda: (StoreSteps(last), work(url)))
    assert os.WIFSIGNALED(status), f"step {last} of {total} was never reached"
    if last % 2:
        os.environ["TREADLE_HOME"] = str(ROOT / "other")
        lease.EXPIRE_S = -1.0  # the owner is dead, and nothing but time tells another machine
    assert child(lambda: again(url)) == 0, f"after a kill at step {last} of {total}"
    lease.EXPIRE_S = 60.0
    for home in ("killed", "other"):
        shutil.rmtree(ROOT / home, ignore_errors=True)
print(f"{len(points)} of {total} steps, {len(EXPECTED)} versions")
'''


@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.long)], ids=["some steps", "every step"])
def test_a_writer_killed_between_any_two_puts_is_gone_on_with_here_and_elsewhere(
    bucket: str, tmp_path: Path, stride: int
) -> None:
    command = [sys.executable, "-c", DRIVER, bucket, str(tmp_path), str(stride)]
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=1700, env={**os.environ, "PYTHONPATH": here}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
