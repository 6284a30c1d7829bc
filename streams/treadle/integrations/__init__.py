"""Capture without a change to the agent: what its client libraries send and receive becomes interactions.

    treadle.instrument(recorder)                                   # every client built on httpx or httpx2
    treadle.wrap(client, recorder)                                 # one OpenAI or Anthropic client
    treadle.integrations.langchain.instrument(recorder)            # LangChain, LangGraph
    treadle.integrations.openai_agents.instrument(recorder)        # OpenAI Agents SDK
    treadle.integrations.pydantic_ai.instrument(recorder)          # Pydantic AI
    treadle.integrations.litellm.instrument(recorder)              # LiteLLM
    treadle.integrations.otel.instrument(recorder)                 # OpenTelemetry's GenAI spans, of any library

The modules are imported on demand, so each needs its own library only. docs/integrations.md says what each of them cannot see.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.integrations import langchain, litellm, openai_agents, otel, pydantic_ai
    from treadle.integrations._http import instrument, uninstrument, wrap

__all__ = ["instrument", "langchain", "litellm", "openai_agents", "otel", "pydantic_ai", "uninstrument", "wrap"]

_MODULES = frozenset({"langchain", "litellm", "openai_agents", "otel", "pydantic_ai"})
_OF_HTTP = frozenset({"instrument", "uninstrument", "wrap"})
"""Not imported with the package: they bring asyncio, and every recorder needs the formats beside them."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _OF_HTTP:
        return getattr(importlib.import_module(f"{__name__}._http"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
