"""The registry under crashes and races, with real processes and real files."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

# Forks a child for each point at which a change touches the disk, lets it die there without any clean-up, and looks at what is left.
_CRASHES = textwrap.dedent(
    """
    import json, os, sys
    from pathlib import Path
    from treadle_trainer.registry import Registry

    root, operation = Path(sys.argv[1]), sys.argv[2]
    model = root / "model"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"w" * 1000)
    TOUCHES = ("fsync", "replace", "rename", "write", "open", "unlink", "rmdir")

    def prepared(name):
        registry = Registry(root / name, "shop")
        for n in range(3):
            release = registry.register(model)
            registry.promote(release, expect=registry.champion, reason=f"r{n}")
        registry.register(model)
        if operation == "withdraw":
            registry.admit(registry.id(3), share=0.1, expect=registry.champion, reason="try")
        if operation == "collect":
            registry.reject(registry.id(3), reason="worse")
        return registry

    def act(registry):
        if operation == "register":
            registry.register(model)
        elif operation == "promote":
            registry.promote(registry.id(3), expect=registry.champion, reason="better")
        elif operation == "approve":
            registry.promote(registry.id(3), expect=registry.champion, reason="better", approval=True)
        elif operation == "admit":
            registry.admit(registry.id(3), share=0.1, expect=registry.champion, reason="try")
        elif operation == "withdraw":
            registry.withdraw("bad", quarantine=True)
        elif operation == "control":
            registry.set_control(registry.id(0), reason="measure")
        elif operation == "pin":
            registry.pin(registry.id(3), reason="keep")
        elif operation == "collect":
            registry.collect([registry.id(3)], reason="old")
        else:
            registry.rollback("bad", expect=registry.champion)

    def crash_at(point):
        count = 0
        for touch in TOUCHES:
            def patched(*args, _real=getattr(os, touch), **kwargs):
                nonlocal count
                if count == point:
                    os._exit(9)
                count += 1
                return _real(*args, **kwargs)
            setattr(os, touch, patched)

    point = 0
    while True:
        registry = prepared(f"{operation}-{point}")
        pid = os.fork()
        if pid == 0:
            crash_at(point)
            act(registry)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        # what a reader sees at once, without the lock
        seen = registry.aliases
        before_open = seen.champion
        again = Registry(root / f"{operation}-{point}", "shop")
        events = again.events()
        told = next(e.champion for e in reversed(events) if e.event in ("promoted", "rolled_back"))
        gone = []
        for manifest in again.releases():
            which = again.id(int(manifest.release.rpartition("/r")[2]))
            if again.collected(which):
                gone.append([which.number, sorted(p.name for p in again.folder(which).iterdir())])
            else:
                again.verify(which)
        newest = next(e for e in reversed(events) if e.event != "registered")
        print(json.dumps({
            "code": code,
            "before_open": before_open,
            "champion": again.aliases.champion,
            "told": told,
            "releases": len(again.releases()),
            "registered": sum(e.event == "registered" for e in events),
            "sequences": [e.sequence for e in events] == list(range(len(events))),
            "quarantined": sorted(again.aliases.quarantined),
            "alias": [again.aliases.canary, again.aliases.control, sorted(again.aliases.pins)],
            "alias_before_open": [seen.canary, seen.control, sorted(seen.pins)],
            "traffic_told": newest.traffic == again.traffic(),
            "gone": gone,
            "newest": newest.event,
            "next": str(again.register(model)),
        }))
        if code == 0:
            break
        point += 1
    """
)


def _crash_everywhere(tmp_path: Path, operation: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", _CRASHES, str(tmp_path), operation],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert [s["code"] for s in seen] == [9] * (len(seen) - 1) + [0]
    assert len(seen) > 5
    for state in seen:
        assert state["sequences"], state
        assert state["before_open"] == state["champion"], state
        assert state["alias_before_open"] == state["alias"], state
        assert state["traffic_told"], state
        assert state["told"] == f"shop/main/r{state['champion']}", state
        assert state["registered"] == state["releases"], state
    return seen


def test_a_crash_at_any_step_of_a_promotion_leaves_the_old_or_the_new_champion(tmp_path: Path) -> None:
    champions = [state["champion"] for state in _crash_everywhere(tmp_path, "promote")]
    assert set(champions) == {2, 3}
    assert champions == sorted(champions)  # type: ignore[type-var]  # one step decides


def test_a_crash_at_any_step_of_a_rollback_leaves_both_or_neither_half(tmp_path: Path) -> None:
    states = [(s["champion"], tuple(s["quarantined"])) for s in _crash_everywhere(tmp_path, "rollback")]  # type: ignore[arg-type]
    assert set(states) == {(2, ()), (1, ("2",))}


def test_a_crash_at_any_step_of_a_registration_leaves_a_whole_release_or_none(tmp_path: Path) -> None:
    seen = _crash_everywhere(tmp_path, "register")
    assert {s["releases"] for s in seen} == {4, 5}
    assert all(s["next"] == f"shop/main/r{s['releases']}" for s in seen)


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        ("approve", (2, [None, None, []], "promoted"), (3, [None, None, []], "promoted")),
        ("admit", (2, [None, None, []], "promoted"), (2, [3, None, []], "admitted")),
        ("withdraw", (2, [3, None, []], "admitted"), (2, [None, None, []], "withdrawn")),
        ("control", (2, [None, None, []], "promoted"), (2, [None, 0, []], "controlled")),
        ("pin", (2, [None, None, []], "promoted"), (2, [None, None, ["3"]], "pinned")),
    ],
)
def test_a_crash_at_any_step_of_another_move_leaves_all_or_nothing_of_it(
    tmp_path: Path, operation: str, before: tuple[Any, ...], after: tuple[Any, ...]
) -> None:
    states = [(s["champion"], s["alias"], s["newest"]) for s in _crash_everywhere(tmp_path, operation)]
    assert states == [before] * states.count(before) + [after] * states.count(after)
    assert states.count(before) > 0 < states.count(after)


def test_a_crash_at_any_step_of_a_collection_leaves_a_whole_release_or_its_manifest(tmp_path: Path) -> None:
    seen = _crash_everywhere(tmp_path, "collect")
    states = [(s["newest"], s["gone"]) for s in seen]
    whole, collected = ("rejected", []), ("collected", [[3, [".collected", "manifest.json"]]])
    assert states == [whole] * states.count(whole) + [collected] * states.count(collected)
    assert states.count(whole) > 0 < states.count(collected)


_RACER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from treadle_trainer.errors import AliasMoved
    from treadle_trainer.registry import Registry

    registry = Registry(Path(sys.argv[1]), "shop")
    sys.stdin.readline()
    release = registry.register(hosted=sys.argv[2])
    try:
        registry.promote(release, expect=registry.id(0), reason="race")
        print("won", release)
    except AliasMoved:
        print("lost", release)
    """
)


def test_of_many_processes_that_promote_over_the_same_champion_one_wins(tmp_path: Path) -> None:
    from treadle_trainer.registry import Registry

    registry = Registry(tmp_path, "shop")
    registry.promote(registry.register(hosted="first"), expect=None, reason="first")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(tmp_path), f"m{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert sorted(word for word, _ in said) == ["lost", "lost", "lost", "won"]
    assert str(registry.champion) == next(release for word, release in said if word == "won")
    assert len({release for _, release in said}) == 4
    assert [e.sequence for e in registry.events()] == list(range(2 + 4 + 1))
