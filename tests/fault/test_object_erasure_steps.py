"""kill -9 of an erasure in an object store before every request that changes the store, and before everything that it removes here.

Readers see all versions of before or all of after. Whoever comes next, an eraser or a writer, here or on a machine with an empty home,
ends with the versions of an erasure that nobody disturbed, and no byte of the erased rows is in the bucket or on a machine that opened the
corpus since.
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
from treadle_corpus import Corpus, CorpusWriter, Policy, _bodies, _journal, _store, erase, erasures, resolve_target, versions
from treadle_corpus.objects import ObjectStore, lease
from treadle_corpus.objects.published import generation_of
from treadle_corpus.testing import SelectAll, graded
from tests.integration.object_world import in_folder, in_store, said

_bodies.SEGMENT_BODIES = 8
_journal.ROTATE_BYTES, _journal.ROTATE_FACTOR = 1500, 0
_store._deeplake()

BUCKET, ROOT, STRIDE = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ROWS = 16
SECRETS = [os.urandom(24).hex() for _ in range(ROWS)]
RECORDS = [graded(f"r{n}", episode_id=f"e{n % 6}", task_id=SECRETS[n], reward=float(n % 3)) for n in range(ROWS)]
RECORDS += [graded(f"r{n}", episode_id=f"e{n % 6}", task_id=SECRETS[n], reward=9.0, revision=2) for n in range(0, ROWS, 4)]
GONE = [SECRETS[n] for n in range(ROWS) if n % 6 in (1, 4)]
HALF = 11  # folded up to here when the erasure comes, of which the last few are in no version


def home(name):
    os.environ["TREADLE_HOME"] = str(ROOT / name)


def work(url, until):
    """Fold up to there, a version every four records."""
    with CorpusWriter.open(resolve_target(url), workspace="w", policy=Policy()) as corpus:
        while True:
            offset = corpus.offsets.get(0, 0)
            if corpus.unfinished and (offset % 4 == 0 or offset == len(RECORDS)):
                corpus.finish(SelectAll())
            if offset == until:
                return
            corpus.apply([RECORDS[offset]], {0: offset + 1}, offset)


def erased(url):
    return erase(resolve_target(url), ["e1", "e4"], reason="asked", erased_at="2026-11-30T00:00:00Z")


def seen(url):
    """What readers see."""
    found = {}
    for number in versions(resolve_target(url)):
        with Corpus.open(f"{url}@v{number}") as corpus:
            corpus.verify()
            found[number] = (corpus.manifest.content_hash, corpus.manifest.rows, corpus.manifest.offsets)
    return json.dumps(found)


def plain():
    url = f"{BUCKET}/plain"
    home("plain")
    work(url, HALF)
    before = seen(url)
    assert said([*in_store(url), *in_folder(ROOT / "plain")], GONE[:3])
    steps = StoreSteps(0, removals=True)
    erased(url)
    count, after = steps.count, seen(url)
    work(url, len(RECORDS))
    return json.dumps([count, before, after, seen(url)])


TOTAL, BEFORE, AFTER, END = json.loads(told(plain))
assert len({BEFORE, AFTER, END}) == 3 and len(json.loads(AFTER)) == 2 and len(json.loads(END)) == 5, (BEFORE, AFTER, END)


def readers(url, *, homes):
    for name in homes:
        home(name)
        assert seen(url) in (BEFORE, AFTER), f"a reader in {name} sees other versions after the kill"


def ends(url, mode):
    home("other" if mode % 2 else "killed")
    if mode // 2 % 2:
        work(url, len(RECORDS))
        erased(url)
    else:
        erased(url)
        assert seen(url) == AFTER
        work(url, len(RECORDS))
    for name in ("killed", "other", "third"):
        home(name)
        assert seen(url) == END, name
        assert sum(bool(one.versions) for one in erasures(resolve_target(url))) == 1
        work(url, len(RECORDS))  # a writer there forgets what its work folder had
        assert not said(in_folder(ROOT / name), GONE), name
    assert not said(in_store(url), GONE)
    held = generation_of(ObjectStore(url))
    assert held.done and held.number == 1, held


points = range(1, TOTAL + 1, STRIDE)
for n, last in enumerate(points):
    url = f"{BUCKET}/killed-{last}"
    home("killed")
    assert child(lambda: (work(url, HALF), seen(url))) == 0
    status = child(lambda: (StoreSteps(last, removals=True), erased(url)))
    assert os.WIFSIGNALED(status), f"step {last} of {TOTAL} was never reached"
    assert child(lambda: readers(url, homes=("killed", "third"))) == 0, f"readers after a kill at step {last} of {TOTAL}"
    lease.EXPIRE_S = -1.0  # the owner is dead, and nothing but time tells another machine
    assert child(lambda: ends(url, last + last // 4)) == 0, f"after a kill at step {last} of {TOTAL}"
    lease.EXPIRE_S = 60.0
    for name in ("killed", "other", "third"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
print(f"{len(points)} of {TOTAL} steps")
'''


@pytest.mark.fault
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)], ids=["some steps", "every step"])
def test_an_erasure_killed_between_any_two_steps_is_finished_by_whoever_comes_next(
    bucket: str, tmp_path: Path, stride: int
) -> None:
    command = [sys.executable, "-c", DRIVER, bucket, str(tmp_path), str(stride)]
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=2300, env={**os.environ, "PYTHONPATH": here}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
