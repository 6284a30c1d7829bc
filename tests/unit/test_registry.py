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
from treadle_trainer.registry import Aliases, Registry, open_release, slots


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
