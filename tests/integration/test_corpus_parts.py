"""Long contexts in a corpus: parts lie there once, rows come back whole, and what must not be used is dropped with its reason."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from treadle_corpus import (
    Corpus,
    CorpusDamaged,
    CorpusWriter,
    GradedRecord,
    Manifest,
    PartRecord,
    Policy,
    Refusal,
    read_parts,
    read_record,
)
from treadle_corpus.testing import SelectAll, graded
from treadle_corpus.views import sft
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.parts import SentParts, split

Record = GradedRecord | PartRecord


def run(path: Path, records: Sequence[Record]) -> Manifest | None:
    with writer(path) as corpus:
        start = corpus.offsets.get(0, 0)
        corpus.apply(records, {0: start + len(records)}, 1000)
        return corpus.finish(SelectAll())


def writer(path: Path) -> CorpusWriter:
    return CorpusWriter.open(path, workspace="w", policy=Policy())


def episode(steps: int) -> list[GradedRecord]:
    """A growing episode, each step with all of its history."""
    chance = random.Random(1)

    def text(length: int) -> str:
        return chance.randbytes(length // 2).hex()

    transcript: list[dict[str, Any]] = [{"role": "system", "content": text(1800)}]
    rows = []
    for n in range(steps):
        transcript += [{"role": "user", "content": text(1000)}, {"role": "assistant", "content": text(1000)}]
        tools = [{"type": "function", "function": {"name": "f", "description": "d" * 2_000}}]
        rows.append(graded(f"i{n}", episode_id="e", step=n, messages=list(transcript), tools=tools))
    return rows


def as_parts(rows: Sequence[GradedRecord], **changes: Any) -> list[Record]:
    """The same rows as `.graded` has them: parts before the first row that names them."""
    sent = SentParts()
    out: list[Record] = []
    for record in rows:
        value = loads(record.body)
        value["interaction"], parts = split(value["interaction"], sent)
        out += [read_parts(dumps(part)) for part in parts]
        out.append(read_record(dumps(value | changes)))
    return out


def erased(part: PartRecord, number: int = 0) -> PartRecord:
    return read_parts(dumps({"episode_id": part.episode_id, "part": part.parts[number].hash, "erased": "asked for"}))


def size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def test_rows_with_parts_are_the_same_version_as_rows_without_and_take_less_room(tmp_path: Path) -> None:
    rows = episode(30)
    inline, split_ = tmp_path / "inline", tmp_path / "split"
    first, second = run(inline, rows), run(split_, as_parts(rows))
    assert first is not None
    assert second is not None
    assert first.content_hash == second.content_hash
    expected, found = list(Corpus.open(inline).rows("all")), list(Corpus.open(split_).rows("all"))
    assert [dumps(r.interaction) for r in found] == [dumps(r.interaction) for r in expected]
    assert list(sft(found)) == list(sft(expected))
    Corpus.open(split_).verify()
    final = len(dumps(rows[-1].row.interaction))
    assert size(split_) <= final
    assert size(inline) > 5 * final


def test_parts_and_rows_in_runs_of_their_own_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    rows = episode(6)
    path = tmp_path / "c"
    records = as_parts(rows)
    for n in range(0, len(records), 3):
        run(path, records[n : n + 3])
    run(path, records[:5])  # known already
    found = Corpus.open(path)
    assert [dumps(r.interaction) for r in found.rows("all")] == [dumps(r.row.interaction) for r in rows]
    assert found.manifest.rows == 6
    first = Corpus.open(f"{path}@v1")
    first.verify()
    assert [r.interaction_id for r in first.rows("all")] == ["i0"]


def test_an_erased_part_takes_its_rows_out_of_the_next_version_and_stays_erased(tmp_path: Path) -> None:
    rows = episode(3)
    path = tmp_path / "c"
    records = as_parts(rows)
    run(path, records)
    last = [r for r in records if isinstance(r, PartRecord)][-1]
    newest = [r for r in records if isinstance(r, GradedRecord)][-1]
    value = loads(newest.body) | {"erased": True}
    value["provenance"]["revision"] = 2
    made = run(path, [erased(last), read_record(dumps(value))])
    assert made is not None
    assert (made.rows, made.dropped["erased"], made.removed) == (2, 1, 1)
    assert [r.interaction_id for r in Corpus.open(path).rows("all")] == ["i0", "i1"]
    Corpus.open(path).verify()
    Corpus.open(f"{path}@v1").verify()
    assert run(path, [last]) is None, "erasure wins over content that comes again"


def test_a_row_whose_side_is_denied_a_right_and_a_tombstone_of_redaction_are_dropped(tmp_path: Path) -> None:
    def with_rights(name: str, side: Any, **rights: str) -> GradedRecord:
        return read_record(dumps(loads(graded(name, task_id=name, split=side).body) | {"rights": rights}))

    rows: list[Record] = [
        graded("plain"),
        with_rights("no-train", "train", train="deny"),
        with_rights("no-eval", "train", eval="deny"),
        with_rights("held-no-eval", "heldout", eval="deny"),
        with_rights("held-no-train", "heldout", train="deny"),
        graded("tombstone", redaction={"policy": "standard", "error": "boom"}),
        graded("redacted", redaction={"policy": "standard", "counts": {"email": 1}}),
    ]
    made = run(tmp_path / "c", rows)
    assert made is not None
    assert made.dropped["rights"] == 2
    assert made.dropped["redacted"] == 1
    kept = [r.interaction_id for r in Corpus.open(tmp_path / "c").rows("all")]
    assert kept == ["held-no-train", "no-eval", "plain", "redacted"]
    value = loads(rows[0].body) | {"rights": {"train": "deny"}}  # type: ignore[union-attr]
    value["provenance"]["revision"] = 2
    later = run(tmp_path / "c", [read_record(dumps(value))])
    assert later is not None
    assert (later.removed, later.dropped["rights"]) == (1, 3)


def test_a_settled_row_without_its_parts_is_refused_and_an_unsettled_one_is_not(tmp_path: Path) -> None:
    [part, *_, row] = as_parts(episode(1))
    assert isinstance(row, GradedRecord)
    value = loads(row.body)
    unsettled = read_record(dumps(value | {"grade": value["grade"] | {"settled": False}}))
    told: list[Refusal] = []
    with writer(tmp_path / "c") as corpus:
        corpus.apply([row], {0: 1}, 1, told.extend)
        assert "cannot be put together" in told[0].problem
        assert corpus.apply([unsettled], {0: 2}, 1) == []
        assert corpus.apply([part], {0: 3}, 1) == []
        assert corpus.apply([unsettled], {0: 4}, 1) == [], "the same revision, also now that its parts are there"


def test_a_damaged_part_is_found(tmp_path: Path) -> None:
    rows = episode(2)
    path = tmp_path / "c"
    run(path, as_parts(rows))
    (tail,) = (path / "bodies").glob("tail-*.log")
    data = bytearray(tail.read_bytes())
    data[len(data) // 2] ^= 1
    tail.write_bytes(data)
    with pytest.raises(CorpusDamaged, match="body"):
        Corpus.open(path).verify()
