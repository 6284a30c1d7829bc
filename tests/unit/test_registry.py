"""The registry: immutable releases, one champion, and a history that only ever goes back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from treadle_schemas import ReleaseId
from treadle_trainer.errors import (
    AliasMoved,
    NoChampion,
    NoPredecessor,
    RegistryError,
    ReleaseMissing,
    ReleaseRefused,
    ReleaseTampered,
)
from treadle_trainer.registry import (
    Aliases,
    Registry,
    collectable,
    export,
    flags,
    open_release,
    slots,
    within_budget,
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", "shop")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "inner" / "extra.json").write_text("{}")
    return folder


def _chain(registry: Registry, model: Path, n: int) -> list[ReleaseId]:
    """`n` releases, each promoted over the one before."""
    releases: list[ReleaseId] = []
    for _ in range(n):
        releases.append(registry.register(model))
        registry.promote(releases[-1], expect=registry.champion, reason="next")
    return releases


def test_the_first_release_is_r0_and_becomes_champion_of_nobody(registry: Registry, model: Path) -> None:
    first = registry.register(model, reason="what runs today")
    assert (str(first), registry.champion) == ("shop/main/r0", None)
    event = registry.promote(first, expect=None, reason="first")
    assert registry.champion == first
    assert (event.event, event.release, event.previous, event.champion) == ("promoted", str(first), None, str(first))


def test_a_release_is_a_copy_with_the_hash_of_every_file(registry: Registry, model: Path) -> None:
    release = registry.register(model, corpus="/c", corpus_version=3, corpus_hash="ab", method="sft")
    (model / "weights.safetensors").write_bytes(b"changed later")
    manifest = registry.verify(release)
    assert (registry.folder(release) / "weights.safetensors").read_bytes() == b"weights"
    assert sorted(manifest.files) == ["inner/extra.json", "weights.safetensors"]
    assert (manifest.kind, manifest.corpus_version, manifest.path) == ("model", 3, "shop/main/r0")


def test_hosted_models_and_prompts_are_releases_too(registry: Registry) -> None:
    hosted = registry.register(hosted="gpt-x", sampling={"temperature": 0.2})
    prompt = registry.register(prompt="Be kind.")
    assert [registry.verify(r).kind for r in (hosted, prompt)] == ["hosted", "prompt"]
    assert registry.manifest(hosted).sampling == {"temperature": 0.2}
    with pytest.raises(RegistryError, match="needs a model folder"):
        registry.register()


def test_numbers_are_never_used_again(registry: Registry, model: Path) -> None:
    registry.register(model)
    gone = registry.register(model)
    for path in sorted(registry.folder(gone).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (registry.path / "r1").rmdir()
    assert str(registry.register(model)) == "shop/main/r2"


def test_what_cannot_be_copied_whole_is_refused(registry: Registry, model: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is no folder"):
        registry.register(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="holds no files"):
        registry.register(tmp_path / "empty")
    (model / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(RegistryError, match="leads out of"):
        registry.register(model)
    (model / "passwd").unlink()
    (model / "manifest.json").write_text("{}")
    with pytest.raises(RegistryError, match="rename yours"):
        registry.register(model)
    assert registry.releases() == []
    assert list(registry.path.glob(".staging-*")) == []


def test_the_loser_of_a_race_gets_alias_moved(registry: Registry, model: Path) -> None:
    first, second, third = (registry.register(model) for _ in range(3))
    registry.promote(first, expect=None, reason="first")
    registry.promote(second, expect=first, reason="second")
    with pytest.raises(AliasMoved) as lost:
        registry.promote(third, expect=first, reason="third")
    assert lost.value.champion == str(second)
    with pytest.raises(AliasMoved):
        registry.rollback("late", expect=first)
    assert registry.champion == second
    assert [e.event for e in registry.events()].count("promoted") == 2


def test_promoting_the_champion_again_is_refused(registry: Registry, model: Path) -> None:
    (only,) = _chain(registry, model, 1)
    with pytest.raises(RegistryError, match="champion already"):
        registry.promote(only, expect=only, reason="again")


def test_rollback_goes_to_the_predecessor_and_quarantines(registry: Registry, model: Path) -> None:
    r0, r1, r2 = _chain(registry, model, 3)
    assert registry.predecessor == r1
    event = registry.rollback("it is worse", actor="guard", evidence={"after_rows": 8})
    assert (registry.champion, registry.predecessor) == (r1, r0)
    assert (event.event, event.release, event.previous, event.champion) == ("rolled_back", str(r1), str(r2), str(r1))
    before = registry.events()[-2]
    assert (before.event, before.release, before.evidence) == ("quarantined", str(r2), {"after_rows": 8})
    assert registry.aliases.quarantined == {"2": "it is worse"}


def test_rollback_never_toggles(registry: Registry, model: Path) -> None:
    r0, r1, r2 = _chain(registry, model, 3)
    assert registry.rollback("a", quarantine=False).champion == str(r1)
    assert registry.rollback("b", quarantine=False).champion == str(r0)
    with pytest.raises(NoPredecessor):
        registry.rollback("c", quarantine=False)
    # also not after promoting to and fro
    registry.promote(r1, expect=r0, reason="again")
    registry.promote(r0, expect=r1, reason="back")
    registry.promote(r2, expect=r0, reason="on")
    seen = [registry.rollback("d", quarantine=False).champion for _ in range(3)]
    assert seen == [str(r0), str(r1), str(r0)]
    with pytest.raises(NoPredecessor):
        registry.rollback("e", quarantine=False)
    assert registry.champion == r0


def test_a_quarantined_release_returns_by_force_only(registry: Registry, model: Path) -> None:
    r0, r1 = _chain(registry, model, 2)
    registry.rollback("bad")
    with pytest.raises(ReleaseRefused, match=r"quarantined \(bad\); --force") as refused:
        registry.promote(r1, expect=r0, reason="please")
    assert refused.value.exit_code == 3
    assert registry.champion == r0
    registry.promote(r1, expect=r0, reason="I insist", force=True)
    assert (registry.champion, registry.aliases.quarantined) == (r1, {})


def test_rollback_passes_over_quarantined_predecessors(registry: Registry, model: Path) -> None:
    r0, r1, r2 = _chain(registry, model, 3)
    registry.rollback("r2 is bad")
    registry.promote(r2, expect=r1, reason="forced", force=True)
    registry.rollback("r2 is bad again")
    registry.promote(r2, expect=r1, reason="forced again", force=True)
    r3 = registry.register(model)
    registry.promote(r3, expect=r2, reason="on top of a bad one")
    registry.rollback("r3 is bad")
    assert registry.champion == r2
    registry.rollback("r2 is bad for good")
    assert registry.champion == r1
    registry.rollback("r1 too")
    assert registry.champion == r0
    assert sorted(registry.aliases.quarantined) == ["1", "2", "3"]


def test_without_a_predecessor_nothing_changes(registry: Registry, model: Path) -> None:
    with pytest.raises(NoChampion):
        registry.rollback("nothing there")
    (only,) = _chain(registry, model, 1)
    count = len(registry.events())
    with pytest.raises(NoPredecessor, match="r0 has no predecessor"):
        registry.rollback("bad")
    assert (registry.champion, registry.aliases.quarantined, len(registry.events())) == (only, {}, count)


def test_a_tampered_release_is_neither_loaded_nor_promoted(registry: Registry, model: Path) -> None:
    r0, r1, r2, r3 = (registry.register(model) for _ in range(4))
    (registry.folder(r0) / "weights.safetensors").write_bytes(b"evil")
    with pytest.raises(ReleaseTampered, match=r"weights\.safetensors: is not what the manifest says"):
        registry.promote(r0, expect=None, reason="x")
    (registry.folder(r1) / "inner" / "extra.json").unlink()
    with pytest.raises(ReleaseTampered, match=r"extra\.json: is missing"):
        open_release(registry.folder(r1))
    (registry.folder(r2) / "code.py").write_text("import os")
    with pytest.raises(ReleaseTampered, match=r"code\.py: is not in the manifest"):
        registry.verify(r2)
    manifest = registry.folder(r3) / "manifest.json"
    plain = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**plain, "corpus": "/another"}))
    with pytest.raises(ReleaseTampered, match="was changed after"):
        registry.verify(r3)
    assert registry.champion is None


def test_a_release_swapped_for_another_is_noticed(registry: Registry, model: Path) -> None:
    r0, r1 = registry.register(model), registry.register(model)
    a, b = registry.folder(r0), registry.folder(r1)
    a.rename(registry.path / "aside")
    b.rename(a)
    with pytest.raises(ReleaseTampered, match="names shop/main/r1"):
        registry.verify(r0)


def test_unknown_releases_are_named_with_the_known_ones(registry: Registry, model: Path) -> None:
    registry.register(model)
    with pytest.raises(ReleaseMissing, match="shop/main/r7: no such release; shop/main has r0"):
        registry.promote(ReleaseId("shop", "main", 7), expect=None, reason="x")
    with pytest.raises(ReleaseMissing, match="does not belong"):
        registry.folder(ReleaseId("other", "main", 0))


def test_the_audit_log_says_who_when_why_and_on_what_evidence(registry: Registry, model: Path) -> None:
    r0, r1 = _chain(registry, model, 2)
    registry.note("rejected", r1, actor="trainer", reason="no better", evidence={"gate": {"low": -0.1}})
    events = registry.events()
    assert [e.sequence for e in events] == list(range(len(events)))
    last = events[-1]
    assert (last.event, last.release, last.champion, last.actor) == ("rejected", str(r1), str(r1), "trainer")
    assert (last.reason, last.evidence) == ("no better", {"gate": {"low": -0.1}})
    assert last.at.endswith("Z")
    assert registry.events(after=len(events) - 2) == [last]
    assert r0 != r1


def test_a_torn_last_line_of_the_audit_log_is_cut_off(registry: Registry, model: Path) -> None:
    _chain(registry, model, 1)
    audit = registry.path / "audit.jsonl"
    whole = audit.read_bytes()
    audit.write_bytes(whole + b'{"event":"rejec')
    assert len(registry.events()) == 2
    registry.note("failed", None, actor="trainer", reason="x")
    assert audit.read_bytes().startswith(whole)
    assert [e.sequence for e in registry.events()] == [0, 1, 2]


def test_a_broken_line_inside_the_audit_log_is_named(registry: Registry, model: Path) -> None:
    _chain(registry, model, 1)
    audit = registry.path / "audit.jsonl"
    audit.write_bytes(b"garbage\n" + audit.read_bytes())
    with pytest.raises(RegistryError, match=r"audit\.jsonl:1"):
        registry.events()


def test_old_staging_folders_are_swept_and_young_ones_left(registry: Registry) -> None:
    old, young = registry.path / ".staging-old", registry.path / ".staging-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    Registry(registry.root, "shop")
    assert (old.exists(), young.exists()) == (False, True)


def test_slots_are_found_by_policy_or_releases(registry: Registry, model: Path) -> None:
    _chain(registry, model, 1)
    (registry.root / "shop" / "planner").mkdir()
    (registry.root / "shop" / "planner" / "policy.json").write_text("{}")
    (registry.root / "shop" / "empty").mkdir()
    assert slots(registry.root) == [("shop", "main"), ("shop", "planner")]
    assert slots(registry.root, "other") == []


def test_pure_aliases_round_trip() -> None:
    aliases = Aliases(champion=3, history=(0, 1), quarantined={"1": "bad"})
    assert msgspec.json.decode(msgspec.json.encode(aliases), type=Aliases) == aliases
    assert aliases.predecessor == 0
    back = aliases.rolled_back(quarantine=None)
    assert back is not None
    assert (back.champion, back.history) == (0, ())


# --- canary, control, pins, collection -----------------------------------------------------------------------------------------


def test_a_canary_serves_its_share_and_becomes_champion_or_goes(registry: Registry, model: Path) -> None:
    _chain(registry, model, 1)
    one, two = registry.register(model), registry.register(model)
    event = registry.admit(one, share=0.2, expect=registry.champion, reason="try")
    assert (event.event, registry.canary, str(registry.champion)) == ("admitted", one, "shop/main/r0")
    assert event.traffic is not None
    picked = [event.traffic.release(f"e{n}") for n in range(2000)]
    assert picked.count(str(one)) == pytest.approx(400, abs=60)
    assert set(picked) == {str(one), "shop/main/r0"}
    registry.admit(two, share=0.2, expect=registry.champion, reason="try")
    assert [e.event for e in registry.events()[-2:]] == ["withdrawn", "admitted"]
    registry.promote(two, expect=registry.id(0), reason="better")
    assert (registry.champion, registry.canary) == (two, None)
    registry.admit(one, share=0.2, expect=two, reason="again")
    with pytest.raises(AliasMoved, match="the canary is shop/main/r1, not shop/main/r2"):
        registry.withdraw("bad", expect=two)
    registry.withdraw("bad", expect=one, quarantine=True)
    assert registry.canary is None
    with pytest.raises(ReleaseRefused, match="quarantined"):
        registry.admit(one, share=0.2, expect=two, reason="again")
    with pytest.raises(ReleaseMissing, match="has no canary"):
        registry.withdraw("bad")


def test_what_no_canary_may_be(registry: Registry, model: Path) -> None:
    first = registry.register(model)
    with pytest.raises(NoChampion):
        registry.admit(first, share=0.1, expect=None, reason="try")
    registry.promote(first, expect=None, reason="first")
    with pytest.raises(RegistryError, match="is the champion already"):
        registry.admit(first, share=0.1, expect=first, reason="try")
    with pytest.raises(RegistryError, match=r"share 0\.7"):
        registry.admit(registry.register(model), share=0.7, expect=first, reason="try")


def test_the_control_keeps_its_episodes_while_canaries_come_and_go(registry: Registry, model: Path) -> None:
    _chain(registry, model, 2)
    before = registry.set_control(registry.id(0), share=0.05, reason="measure").traffic
    after = registry.admit(registry.register(model), share=0.3, expect=registry.champion, reason="try").traffic
    assert before is not None
    assert after is not None
    controlled = [f"e{n}" for n in range(3000) if before.arm(f"e{n}") == "control"]
    assert len(controlled) == pytest.approx(150, abs=40)
    assert [f"e{n}" for n in range(3000) if after.arm(f"e{n}") == "control"] == controlled
    registry.set_control(None, reason="enough")
    assert registry.control is None


def test_only_what_nothing_needs_is_collected_and_its_manifest_stays(registry: Registry, model: Path) -> None:
    chain = _chain(registry, model, 3)  # r0, r1, r2: a rollback may lead to r0 and r1
    base = registry.register(model)
    adapter = registry.register(model, kind="adapter", base=str(registry.folder(base)))
    pinned, undecided, refused, canary = (registry.register(model) for _ in range(4))
    for one in (base, pinned, refused):
        registry.reject(one, reason="no")
    registry.pin(pinned, reason="for the paper")
    registry.admit(adapter, share=0.1, expect=registry.champion, reason="try")
    registry.set_control(chain[0], reason="measure")
    newest = registry.register(model)
    registry.reject(newest, reason="no")

    found = [str(which) for which, _ in collectable(registry, keep_newest=1)]
    assert found == [str(refused)]
    assert within_budget(registry, collectable(registry, keep_newest=1), 10**9) == []
    everything = [registry.id(n) for n in range(10)]
    done = registry.collect(everything, reason="space")
    assert [event.release for event in done] == [str(refused), str(newest)]
    assert sorted(p.name for p in registry.folder(refused).iterdir()) == [".collected", "manifest.json"]
    assert registry.manifest(refused).files  # lineage and audit still have what they need
    with pytest.raises(ReleaseMissing, match="were deleted to save space"):
        registry.promote(refused, expect=registry.champion, reason="after all")
    assert registry.collect(everything, reason="space") == []
    registry.pin(pinned, reason="printed", unpin=True)
    assert [e.release for e in registry.collect(everything, reason="space")] == [str(pinned)]
    for kept in (*chain, base, adapter, undecided, canary):
        registry.verify(kept)


def test_an_export_is_whole_verified_and_never_over_anything(registry: Registry, model: Path, tmp_path: Path) -> None:
    release = registry.register(model)
    export(registry, release, tmp_path / "out" / "copy")
    assert open_release(tmp_path / "out" / "copy") == registry.manifest(release)
    with pytest.raises(RegistryError, match="is there already"):
        export(registry, release, tmp_path / "out" / "copy")
    (registry.folder(release) / "weights.safetensors").write_bytes(b"tampered")
    with pytest.raises(ReleaseTampered, match=r"weights\.safetensors"):
        export(registry, release, tmp_path / "out" / "other")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["copy"]


def test_the_versions_behind_quarantined_releases_are_flagged(registry: Registry, model: Path) -> None:
    _chain(registry, model, 1)
    bad = registry.register(model, corpus="/c", corpus_version=3)
    registry.promote(bad, expect=registry.champion, reason="next")
    assert flags(registry) == []
    registry.rollback("live rewards fell")
    assert [(f.corpus, f.version, f.release, f.reason) for f in flags(registry)] == [
        ("/c", 3, str(bad), "live rewards fell")
    ]
    registry.promote(bad, expect=registry.champion, reason="it was the grader", force=True)
    assert flags(registry) == []


def test_a_release_that_serves_cannot_be_rejected(registry: Registry, model: Path) -> None:
    first = _chain(registry, model, 1)[0]
    with pytest.raises(RegistryError, match="serves"):
        registry.reject(first, reason="no")
    other = registry.register(model)
    registry.reject(other, reason="unsafe", quarantine=True)
    with pytest.raises(ReleaseRefused, match="unsafe"):
        registry.promote(other, expect=first, reason="next")
