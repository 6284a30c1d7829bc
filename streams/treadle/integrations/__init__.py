"""Capture without a change to the agent: what its client libraries send and receive becomes interactions.

    treadle.instrument(recorder)                                   # every client built on httpx or httpx2
    treadle.wrap(client, recorder)                                 # one OpenAI or Anthropic client
    treadle.integrations.langchain.instrument(recorder)            # LangChain, LangGraph
    treadle.integrations.openai_agents.instrument(recorder)        # OpenAI Agents SDK
    treadle.integrations.pydantic_ai.instrument(recorder)          # Pydantic AI
    treadle.integrations.litellm.instrument(recorder)              # LiteLLM

The modules are imported on demand, so each needs its own library only. docs/integrations.md says what each of them cannot see.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from treadle.integrations._http import instrument, uninstrument, wrap

if TYPE_CHECKING:
    from treadle.integrations import langchain, litellm, openai_agents, pydantic_ai

__all__ = ["instrument", "langchain", "litellm", "openai_agents", "pydantic_ai", "uninstrument", "wrap"]

_MODULES = frozenset({"langchain", "litellm", "openai_agents", "otel", "pydantic_ai"})


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
