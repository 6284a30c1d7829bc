"""Whom the proxy lets in, and when it leaves a release alone."""

from __future__ import annotations

import pytest
from treadle_schemas.errors import SettingError
from treadle_trainer.serving import Breaker, ServeSettings
from treadle_trainer.serving.routing import routing_key


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(SettingError, match="TREADLE_SERVE_TOKEN"):
        ServeSettings.load({}, host=host)
    assert ServeSettings.load({"TREADLE_SERVE_TOKEN": "t"}, host=host).token == "t"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert ServeSettings.load({"TREADLE_SERVE_PORT": "7"}, host=host).port == 7


def test_a_port_that_is_none_is_named() -> None:
    with pytest.raises(SettingError, match="TREADLE_SERVE_PORT='x'"):
        ServeSettings.load({"TREADLE_SERVE_PORT": "x"})


def test_a_release_that_fails_rests_and_is_tried_again() -> None:
    breaker = Breaker(limit=2, rest_s=10.0)
    breaker.failed("r1", 0.0)
    assert breaker.allows("r1", 0.0)
    breaker.failed("r1", 1.0)
    assert [breaker.allows("r1", t) for t in (1.0, 10.9, 11.0, 11.1, 21.0)] == [False, False, True, False, True]
    assert breaker.allows("r2", 1.0)
    breaker.succeeded("r1")
    assert breaker.allows("r1", 1.0)


def test_a_conversation_without_an_id_keeps_its_key_while_it_grows() -> None:
    asked = [{"role": "user", "content": "hi"}]
    grown = [*asked, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "more"}]
    assert routing_key(None, asked) == routing_key(None, grown) != routing_key(None, grown[2:])
    assert routing_key("e1", asked) == "e1"
