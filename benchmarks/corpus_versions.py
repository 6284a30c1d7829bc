"""Thousands of versions of one corpus: what opening, committing and storing one costs, as their number grows.

python benchmarks/corpus_versions.py [--quick] [--json FILE] [--rows N] [--versions N]

A corpus of N rows (10,000; with --quick 2,000) of some 4 KB gets a first version. Every version after it corrects the rewards of 1 % of the
rows, drawn anew: each correction is a whole graded row, as the join writes it. After 1, 100, 500, 1,000 and 5,000 versions (with --quick
up to 500) are measured:

- open_ms: opening a version drawn from all there are, and its manifest
- rows_ms: opening one and reading all its rows
- commit_ms: folding the corrections and finishing the version, wall clock; commit_cpu_ms: the processor's share of it
- bytes: what a version added to the folder, on average since the point before
- writer_ms: opening the corpus to write

Beside it `deeplake`: a plain dataset of the same rewards with a commit and a tag a version, up to 500: how versions were kept before.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import describe
from treadle_corpus import Corpus, CorpusWriter, Policy, read_record
from treadle_corpus._store import _deeplake
from treadle_corpus.testing import SelectAll, graded

POINTS = (1, 100, 500, 1000, 5000)
DEEPLAKE_VERSIONS = 500
SAMPLES = 15
LAST = 20
"""Commits before a point that its commit times are taken from."""


def record(number: int, revision: int, reward: float) -> bytes:
    """One graded row of some 4 KB, which says the same in each revision but for its reward."""
    chance = random.Random(number)
    words = [chance.choice(WORDS) for _ in range(550)]
    messages = [
        {"role": "system", "content": " ".join(words[:150])},
        {"role": "user", "content": " ".join(words[150:250])},
        {"role": "assistant", "content": " ".join(words[250:])},
    ]
    return graded(f"{number:08d}", revision=revision, reward=reward, task_id=f"t{number // 8}", messages=messages).body


WORDS = ["".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=3 + n % 8)) for n in range(4000)]


def size(path: Path) -> int:
    """Bytes of all files."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def times_ms(act: Callable[[], object], samples: int = SAMPLES) -> list[float]:
    """Wall clock of each call."""
    found = []
    for _ in range(samples):
        began = time.perf_counter()
        act()
        found.append(round((time.perf_counter() - began) * 1e3, 3))
    return found


def treadle(folder: Path, rows: int, versions: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The curve of a corpus."""
    path, chance = folder / "corpus", random.Random(7)
    revisions = [1] * rows
    points: list[dict[str, Any]] = []
    corpus = CorpusWriter.open(path, workspace="bench", policy=Policy())
    offset = 0
    for start in range(0, rows, 2000):
        batch = [read_record(record(n, 1, 1.0)) for n in range(start, min(start + 2000, rows))]
        offset += len(batch)
        corpus.apply(batch, {0: offset}, offset)
    commits: list[tuple[float, float]] = []
    before = (0, 0)
    for version in range(1, versions + 1):
        changed: list[bytes] = []
        if version > 1:
            for number in chance.sample(range(rows), max(1, rows // 100)):
                revisions[number] += 1
                changed.append(record(number, revisions[number], round(chance.random(), 3)))
        began, cpu = time.perf_counter(), time.process_time()
        offset += len(changed)
        corpus.apply([read_record(value) for value in changed], {0: offset}, offset)
        assert corpus.finish(SelectAll()) is not None
        commits.append(((time.perf_counter() - began) * 1e3, (time.process_time() - cpu) * 1e3))
        if version in POINTS:
            total = size(path)

            def opened() -> None:
                with Corpus.open(f"{path}@v{chance.randint(1, version)}") as found:  # noqa: B023 - called at once
                    assert found.manifest.rows == rows

            def read() -> None:
                with Corpus.open(f"{path}@v{chance.randint(1, version)}") as found:  # noqa: B023
                    assert sum(1 for _ in found.rows("all")) == rows

            last = commits[-LAST:]
            open_ms, rows_ms = times_ms(opened), times_ms(read, 3)
            corpus.close()
            began = time.perf_counter()
            corpus = CorpusWriter.open(path, workspace="bench", policy=Policy())
            writer_ms = (time.perf_counter() - began) * 1e3
            corpus.apply([], {0: offset + 1}, offset)
            offset += 1
            corpus.finish(SelectAll())  # what a writer remembers is there again before the next commit is measured
            points.append(
                {
                    "versions": version,
                    "open_ms": round(statistics.median(open_ms), 3),
                    "open_max_ms": max(open_ms),
                    "rows_ms": round(statistics.median(rows_ms), 1),
                    "commit_ms": round(statistics.median(w for w, _ in last), 1),
                    "commit_cpu_ms": round(statistics.median(c for _, c in last), 1),
                    "bytes": round((total - before[1]) / max(1, version - before[0])),
                    "writer_ms": round(writer_ms, 1),
                    "folder_mb": round(total / 1e6, 1),
                    "raw": {"open_ms": open_ms, "rows_ms": rows_ms, "commit_ms": [round(w, 2) for w, _ in last]},
                }
            )
            before = (version, total)
            tell(f"treadle  {points[-1] | {'raw': None}}")
    corpus.close()
    return points


def deeplake(folder: Path, rows: int, versions: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The curve of a dataset with a commit and a tag a version, of rewards alone."""
    import numpy as np

    lake, path, chance = _deeplake(), folder / "lake", random.Random(7)
    dataset = lake.create(str(path), schema={"id": lake.types.Int64(), "reward": lake.types.Float64()})
    dataset.auto_commit_enabled = False
    dataset.compaction_mode = lake.CompactionMode.Off
    dataset.append({"id": np.arange(rows), "reward": np.ones(rows)})
    points: list[dict[str, Any]] = []
    commits: list[float] = []
    before = (0, 0)
    for version in range(1, min(versions, DEEPLAKE_VERSIONS) + 1):
        began = time.perf_counter()
        if version > 1:
            for number in chance.sample(range(rows), max(1, rows // 100)):
                dataset["reward"][number] = chance.random()
        dataset.commit("")
        dataset.tag(f"v{version}")
        commits.append((time.perf_counter() - began) * 1e3)
        if version in POINTS:
            total = size(path)

            def opened() -> None:
                head = lake.open_read_only(str(path))
                assert len(head.tags[f"v{chance.randint(1, version)}"].open()) == rows  # noqa: B023

            open_ms = times_ms(opened)
            points.append(
                {
                    "versions": version,
                    "open_ms": round(statistics.median(open_ms), 3),
                    "open_max_ms": max(open_ms),
                    "commit_ms": round(statistics.median(commits[-LAST:]), 1),
                    "bytes": round((total - before[1]) / max(1, version - before[0])),
                    "raw": {"open_ms": open_ms, "commit_ms": [round(c, 2) for c in commits[-LAST:]]},
                }
            )
            before = (version, total)
            tell(f"deeplake {points[-1] | {'raw': None}}")
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 rows, 500 versions")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--versions", type=int)
    options = parser.parse_args()
    rows = options.rows or (2_000 if options.quick else 10_000)
    versions = options.versions or (500 if options.quick else 5_000)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = Path(tempfile.mkdtemp())
    try:
        result = {
            "benchmark": "corpus_versions",
            "machine": describe("treadle", "deeplake", "zstandard", "msgspec", "orjson"),
            "rows": rows,
            "changed_a_version": max(1, rows // 100),
            "results": {
                "treadle": treadle(folder, rows, versions, tell),
                "deeplake": deeplake(folder, rows, versions, tell),
            },
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(result, indent=1)
    if options.json is not None:
        options.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
