"""Which records of a topic are the newest of their row, among those that are there now."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from treadle_schemas.codec import header_map

__all__ = ["LastOffsets"]


class _Ids(msgspec.Struct):
    """All that is decoded: the rest of a row is skipped over."""

    episode_id: str
    interaction_id: str


class LastOffsets:
    """The last offset of each row on a topic at one moment: about 100 bytes of memory a row, one more reading of the topic.

    A row's revisions lie on one partition in their order, so the last offset holds the newest one.
    """

    def __init__(self, servers: str, topic: str, start: Mapping[int, int], wanted: str) -> None:
        from treadle.log import Admin, read

        ends = Admin(servers).stable_offsets((topic, number) for number in start)
        until = {number: offset for (_, number), offset in ends.items()}
        self._last: dict[bytes, int] = {}
        decoder = msgspec.json.Decoder(_Ids)
        raw_type = wanted.encode()
        for record in read(servers, topic, len(start), start=start, until=until):
            if record.value is None or header_map(record.headers).get("ce_type") != raw_type:
                continue
            try:
                ids = decoder.decode(record.value)
            except msgspec.DecodeError:
                continue  # whoever reads it says so
            self._last[_digest(ids.episode_id, ids.interaction_id)] = record.offset

    def outdated(self, episode_id: str, interaction_id: str, offset: int) -> bool:
        """Whether a later record of the same row was there when this was made."""
        return offset < self._last.get(_digest(episode_id, interaction_id), -1)


def _digest(episode_id: str, interaction_id: str) -> bytes:
    text = f"{len(episode_id)}\0{episode_id}\0{interaction_id}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
