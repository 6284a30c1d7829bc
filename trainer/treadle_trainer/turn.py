"""One turn of the trainer: a corpus version becomes a candidate, which is evaluated, judged, and promoted or not.

The path of a turn, each step timed:

1. train     a job process reads the version's token columns and makes a model folder from the champion (or the policy's base)
2. register  the folder becomes an immutable release with its lineage
3. evaluate  a job process scores candidate and champion on the same held-out tasks, and measures for the candidate's scorecard
4. gate      alpha is spent, the gate decides
5. promote   the champion moves by compare-and-set, a canary is admitted, a person is asked, or the decision is recorded

A turn is identified by its job key: version, content, policy. What the audit log shows as decided is not done again, a candidate that is
registered already is not trained again, and a training that left a checkpoint goes on from it, so a turn that a crash cut short can simply
be run once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from treadle.disk import folder_bytes
from treadle_corpus import Corpus, CorpusRef, name_of
from treadle_schemas import ReleaseEvent, ReleaseId, Split, TreadleError, content_hash

from treadle_trainer._judging import check_beside_log, judged
from treadle_trainer.candidate import ACTOR, PREVIOUS, model_folder, register_candidate, release_in, train_spec
from treadle_trainer.errors import AliasMoved, DiskFull, JobStopped, NoChampion
from treadle_trainer.evaluate import AgainstLog, Comparison, against_log, compare, incumbent
from treadle_trainer.gate import Verdict
from treadle_trainer.jobs import NO_ROOM, JobRunner, TrainSpec
from treadle_trainer.methods import check_method
from treadle_trainer.mixture import Mixture, Source, mixture_of, resolved, said_mixture
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.queue import JOB_PARTS
from treadle_trainer.registry import Flag, Registry, flags
from treadle_trainer.scorecard.of_turn import Carded, card_of, gate_metrics
from treadle_trainer.scorecard.run import Limits
from treadle_trainer.trust import Labels, labels_of

__all__ = ["TurnDecision", "TurnReport", "job_key", "run_turn"]

Refusal = Literal["rejected", "not_enough_evidence", "awaiting_approval"]
TurnDecision = Literal["promoted", "admitted", "rejected", "not_enough_evidence", "awaiting_approval"]
OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class TurnReport:
    """What became of a turn. `evidence` is what the audit log and `.releases` carry; `repeated`: it had been decided before."""

    decision: TurnDecision
    reason: str
    candidate: ReleaseId
    champion: ReleaseId | None
    """The champion after the turn."""
    event: ReleaseEvent
    evidence: dict[str, Any]
    repeated: bool = False

    @property
    def verdict(self) -> str:
        """What the gate said, also where nothing was to be promoted: promote, canary, reject or not_enough_evidence."""
        return str(self.evidence["gate"]["decision"])


def job_key(corpus: Corpus, policy: TrainingPolicy, label: str = "", sources: tuple[Source, ...] | None = None) -> str:
    """One job for one corpus version and configuration: 16 hex digits.

    `sources` are those of the policy's mixture, by default as they are now: another version of one, or another anchor set, is another job.
    """
    manifest = corpus.manifest
    parts = [manifest.content_hash, corpus.name, corpus.version, policy.fingerprint, label]
    if policy.mixture:
        found = resolved(policy.mixture, corpus) if sources is None else sources
        parts.append([source.said() for source in found])
    return content_hash(parts)[:16]


def run_turn(
    corpus: CorpusRef | Path | str,
    policy: TrainingPolicy,
    registry: Registry,
    *,
    split: Split,
    runner: JobRunner,
    promote: bool = True,
    label: str = "",
    context: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TurnReport:
    """Do one turn (see the module). `corpus` may also be a version beside the main line: with `promote` off the gate decides as ever, and
    a candidate that it would promote is recorded as rejected, because nobody asked for its promotion.

    `split` is the workspace's; `label` tells turns on the same version and policy apart; `context` is kept in the evidence.
    Raises NoChampion, JobStopped when `should_stop` said so, and any other TreadleError after recording it as failed.
    """
    if policy.backend is None:
        check_method(policy.method, speaks=True)
    try:
        opened = Corpus.open(corpus)
        mixture = mixture_of(policy.mixture, opened, split)
    except TreadleError as err:
        registry.note("failed", None, actor=ACTOR, reason=str(err), evidence={**_named(corpus), **(context or {})})
        raise
    key = job_key(opened, policy, label, None if mixture is None else mixture.sources)
    decided = _decided(registry, key)
    if decided is not None:
        return decided
    champion = registry.champion
    if champion is None:
        raise NoChampion(
            f"{registry.workspace}/{registry.slot} has no champion to train from and to compare with: register what runs today "
            "with `treadle release register FOLDER --promote`"
        )
    turn = _Turn(
        corpus=opened,
        policy=policy,
        registry=registry,
        champion=champion,
        key=key,
        label=label,
        split=split,
        mixture=mixture,
        runner=runner,
        on_progress=on_progress,
        should_stop=should_stop,
        evidence={
            "job": key,
            "label": label,
            "corpus": opened.name,
            "version": opened.version,
            "content_hash": opened.manifest.content_hash,
            **said_mixture(mixture),
            "method": policy.method,
            **(context or {}),
        },
    )
    try:
        report = turn.run(promote=promote)
    except JobStopped:
        raise
    except TreadleError as err:
        turn.failed(str(err))
        raise
    except OSError as err:
        if err.errno not in NO_ROOM:
            raise
        full = DiskFull(f"{opened}: {err}: the disk is full; `treadle job prune` frees some")
        turn.failed(str(full))
        raise full from err
    turn.tidy(done=True)
    return report


@dataclass(kw_only=True)
class _Turn:
    corpus: Corpus
    policy: TrainingPolicy
    registry: Registry
    champion: ReleaseId
    key: str
    label: str
    split: Split
    mixture: Mixture | None
    runner: JobRunner
    on_progress: OnProgress | None
    should_stop: Callable[[], bool]
    evidence: dict[str, Any]
    candidate: ReleaseId | None = None
    labels: Labels | None = None
    """Whose labels the gate believes, where it judges by any."""
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, *, promote: bool) -> TurnReport:
        """The five steps."""
        self.evidence["seconds"] = self.seconds
        if self._hosted:
            check_beside_log(self.policy, self.champion)
        self.candidate = candidate = self._registered() or self._trained()
        self.evidence["bytes"] = {
            "columns": self.evidence["training"].get("columns_bytes"),
            "release": folder_bytes(self.registry.folder(candidate)),
        }
        with self._stage("evaluate"):
            comparison = self._evaluated(candidate)
        with self._stage("gate"):
            verdict = judged(self.policy, self.registry.path, self.key, comparison)
            if self.labels is not None:
                self.evidence["labels"] = self.labels.evidence
                verdict = self.labels.about(verdict, self.policy.gate.min_tasks)
        self.evidence["gate"] = asdict(verdict)
        return self._concluded(candidate, verdict, promote)

    def failed(self, reason: str) -> None:
        """Record it."""
        self.tidy(done=False)
        with suppress(OSError):  # where a full disk takes no record either, the job says it
            self.registry.note("failed", self.candidate, actor=ACTOR, reason=reason, evidence=self.evidence)

    def tidy(self, *, done: bool) -> None:
        """Leave no rows in the job folders."""
        for part in JOB_PARTS:
            self.runner.tidy(f"{self.key}-{part}", done=done)

    def _registered(self) -> ReleaseId | None:
        """The candidate that an earlier, interrupted try registered."""
        for manifest in self.registry.releases():
            if manifest.config.get("job") == self.key:
                self.evidence["training"] = {**manifest.config.get("training", {}), "reused": True}
                return ReleaseId.parse(manifest.release)
        return None

    def _trained(self) -> ReleaseId:
        """Steps 1 and 2."""
        policy, name = self.policy, f"{self.key}-train"
        base, parent = self._base()
        folder = self.runner.prepare(name)
        out = folder / "model"
        self.runner.discard(name, out.name)
        spec = train_spec(policy, base, self.corpus, folder, out, self.split, mixture=self.mixture)
        with self._stage("train"):
            training = self.evidence["training"] = self._run(name, spec)
        read_s = self.seconds["read"] = min(training.get("read_s", 0.0), self.seconds["train"])
        self.seconds["train"] = round(self.seconds["train"] - read_s, 3)
        with self._stage("register"):
            release = register_candidate(
                self.registry, out, self.corpus, spec, parent, training, job=self.key, label=self.label
            )
        self.runner.discard(name, out.name)
        return release

    def _base(self) -> tuple[Path, ReleaseId | None]:
        """The folder to train from, and the release that this is; None for a folder that is none."""
        if self.policy.base is not None and self.policy.base != PREVIOUS:
            return Path(self.policy.base), release_in(self.registry, Path(self.policy.base))
        release = self._previous() if self.policy.base == PREVIOUS else None
        if release is None:
            return model_folder(self.registry, self.champion), self.champion
        return self.registry.folder(release), release

    def _previous(self) -> ReleaseId | None:
        """The newest candidate that may be trained from."""
        quarantined = self.registry.aliases.quarantined
        for manifest in reversed(self.registry.releases()):
            release = ReleaseId.parse(manifest.release)
            trained = manifest.method is not None and manifest.kind == "model"
            if trained and str(release.number) not in quarantined and not self.registry.collected(release):
                self.registry.verify(release)
                return release
        return None

    @property
    def _hosted(self) -> bool:
        return self.registry.manifest(self.champion).kind == "hosted"

    def _beside_log(self, candidate: ReleaseId) -> AgainstLog:
        """Step 3 beside a hosted champion, of which only logged rows are there."""
        self.registry.verify(candidate)
        manifest = self.registry.verify(self.champion)
        self.labels = labels_of(self.registry, self.corpus, ACTOR)
        found = against_log(
            self.runner,
            f"{self.key}-evaluate",
            incumbent(
                self.corpus,
                str(self.champion),
                manifest.hosted_model,
                self.registry.slot,
                self.labels.believes,
                episodes=self.policy.eval_tasks,
            ),
            policy=self.policy,
            split=self.split,
            candidate=self.registry.folder(candidate),
            seed=self._seed,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        self.evidence["evaluation"] = {
            "kind": f"{found.kind} against log",
            "environment": self.policy.environment,
            "evaluator": self.policy.evaluator if self.policy.environment else "same answer as logged",
            "seed": found.seed,
            "against": str(self.champion),
            "hosted_model": manifest.hosted_model,
            "savings": list(found.savings),
            **found.facts,
        }
        return found

    @property
    def _seed(self) -> int:
        return int(content_hash([self.key, self.policy.seed])[:8], 16)

    def _compared(self, candidate: ReleaseId) -> Comparison:
        """Step 3."""
        if self.policy.environment is None:
            self.labels = labels_of(self.registry, self.corpus, ACTOR)
        for release in (self.champion, candidate):
            self.registry.verify(release)  # a tampered file must decide nothing, in either direction
        comparison = compare(
            self.runner,
            f"{self.key}-evaluate",
            policy=self.policy,
            corpus=self.corpus,
            split=self.split,
            candidate=self.registry.folder(candidate),
            champion=model_folder(self.registry, self.champion),
            seed=self._seed,
            **({} if self.labels is None else {"believed": self.labels.believes}),
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        self.evidence["evaluation"] = {
            "kind": comparison.kind,
            "environment": self.policy.environment,
            "evaluator": self.policy.evaluator if self.policy.environment else "log-likelihood",
            "seed": comparison.seed,
            "against": str(self.champion),
        }
        return comparison

    def _evaluated(self, candidate: ReleaseId) -> Comparison | AgainstLog:
        """Step 3: what the gate judges by, and the candidate's scorecard. A hosted champion has no weights to be measured."""
        if self._hosted:
            found = self._beside_log(candidate)
            self._scorecard(candidate, None)
            return found
        compared = self._compared(candidate)
        return replace(compared, others=gate_metrics(self.policy, compared, self._scorecard(candidate, compared)))

    def _scorecard(self, candidate: ReleaseId, comparison: Comparison | None) -> Carded | None:
        plan = self.policy.scorecard
        if plan is None:
            return None
        limits = Limits(
            timeout_s=min(plan.timeout_s, self.policy.timeout_s),
            memory_gb=self.policy.memory_gb,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        carded = card_of(
            self.registry,
            candidate,
            self.champion,
            self.corpus,
            self.runner,
            f"{self.key}-scorecard",
            self.policy,
            plan,
            comparison,
            limits,
        )
        self.evidence["scorecard"] = carded.evidence
        if carded.judge is not None:
            spent = self.evidence.get("judge", {})
            self.evidence["judge"] = {name: spent.get(name, 0) + n for name, n in carded.judge.items()}
        return carded

    def _concluded(self, candidate: ReleaseId, verdict: Verdict, promote: bool) -> TurnReport:
        """Step 5."""
        if verdict.decision not in ("promote", "canary"):
            refused: Refusal = "rejected" if verdict.decision == "reject" else "not_enough_evidence"
            return self._noted(refused, candidate, verdict.reason)
        if not promote:
            aside = f"{verdict.reason}; but this turn ({self.label or 'aside'}) is not to promote"
            return self._noted("rejected", candidate, aside)
        flag = next((f for f in flags(self.registry) if self._is_of(f)), None)
        if flag is not None:
            reason = f"{verdict.reason}; but {self.corpus} is flagged: {flag.release} was trained on it ({flag.reason})"
            return self._noted("awaiting_approval", candidate, reason)
        try:
            with self._stage("promote"):
                return self._moved(candidate, verdict)
        except AliasMoved as err:
            reason = f"{verdict.reason}; but it was compared with {self.champion}, and meanwhile {err}"
            return self._noted("not_enough_evidence", candidate, reason)

    def _moved(self, candidate: ReleaseId, verdict: Verdict) -> TurnReport:
        if self.policy.promotion == "approval":
            return self._noted("awaiting_approval", candidate, f"{verdict.reason}; waits for `treadle release approve`")
        if verdict.decision == "canary" or self.policy.promotion == "canary":
            if self.policy.guard is None:
                reason = f"{verdict.reason}; but a canary needs the guard, and the policy has none"
                return self._noted("not_enough_evidence", candidate, reason)
            if self.registry.canary is not None:
                reason = f"{verdict.reason}; but the canary {self.registry.canary} is still on trial"
                return self._noted("not_enough_evidence", candidate, reason)
            self._deployed(candidate)
            event = self.registry.admit(
                candidate,
                share=self.policy.canary.share,
                expect=self.champion,
                actor=ACTOR,
                reason=verdict.reason,
                evidence=self.evidence,
            )
            return self._report("admitted", candidate, event)
        self._deployed(candidate)
        event = self.registry.promote(
            candidate, expect=self.champion, actor=ACTOR, reason=verdict.reason, evidence=self.evidence
        )
        return self._report("promoted", candidate, event)

    def _deployed(self, candidate: ReleaseId) -> None:
        """Every proxy has the candidate ready before the first episode is sent to it. Raises DeployFailed."""
        if self.policy.deploy:
            from treadle_trainer.serving.targets import prepare

            self.evidence["deployed"] = prepare(self.policy.deploy, candidate)

    def _is_of(self, flag: Flag) -> bool:
        return (flag.corpus, flag.version) == (self.corpus.name, self.corpus.version)

    def _noted(self, decision: Refusal, candidate: ReleaseId, reason: str) -> TurnReport:
        event = self.registry.note(decision, candidate, actor=ACTOR, reason=reason, evidence=self.evidence)
        return self._report(decision, candidate, event)

    def _report(self, decision: TurnDecision, candidate: ReleaseId, event: ReleaseEvent) -> TurnReport:
        return TurnReport(
            decision=decision,
            reason=event.reason,
            candidate=candidate,
            champion=self.registry.champion,
            event=event,
            evidence=self.evidence,
        )

    def _run(self, name: str, spec: TrainSpec) -> dict[str, Any]:
        return self.runner.run(
            name,
            spec,
            timeout_s=self.policy.timeout_s,
            memory_gb=self.policy.memory_gb,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)


def _named(corpus: CorpusRef | Path | str) -> dict[str, Any]:
    if isinstance(corpus, CorpusRef):
        return {"corpus": name_of(corpus.path), "version": corpus.version}
    return {"corpus": str(corpus), "version": None}


def _decided(registry: Registry, key: str) -> TurnReport | None:
    for event in reversed(registry.events()):
        if event.actor != ACTOR or event.evidence.get("job") != key or event.release is None:
            continue
        if event.event in ("promoted", "admitted", "rejected", "not_enough_evidence", "awaiting_approval"):
            return TurnReport(
                decision=event.event,
                reason=event.reason,
                candidate=ReleaseId.parse(event.release),
                champion=registry.champion,
                event=event,
                evidence=event.evidence,
                repeated=True,
            )
    return None
