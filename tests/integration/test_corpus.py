"""The corpus: versions, policies, locks. What lies on disk is tested in test_corpus_storage.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from treadle_corpus import (
    Corpus,
    CorpusDamaged,
    CorpusLocked,
    CorpusMissing,
    CorpusNewer,
    CorpusOutdated,
    CorpusWriter,
    Decision,
    GradedRecord,
    Manifest,
    Policy,
    PolicyMismatch,
    Refusal,
    VersionMissing,
    _rows,
    _state,
    content_hash,
    row_line,
)
from treadle_corpus._journal import Journal
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas.canonical import dumps
from treadle_schemas.records import GradedRow


class Rewarded:
    """reward > 0."""

    identity = "reward > 0"

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        return ["absent" if r.grade.reward is None else "selected" if r.grade.reward > 0 else "rejected" for r in rows]


def writer(path: Path, policy: Policy | None = None, **options: object) -> CorpusWriter:
    return CorpusWriter.open(path, workspace="w", policy=policy or Policy(), **options)  # type: ignore[arg-type]


def run(
    path: Path, records: Sequence[GradedRecord], selector: object = None, policy: Policy | None = None
) -> Manifest | None:
    with writer(path, policy) as corpus:
        start = corpus.offsets.get(0, 0)
        corpus.apply(records, {0: start + len(records)}, 1000)
        return corpus.finish(selector or SelectAll())  # type: ignore[arg-type]


def ids(path: Path, ref: str = "", split: str = "all") -> list[str]:
    return [r.interaction_id for r in Corpus.open(f"{path}{ref}").rows(split)]  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "org" / "corpus"


def test_a_run_makes_a_version_and_nothing_new_makes_none(path: Path) -> None:
    rows = [graded("b", reward=0.0, split="heldout"), graded("a"), graded("c", reward=None)]
    first = run(path, rows, Rewarded())
    assert first is not None
    assert (first.version, first.rows, first.added, first.updated, first.removed, first.new_rows) == (1, 1, 1, 0, 0, 3)
    assert first.dropped["rejected"] == 1
    assert (first.dropped["unknown"], first.unknown) == (1, {"pending": 0, "absent": 1})
    assert first.offsets == {"0": 3}
    assert run(path, [], Rewarded()) is None
    assert run(path, [graded("a")], Rewarded()) is None
    assert Corpus.open(path).versions() == [1]
    with writer(path) as corpus:
        assert corpus.offsets == {0: 4}


def test_a_correction_moves_a_row_out_of_and_into_the_filter_and_old_versions_stay(path: Path) -> None:
    run(path, [graded("a"), graded("b", reward=0.0), graded("c")], Rewarded())
    before = list(Corpus.open(f"{path}@v1").rows("all"))
    second = run(
        path,
        [graded("a", reward=0.0, revision=2), graded("b", reward=0.5, revision=2), graded("c", reward=9.0, revision=2)],
        Rewarded(),
    )
    assert second is not None
    assert (second.version, second.added, second.updated, second.removed, second.new_rows) == (2, 1, 1, 1, 0)
    assert ids(path) == ["b", "c"]
    assert ids(path, "@v1") == ["a", "c"]
    assert list(Corpus.open(f"{path}@v1").rows("all")) == before
    third = run(path, [graded("a", reward=1.0, revision=3)], Rewarded())
    assert third is not None
    assert third.added == 1
    assert ids(path) == ["a", "b", "c"]


def test_rows_come_back_byte_identical_and_by_side(path: Path) -> None:
    record = graded(
        "é/1",
        episode_id="ep 1",
        split="heldout",
        messages=[{"role": "user", "content": "\ud83d \x00 \u2028", "deep": [{"n": 2**70, "f": 1e-7, "z": -0.0}]}],
        tools=[{"type": "function", "function": {"name": "x", "parameters": {}}}],
        later_field={"kept": True},
    )
    run(path, [record, graded("t")])
    (row,) = Corpus.open(path).rows("heldout")
    assert dumps(row.interaction) == dumps(record.row.interaction)
    assert (row.episode_id, row.interaction_id, row.revision, row.split) == ("ep 1", "é/1", 1, "heldout")
    assert [r.interaction_id for r in Corpus.open(path).rows()] == ["t"]


def test_the_content_hash_is_that_of_the_rows_and_verify_recounts_it(path: Path) -> None:
    rows = [graded(i, episode_id=e) for i, e in (("2", "b"), ("1", "b"), ("9", "a"), ("1", "a"))]
    manifest = run(path, rows)
    assert manifest is not None
    lines = [row_line(r.row) for r in sorted(rows, key=lambda r: r.key)]
    assert manifest.content_hash == content_hash(lines)
    corpus = Corpus.open(path)
    corpus.verify()
    assert [(r.episode_id, r.interaction_id) for r in corpus.rows("all")] == sorted(r.key for r in rows)


def test_the_same_rows_in_another_order_and_other_batches_are_the_same_version(tmp_path: Path) -> None:
    rows = [graded(str(n), reward=float(n % 3), split="heldout" if n % 5 == 0 else "train") for n in range(60)]
    hashes = set()
    for n, size in enumerate((60, 7)):
        with writer(tmp_path / str(n)) as corpus:
            ordered = rows if n else rows[::-1]
            for start in range(0, 60, size):
                corpus.apply(ordered[start : start + size], {0: start + size}, 0)
            manifest = corpus.finish(Rewarded())
            assert manifest is not None
            hashes.add(manifest.content_hash)
    assert len(hashes) == 1


def test_leaks_duplicates_and_moved_rows_are_counted_and_return(path: Path) -> None:
    same = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    other = [{"role": "user", "content": "o"}]
    policy = Policy(dedupe="exact")
    rows = [
        graded("h", messages=same, split="heldout"),
        graded("t", messages=same),
        graded("d1", messages=other, reward=0.5),
        graded("d2", messages=other, reward=2.0),
        graded("m"),
        graded("m", revision=2, split="heldout"),
    ]
    first = run(path, rows, Rewarded(), policy)
    assert first is not None
    assert {k: n for k, n in first.dropped.items() if n} == {"leak": 1, "split_moved": 1, "duplicate": 1}
    assert ids(path) == ["d2", "h"]
    leave = [graded("h", messages=same, split="heldout", reward=0.0, revision=2)]
    leave.append(graded("d2", messages=other, reward=0.0, revision=2))
    second = run(path, leave, Rewarded(), policy)
    assert second is not None
    assert (second.added, second.removed) == (2, 2)
    assert ids(path) == ["d1", "t"]
    assert ids(path, "@v1") == ["d2", "h"]


def test_a_row_unsettled_again_leaves_the_next_version_and_comes_back(path: Path) -> None:
    run(path, [graded("a"), graded("b")])
    second = run(path, [graded("a", reward=None, settled=False, revision=2)])
    assert second is not None
    assert (second.rows, second.removed) == (1, 1)
    third = run(path, [graded("a", revision=3)])
    assert third is not None
    assert (third.rows, third.added) == (2, 1)
    assert third.content_hash == Corpus.open(f"{path}@v1").manifest.content_hash


def test_a_contradicting_revision_is_reported_before_the_offsets_pass_and_changes_nothing(path: Path) -> None:
    run(path, [graded("a", revision=3)])
    told: list[tuple[list[Refusal], dict[int, int]]] = []
    with writer(path) as corpus:
        batch = [graded("b"), graded("a", revision=2, reward=0.0)]
        refused = corpus.apply(batch, {0: 3}, 0, refuse=lambda r: told.append((r, corpus.offsets)))
        assert [r.position for r in refused] == [1]
        assert "not above revision 3" in refused[0].problem
        assert told == [(refused, {0: 1})]
        assert corpus.offsets == {0: 3}
        corpus.finish(SelectAll())
    assert [r.grade.reward for r in Corpus.open(path).rows("all")] == [1.0, 1.0]


def test_another_policy_is_refused_unless_replaced_and_then_asks_for_every_row_again(path: Path) -> None:
    run(path, [graded("a"), graded("b", reward=0.0)], Rewarded(), Policy(filter="reward>0"))
    with pytest.raises(PolicyMismatch, match="--replace-policy"):
        writer(path, Policy())
    with writer(path, Policy(), replace_policy=True) as corpus:
        manifest = corpus.finish(SelectAll())
    assert manifest is not None
    assert (manifest.version, manifest.rows, manifest.added, manifest.policy) == (2, 2, 1, Policy())
    writer(path, Policy()).close()


def test_a_corpus_has_one_workspace(path: Path) -> None:
    run(path, [graded("a")])
    with pytest.raises(PolicyMismatch, match="workspace 'w'"):
        CorpusWriter.open(path, workspace="other", policy=Policy())
    with pytest.raises(PolicyMismatch, match="another log"):
        CorpusWriter.open(path, workspace="w", workspace_created_at="2025-01-01T00:00:00Z", policy=Policy())


def test_a_second_writer_is_refused_and_readers_are_not(path: Path) -> None:
    run(path, [graded("a")])
    with writer(path):
        with pytest.raises(CorpusLocked, match=f"process {os.getpid()}"):
            writer(path)
        assert ids(path) == ["a"]
    writer(path).close()


def test_the_newest_tag_is_read_and_never_the_head(path: Path) -> None:
    run(path, [graded("a")])
    with writer(path) as corpus:
        corpus.apply([graded("b"), graded("a", revision=2, reward=7.0)], {0: 3}, 0)
        assert ids(path) == ["a"]
        Corpus.open(path).verify()
        reader = Corpus.open(path)
        corpus.finish(SelectAll())
        assert [r.grade.reward for r in reader.rows("all")] == [1.0]
    assert ids(path) == ["a", "b"]


def test_missing_corpora_and_versions_say_what_there_is(path: Path) -> None:
    with pytest.raises(CorpusMissing, match="treadle snapshot"):
        Corpus.open(path)
    with writer(path) as corpus:
        corpus.apply([graded("a")], {0: 1}, 0)
        with pytest.raises(VersionMissing, match="no version yet"):
            Corpus.open(path)
    run(path, [])
    with pytest.raises(VersionMissing, match=r"v7.* there are v1"):
        Corpus.open(f"{path}@v7")


def test_an_exception_in_a_batch_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(path, [graded("a")])
    with writer(path) as corpus:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                corpus.apply([graded("b"), graded("a", revision=2, reward=5.0)], {0: 3}, 0)
        assert corpus.offsets == {0: 1}
        assert not corpus.knows(("b", "b"))
        corpus.apply([graded("b"), graded("a", revision=2, reward=5.0)], {0: 3}, 0)
        corpus.finish(SelectAll())
    assert [r.grade.reward for r in Corpus.open(path).rows("all")] == [5.0, 1.0]
    Corpus.open(path).verify()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("somebody.txt", b"hello"),
        ("corpus.json", b"{}"),
        ("corpus.json", b"not json"),
        ("corpus.json", b'{"format":"other","format_version":1,"state":"ready"}'),
        ("corpus.json", b'{"format":"treadle-corpus","format_version":2,"state":"ready"}'),
    ],
)
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for attempt in (Corpus.open, writer):
        with pytest.raises(CorpusDamaged, match="Nothing was changed"):
            attempt(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_a_corpus_of_the_first_format_is_refused_with_the_way_out_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_bytes(b'{"format":"treadle-corpus","format_version":1,"state":"ready"}')
    (tmp_path / "data").mkdir()
    for attempt in (Corpus.open, writer):
        with pytest.raises(
            CorpusOutdated, match="`treadle snapshot WORKSPACE --to ANOTHER_PATH` makes the corpus again"
        ):
            attempt(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["corpus.json", "data"]


def test_a_corpus_of_a_newer_treadle_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_bytes(b'{"format":"treadle-corpus","format_version":99,"state":"ready"}')
    for attempt in (Corpus.open, writer):
        with pytest.raises(CorpusNewer, match="use the treadle that wrote it"):
            attempt(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["corpus.json"]


def test_a_corpus_as_it_was_written_before_commits_said_less_is_read_and_gone_on_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same format: commits used to repeat revision and reward beside the rest, and the digest of what a sink compares."""
    with monkeypatch.context() as before:
        before.setattr(_state, "_TOLD", ())
        before.setattr(_rows, "_is_plain", lambda _: False)
        run(path, [graded("a"), graded("b", reward=0.0)])
        run(path, [graded("a", revision=2, reward=3.0)])
    run(path, [graded("a", revision=2, reward=3.0), graded("b", revision=2, reward=5.0)])
    with writer(path) as corpus:
        assert [r.position for r in corpus.apply([graded("a", revision=2, reward=4.0)], {0: 9}, 1000)] == [0]
    for number, rewards in ((1, [1.0, 0.0]), (2, [3.0, 0.0]), (3, [3.0, 5.0])):
        with Corpus.open(f"{path}@v{number}") as found:
            found.verify()
            assert [row.grade.reward for row in found.rows("all")] == rewards
            assert [row.reward for row in found.origins()] == rewards


def test_a_file_is_no_corpus(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for attempt in (Corpus.open, writer):
        with pytest.raises(CorpusDamaged):
            attempt(file)


def test_reading_needs_no_network_and_leaves_no_crash_reporter(path: Path, tmp_path: Path) -> None:
    run(path, [graded("a")])
    script = """if True:
        import os, sys, tempfile
        from treadle_corpus import Corpus
        Corpus.open(sys.argv[1])
        print(os.environ["TMPDIR"], tempfile.gettempdir())
    """
    empty = tmp_path / "tmp"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(empty)},
    )
    assert done.stdout.split() == [str(empty), str(empty)]
    assert list(empty.iterdir()) == []


def test_importing_the_package_loads_no_deeplake() -> None:
    script = "import sys, treadle_corpus; sys.exit('deeplake' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
