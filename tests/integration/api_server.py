"""A local HTTP server that speaks OpenAI's chat completions and responses and Anthropic's messages, streams and errors included.

What it answers is decided by the request's model name: `tool` calls a tool unless the last message is a tool's result, `flaky` answers
429 first, `broken` answers 500, `drop` cuts the stream, `slow` waits between events, `gzip` compresses, `html` is no API at all, `moved`
redirects, `judge` gives a verdict on the last message (true where it says "good", null where it says "unclear"); anything else says hello.
"""

from __future__ import annotations

import gzip
import itertools
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = "Hello, world"
PIECES = ["Hel", "lo, ", "world"]
ARGUMENTS = {"city": "Zürich"}
SLOW_S = 0.05
KEY = "sk-test-this-key-must-not-be-recorded"


class ApiServer:
    """`with ApiServer() as api`: base address in `api.url`, decoded request bodies in `api.requests`."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.failures: dict[str, int] = {}
        # like those of the real services, its ids never come again
        self.name, self.count = secrets.token_hex(3), itertools.count(1)
        owner = self

        class Handler(_Handler):
            api = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        self.requests.clear()
        self.failures.clear()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no news."""


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        self.api.requests.append(body)
        path = self.path.partition("?")[0]
        model = body.get("model", "m")
        kind = next(end for end in ("/chat/completions", "/responses", "/messages", "") if path.endswith(end))
        if kind == "" or "model" not in body:
            return self._json(404, {"error": {"message": f"no {path}"}})
        if "html" in model:
            return self._send(200, b"<html>a proxy</html>", "text/html")
        if "broken" in model or ("flaky" in model and self._fails(model)):
            status = 500 if "broken" in model else 429
            return self._json(status, _error(kind, status), {"retry-after-ms": "1"})
        if "moved" in model:
            return self._send(307, b"", "text/plain", {"location": f"{self.api.url}/elsewhere/chat/completions"})
        if "denied" in model:
            return self._json(401, _error(kind, 401))
        number = f"{self.api.name}{next(self.api.count)}"
        if not body.get("stream"):
            answer = {"/chat/completions": _chat, "/responses": _response, "/messages": _message}[kind]
            return self._json(200, answer(body, number), zipped="gzip" in model)
        events = {"/chat/completions": _chat_events, "/responses": _response_events, "/messages": _message_events}[kind]
        return self._stream(events(body, number), model)

    def _fails(self, model: str) -> bool:
        left = self.api.failures.setdefault(model, 1)
        self.api.failures[model] = left - 1
        return left > 0

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None, zipped: bool = False) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers, zipped)

    def _send(
        self, status: int, raw: bytes, kind: str, headers: dict[str, str] | None = None, zipped: bool = False
    ) -> None:
        if zipped:
            raw, headers = gzip.compress(raw), {**(headers or {}), "content-encoding": "gzip"}
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, events: Iterator[tuple[str | None, Any]], model: str) -> None:
        zipper = gzip.zlib.compressobj(wbits=31) if "gzip" in model else None  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        if zipper is not None:
            self.send_header("content-encoding", "gzip")
        self.end_headers()

        def chunk(raw: bytes) -> None:
            if zipper is not None:
                raw = zipper.compress(raw) + zipper.flush(2)
            if raw:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))

        try:
            for n, (name, data) in enumerate(events):
                if "drop" in model and n == 3:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if "slow" in model:
                    time.sleep(SLOW_S)
                text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
                chunk((f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode())
            if zipper is not None:
                rest = zipper.flush()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(rest), rest))
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client left


def _error(kind: str, status: int) -> dict[str, Any]:
    words = {500: "it broke", 429: "too many", 401: "not you"}[status]
    if kind == "/messages":
        return {"type": "error", "error": {"type": "api_error", "message": words}}
    return {"error": {"message": words, "type": "api_error", "code": None}}


def _calls(body: dict[str, Any]) -> bool:
    if "tool" not in body.get("model", ""):
        return False
    if "messages" in body:
        last = body["messages"][-1]
        content = last.get("content")
        told = isinstance(content, list) and any(p.get("type") == "tool_result" for p in content)
        return last["role"] != "tool" and not told
    given = body.get("input")
    return not (isinstance(given, list) and given[-1].get("type") == "function_call_output")


def tool_name(body: dict[str, Any]) -> str:
    tools = body.get("tools") or [{"name": "weather"}]
    name: str = (tools[0].get("function") or tools[0])["name"]
    return name


# --- chat completions
def _chat(body: dict[str, Any], number: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": TEXT}
    if "judge" in body["model"]:
        message["content"] = _verdict(body)
    elif _calls(body):
        function = {"name": tool_name(body), "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
        }
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "tool_calls" if _calls(body) else "stop"}
    if body.get("logprobs"):
        choice["logprobs"] = {
            "content": [{"token": p, "logprob": -0.5, "bytes": None, "top_logprobs": []} for p in PIECES]
        }
        choice["token_ids"] = [1, 2, 3]
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": f"{body['model']}-2026",
        "choices": [{**choice, "index": n} for n in range(body.get("n") or 1)],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


def _verdict(body: dict[str, Any]) -> str:
    said = body["messages"][-1]["content"]
    value = None if "unclear" in said else "good" in said
    return f"Let me see. {json.dumps({'value': value, 'reason': 'it says so'})} That is all."


def _chat_events(body: dict[str, Any], number: str) -> Iterator[tuple[str | None, Any]]:
    head = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": f"{body['model']}-2026",
    }

    def chunk(delta: dict[str, Any], reason: str | None = None) -> tuple[None, Any]:
        return None, {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    if _calls(body):
        function = {"name": tool_name(body), "arguments": ""}
        yield chunk(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"index": 0, "id": f"call_{number}", "type": "function", "function": function}],
            }
        )
        text = json.dumps(ARGUMENTS, ensure_ascii=False)
        for piece in (text[:5], text[5:]):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        yield chunk({}, "tool_calls")
    else:
        yield chunk({"role": "assistant", "content": ""})
        for piece in PIECES:
            yield chunk({"content": piece})
        yield chunk({}, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield None, {**head, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}
    yield None, "[DONE]"


# --- responses
def _response(
    body: dict[str, Any], number: str, output: list[dict[str, Any]] | None = None, status: str = "completed"
) -> dict[str, Any]:
    item: dict[str, Any] = {
        "type": "message",
        "id": f"msg_{number}",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
    }
    if _calls(body):
        item = {
            "type": "function_call",
            "id": f"fc_{number}",
            "call_id": f"call_{number}",
            "name": tool_name(body),
            "arguments": json.dumps(ARGUMENTS, ensure_ascii=False),
            "status": "completed",
        }
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": f"{body['model']}-2026",
        "output": [item] if output is None else output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": {
            "input_tokens": 5,
            "output_tokens": 3,
            "total_tokens": 8,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


def _response_events(body: dict[str, Any], number: str) -> Iterator[tuple[str | None, Any]]:
    sequence = itertools.count()

    def event(kind: str, **said: Any) -> tuple[str, Any]:
        return kind, {"type": kind, "sequence_number": next(sequence), **said}

    whole = _response(body, number)
    item = whole["output"][0]
    yield event("response.created", response=_response(body, number, [], "in_progress"))
    if item["type"] == "message":
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        yield event("response.output_item.added", output_index=0, item={**item, "content": [], "status": "in_progress"})
        yield event("response.content_part.added", **place, part={"type": "output_text", "text": "", "annotations": []})
        for piece in PIECES:
            yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
        yield event("response.output_text.done", **place, text=TEXT, logprobs=[])
        yield event("response.content_part.done", **place, part=item["content"][0])
    else:
        place = {"item_id": item["id"], "output_index": 0}
        yield event(
            "response.output_item.added", output_index=0, item={**item, "arguments": "", "status": "in_progress"}
        )
        for piece in (item["arguments"][:5], item["arguments"][5:]):
            yield event("response.function_call_arguments.delta", **place, delta=piece)
        yield event("response.function_call_arguments.done", **place, arguments=item["arguments"], name=item["name"])
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=whole)


# --- messages
def _message(body: dict[str, Any], number: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": TEXT}]
    if _calls(body):
        content = [
            {"type": "text", "text": "let me see"},
            {"type": "tool_use", "id": f"toolu_{number}", "name": tool_name(body), "input": ARGUMENTS},
        ]
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": f"{body['model']}-2026",
        "content": content,
        "stop_reason": "tool_use" if _calls(body) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3},
    }


def _message_events(body: dict[str, Any], number: str) -> Iterator[tuple[str | None, Any]]:
    whole = _message(body, number)
    start = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 5, "output_tokens": 1}}
    yield "message_start", {"type": "message_start", "message": start}
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            yield (
                "content_block_start",
                {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}},
            )
            for piece in PIECES if block["text"] == TEXT else [block["text"]]:
                yield (
                    "content_block_delta",
                    {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": piece}},
                )
        else:
            yield (
                "content_block_start",
                {"type": "content_block_start", "index": index, "content_block": {**block, "input": {}}},
            )
            text = json.dumps(block["input"], ensure_ascii=False)
            for piece in (text[:5], text[5:]):
                yield (
                    "content_block_delta",
                    {
                        "type": "content_block_delta",
                        "index": index,
                        "delta": {"type": "input_json_delta", "partial_json": piece},
                    },
                )
        yield "content_block_stop", {"type": "content_block_stop", "index": index}
    yield (
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 3},
        },
    )
    yield "message_stop", {"type": "message_stop"}
