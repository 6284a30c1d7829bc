"""A release is found through every corpus of its mixture: by lineage, by an erasure, and before versions are pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle_corpus import Corpus, CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas import ReleaseId, Split
from treadle_trainer.candidate import register_candidate, train_spec
from treadle_trainer.concerned import concerned_releases
from treadle_trainer.mixture import MixtureSource, mixture_of
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.registry import Registry


def corpus_of(path: Path, workspace: str, *names: str) -> Path:
    with CorpusWriter.open(path, workspace=workspace, policy=Policy()) as writer:
        rows = [graded(name, subject=f"s-{name}") for name in names]
        writer.apply(rows, {0: len(names)}, 1)
        writer.finish(SelectAll())
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """shop/main/r0 was trained on a corpus of `shop`, one of `desk` and an anchor set; r1 from r0 on another corpus."""
    home = tmp_path / "home"
    monkeypatch.setenv("TREADLE_HOME", str(home))
    own, later = (corpus_of(home / "corpora" / "shop" / name, "shop", name) for name in ("own", "later"))
    desk = corpus_of(home / "corpora" / "desk" / "wins", "desk", "won", "own")
    anchor = tmp_path / "anchor.jsonl"
    anchor.write_text("{}")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    registry = Registry(home / "registry", "shop")
    policy = TrainingPolicy()
    sources = [MixtureSource(corpus=str(desk), weight=0.2), MixtureSource(anchor=str(anchor), weight=0.1)]
    with Corpus.open(own) as corpus:
        mixture = mixture_of(sources, corpus, Split())
        spec = train_spec(policy, model, corpus, tmp_path, model, mixture=mixture)
        first = register_candidate(registry, model, corpus, spec, None, {})
    with Corpus.open(later) as corpus:
        register_candidate(registry, model, corpus, train_spec(policy, model, corpus, tmp_path, model), first, {})
    assert str(first) == "shop/main/r0"
    return home


def told(*words: object, code: int = 0) -> dict[str, object]:
    done = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_release_leads_to_every_source(home: Path, tmp_path: Path) -> None:
    manifest = Registry(home / "registry", "shop").manifest(ReleaseId.parse("shop/main/r0"))
    corpus, anchor = manifest.config["mixture"]
    assert (corpus["version"], corpus["workspace"], corpus["weight"]) == (1, "desk", 0.2)
    assert (anchor["anchor"], anchor["weight"], len(anchor["sha256"])) == (str(tmp_path / "anchor.jsonl"), 0.1, 64)
    found = told("lineage", "shop/main/r0")
    mixed, kept = found["mixture"]  # type: ignore[misc]
    assert [row["row"] for row in mixed["version"]["row_list"]] == ["desk/own/own", "desk/won/won"]
    assert mixed["version"]["as_registered"]
    assert kept == anchor
    tree = CliRunner().invoke(main, ["lineage", "shop/main/r1"]).output
    assert "trained from shop/main/r0" in tree
    assert "20.0% from " in tree
    assert f"10.0% from the anchor set {anchor['anchor']}" in tree


def test_a_version_a_row_and_a_subject_of_a_mixed_corpus_lead_to_releases(home: Path) -> None:
    both = ["shop/main/r0", "shop/main/r1"]
    version = told("lineage", f"{home / 'corpora' / 'desk' / 'wins'}@v1")
    assert [one["release"] for one in version["releases"]] == both  # type: ignore[attr-defined]
    assert told("lineage", "desk/won/won")["releases"] == both
    assert told("lineage", "s-won", "--as", "subject", "--workspace", "desk")["releases"] == both
    assert told("lineage", "shop/later/later")["releases"] == ["shop/main/r1"]


def test_an_erasure_names_releases_whose_mixture_holds_a_row(home: Path) -> None:
    said: list[str] = []

    def concerned(workspace: str, name: str) -> list[tuple[str, str, int | None]]:
        found = concerned_releases(home, home / "corpora", workspace, {(name, name)}, set(), said.append)
        return [(one["release"], one["corpus"], one["rows"]) for one in found]

    desk = str(home / "corpora" / "desk" / "wins")
    assert concerned("desk", "won") == [
        ("shop/main/r0", f"{desk}@v1", 1),
        ("shop/main/r1", f"{desk}@v1 (through shop/main/r0)", 1),
    ]
    # a row with the same ids in another workspace is another row
    assert concerned("desk", "later") == []
    assert concerned("shop", "won") == []
    (own, _) = concerned("shop", "own")
    assert own[:2] == ("shop/main/r0", f"{home / 'corpora' / 'shop' / 'own'}@v1")
    # what cannot be read counts as concerned, for the workspace that it was of
    (home / "corpora" / "desk" / "wins" / "corpus.json").unlink()
    assert [rows for *_, rows in concerned("desk", "won")] == [None, None]
    assert len(said) == 1
    assert len(concerned("shop", "own")) == 2


def test_a_version_in_a_mixture_is_not_pruned(home: Path) -> None:
    path = home / "corpora" / "desk" / "wins"
    for n in range(2):
        with CorpusWriter.open(path, workspace="desk", policy=Policy()) as writer:
            writer.apply([graded(f"more{n}")], {0: 10 + n}, 2 + n)
            writer.finish(SelectAll())
    found = told("corpus", "prune", path, "--keep", "1", "--dry-run")
    assert found["removed"] == [2]
    assert found["kept"][0]["reason"] == "release shop/main/r0 was trained on it"  # type: ignore[index]
