"""The archives' part of an erasure, see `treadle_schemas.erasing`.

A file with records of erased episodes is written again with these empty: offset and time are left, key, value and headers are not. What
says that something was erased stays, since a replay needs it. Sealed values stay too: their key is destroyed.

    1. put the new file; its name has its hash
    2. put the manifest, which names it and has a note of the erasure: from here on it is what is read
    3. remove the old file

Killed after 2, the old file is one that no manifest names, and the next call removes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from treadle.log import Record
from treadle_corpus import CorpusError
from treadle_schemas import codec
from treadle_schemas.canonical import loads
from treadle_schemas.erasing import ErasureRequest, StoreReport
from treadle_schemas.errors import ContractError
from treadle_schemas.sealing import is_sealed

from treadle_streams.archive.errors import ArchiveError
from treadle_streams.archive.ranges import ERASED_HEADER, Archive, Erased, Range, creations
from treadle_streams.archive.writing import alone, sweep

__all__ = ["ERASERS", "erase_archives"]

ERASERS: Final[tuple[tuple[str, str], ...]] = (("archives", "treadle_streams.archive.erasers:erase_archives"),)
_IN_FLIGHT_S: Final = 3600.0
"""Writing a range takes minutes, and an erasure cannot wait for a day."""


def erase_archives(request: ErasureRequest) -> Iterator[StoreReport]:
    """Empty the records of the episodes in every archive that the workspace names. What cannot be reached now is reported."""
    for target in request.archives:
        try:
            for archive in creations(target, request.workspace):
                yield from _erase(archive, request)
        except (ArchiveError, CorpusError) as err:  # of an object store
            yield StoreReport(store="archive", place=target, remains=(f"{err}; then erase again",))


def _erase(archive: Archive, request: ErasureRequest) -> Iterator[StoreReport]:
    place = archive.store.at(archive.top)
    episodes = {episode.encode() for episode in request.episodes}
    ids = {interaction.encode() for _, interaction in request.rows} | _ids(archive, episodes)
    with alone(archive.store, archive.top):
        left = [] if request.dry_run else sweep(archive, _IN_FLIGHT_S)
        origins = _origins(archive, episodes)
        planned = 0
        for found in list(archive.every()):
            keys = episodes if found.kind not in ("outcomes", "dead-letter") else episodes | ids
            records = list(archive.records(found))
            gone = [r.offset for r in records if _goes(r, found, keys, origins)]
            if not gone:
                continue
            planned += len(gone)
            if not request.dry_run:
                _rewrite(archive, found, records, set(gone), request)
        # from the manifests, so that it says the same when it is called again
        done = [(r, sum(e.records for e in r.erased if e.erased_at == request.erased_at)) for r in archive.every()]
    done = [(found, count) for found, count in done if count]
    if planned or done or left:
        remains = tuple(f"{name}: no manifest names it yet; erase again in an hour" for name in left)
        yield StoreReport(
            store="archive",
            place=place,
            rows=planned if request.dry_run else sum(count for _, count in done),
            bytes=sum(found.size for found, _ in done),
            remains=remains,
            notes=(f"{len(done):,} files written again",) if done else (),
        )


def _rewrite(
    archive: Archive, found: Range, records: list[Record], gone: Collection[int], request: ErasureRequest
) -> None:
    emptied = [
        record._replace(key=None, value=None, headers=[(ERASED_HEADER, b"1")]) if record.offset in gone else record
        for record in records
    ]
    note = Erased(erased_at=request.erased_at, reason=request.reason, records=len(gone), sha256_before=found.sha256)
    made = archive.put(
        found.kind,
        found.partition,
        (found.first, found.next),
        emptied,
        archived_at=found.archived_at,
        erased=(*found.erased, note),
    )
    if made.file != found.file:
        archive.store.delete(archive.name_of(found))


def _goes(record: Record, found: Range, keys: Collection[bytes], origins: Collection[tuple[int, int]]) -> bool:
    """Is it a record of the episodes that has text? What says that an episode is erased stays."""
    if record.value is None or is_sealed(record.value):
        return False
    if record.key not in keys and not (found.kind == "outcomes" and (record.partition, record.offset) in origins):
        return False
    kind = codec.header_map(record.headers).get("ce_type", b"").decode(errors="replace")
    if kind == codec.ERASURE:
        return False
    if kind in (codec.GRADED, codec.PART):
        try:
            value = loads(record.value)
        except ContractError:
            return True
        return not (isinstance(value, dict) and value.get("erased"))
    return True


def _ids(archive: Archive, episodes: Collection[bytes]) -> set[bytes]:
    """Interactions of the episodes that are archived: outcomes may be keyed by them."""
    found: set[bytes] = set()
    for one in archive.every():
        for record in archive.records(one) if one.kind == "interactions" else ():
            if record.key in episodes and record.value is not None and not is_sealed(record.value):
                try:
                    value = loads(record.value)
                except ContractError:
                    continue
                if isinstance(value, dict) and isinstance(value.get("interaction_id"), str):
                    found.add(value["interaction_id"].encode(errors="surrogatepass"))
    return found


def _origins(archive: Archive, episodes: Collection[bytes]) -> set[tuple[int, int]]:
    """Outcomes that were keyed by another name and re-keyed to one of the episodes: their partitions and offsets."""
    found: set[tuple[int, int]] = set()
    for one in archive.every():
        for record in archive.records(one) if one.kind == "references" else ():
            if record.key in episodes:
                origin = codec.header_map(record.headers).get("origin", b"").split(b"/")
                if len(origin) == 3 and origin[0].isdigit() and origin[1].isdigit():
                    found.add((int(origin[0]), int(origin[1])))
    return found
