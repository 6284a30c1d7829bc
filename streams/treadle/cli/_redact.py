"""`treadle redact --dry-run FILE`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import ContractError, SettingError
from treadle_schemas.pii import BUILT_IN, PiiPolicy, built_in

from treadle.cli.support import echo_json, json_option, pass_settings, workspace_of
from treadle.policies import PolicySource, cache_file, hash_key
from treadle.redaction import RedactionRefused, Redactor
from treadle.redaction._finding import PLACEHOLDER
from treadle.settings import Settings

__all__ = ["redact"]

_AROUND: Final = 24
"""Characters of redacted text shown on each side of a placeholder."""
_SHOWN: Final = 3


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option(
    "--dry-run", is_flag=True, help="Only say what would go. There is nothing else yet: a file is not rewritten."
)
@click.option("--pii", "mode", type=click.Choice(list(BUILT_IN)), help="Under this built-in policy.")
@click.option(
    "--pii-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Under this policy (JSON)."
)
@click.option(
    "--workspace", metavar="WS", help="Under this workspace's policy (default without --pii: TREADLE_WORKSPACE)."
)
@json_option
@pass_settings
def redact(
    settings: Settings,
    file: io.BufferedIOBase,
    dry_run: bool,
    mode: str | None,
    pii_file: Path | None,
    workspace: str | None,
    as_json: bool,
) -> int:
    """Say what a PII policy would take out of FILE (`-`: stdin): JSON lines of interactions or messages, or plain text.

    For each line with a finding: the kinds, how often, and what is left around it; never the private text. Exits 1 where a line could not
    be redacted or would be refused.
    """
    if not dry_run:
        raise click.UsageError("give --dry-run: files are not rewritten, agents redact as they record")
    if sum(x is not None for x in (mode, pii_file, workspace)) > 1:
        raise click.UsageError("give one of --pii, --pii-file and --workspace")
    policy = _policy(settings, mode, pii_file, workspace)
    redactor = Redactor(policy, hash_key(settings))
    total: Counter[str] = Counter()
    lines = found = bad = 0
    for number, raw in enumerate(file, 1):
        if not raw.strip():
            continue
        lines += 1
        report = {"line": number, **_one(redactor, raw)}
        if len(report) == 1:
            continue
        found += 1
        bad += "error" in report or "refused" in report
        total.update(report.get("counts", {}))
        if as_json:
            echo_json(report)
            continue
        what = (
            report.get("error") or report.get("refused") or ", ".join(f"{k} {n}" for k, n in report["counts"].items())
        )
        click.echo(f"line {number}: {what}")
        for excerpt in report.get("excerpts", ()):
            click.echo(f"    ...{excerpt}...")
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(total.items())) or "nothing"
    click.echo(f"policy {policy.name} version {policy.version}: {kinds} in {found} of {lines} lines", err=True)
    return 1 if bad else 0


def _one(redactor: Redactor, raw: bytes) -> dict[str, Any]:
    try:
        value = loads(raw)
    except ContractError:
        value = raw.decode(errors="replace").rstrip("\r\n")
    event = (
        value if isinstance(value, dict) and "messages" in value else {"messages": [{"role": "user", "content": value}]}
    )
    try:
        done = redactor.redact(event)
    except RedactionRefused as err:
        return {"refused": str(err)}
    said = done["redaction"]
    if "error" in said:
        return {
            "error": f"could not be redacted ({said['error']}); it would be recorded as a tombstone without its text"
        }
    if not said.get("counts"):
        return {}
    return {"counts": said["counts"], "excerpts": list(_excerpts(done))}


def _excerpts(done: dict[str, Any]) -> Iterator[str]:
    text = dumps({name: part for name, part in done.items() if name != "redaction"}).decode()
    for n, found in enumerate(PLACEHOLDER.finditer(text)):
        if n == _SHOWN:
            break
        yield text[max(0, found.start() - _AROUND) : found.end() + _AROUND]


def _policy(settings: Settings, mode: str | None, file: Path | None, workspace: str | None) -> PiiPolicy:
    if mode is not None:
        return built_in(mode)
    if file is not None:
        try:
            return msgspec.json.decode(file.read_bytes(), type=PiiPolicy).checked()
        except msgspec.MsgspecError as err:
            raise SettingError(f"pii file {file}: {err}") from None
    name = workspace_of(settings, workspace)
    source = PolicySource(name, settings)
    if not cache_file(settings.home, name).exists() and not source.refresh_now():
        raise SettingError(f"workspace {name} has no settings; `treadle workspace list` shows those that do")
    return source.current().redactor.policy
