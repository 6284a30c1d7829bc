"""OTLP/HTTP: the body of an export request as interactions, and the answers that its protocol asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from treadle.integrations._spans import calls_of
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.codec import INTERACTION
from treadle_schemas.errors import FieldError

from treadle_streams.importing.formats.otlp import spans_of
from treadle_streams.ingest._events import Given, media_type
from treadle_streams.ingest.errors import Malformed, Refused, UnsupportedType

__all__ = ["PROTOBUF", "answer", "calls", "failure", "form_of"]

PROTOBUF: Final = "application/x-protobuf"
_JSON: Final = "application/json"
NO_AGENT: Final = "otlp"
"""The agent's name where a request names no service."""
SHOWN_REASONS: Final = 3
# gRPC's codes, which the protocol's Status carries
_CODES: Final = {400: 3, 401: 16, 403: 7, 408: 4, 413: 3, 415: 3, 422: 3, 500: 13, 503: 14}


def form_of(headers: Mapping[str, str]) -> str:
    """The content type of request and answer. Raises UnsupportedType."""
    media = media_type(headers)
    if media not in (PROTOBUF, _JSON):
        raise UnsupportedType(f"content type {media[:80]} is not read here", hint=f"use {PROTOBUF} or {_JSON}")
    return media


def calls(body: bytes, form: str) -> tuple[list[Given], list[FieldError]]:
    """The calls of models among the spans of a request, and why others that are calls cannot be taken. Raises Malformed."""
    document = _document(body, form)
    if not document:
        return [], []  # a request without spans, which is allowed
    try:
        found = calls_of(spans_of(document))
    except FieldError as err:
        raise Malformed(err.problem, field=err.field) from None
    events = [Given(kind=INTERACTION, value={"agent": NO_AGENT, **call}) for call in found.calls]
    return events, list(found.refused)


def answer(form: str, rejected: Sequence[object]) -> bytes:
    """What an exporter is told: full or partial success. It does not send rejected spans again."""
    reasons = list(dict.fromkeys(str(reason) for reason in rejected))
    said = "; ".join(reasons[:SHOWN_REASONS]) + ("; ..." if len(reasons) > SHOWN_REASONS else "")
    if form == PROTOBUF:
        message = ExportTraceServiceResponse()
        if rejected:
            message.partial_success.rejected_spans = len(rejected)
            message.partial_success.error_message = said.encode(errors="replace").decode()
        raw: bytes = message.SerializeToString()
        return raw
    return dumps({"partialSuccess": {"rejectedSpans": str(len(rejected)), "errorMessage": said}} if rejected else {})


def failure(form: str, problem: Refused) -> bytes:
    """The body of an error: google.rpc.Status, fields 1 (code) and 2 (message)."""
    code, said = _CODES.get(problem.status, 2), str(problem)
    if form != PROTOBUF:
        return dumps({"code": code, "message": said})
    text = said.encode(errors="replace")
    return bytes((0x08, code, 0x12)) + _varint(len(text)) + text


def _document(body: bytes, form: str) -> dict[str, Any]:
    if form == PROTOBUF:
        try:
            document: dict[str, Any] = MessageToDict(ExportTraceServiceRequest.FromString(body))
            return document
        except DecodeError:
            raise Malformed("the body is no ExportTraceServiceRequest") from None
    try:
        value = loads(body)
    except FieldError as err:
        raise Malformed(err.problem, field=err.field) from None
    if not isinstance(value, dict):
        raise Malformed(f"is a {type(value).__name__}, not an object", field="$")
    return value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
