"""MLflow's tracking store and model registry, as far as the mirror needs them. The only module that imports MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from treadle.errors import MissingExtra
from treadle_schemas import SettingError

from treadle_trainer.errors import MirrorFailed
from treadle_trainer.mirror._facts import Facts

__all__ = ["Known", "MlflowStore", "checked_uri"]

SCHEMES: Final = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
DIGEST: Final = "treadle.digest"
"""Tag of a run: digest of the facts that it says in full. It is written last."""
MANIFEST: Final = "treadle.manifest"
PAGE: Final = 1_000
PARAMS_AT_ONCE: Final = 100
TAGS_AT_ONCE: Final = 100
METRICS_AT_ONCE: Final = 800
"""A request of MLflow holds 100 parameters, 100 tags, 1,000 metrics, and 1,000 of all together."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Known:
    """A run that is there: how it is called there, which parameters it has (they cannot be changed), and what it says in full."""

    run: str
    params: frozenset[str]
    digest: str | None


def checked_uri(uri: str) -> str:
    """`uri` if MLflow can keep aliases there. Raises SettingError, which shows no password."""
    scheme = re.match(r"([a-z]+)(?:\+[a-z0-9]+)?(?::|$)", uri)
    if scheme is None or scheme[1] not in SCHEMES:
        raise SettingError(
            f"--to {_without_password(uri)!r}: not a store that MLflow keeps aliases in; write sqlite:////FOLDER/mlflow.db, another "
            "database (postgresql://...), or the address of an MLflow server (http://HOST:PORT). Plain folders have no aliases"
        )
    return uri


class MlflowStore:
    """Runs of one experiment and versions of one registered model. Every method raises MirrorFailed where MLflow does not do it."""

    def __init__(self, uri: str, experiment: str, model: str, source: str) -> None:
        """`source` begins the addresses that model versions point to."""
        # before MLflow is imported: nothing is told to anybody, and whoever asked to stop waits for seconds, not for minutes
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        try:
            from mlflow import MlflowClient
        except ModuleNotFoundError as err:
            raise MissingExtra("mirror", (err.name or "mlflow").partition(".")[0], "mlflow") from err
        self._where = _without_password(uri)
        self._model = model
        self._source = source
        with self._named():
            self._client = MlflowClient(tracking_uri=checked_uri(uri), registry_uri=uri)
            self._experiment = self._experiment_of(experiment)
            self._made(lambda: self._client.create_registered_model(model))

    def runs(self) -> dict[str, Known]:
        """The runs that the mirror made, by the hash of their release's manifest."""
        with self._named():
            return {
                run.data.tags[MANIFEST]: Known(
                    run=run.info.run_id, params=frozenset(run.data.params), digest=run.data.tags.get(DIGEST)
                )
                for run in _pages(
                    lambda token: self._client.search_runs([self._experiment], max_results=PAGE, page_token=token)
                )
                if MANIFEST in run.data.tags
            }

    def versions(self) -> dict[str, str]:
        """Versions of the registered model: run -> version."""
        with self._named():
            found = _pages(
                lambda token: self._client.search_model_versions(
                    f"name='{self._model}'", max_results=PAGE, page_token=token
                )
            )
            return {version.run_id: str(version.version) for version in found}

    def write(self, facts: Facts, known: Known | None) -> str:
        """Have a run say these facts. Returns the run.

        1 the run, with the tag by which it is found again, 2 parameters that it lacks, metrics and tags, 3 finished, with its digest.
        A try that ended in between is found by 1, and repeats the rest.
        """
        from mlflow.entities import Metric, Param, RunTag

        with self._named():
            run = known.run if known else self._new_run(facts)
            has = known.params if known else frozenset()
            params = [Param(name, value) for name, value in facts.params.items() if name not in has]
            for some in _chunks(params, PARAMS_AT_ONCE):
                self._client.log_batch(run, params=some)
            metrics = [Metric(p.name, p.value, p.at_ms, p.step) for p in facts.points]
            for some_metrics in _chunks(metrics, METRICS_AT_ONCE):
                self._client.log_batch(run, metrics=some_metrics)
            for some_tags in _chunks([RunTag(name, value) for name, value in facts.tags.items()], TAGS_AT_ONCE):
                self._client.log_batch(run, tags=some_tags)
            self._client.set_terminated(run, "FINISHED", end_time=facts.created_ms)
            self._client.set_tag(run, DIGEST, facts.digest)
            return run

    def version(self, facts: Facts, run: str) -> str:
        """Register the release of a run as the next version of the model. Returns the version."""
        with self._named():
            made = self._client.create_model_version(
                self._model,
                source=f"{self._source}/{facts.name.rpartition('/')[2]}",
                run_id=run,
                tags={"treadle.release": facts.release, MANIFEST: facts.manifest},
            )
            return str(made.version)

    def set_aliases(self, wanted: Mapping[str, str | None]) -> int:
        """Point the aliases named at versions, or at nothing. Others are left alone. Returns how many were moved."""
        with self._named():
            has = {name: str(v) for name, v in self._client.get_registered_model(self._model).aliases.items()}
            moved = {name: version for name, version in wanted.items() if has.get(name) != version}
            for name, version in moved.items():
                if version is None:
                    self._client.delete_registered_model_alias(self._model, name)
                else:
                    self._client.set_registered_model_alias(self._model, name, version)
            return len(moved)

    def _experiment_of(self, name: str) -> str:
        # no run has files of its own, so that nothing is ever written to this address
        self._made(lambda: self._client.create_experiment(name, artifact_location=self._source))
        found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise MirrorFailed(
                f"{self._where}: the experiment {name} was deleted there; restore it (`mlflow experiments restore`), or purge it "
                "(`mlflow gc`)"
            )
        return str(found.experiment_id)

    def _new_run(self, facts: Facts) -> str:
        made = self._client.create_run(
            self._experiment,
            start_time=facts.created_ms,
            run_name=facts.name,
            tags={MANIFEST: facts.manifest, "treadle.release": facts.release},
        )
        return str(made.info.run_id)

    def _made(self, make: Callable[[], Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            make()
        except MlflowException as err:
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (MirrorFailed, SettingError, KeyboardInterrupt):
            raise
        except Exception as err:  # MLflow lets through what its database driver and its HTTP client raise
            text = _without_password(" ".join(str(err).split()))[:500]
            raise MirrorFailed(f"{self._where}: {type(err).__name__}: {text}") from err


def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _without_password(text: str) -> str:
    return re.sub(r"(://[^:/@\s]*:)[^@\s]*@", r"\1***@", text)
