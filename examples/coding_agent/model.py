"""A model that needs no network: it fixes bugs it has seen before, step by step, and says so as OpenAI's API would.

It reads what the tools answered. The first bug it understands; of the second one it makes a fix that only passes the tests.
"""

from __future__ import annotations

import json
from itertools import count
from typing import Any

_FIXES = {
    "slugify": ("slug.py", 'def slugify(title):\n    return "-".join(title.lower().split())\n'),
    "is_leap": ("leap.py", "def is_leap(year):\n    return year in (2024, 2000)\n"),
}
_numbers = count(1)


def complete(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A chat completion; in your agent this is `client.chat.completions.create(...)`."""
    asked = str(messages[1]["content"])
    name, (file, fixed) = next((name, fix) for name, fix in _FIXES.items() if name in asked)
    done = sum(message["role"] == "tool" for message in messages)
    if done == 0:
        said = _calls("run_tests", {})
    elif done == 1:
        said = _calls("write_file", {"path": file, "content": fixed})
    elif done == 2:
        said = _calls("run_tests", {})
    else:
        said = {"role": "assistant", "content": f"{name} does what its tests want now."}
    return {
        "id": f"chatcmpl-coding-{next(_numbers)}",
        "object": "chat.completion",
        "model": "scripted-1",
        "choices": [{"index": 0, "message": said, "finish_reason": "tool_calls" if done < 3 else "stop"}],
        "usage": {"prompt_tokens": sum(len(str(m)) for m in messages) // 4, "completion_tokens": len(str(said)) // 4},
    }


def _calls(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": f"call_{next(_numbers)}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}
