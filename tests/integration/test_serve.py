"""The proxy in front of releases: a real HTTP server behind it, real registries, what was recorded looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from treadle import MemorySink, Recorder
from treadle_schemas import ReleaseId
from treadle_schemas.ids import Handle
from treadle_trainer.registry import Registry
from treadle_trainer.serving import Backends, Deployment, HostedBackend, ServeSettings, VllmBackend
from treadle_trainer.serving.app import make_app

from .api_server import TEXT, ApiServer

ASK = {"model": "main", "messages": [{"role": "user", "content": "hello?"}]}
KEY = "sk-upstream-that-nobody-may-see"


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


class Proxy:
    """One slot of a workspace behind the application, without a socket in front of it."""

    def __init__(self, folder: Path, api: ApiServer, settings: ServeSettings | None = None) -> None:
        api.reset()
        self.api = api
        self.sink = MemorySink()
        self.registry = Registry(folder / "registry", "shop")
        hosted = HostedBackend(f"{api.url}/v1", KEY, "prompted")
        self.backends = Backends(local=None, hosted=hosted, adapters=VllmBackend(f"{api.url}/v1"))
        self.deployment = Deployment(self.registry, self.backends, self._recorder)
        self.settings = settings or ServeSettings()

    def _recorder(self, release: ReleaseId) -> Recorder:
        return Recorder("shop", slot=release.slot, release=str(release), sink=self.sink)

    def hosted(self, model: str, **more: Any) -> ReleaseId:
        return self.registry.register(hosted=model, **more)

    def champion(self, release: ReleaseId) -> None:
        self.registry.promote(release, expect=self.registry.champion, reason="test")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx.AsyncClient]:
        """The application followed step by step: a test decides when the registry is looked at."""
        app = make_app(self.settings, {"main": self.deployment}, self.backends)
        await self.deployment.step()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy") as client:
            yield client
        await self.deployment.close()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.sink.interactions


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_an_answer_is_the_champions_and_is_recorded(tmp_path: Path, api: ApiServer) -> None:
    proxy = Proxy(tmp_path, api)
    proxy.champion(proxy.hosted("m-one", sampling={"temperature": 0.3, "top_p": 0.9}))

    async def test() -> None:
        async with proxy.running() as client:
            said = {**ASK, "top_p": 0.5, "metadata": {"episode_id": "e1", "task_id": "t1", "tier": "gold"}}
            said["messages"] = [
                *ASK["messages"],
                {"role": "assistant", "content": "yes?"},
                {"role": "user", "content": "go"},
            ]
            answer = await client.post("/v1/chat/completions", json=said, headers={"X-Treadle-Subject": "alice"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == TEXT
            assert answer.headers["x-treadle-release"] == "shop/main/r0"
            assert answer.headers["x-treadle-arm"] == "champion"
            (row,) = proxy.rows
            assert Handle.parse(answer.headers["x-treadle-handle"]) == Handle("shop", "e1", row["interaction_id"])

    run(test)
    (row,) = proxy.rows
    where = ("episode_id", "task_id", "subject", "slot", "release", "step", "tags")
    expected = ["e1", "t1", "alice", "main", "shop/main/r0", 1, {"tier": "gold"}]
    assert [row.get(name) for name in where] == expected
    assert (row["messages"][-1], row["response"]) == ({"role": "assistant", "content": TEXT}, [3])
    sent = api.requests[-1]
    # the release says what the agent does not, and nothing that only treadle knows goes out
    assert (sent["model"], sent["temperature"], sent["top_p"], "metadata" in sent) == ("m-one", 0.3, 0.5, False)
    assert KEY not in repr(proxy.deployment._loaded) + json.dumps(proxy.rows)


def test_a_stream_passes_through_and_is_recorded_once_it_ends(tmp_path: Path, api: ApiServer) -> None:
    proxy = Proxy(tmp_path, api)
    proxy.champion(proxy.hosted("m-one"))

    async def test() -> None:
        async with proxy.running() as client:
            async with client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
                events = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
            assert events[-1] == "data: [DONE]"
            said = [json.loads(e[6:])["choices"][0]["delta"].get("content") or "" for e in events[:-1]]
            assert "".join(said) == TEXT

    run(test)
    (row,) = proxy.rows
    assert row["messages"][-1]["content"] == TEXT
    assert proxy.deployment.loaded == ()  # closed


def test_a_release_serves_once_it_answered_and_the_one_before_it_until_then(tmp_path: Path, api: ApiServer) -> None:
    proxy = Proxy(tmp_path, api)
    good, broken, better = proxy.hosted("m-one"), proxy.hosted("broken"), proxy.hosted("m-two")
    proxy.champion(good)

    async def test() -> None:
        async with proxy.running() as client:

            async def model() -> str:
                answer = await client.post("/v1/chat/completions", json=ASK)
                return str(answer.json()["model"])

            assert await model() == "m-one-2026"
            proxy.champion(broken)
            await proxy.deployment.step()
            assert await model() == "m-one-2026"
            status = (await client.get("/treadle/status")).json()["main"]
            assert (status["champion"], list(status["problems"])) == (str(good), [str(broken)])
            assert "HTTP 500" in status["problems"][str(broken)]
            probes = len(api.requests)
            await proxy.deployment.step()
            assert len(api.requests) == probes  # not at every look at the registry
            proxy.champion(better)
            await proxy.deployment.step()
            assert await model() == "m-two-2026"
            assert (await client.get("/treadle/status")).json()["main"]["problems"] == {}

    run(test)


def test_at_the_start_the_predecessor_serves_where_the_champion_cannot(tmp_path: Path, api: ApiServer) -> None:
    proxy = Proxy(tmp_path, api)
    proxy.champion(proxy.hosted("m-one"))
    proxy.champion(proxy.hosted("broken"))

    async def test() -> None:
        async with proxy.running() as client:
            answer = await client.post("/v1/chat/completions", json=ASK)
            assert answer.headers["x-treadle-release"] == "shop/main/r0"

    run(test)


def test_a_canary_gets_its_share_of_episodes_and_fails_open(tmp_path: Path, api: ApiServer) -> None:
    proxy = Proxy(tmp_path, api)
    proxy.champion(proxy.hosted("m-one"))
    canary = proxy.hosted("flaky")
    api.failures["flaky"] = 0
    proxy.registry.admit(canary, expect=proxy.registry.champion, share=0.5, reason="test")

    async def test() -> None:
        async with proxy.running() as client:

            async def ask(episode: str) -> httpx.Response:
                return await client.post("/v1/chat/completions", json=ASK, headers={"X-Treadle-Episode-Id": episode})

            arms = {n: (await ask(f"e{n}")).headers["x-treadle-arm"] for n in range(40)}
            assert 8 <= sum(arm == "canary" for arm in arms.values()) <= 32
            assert all([(await ask(f"e{n}")).headers["x-treadle-arm"] == arms[n] for n in range(10)])
            assert {row["release"] for row in proxy.rows} == {"shop/main/r0", str(canary)}
            # the canary breaks: the champion answers its episodes, and both tries are on record
            of_canary = next(f"e{n}" for n in range(40) if arms[n] == "canary")
            api.failures["flaky"] = 100
            before = len(proxy.rows)
            answer = await ask(of_canary)
            assert (answer.status_code, answer.headers["x-treadle-arm"]) == (200, "champion")
            tries = [(row["release"], row.get("status")) for row in proxy.rows[before:]]
            assert tries == [(str(canary), "error"), ("shop/main/r0", None)]
            # after a few in a row it is left alone for a while
            for _ in range(8):
                await ask(of_canary)
            assert api.failures["flaky"] == 95

    run(test)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "planner"}, 404, "model_not_found"),
        ({"messages": []}, 400, "invalid_request"),
        ({"messages": "hi"}, 400, "invalid_request"),
        ({"metadata": {"episode_id": 7}}, 400, "invalid_request"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_form(
    tmp_path: Path, api: ApiServer, change: dict[str, Any], status: int, code: str
) -> None:
    proxy = Proxy(tmp_path, api)
    proxy.champion(proxy.hosted("m-one"))

    async def test() -> None:
        async with proxy.running() as client:
            answer = await client.post("/v1/chat/completions", json={**ASK, **change})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    run(test)
    assert proxy.rows == []


def test_only_json_and_only_those_with_the_token(tmp_path: Path, api: ApiServer) -> None:
    settings = ServeSettings.load({"TREADLE_SERVE_TOKEN": "s3cret", "TREADLE_SERVE_HOST": "0.0.0.0"})
    assert "s3cret" not in repr(settings)
    proxy = Proxy(tmp_path, api, settings)
    proxy.champion(proxy.hosted("m-one"))

    async def test() -> None:
        async with proxy.running() as client:
            for path in ("/v1/chat/completions", "/treadle/prepare"):
                assert (await client.post(path, json=ASK)).status_code == 401
                assert (await client.post(path, json=ASK, headers={"Authorization": "Bearer s3cre"})).status_code == 401
            right = {"Authorization": "Bearer s3cret"}
            assert (await client.post("/v1/chat/completions", json=ASK, headers=right)).status_code == 200
            text = {**right, "Content-Type": "text/plain"}
            refused = await client.post("/v1/chat/completions", content=json.dumps(ASK), headers=text)
            assert refused.status_code == 415

    run(test)


def test_a_release_can_be_prepared_before_its_alias_moves(tmp_path: Path, api: ApiServer) -> None:
    proxy = Proxy(tmp_path, api)
    proxy.champion(proxy.hosted("m-one"))
    good, broken = proxy.hosted("m-two"), proxy.hosted("broken")

    async def test() -> None:
        async with proxy.running() as client:

            async def prepare(release: object) -> httpx.Response:
                return await client.post("/treadle/prepare", json={"release": str(release)})

            assert (await prepare(good)).json()["release"] == str(good)
            assert str(good) in (await client.get("/treadle/status")).json()["main"]["loaded"]
            for release, status in ((broken, 422), ("shop/main/r77", 422), ("other/main/r0", 404), ("nonsense", 400)):
                assert (await prepare(release)).status_code == status
            before = len(api.requests)
            proxy.champion(good)
            await proxy.deployment.step()
            assert proxy.deployment.traffic.champion == str(good)
            assert len(api.requests) == before  # it was probed already

    run(test)


def test_the_prompt_of_a_release_is_used_where_the_agent_has_none(tmp_path: Path, api: ApiServer) -> None:
    proxy = Proxy(tmp_path, api)
    proxy.champion(proxy.registry.register(prompt="Be brief."))

    async def test() -> None:
        async with proxy.running() as client:
            await client.post("/v1/chat/completions", json=ASK)
            own = [{"role": "system", "content": "Mine."}, *ASK["messages"]]
            await client.post("/v1/chat/completions", json={**ASK, "messages": own})

    run(test)
    assert [row["messages"][0]["content"] for row in proxy.rows] == ["Be brief.", "Mine."]
    assert {sent["model"] for sent in api.requests} == {"prompted"}
