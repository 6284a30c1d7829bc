"""The spool's format: what is written is read, and damage costs the damaged frames only."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from treadle.spool import EVENT, encode_headers, frame_around, read_body, scan
from treadle.spool._format import FRAME_BYTES, MAGIC, Frame

# content that looks like a frame's begin would have to be more than text; it is tried all the same
TEXT = st.one_of(st.text(max_size=60).map(str.encode), st.binary(max_size=60), st.just(MAGIC * 3))
RECORDS = st.lists(
    st.tuples(
        st.just("treadle.w.interactions"), TEXT, st.lists(st.tuples(st.text(max_size=9), TEXT), max_size=3), TEXT
    ),
    min_size=1,
    max_size=8,
)


def written(records: list[tuple[str, bytes, list[tuple[str, bytes]], bytes]]) -> tuple[bytes, list[Frame]]:
    data = b""
    frames = []
    for topic, key, headers, value in records:
        start = len(data)
        data += b"".join(frame_around(EVENT, topic.encode(), key, encode_headers(headers), value))
        frames.append(Frame(start, len(data), EVENT, data[start + FRAME_BYTES :]))
    return data, frames


@given(RECORDS)
def test_what_is_written_is_read(records: list[tuple[str, bytes, list[tuple[str, bytes]], bytes]]) -> None:
    data, frames = written(records)
    found = scan(data)
    assert (found.frames, found.pos, found.damaged_bytes, found.needed) == (frames, len(data), 0, 0)
    assert [tuple(read_body(frame.body)) for frame in found.frames] == records


@given(RECORDS, st.data())
@settings(max_examples=300)
def test_a_flipped_bit_costs_one_frame_and_hides_none(
    records: list[tuple[str, bytes, list[tuple[str, bytes]], bytes]], data: st.DataObject
) -> None:
    raw, frames = written(records)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    found = scan(bytes(damaged))
    hit = [frame for frame in frames if frame.start <= bit // 8 < frame.end]
    assert found.frames == [frame for frame in frames if frame not in hit]
    assert found.damaged_bytes == hit[0].end - hit[0].start
    assert found.pos == len(raw)


@given(RECORDS, st.data())
@settings(max_examples=300)
def test_cuts_and_torn_pieces_cost_the_frames_they_touch(
    records: list[tuple[str, bytes, list[tuple[str, bytes]], bytes]], data: st.DataObject
) -> None:
    raw, frames = written(records)
    at = data.draw(st.integers(0, len(raw)))
    size = data.draw(st.integers(0, len(raw) - at))
    # removed, or zeroes as after a power cut, or torn bytes in between
    kind = data.draw(st.sampled_from(("removed", "zeroes", "inserted")))
    torn = {"removed": b"", "zeroes": bytes(size), "inserted": data.draw(st.binary(max_size=40)) + raw[at : at + size]}[
        kind
    ]
    found = scan(raw[:at] + torn + raw[at + size :])
    kept = {frame.body for frame in found.frames}
    whole = [f for f in frames if f.end <= at or f.start >= at + (0 if kind == "inserted" else size)]
    assert {frame.body for frame in whole} <= kept
    assert kept <= {frame.body for frame in frames}


@given(RECORDS, st.integers(1, 200))
def test_reading_in_pieces_finds_the_same(
    records: list[tuple[str, bytes, list[tuple[str, bytes]], bytes]], step: int
) -> None:
    raw, frames = written(records)
    raw = b"torn" + raw[:10] + raw
    bodies = []
    pos, want = 0, step
    while pos < len(raw):
        piece = raw[pos : pos + want]
        found = scan(piece, last=pos + len(piece) >= len(raw))
        bodies += [frame.body for frame in found.frames]
        want = step if found.pos else max(2 * want, found.needed)
        pos += found.pos
    assert bodies == [frame.body for frame in frames]


@given(st.binary(max_size=300))
def test_any_bytes_can_be_scanned(raw: bytes) -> None:
    found = scan(raw)
    assert found.pos == len(raw)
    assert found.damaged_bytes + sum(frame.end - frame.start for frame in found.frames) == len(raw)
