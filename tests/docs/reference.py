"""docs/reference.md, made from the code: `python -m tests.docs.reference` writes it, a test fails when it is stale."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from prometheus_client.metrics_core import Metric
from pydantic.fields import FieldInfo

from bridge import cli, settings
from bridge.engine import announce
from bridge.observe.metrics import Metrics

PATH = Path(__file__).resolve().parents[2] / "docs" / "reference.md"

HEAD = """# Reference

Made from the code by `python -m tests.docs.reference`; a test fails when it is stale. How things work together stands
in [explanation.md](explanation.md), what to do when in [operations.md](operations.md).
"""

STATUSES = (
    ("0", "in sync, or everything applied; a dry run that worked"),
    ("1", "something failed (which, and why, on stderr); the rest was still done"),
    ("2", "usage or configuration"),
    ("3", "refused: the guard held something (nothing dangerous was done)"),
    ("4", "only with `--dry-run --exit-code`: there are changes"),
    ("130, 143", "interrupted by Ctrl-C or SIGTERM: the object in hand is finished first"),
)
MARKS = (
    ("label `app.kubernetes.io/managed-by: consul-bridge`", "every object that we create, Leases included"),
    ("label `consul-bridge/owner`", "every object that we create: the owner id (`--owner`)"),
    ("label `endpointslice.kubernetes.io/managed-by: consul-bridge`", "our own EndpointSlices"),
    (
        'label `endpointslice.kubernetes.io/skip-mirror: "true"`',
        "our Endpoints where we write EndpointSlices as well, so that no endpoint is there twice",
    ),
    ("annotations `consul-bridge/service`, `consul-bridge/datacenter`", "where an object of ours comes from"),
    (
        'label `consul-bridge/mirror: "true"`',
        "yours, on a Service without selector: fill it; when it is taken off, what was filled goes at once",
    ),
    ("annotation `consul-bridge/service`", "yours, on such a Service: the Consul service; default its own name"),
    ("annotation `consul-bridge/datacenter`", "yours: the datacenter; default the bridge's own"),
    ("annotation `consul-bridge/tags`", "yours: tags that an instance must have, separated by commas"),
    ("annotation `consul-bridge/filter`", "yours: an expression of Consul's filter language"),
    ("annotation `consul-bridge/output`", "yours: what carries the addresses, `endpoints`, `endpointslices` or `both`"),
    (
        "another annotation under `consul-bridge/` on such a Service, or a value that means nothing",
        "without effect; a warning in plan, status and Event says so",
    ),
    ('annotation `consul-bridge/adopt: "true"`', "yours, on an object that nobody owns: the bridge may take it over"),
)
PATHS = (
    ("/", "a page for people: the state and all services"),
    ("/service/NAMESPACE/NAME", "one service, with what `bridge explain` says of it"),
    ("/changes", "what was written lately"),
    ("/events", "the same as it happens, as server-sent events"),
    ("/healthz", "200 while the loops are alive; else 503 with the reason"),
    ("/readyz", "200 when the first full pass is done and both sides were seen lately; the detail as JSON either way"),
    ("/metrics", "Prometheus"),
    ("/api/status", "everything that the bridge knows of itself, as JSON"),
)


STATUS = {
    "ready": True,
    "queue": 0,
    "catalog": {
        "dc1": dict.fromkeys(
            (
                "connected", "seconds_since_last_success", "connections", "budget", "services", "direct_watches",
                "reads_waiting", "verification_found",
            ),
            1,
        )
    },
    "cache": {"backing_off": False},
    "election": {"held": [0], "shards": 1, "members": ["one"]},
}  # fmt: skip
"""A bridge at work, as /api/status tells it: with everything that a metric is made of."""


def text() -> str:
    """The whole document."""
    sections: Sequence[Callable[[], Iterator[str]]] = (
        _commands, _statuses, _settings, _rules, _marks, _paths, _metrics, _events,
    )  # fmt: skip
    return HEAD + "".join("\n" + "\n".join(section()) + "\n" for section in sections)


def _table(*heads: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    helps = {c.callback.__name__: (c.callback.__doc__ or "") for c in cli.app.registered_commands if c.callback}
    rows = ((f"`bridge {name}`", _first_sentence(helps[name])) for name in cli.COMMANDS)
    yield from _table("command", "what it does", rows=rows)
    yield "\n### Flags\n"
    yield f"Every command: {', '.join(f'`{flag}`' for flag in cli.EVERYWHERE)}.\n"
    rows_of = {name: [command for command, flags in cli.COMMANDS.items() if name in flags] for name in cli.FLAGS}
    yield from _table(
        "flag", "variable", "commands", "meaning",
        rows=(
            (
                f"`{flag.name}`{f', `{flag.short}`' if flag.short else ''}{f' {flag.metavar}' if flag.metavar else ''}",
                f"`{flag.variable}`",
                "all" if name in cli.EVERYWHERE else ", ".join(rows_of[name]),
                flag.help,
            )
            for name, flag in cli.FLAGS.items()
        ),
    )  # fmt: skip


def _statuses() -> Iterator[str]:
    yield "## Exit statuses\n"
    yield from _table("status", "meaning", rows=STATUSES)


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield "A flag beats a `BRIDGE_` variable, that beats Consul's own variables and `KUBECONFIG`, these beat the YAML"
    yield "file (`--config`), and that beats the default. Durations are written `250ms`, `30s`, `5m`, `2h`, `1d`.\n"
    rows = (
        (
            f"`{setting.key}`",
            ", ".join(f"`{n}`" for n in (setting.flag, setting.env, *setting.also) if n),
            _code(setting.text(setting.field.get_default(call_default_factory=True)) if not setting.secret else ""),
            setting.description,
        )
        for setting in settings.catalogue()
    )
    yield from _table("key in the file", "flag and variables", "default", "meaning", rows=rows)


def _rules() -> Iterator[str]:
    yield "## Rules\n"
    yield "A list under `rules:`; the first that matches a service wins. Without a rule every service is mirrored.\n"
    fields = [
        *_fields("", settings.RuleSettings.model_fields, skip=("to", "instances")),
        *_fields("to.", settings.DestinationRule.model_fields),
        *_fields("instances.", settings.InstancesRule.model_fields),
    ]
    yield from _table("key", "values", "default", "meaning", rows=fields)


def _fields(prefix: str, fields: dict[str, FieldInfo], skip: Sequence[str] = ()) -> Iterator[tuple[str, str, str, str]]:
    for name, field in fields.items():
        if name not in skip:
            default = field.get_default(call_default_factory=True)
            shown = (
                ""
                if default in (None, (), {}, "")
                else str(default).lower()
                if default in (True, False)
                else str(default)
            )
            yield f"`{prefix}{field.alias or name}`", _values(field.annotation), _code(shown), field.description or ""


def _values(annotation: Any) -> str:
    """What may be written, for people."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_values(a) for a in get_args(annotation) if a is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is tuple:
        return "list"
    if origin is dict or annotation is dict:
        return "map"
    if hasattr(annotation, "__members__"):
        return ", ".join(f"`{value}`" for value in annotation)
    if hasattr(annotation, "__metadata__"):
        return _values(get_args(annotation)[0])
    return {str: "text", bool: "`true`, `false`", int: "number", float: "number"}.get(annotation, "text")


def _marks() -> Iterator[str]:
    yield "## Labels and annotations\n"
    yield from _table("mark", "on what", rows=MARKS)
    yield "\nWe change and delete only what carries the first two, with our own owner id."


def _paths() -> Iterator[str]:
    yield "## What `bridge run` serves\n"
    yield "On `--listen`, without authentication: loopback unless something guards it.\n"
    yield from _table("path", "answer", rows=((f"`{path}`", answer) for path, answer in PATHS))


def _metrics() -> Iterator[str]:
    yield "## Metrics\n"
    rows = sorted(
        (f"`{_name(metric)}`", metric.type, ", ".join(f"`{label}`" for label in _labels(metric)), metric.documentation)
        for metric in families()
        if metric.name.startswith("consul_bridge")
    )
    yield from _table("metric", "type", "labels", "meaning", rows=rows)
    yield "\nBeside them the usual `process_*` metrics. Labels come from small fixed sets: no service ever becomes one."


def families() -> Iterator[Metric]:
    """Every metric of a bridge at work, from a status in which everything is there."""
    metrics = Metrics("0")
    metrics.watch(lambda: STATUS)
    metrics.consul("dc1", True, "")
    metrics.held(())
    yield from metrics.registry.collect()


def _name(metric: Metric) -> str:
    return (
        f"{metric.name}_total"
        if metric.type == "counter"
        else f"{metric.name}_info"
        if metric.type == "info"
        else metric.name
    )


def _labels(metric: Metric) -> list[str]:
    return sorted({label for sample in metric.samples for label in sample.labels} - {"le"})


def _events() -> Iterator[str]:
    yield "## Events\n"
    yield "`events.k8s.io/v1`, on the Service (conflicts: on the object in the way). `run.events: false`: none.\n"
    yield from _table("reason", "type", "when", rows=((f"`{r}`", t, w) for r, (t, w) in announce.REASONS.items()))


def _first_sentence(doc: str) -> str:
    plain = " ".join(doc.split())
    found = re.match(r".*?\.(?=\s|$)", plain)
    return found.group(0) if found else plain


def _code(shown: str) -> str:
    return f"`{shown}`" if shown else ""


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
