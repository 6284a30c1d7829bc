"""`treadle workspace create|set|list|show|delete`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
from treadle.cli.support import (
    DURATION,
    SuggestingGroup,
    confirmed,
    echo_json,
    json_option,
    pass_settings,
    workspace_of,
    yes_option,
)
from treadle.keys import FolderKeys
from treadle.log import Admin
from treadle.settings import Settings
from treadle_schemas.codec import to_json
from treadle_schemas.ids import check_workspace
from treadle_schemas.moments import now
from treadle_schemas.pii import BUILT_IN, RightsRule
from treadle_schemas.split import DEFAULT_SALT, Split
from treadle_schemas.workspace import Credit, Metric, WorkspaceSettings, default_metrics

from treadle_streams import workspaces
from treadle_streams.workspaces._life import listing
from treadle_streams.workspaces._metrics import (
    CREDIT_FORM,
    FORM,
    changed_metrics,
    default_reward,
    parse_credit,
    parse_metric,
)
from treadle_streams.workspaces._privacy import (
    ACTION_FORM,
    FIELD_FORM,
    PATTERN_FORM,
    RIGHT_FORM,
    changed_policy,
    parse_right,
)
from treadle_streams.workspaces._topics import topic_plan

__all__ = ["workspace"]

pii_option = click.option(
    "--pii", "mode", type=click.Choice(list(BUILT_IN)), help="What agents redact before anything is written."
)
pii_file_option = click.option(
    "--pii-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A policy of your own, as JSON (see docs/privacy.md).",
)
right_option = click.option(
    "--right", "rights", multiple=True, metavar="RULE", help=f"Deny a use: {RIGHT_FORM}. Repeatable."
)


credit_option = click.option(
    "--credit", metavar="RULE", help=f"How outcomes of whole episodes reach steps: {CREDIT_FORM}; default last."
)


@click.group(cls=SuggestingGroup)
def workspace() -> None:
    """Create, change, list, show and delete workspaces: isolated wheels with topics, settings and state of their own."""


@workspace.command()
@click.argument("name")
@click.option("--partitions", default=8, show_default=True, help="Partitions of every data topic; fixed for good.")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help=f"Declare a metric: {FORM}. Repeatable.")
@click.option("--reward", metavar="EXPR", help="Reward as a SQL expression over the metrics; default: metric reward.")
@click.option("--held-out", default=0.1, show_default=True, help="Share of split groups kept out of training.")
@click.option("--split-salt", default=DEFAULT_SALT, show_default=True, help="Salt of the split; fixed for good.")
@click.option("--grace", type=DURATION, default="1h", show_default=True, help="Wait after a metric's horizon.")
@click.option("--retention", type=DURATION, default="90d", show_default=True, help="How long the join keeps a row.")
@credit_option
@click.option("--strict", is_flag=True, help="Refuse outcomes of metrics that are not declared.")
@pii_option
@pii_file_option
@right_option
@click.option(
    "--encrypt",
    type=click.Choice(["nothing", "subjects"]),
    default="nothing",
    show_default=True,
    help="Seal what is recorded of a subject with a key of its own, so that `treadle erase` reaches the log too; fixed for good.",
)
@click.option("--if-missing", is_flag=True, help="Do nothing where it exists.")
@json_option
@pass_settings
def create(
    settings: Settings,
    name: str,
    partitions: int,
    metrics: tuple[str, ...],
    reward: str | None,
    held_out: float,
    split_salt: str,
    grace: float,
    retention: float,
    credit: str | None,
    strict: bool,
    mode: str | None,
    pii_file: Path | None,
    rights: tuple[str, ...],
    encrypt: Literal["nothing", "subjects"],
    if_missing: bool,
    as_json: bool,
) -> None:
    """Create a workspace: its topics and its settings.

    Without --metric it has one metric: reward (float, maximise, last), required, waited for 7 days.
    Without --pii its agents mask secrets and keep everything else.
    """
    declared: tuple[Metric, ...] = tuple(parse_metric(text) for text in metrics) or default_metrics()
    wanted = WorkspaceSettings(
        workspace=check_workspace(name),
        partitions=partitions,
        metrics=declared,
        reward=reward if reward is not None else default_reward(declared),
        grace_s=grace,
        retention_s=retention,
        split=Split(salt=split_salt, share=held_out),
        created_at=now(),
        pii=changed_policy(BUILT_IN["secrets"], mode=mode, file=pii_file),
        rights=tuple(parse_right(text) for text in rights),
        credit=Credit() if credit is None else parse_credit(credit),
        strict=strict,
        encrypt=encrypt,
    )
    if encrypt == "subjects":
        FolderKeys(settings.keys_folder / wanted.workspace).prepare()
    made = workspaces.create(settings.bootstrap_servers, wanted, if_missing=if_missing, home=settings.home)
    created = made == wanted
    if as_json:
        echo_json({"created": created, **to_json(made)})
        return
    click.echo(f"{'created' if created else 'exists:'} {_one_line(made)}")


@workspace.command("set")
@click.argument("name", required=False)
@click.option("--reward", metavar="EXPR", help="Reward as a SQL expression over the metrics.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="METRIC",
    help=f"Declare a metric, or declare it anew: {FORM}. Repeatable.",
)
@click.option(
    "--remove-metric", "removed", multiple=True, metavar="NAME", help="Declare a metric no longer. Repeatable."
)
@credit_option
@click.option("--grace", type=DURATION, help="Wait after a metric's horizon.")
@click.option("--strict/--lenient", default=None, help="Refuse, or keep, outcomes of metrics that are not declared.")
@pii_option
@pii_file_option
@click.option("--pii-action", "actions", multiple=True, metavar=ACTION_FORM, help="For one kind. Repeatable.")
@click.option(
    "--pii-pattern", "patterns", multiple=True, metavar=PATTERN_FORM, help="One more thing to find. Repeatable."
)
@click.option(
    "--pii-field", "fields", multiple=True, metavar=FIELD_FORM, help="A private place, $.tags.customer. Repeatable."
)
@click.option(
    "--media", type=click.Choice(["hash", "bytes"]), help="Images, audio and files: their hash, or all of them."
)
@click.option("--subject", type=click.Choice(["keep", "hash"]), help="The subject of interactions.")
@click.option("--name-model", metavar="MODEL", help="spaCy model that finds names (extra: names).")
@right_option
@click.option("--clear-rights", is_flag=True, help="Forget the rules so far.")
@json_option
@pass_settings
def set_(
    settings: Settings,
    name: str | None,
    reward: str | None,
    metrics: tuple[str, ...],
    removed: tuple[str, ...],
    credit: str | None,
    grace: float | None,
    strict: bool | None,
    mode: str | None,
    pii_file: Path | None,
    actions: tuple[str, ...],
    patterns: tuple[str, ...],
    fields: tuple[str, ...],
    media: str | None,
    subject: str | None,
    name_model: str | None,
    rights: tuple[str, ...],
    clear_rights: bool,
    as_json: bool,
) -> None:
    """Change how rows of a workspace are graded, what its agents redact, and whose interactions may not be used.

    A change of metrics, reward, credit or grace is one new grading version: workers grade kept rows anew while the stream goes on, and
    snapshots wait for that. A change of privacy is one new version of its policy; what is recorded already stays as it is.
    """
    declared = tuple(parse_metric(text) for text in metrics)
    rule = None if credit is None else parse_credit(credit)
    grading = bool(declared or removed or reward is not None or rule or grace is not None or strict is not None)
    added = tuple(parse_right(text) for text in rights)
    if not (
        grading
        or added
        or clear_rights
        or mode
        or pii_file
        or actions
        or patterns
        or fields
        or media
        or subject
        or name_model
    ):
        raise click.UsageError("say what to change, for example --pii standard")

    def change(present: WorkspaceSettings) -> WorkspaceSettings:
        pii = changed_policy(
            present.pii,
            mode=mode,
            file=pii_file,
            actions=actions,
            patterns=patterns,
            fields=fields,
            media=media,
            subject=subject,
            name_model=name_model,
        )
        kept = () if clear_rights else present.rights
        new = tuple(rule for rule in added if rule not in kept)
        return msgspec.structs.replace(
            present,
            pii=pii,
            rights=(*kept, *new),
            metrics=changed_metrics(present.metrics, declared, removed),
            reward=present.reward if reward is None else reward,
            credit=rule or present.credit,
            grace_s=present.grace_s if grace is None else grace,
            strict=present.strict if strict is None else strict,
        )

    made = workspaces.update(settings.bootstrap_servers, workspace_of(settings, name), change, home=settings.home)
    if as_json:
        echo_json(to_json(made))
        return
    if grading:
        _echo_grading(made, lambda line: click.echo(line.strip()))
    else:
        _echo_privacy(made, lambda line: click.echo(line.strip()))


@workspace.command("list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """List the workspaces on this Kafka."""
    entries = listing(settings.bootstrap_servers)
    if as_json:
        echo_json(entries)
        return
    width = max((len(str(entry["workspace"])) for entry in entries), default=0)
    for entry in entries:
        click.echo(f"{entry['workspace']:<{width}}  {entry['partitions']} partitions  created {entry['created_at']}")
    if not entries:
        click.echo("no workspace yet: treadle workspace create NAME", err=True)


@workspace.command()
@click.argument("name", required=False)
@json_option
@pass_settings
def show(settings: Settings, name: str | None, as_json: bool) -> None:
    """Show a workspace: metrics, reward, split, and how far each topic has got."""
    servers = settings.bootstrap_servers
    found = workspaces.get(servers, workspace_of(settings, name))
    plan = topic_plan(found)
    partitions = [(topic, number) for topic, (count, _) in plan.items() for number in range(count)]
    admin = Admin(servers)
    starts, ends = admin.start_offsets(partitions), admin.end_offsets(partitions)
    offsets = {topic: sum(ends[tp] - starts[tp] for tp in partitions if tp[0] == topic) for topic in plan}
    if as_json:
        echo_json({**to_json(found), "offsets": offsets})
        return
    click.echo(_one_line(found))
    _echo_grading(found, click.echo)
    click.echo(f"  split  {found.split.share:.0%} of groups held out, salt {found.split.salt}")
    _echo_privacy(found, click.echo)
    for topic, count in offsets.items():
        click.echo(f"  {topic:<{max(map(len, offsets))}}  {count:>9} offsets")


@workspace.command()
@click.argument("name")
@yes_option
@json_option
@pass_settings
def delete(settings: Settings, name: str, yes: bool, as_json: bool) -> int:
    """Delete a workspace's topics and consumer groups, with everything recorded in them. Corpora and releases stay."""
    servers = settings.bootstrap_servers
    if not confirmed(f"Delete workspace {name} with all its interactions, outcomes and graded rows on {servers}?", yes):
        return 1
    topics = workspaces.delete(servers, name)
    if as_json:
        echo_json({"workspace": name, "deleted_topics": topics})
    else:
        click.echo(f"deleted {name}: {len(topics)} topics. Its corpora and releases are still on disk")
    return 0


def _one_line(found: WorkspaceSettings) -> str:
    names = ", ".join(metric.name for metric in found.metrics)
    return f"{found.workspace}  {found.partitions} partitions  metrics {names}  reward {found.reward}"


def _metric_line(metric: Metric) -> str:
    parts: list[Any] = [metric.name, metric.type, metric.direction, metric.aggregate]
    parts.append("required" if metric.required else "optional")
    if metric.level == "episode":
        parts.append("of episodes")
    parts.append(f"horizon {metric.horizon_s / 86_400:g} d")
    if metric.absent is not None:
        parts.append(f"absent counts as {metric.absent}")
    return "  ".join(map(str, parts))


def _echo_grading(found: WorkspaceSettings, echo: Callable[[str], None]) -> None:
    for metric in found.metrics:
        echo(f"  metric {_metric_line(metric)}")
    echo(f"  reward {found.reward}   (grading version {found.grading_version})")
    gamma = f" by {found.credit.gamma:g}" if found.credit.rule == "discounted" else ""
    others = "refused" if found.strict else "kept as they come"
    echo(f"  credit {found.credit.rule}{gamma}; metrics that are not declared are {others}")


def _echo_privacy(found: WorkspaceSettings, echo: Callable[[str], None]) -> None:
    pii = found.pii
    actions = ", ".join(f"{kind} {action}" for kind, action in pii.effective().items()) or "nothing"
    echo(
        f"  pii    {pii.name} version {pii.version}: {actions}; media {pii.media_action}, subject {pii.subject_action}"
    )
    for pattern in pii.patterns:
        echo(f"  pii    pattern {pattern.name}: {pattern.action} {pattern.regex}")
    for rule in pii.fields:
        echo(f"  pii    field {rule.path}: {rule.action}")
    if found.encrypt != "nothing":
        echo(f"  sealed {found.encrypt}: what is recorded of one has a key of its own")
    if found.erased.subjects:
        echo(f"  erased {len(found.erased.subjects)} digests of subjects")
    for right in found.rights:
        echo(f"  right  {_right_line(right)}")


def _right_line(rule: RightsRule) -> str:
    about = [f"{name} {glob}" for name, glob in (("subject", rule.subject), ("model", rule.model)) if glob is not None]
    about += [f"tag {name} {glob}" for name, glob in rule.tags.items()]
    denied = [use for use in ("train", "eval", "recall") if getattr(rule, use) == "deny"]
    return f"{', '.join(about)}: no {', no '.join(denied)}"
