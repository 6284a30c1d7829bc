"""kill -9 of an erasure between every two durable steps: readers see all versions as before or all as after, and calling it again ends with
no byte of the erased rows in the corpus or beside it.
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
from treadle_corpus import Corpus, CorpusInUse, CorpusLocked, CorpusWriter, Policy, _bodies, _journal, _store, erase, erasures, versions
from treadle_corpus.testing import SelectAll, graded

_bodies.SEGMENT_BODIES = 8
_journal.ROTATE_BYTES, _journal.ROTATE_FACTOR = 1500, 0
_store._deeplake()  # loaded once, used by the children only

ROWS = 24
SECRETS = [os.urandom(24).hex() for _ in range(ROWS)]  # nothing compresses them
RECORDS = [graded(f"r{n}", episode_id=f"e{n % 6}", task_id=SECRETS[n], reward=float(n % 3)) for n in range(ROWS)]
RECORDS += [graded(f"r{n}", episode_id=f"e{n % 6}", task_id=SECRETS[n], reward=9.0, revision=2) for n in range(0, ROWS, 4)]
GONE = [SECRETS[n] for n in range(ROWS) if n % 6 in (1, 4)]


def made(path):
    """A corpus with versions, a tag, and records that no version has yet."""
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as corpus:
        for offset in range(0, len(RECORDS), 5):
            corpus.apply(RECORDS[offset : offset + 5], {0: offset + 5}, offset)
            if offset % 10 == 0:
                corpus.finish(SelectAll())
    with Corpus.open(f"{path}@v2") as two:
        two.tag("golden")


def erased(path):
    return erase(path, ["e1", "e4"], reason="asked", erased_at="2026-11-30T00:00:00Z")


def seen(path):
    found = {}
    for number in versions(path):
        with Corpus.open(f"{path}@v{number}") as corpus:
            corpus.verify()
            found[number] = (corpus.manifest.content_hash, corpus.manifest.rows, corpus.tags())
    return json.dumps(found)


def secrets_in(folder):
    """Each body is compressed alone, and 48 hex digits are coded as they are or as literals: so all is unpacked before it is searched."""
    said = []
    for corpus in folder.iterdir():
        if not (corpus / "bodies").is_dir():
            continue
        bodies = _bodies.Bodies(corpus)
        bodies.refresh()
        for seal in bodies._seals.values():
            said += bodies.read(range(seal.first, seal.first + seal.bodies))
        for tail in (corpus / "bodies").glob("tail-*.log"):
            opened = _bodies._Tail(corpus, tail, int(tail.stem.removeprefix("tail-")))
            said += [_bodies.unpack(opened.packed(n)) for n in range(opened.first, opened.end)]
    text = repr(said)
    return str(sum(one in text for one in GONE))


root = Path(sys.argv[1])
base, plain, folder = root / "base", root / "plain" / "main", root / "killed"
assert child(lambda: made(base)) == 0
BEFORE = told(lambda: seen(base))
shutil.copytree(base, plain)
assert told(lambda: secrets_in(plain.parent)) == str(len(GONE))


def measured():
    steps = Steps(0)
    erased(plain)
    return str(steps.count)


total = int(told(measured))
AFTER = told(lambda: seen(plain))
assert BEFORE != AFTER and told(lambda: secrets_in(plain.parent)) == "0"


def again():
    path = folder / "main"
    erased(path)
    assert seen(path) == AFTER
    assert [p.name for p in folder.iterdir()] == ["main"], list(folder.iterdir())
    assert secrets_in(folder) == "0"
    assert len(erasures(path)) == 1


points = range(1, total + 1, int(sys.argv[2]))
for last in points:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder / "main")
    status = child(lambda: (Steps(last), erased(folder / "main")))
    assert os.WIFSIGNALED(status), f"step {last} of {total} was never reached"
    assert told(lambda: seen(folder / "main")) in (BEFORE, AFTER), f"readers after a kill at step {last} of {total}"
    assert child(again) == 0, f"after a kill at step {last} of {total}"
print(f"{len(points)} of {total} steps")
'''


@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.long)], ids=["some steps", "every step"])
def test_an_erasure_killed_at_any_step_is_gone_on_with_and_leaves_nothing(tmp_path: Path, stride: int) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(stride)]
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=1700, env={**os.environ, "PYTHONPATH": here}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
