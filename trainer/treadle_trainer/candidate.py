"""From a policy to a training job, and from its model folder to a release with its lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from treadle_corpus import Corpus
from treadle_schemas import HandleError, ReleaseId, SettingError, Split

from treadle_trainer._version import code_version
from treadle_trainer.errors import ReleaseMissing
from treadle_trainer.jobs import TrainSpec
from treadle_trainer.methods import SAMPLES
from treadle_trainer.mixture import Mixture, said_mixture
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.registry import Registry

__all__ = ["ACTOR", "PREVIOUS", "model_folder", "plays", "register_candidate", "release_in", "train_spec"]

ACTOR: Final = "trainer"
PREVIOUS: Final = "previous"
"""As base of a policy: the newest candidate that was trained here and is not quarantined."""


def train_spec(
    policy: TrainingPolicy,
    base: Path,
    corpus: Corpus,
    work: Path,
    out: Path,
    split: Split | None = None,
    *,
    mixture: Mixture | None = None,
) -> TrainSpec:
    """What the policy asks of a training job on a version, whose checkpoints lie in `work`.

    `split` is the workspace's, for a training that plays in an environment (`plays`). Raises SettingError where it is wanted and None.
    """
    played = plays(policy)
    if played and split is None:
        raise SettingError("a training in an environment wants the split of the workspace, to stay on its train side")
    return TrainSpec(
        reward_function=policy.reward_function if policy.method in SAMPLES else None,
        environment=policy.environment if played else None,
        split=split if played else None,
        group=policy.group,
        max_new_tokens=policy.max_new_tokens,
        temperature=policy.temperature,
        prompts=policy.prompts,
        method=policy.method,
        base=str(base.absolute()),
        corpus=str(corpus.path.absolute()),
        version=corpus.version,
        out=str(out),
        work=str(work),
        rows=policy.rows,
        newest_rows=policy.newest_rows,
        accumulate=policy.accumulate,
        packed=policy.packed,
        save_steps=policy.save_steps,
        backend=policy.backend,
        lora_rank=policy.lora_rank,
        beta=policy.beta,
        clip=policy.clip,
        margin=policy.margin,
        cap=policy.cap,
        launch=policy.launch,
        mixture=mixture,
        steps=policy.steps,
        lr=policy.lr,
        batch=policy.batch,
        max_length=policy.max_length,
        seed=policy.seed,
    )


def plays(policy: TrainingPolicy) -> bool:
    """Whether its training plays in the policy's environment."""
    return policy.method in SAMPLES and policy.backend is None and policy.reward_function is None


def register_candidate(
    registry: Registry,
    folder: Path,
    corpus: Corpus,
    spec: TrainSpec,
    parent: ReleaseId | None,
    training: dict[str, Any],
    *,
    job: str | None = None,
    label: str = "",
    actor: str = ACTOR,
) -> ReleaseId:
    """Register a trained folder with its lineage: corpus version, the release `parent` that it was trained from, everything of `spec` that
    shaped the weights, what training said, code.
    """
    shaping = {
        name: value
        for name, value in spec.shaping.items()
        if name not in ("type", "base", "corpus", "version", "method", "mixture")
    }
    return registry.register(
        folder,
        actor=actor,
        reason=f"{spec.method} on {corpus}" + (f" ({label})" if label else ""),
        parent=str(parent) if parent is not None else None,
        base=spec.base,
        corpus=corpus.name,
        corpus_version=corpus.version,
        corpus_hash=corpus.manifest.content_hash,
        method=spec.method,
        config={
            "job": job,
            "label": label,
            **shaping,
            **said_mixture(spec.mixture),
            "training": training,
        },
        code_version=code_version(),
    )


def release_in(registry: Registry, folder: Path) -> ReleaseId | None:
    """The release whose files lie in `folder`, of any slot beside the registry's; None for a model from elsewhere."""
    try:
        workspace, slot, name = folder.resolve().relative_to(registry.root.resolve()).parts
        return ReleaseId.parse(f"{workspace}/{slot}/{name}")
    except (ValueError, HandleError):
        return None


def model_folder(registry: Registry, release: ReleaseId) -> Path:
    """The model folder of a release. Raises ReleaseMissing for a hosted model or a prompt, which have none."""
    manifest = registry.manifest(release)
    if manifest.kind != "model":
        raise ReleaseMissing(
            f"{release} is a {manifest.kind} release without a model folder: it can neither be trained from nor compared with here. "
            "Name a model folder to start from (policy base), and promote it first"
        )
    return registry.folder(release)
