"""Any sequence of moves keeps the registry's promises."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_schemas.traffic import Traffic
from treadle_trainer.errors import NoChampion, NoPredecessor, RegistryError
from treadle_trainer.registry import Aliases, Registry

_MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("register"), st.just(0)),
        st.tuples(st.just("promote"), st.integers(0, 4)),
        st.tuples(st.just("force"), st.integers(0, 4)),
        st.tuples(st.just("rollback"), st.booleans()),
        st.tuples(st.just("admit"), st.integers(0, 4)),
        st.tuples(st.just("withdraw"), st.booleans()),
        st.tuples(st.just("control"), st.integers(0, 4)),
        st.tuples(st.just("reject"), st.integers(0, 4)),
        st.tuples(st.just("collect"), st.just(0)),
    ),
    max_size=16,
)


_TRAFFIC = ("promoted", "rolled_back", "admitted", "withdrawn", "controlled")


@settings(max_examples=40, deadline=None)
@given(_MOVES)
def test_the_audit_log_alone_tells_who_is_champion(moves: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder), "shop")
        for move, argument in moves:
            try:
                if move == "register":
                    registry.register(hosted="x")
                elif move == "rollback":
                    registry.rollback("bad", quarantine=bool(argument))
                elif move == "admit":
                    registry.admit(registry.id(argument), share=0.1, expect=registry.champion, reason="try")
                elif move == "withdraw":
                    registry.withdraw("bad", quarantine=bool(argument))
                elif move == "control":
                    registry.set_control(registry.id(argument), reason="measure")
                elif move == "reject":
                    registry.reject(registry.id(argument), reason="no", quarantine=argument > 2)
                elif move == "collect":
                    registry.collect([registry.id(n) for n in range(len(registry.releases()))], reason="space")
                else:
                    release = registry.id(argument)
                    registry.promote(release, expect=registry.champion, reason="ok", force=move == "force")
            except (RegistryError, NoPredecessor, NoChampion):
                pass
            champion = registry.champion
            told = next(
                (e.champion for e in reversed(registry.events()) if e.event in ("promoted", "rolled_back")), None
            )
            assert told == (str(champion) if champion else None)
            assert [e.sequence for e in registry.events()] == list(range(len(registry.events())))
            aliases = registry.aliases
            assert Registry(Path(folder), "shop").aliases == aliases
            for number in aliases.serving:  # nothing that serves is ever collected, and no canary is quarantined
                assert not registry.collected(registry.id(number))
            assert str(aliases.canary) not in aliases.quarantined
            assert aliases.canary is None or aliases.canary != aliases.champion
            traffic = next((e.traffic for e in reversed(registry.events()) if e.event in _TRAFFIC), None)
            assert (traffic or Traffic()) == registry.traffic()


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.integers(0, 5), st.sampled_from(["back", "quarantine"])), max_size=30),
)
def test_rollbacks_alone_always_end(moves: list[int | str]) -> None:
    aliases = Aliases()
    for move in moves:
        if isinstance(move, int):
            if move != aliases.champion and str(move) not in aliases.quarantined:
                aliases = aliases.promoted(move)
        else:
            before = aliases
            aliases = aliases.rolled_back(quarantine="bad" if move == "quarantine" else None) or aliases
            if aliases is not before:
                assert aliases.champion != before.champion
                assert str(aliases.champion) not in aliases.quarantined
    steps = 0
    while (after := aliases.rolled_back(quarantine=None)) is not None:
        assert len(after.history) < len(aliases.history)
        aliases, steps = after, steps + 1
    assert steps <= len(moves)
