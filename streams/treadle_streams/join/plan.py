"""One batch of one partition, planned: arrivals, due timers and parked rows in; state, outputs and META out.

Nothing here talks to Kafka or RocksDB: the shell reads through `StateReader`, writes what the plan says in one transaction, and only then
applies it locally. A plan changes nothing that was passed in, so a refused transaction leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from treadle_schemas.errors import KeyErased

from treadle_streams.join.arrivals import Arrival
from treadle_streams.join.batch import Batch
from treadle_streams.join.clock import advanced
from treadle_streams.join.emissions import Emission, sealed
from treadle_streams.join.grading import Grading
from treadle_streams.join.meta import Meta
from treadle_streams.join.planned import Plan, StateReader
from treadle_streams.join.sealed import using

__all__ = ["Plan", "StateReader", "plan"]


def plan(
    partition: int,
    meta: Meta,
    reader: StateReader,
    arrivals: Iterable[Arrival],
    grading: Grading,
    *,
    graded_at: str,
    positions: Mapping[str, int] | None = None,
    at_end_ms: Mapping[str, int] | None = None,
    background: bool = True,
) -> Plan:
    """Plan a batch.

    `positions` are next offsets by topic kind where those lie past transaction markers, `at_end_ms` the broker time at which a topic was
    known to be at its end. `graded_at` is the present time as text, for provenance only. Arrivals below META's offsets are skipped.
    A key that is destroyed meanwhile counts for this batch as it did when the batch met it first.
    With `background` the batch also grades some kept rows anew where `grading` is of a newer version than they are.
    """
    grading = grading.pinned()
    with using(grading.keys):
        return _plan(partition, meta, reader, arrivals, grading, graded_at, positions, at_end_ms, background)


def _plan(
    partition: int,
    meta: Meta,
    reader: StateReader,
    arrivals: Iterable[Arrival],
    grading: Grading,
    graded_at: str,
    positions: Mapping[str, int] | None,
    at_end_ms: Mapping[str, int] | None,
    background: bool,
) -> Plan:
    batch = Batch(partition, meta.copy(), reader, grading, graded_at)
    known, graded = dict(meta.offsets), meta.grading_at
    batch.take(arrivals)
    m = batch.meta
    for kind, position in (positions or {}).items():
        m.offsets[kind] = max(m.offsets.get(kind, 0), position)
    m.clock_ms = advanced(m.clock_ms, m.appended, at_end_ms or {})
    batch.evaluate_touched()
    batch.fire_timers()
    batch.release_imports()
    batch.sweep()
    if background:
        batch.regrade()
    else:
        batch.out.background = m.regraded < grading.settings.grading_version
    batch.contents.write()
    batch.names.write()
    batch.episodes.write()
    out = batch.out
    out.outputs = list(_sealed(out.outputs, grading.settings.workspace))
    out.empty = (
        not (out.puts or out.deletes or out.drop_index or out.outputs) and m.offsets == known and m.grading_at == graded
    )
    batch.close()
    return out


def _sealed(outputs: Iterable[Emission], workspace: str) -> Iterator[Emission]:
    for emission in outputs:
        try:
            yield sealed(emission, workspace)
        except KeyErased:  # destroyed while this batch was planned: the erasure says what is left
            continue
