"""`treadle serve`: releases behind an OpenAI-compatible address."""

from __future__ import annotations

import click
from treadle.cli.support import pass_settings, workspace_of
from treadle.errors import MissingExtra
from treadle.settings import Settings
from treadle_schemas import ReleaseId, SettingError

from treadle_trainer.commands._common import log_to_stderr, registry_root

__all__ = ["serve"]

_OURS = ("treadle", "treadle_schemas", "treadle_trainer")


@click.command()
@click.argument("workspace", required=False)
@click.option(
    "--slot", "slots", multiple=True, metavar="NAME", help="Serve this slot only; may be repeated. Default: all."
)
@click.option("--host", help="Address to listen on (TREADLE_SERVE_HOST); default: 127.0.0.1.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port (TREADLE_SERVE_PORT); default: 8485; 0: any free one."
)
@click.option("--upstream", metavar="URL", help="OpenAI-compatible API (ending in /v1) for hosted models and prompts.")
@click.option("--upstream-model", metavar="NAME", help="Its model for releases that are a prompt only.")
@click.option("--vllm", metavar="URL", help="vLLM server (ending in /v1) that adapters are loaded into.")
@click.option("--device", default="auto", show_default=True, help="Where transformers puts models: auto, cpu, cuda:0.")
@pass_settings
def serve(
    settings: Settings,
    workspace: str | None,
    slots: tuple[str, ...],
    host: str | None,
    port: int | None,
    upstream: str | None,
    upstream_model: str | None,
    vllm: str | None,
    device: str,
) -> None:
    """Answer OpenAI chat completions with the releases of WORKSPACE, and record what is said.

    The name of a model is a slot. An episode (header X-Treadle-Episode-Id, or metadata.episode_id) always meets the same release: the
    champion, or the canary for its share. Model folders are served by `transformers serve`, which this command starts. A release is
    verified, loaded and probed before it serves; where that fails the one before it goes on. See docs/serving.md.
    """
    from treadle_trainer.registry import Registry
    from treadle_trainer.registry import slots as known_slots
    from treadle_trainer.serving.settings import ServeSettings

    log_to_stderr()
    own = ServeSettings.load(host=host, port=port)
    name, root = workspace_of(settings, workspace), registry_root(settings)
    served = list(slots) or [slot for _, slot in known_slots(root, name)]
    if not served:
        raise SettingError(
            f"{name} has no releases to serve; `treadle release register {name} FOLDER --promote` makes the first champion"
        )
    try:
        from treadle.cli.web import run_app

        from treadle_trainer.serving._transformers import TransformersBackend
        from treadle_trainer.serving.app import make_app
        from treadle_trainer.serving.backends import Backends, HostedBackend, VllmBackend
        from treadle_trainer.serving.deployment import Deployment
    except ModuleNotFoundError as err:
        top = (err.name or "").partition(".")[0]
        if top in _OURS:
            raise
        raise MissingExtra("serve", top, "serve") from err
    from treadle import Recorder

    def recorder_of(release: ReleaseId) -> Recorder:
        return Recorder(name, slot=release.slot, release=str(release), settings=settings)

    backends = Backends(
        local=TransformersBackend(root, settings.home / "logs" / f"serve-{name}.log", device),
        hosted=None if upstream is None else HostedBackend(upstream, own.upstream_key, upstream_model),
        adapters=None if vllm is None else VllmBackend(vllm, own.upstream_key),
    )
    deployments = {
        slot: Deployment(Registry(root, name, slot), backends, recorder_of, answer_s=own.answer_s) for slot in served
    }
    app = make_app(own, deployments, backends)
    run_app(app, own.host, own.port, lambda address: click.echo(f"listening on {address}/v1"))
