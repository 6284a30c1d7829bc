"""`treadle lineage`: from a release to versions, rows, offsets and outcomes, and from a row, a subject or a version to releases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from treadle.cli.support import echo_json, json_option, pass_settings, workspace_of
from treadle.policies import hash_key
from treadle.redaction import subject_hash
from treadle.settings import Settings
from treadle_corpus import (
    Corpus,
    CorpusError,
    CorpusRef,
    RowOrigin,
    RowTrace,
    name_of,
    parse_ref,
    trace_rows,
    trace_subject,
)
from treadle_schemas import Handle, HandleError, ReleaseId, ReleaseManifest
from treadle_schemas.topics import topic

from treadle_trainer.commands._common import registry_root, release_of
from treadle_trainer.commands._lineage_tree import tree
from treadle_trainer.errors import ReleaseMissing
from treadle_trainer.lineage import Learnt, Releases, Trained, ancestry, learnt_from
from treadle_trainer.offsets import find_offsets

__all__ = ["lineage"]

_RELEASE: Final = re.compile(r"(?:[^/@]+/[^/@]+/)?r[0-9]+")
_KINDS: Final = ("release", "row", "subject", "version")


@click.command()
@click.argument("what", metavar="RELEASE|ROW|SUBJECT|PATH@vN")
@click.option("--as", "kind", type=click.Choice(_KINDS), help="What it is, where it could be several things.")
@click.option("--workspace", metavar="WS", help="Of a subject (default: TREADLE_WORKSPACE).")
@click.option("--corpus", "more", metavar="PATH", multiple=True, help="Look into this corpus too. Repeatable.")
@click.option(
    "--offsets", is_flag=True, help="Look on Kafka for the offsets of each revision on .graded, and of its outcomes."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print; --json has all."
)
@json_option
@pass_settings
def lineage(
    settings: Settings,
    what: str,
    kind: str | None,
    workspace: str | None,
    more: tuple[str, ...],
    offsets: bool,
    limit: int,
    as_json: bool,
) -> int:
    """Show where a release comes from, or what became of a row.

    A release (workspace/slot/rN) leads to the corpus version that it was trained on, to those of its mixture, to their rows, and for each
    its revision, the offset of its interaction and the ids of its outcomes. A row (a handle) and a subject lead to all versions that hold
    or held them, and to the releases that learnt from these. PATH@vN leads both ways. With --offsets the log is read once, for where these
    revisions and outcomes lie.
    Corpora are those that releases name, those below the corpus root and TREADLE_HOME/corpora, and those of --corpus. Exits with 1 where
    nothing is known, or where something that was needed cannot be read.
    """
    kind = kind or _kind_of(settings, what)
    walk = _Walk(settings, more)
    found: dict[str, Any]
    match kind:
        case "release":
            found = walk.release(release_of(settings, what))
        case "version":
            found = walk.version(parse_ref(what, settings.corpus_root))
        case "row":
            found = walk.row(Handle.parse(what))
        case _:
            found = walk.subject(workspace_of(settings, workspace), what)
    if offsets:
        _place(settings, found)
    found["unreadable"] = walk.unreadable
    if as_json:
        echo_json(found)
    else:
        click.echo("\n".join(tree(found, limit)))
    known = found.get("version", True) and found.get("corpora", True) and found.get("rows", True)
    return 1 if walk.unreadable or (kind in ("row", "subject") and not known) else 0


def _kind_of(settings: Settings, what: str) -> str:
    """A release or a corpus that is there comes first, then what has the form of one."""
    text = what.rpartition("@")[0] if "@" in what else what
    if "://" in what or (Path(text).expanduser() / "corpus.json").exists():
        return "version"
    if _RELEASE.fullmatch(what):
        named = _registered(settings, what) if "/" in what else True
        return "release" if named or not _is_row(settings, what) else "row"
    try:
        Handle.parse(what)
    except HandleError:
        head, _, number = what.rpartition("@v")
        return "version" if head and number.isdecimal() else "subject"
    return "row"


def _registered(settings: Settings, text: str) -> bool:
    try:
        release = ReleaseId.parse(text)
    except HandleError:
        return False
    return (registry_root(settings) / release.workspace / release.slot / f"r{release.number}").is_dir()


def _is_row(settings: Settings, what: str) -> bool:
    return bool(_Walk(settings, ()).row(Handle.parse(what))["corpora"])


class _Walk:
    """Corpora and releases of this machine, and what could not be read of them."""

    def __init__(self, settings: Settings, more: tuple[str, ...]) -> None:
        self._settings = settings
        self._more = [parse_ref(text, settings.corpus_root).path.resolve() for text in more]
        self._releases: dict[str, Releases] = {}
        self.unreadable: list[dict[str, str]] = []

    def release(self, which: ReleaseId) -> dict[str, Any]:
        """What it was trained on, with all rows, and what those before it were."""
        releases = self._of(which.workspace)
        manifest = releases.manifests.get(str(which))
        if manifest is None:
            known = ", ".join(n for n in releases.manifests if n.startswith(f"{which.workspace}/")) or "none yet"
            raise ReleaseMissing(f"{which}: no such release; workspace {which.workspace} has {known}")
        before: list[dict[str, Any]] = []
        for one in list(ancestry(manifest, releases.manifests))[1:]:
            before.append({"release": one.release, **self._learnt(releases, one, rows=False)})
        return {
            "kind": "release",
            "release": str(which),
            "champion": releases.is_champion(str(which)),
            "method": manifest.method,
            "created_at": manifest.created_at,
            **self._learnt(releases, manifest, rows=True),
            "ancestors": before,
        }

    def version(self, ref: CorpusRef) -> dict[str, Any]:
        """Its rows, and the releases that learnt from it."""
        with Corpus.open(ref) as corpus:
            made = corpus.manifest
            trained = self._of(made.workspace).trained_on(corpus.path.resolve(), corpus.version, made.content_hash)
            return {"kind": "version", **_version(corpus, rows=True), "releases": [_said(t) for t in trained]}

    def row(self, which: Handle) -> dict[str, Any]:
        """The versions that hold or held it, by corpus and revision, and the releases that learnt from it."""
        key = (which.episode_id, which.interaction_id)
        corpora = [
            self._traced(which.workspace, path, trace)
            for path in self._corpora(which.workspace)
            for trace in self._read(path, lambda path: trace_rows(path, [key]))
        ]
        return {"kind": "row", "row": str(which), "corpora": corpora, "releases": _released(corpora)}

    def subject(self, workspace: str, subject: str) -> dict[str, Any]:
        """All rows of the subject, as `row` has them. In a workspace that hashes subjects it is looked for under its hash too."""
        key = hash_key(self._settings)
        names = {subject} if key is None else {subject, subject_hash(key, subject)}
        rows: dict[str, list[dict[str, Any]]] = {}
        for path in self._corpora(workspace):
            for trace in self._read(path, lambda path: trace_subject(path, names)):
                handle = str(Handle(workspace, trace.episode_id, trace.interaction_id))
                rows.setdefault(handle, []).append(self._traced(workspace, path, trace))
        every = [corpus for corpora in rows.values() for corpus in corpora]
        return {
            "kind": "subject",
            "subject": subject,
            "workspace": workspace,
            "rows": [{"row": handle, "corpora": rows[handle]} for handle in sorted(rows)],
            "releases": _released(every),
        }

    def _of(self, workspace: str) -> Releases:
        if workspace not in self._releases:
            root = registry_root(self._settings)
            self._releases[workspace] = Releases(root, workspace, self._settings.corpus_root)
        return self._releases[workspace]

    def _learnt(self, releases: Releases, manifest: ReleaseManifest, *, rows: bool) -> dict[str, Any]:
        """`version`: what a release was trained on. `mixture`: the further corpora and anchor sets, where it has some."""
        own, mixed = None, []
        for one in learnt_from(manifest):
            said = self._trained(releases, one, rows=rows)
            if one.weight is None:
                own = said
            else:
                mixed.append({"weight": one.weight, "version": said})
        mixed += [one for one in manifest.config.get("mixture", []) if "anchor" in one]
        return {"version": own, **({"mixture": mixed} if mixed else {})}

    def _trained(self, releases: Releases, learnt: Learnt, *, rows: bool) -> dict[str, Any]:
        """A version that a manifest names: as it is there now, or why it cannot be read."""
        ref = releases.ref(learnt)
        told = {"corpus": name_of(ref.path), "version": ref.version, "content_hash": learnt.content_hash}
        try:
            with Corpus.open(ref) as corpus:
                same = learnt.content_hash in (None, corpus.manifest.content_hash)
                erased = [e for e in corpus.erasures() if e.versions[corpus.version].before == learnt.content_hash]
                return {**_version(corpus, rows=rows), "as_registered": same, "erased_since": bool(erased)}
        except CorpusError as err:
            self._cannot(ref.path, err)
            return {**told, "problem": str(err)}

    def _traced(self, workspace: str, path: Path, trace: RowTrace) -> dict[str, Any]:
        revisions: list[dict[str, Any]] = []
        for sighting in trace.sightings:
            trained: dict[str, Trained] = {}
            for version in sighting.versions:
                with Corpus.open(CorpusRef(path, version)) as corpus:
                    content = corpus.manifest.content_hash
                for one in self._of(workspace).trained_on(path, version, content):
                    if one.release not in trained or trained[one.release].through is not None:
                        trained[one.release] = one
            said = [_said(one) for one in trained.values()]
            revisions.append({**_origin(workspace, sighting.origin), "versions": sighting.versions, "releases": said})
        return {"corpus": str(path), "status": trace.status, "revisions": revisions}

    def _corpora(self, workspace: str) -> Iterator[Path]:
        """The corpora of a workspace, each once."""
        roots = (self._settings.corpus_root, self._settings.home / "corpora")
        below = {m.parent for root in roots for depth in ("*", "*/*") for m in root.glob(f"{depth}/corpus.json")}
        named = self._of(workspace).corpora() | set(self._more)
        for path in sorted({p.resolve() for p in below if not p.name.startswith(".")} | named):
            try:
                with Corpus.open(path) as newest:
                    if newest.manifest.workspace == workspace:
                        yield path
            except CorpusError as err:
                if path in named:
                    self._cannot(path, err)

    def _read(self, path: Path, trace: Any) -> list[RowTrace]:
        try:
            found: list[RowTrace] = trace(path)
        except CorpusError as err:
            self._cannot(path, err)
            return []
        return found

    def _cannot(self, path: Path, err: CorpusError) -> None:
        said = {"corpus": str(path), "problem": str(err)}
        if said not in self.unreadable:
            self.unreadable.append(said)


def _version(corpus: Corpus, *, rows: bool) -> dict[str, Any]:
    made = corpus.manifest
    said = {
        "corpus": corpus.name,
        "workspace": made.workspace,
        "version": made.version,
        "rows": made.rows,
        "content_hash": made.content_hash,
        "created_at": made.created_at,
        "policy": str(made.policy),
        "offsets": made.offsets,
        "commit": corpus.commit._asdict(),
    }
    if rows:
        said["row_list"] = [_origin(made.workspace, origin) for origin in corpus.origins()]
    return said


def _origin(workspace: str, origin: RowOrigin) -> dict[str, Any]:
    came = origin.provenance
    return {
        "row": str(Handle(workspace, origin.episode_id, origin.interaction_id)),
        "revision": came.revision,
        "split": origin.split,
        "reward": origin.reward,
        "interaction": {
            "topic": topic(workspace, "interactions"),
            "partition": came.partition,
            "offset": came.interaction_offset,
        },
        "append_ms": came.append_ms,
        "outcome_ids": came.outcome_ids,
        "last_outcome_append_ms": came.last_outcome_append_ms,
        "import_id": came.import_id,
        "graded_at": came.graded_at,
    }


def _place(settings: Settings, found: dict[str, Any]) -> None:
    """Add `graded` (null: not on Kafka any more) and `outcomes` to each revision in an answer."""
    said = list(_revisions(found))
    by_workspace: dict[str, list[tuple[Handle, dict[str, Any]]]] = {}
    for one in said:
        row = Handle.parse(one["row"])
        by_workspace.setdefault(row.workspace, []).append((row, one))
    for workspace, rows in by_workspace.items():
        wanted: dict[tuple[str, str], set[int]] = {}
        for row, one in rows:
            wanted.setdefault((row.episode_id, row.interaction_id), set()).add(one["revision"])
        ids = {outcome for _, one in rows for outcome in one["outcome_ids"]}
        places = find_offsets(settings.bootstrap_servers, workspace, wanted, ids)
        for row, one in rows:
            place = places.graded.get((row.episode_id, row.interaction_id, one["revision"]))
            one["graded"] = None if place is None else place._asdict()
            one["outcomes"] = [
                {"outcome_id": outcome, "places": [p._asdict() for p in places.outcomes.get(outcome, ())]}
                for outcome in one["outcome_ids"]
            ]


def _revisions(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        if "outcome_ids" in found:
            yield found
        else:
            for value in found.values():
                yield from _revisions(value)
    elif isinstance(found, list):
        for value in found:
            yield from _revisions(value)


def _said(trained: Trained) -> dict[str, Any]:
    return {
        "release": trained.release,
        "champion": trained.champion,
        "version": trained.version,
        "through": trained.through,
    }


def _released(corpora: list[dict[str, Any]]) -> list[str]:
    """The releases that learnt from any of these."""
    return sorted({r["release"] for c in corpora for one in c["revisions"] for r in one["releases"]})
