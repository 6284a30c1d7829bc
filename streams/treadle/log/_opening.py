"""Sealed records, opened: the one place through which all readers of the log but the join go."""

from __future__ import annotations

from treadle_schemas.codec import DEAD_LETTER, header_map
from treadle_schemas.errors import FieldError, KeyErased
from treadle_schemas.sealing import about, is_sealed, opened

from treadle.keys import ring_of
from treadle.log._common import Record

__all__ = ["about_record", "open_record"]

_ORIGINAL_TYPE = "original.ce_type"


def open_record(record: Record) -> Record | None:
    """The record with the text of its value; None where that was erased. Raises KeyUnavailable, SettingError.

    What was sealed and does not open any more, since its bytes were changed, stays as it is: its reader refuses it as no JSON.
    """
    if record.value is None or not is_sealed(record.value):
        return record
    workspace = record.topic.split(".", 1)[1].rpartition(".")[0]
    try:
        return record._replace(value=opened(record.value, ring_of(workspace), about_record(record)))
    except KeyErased:
        return None
    except FieldError:
        return record


def about_record(record: Record) -> bytes:
    """The additional data of a record's value: of a dead letter, those of what it was."""
    headers = header_map(record.headers)
    kind = headers.get("ce_type", b"").decode(errors="replace")
    if kind == DEAD_LETTER:
        kind = headers.get(_ORIGINAL_TYPE, b"").decode(errors="replace")
    return about(record.topic.split(".", 1)[1].rpartition(".")[0], kind, record.key)
