"""docs/reference.md, made from the code: `python -m tests.support.docs.reference` writes it, a test fails when it is
stale."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from prometheus_client.metrics_core import Metric
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bridge import cli, config
from bridge.config.types import duration_text
from bridge.controller import kubernetes_events
from bridge.controller.state_changes import StateChanges
from bridge.core import annotated, ownership
from bridge.core.reasons import SENTENCES, Code
from bridge.errors import ExitStatus
from bridge.kube import members, mirrored, objects
from bridge.telemetry.history import History
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.routes import STATIC, Routes, Source

PATH = Path(__file__).resolve().parents[3] / "docs" / "reference.md"

HEAD = """# Reference

Made from the code by `python -m tests.support.docs.reference`; a test fails when it is stale. How things work together
stands in [explanation.md](explanation.md), what to do when in [operations.md](operations.md).
"""

STATUSES: Mapping[ExitStatus, str] = {
    ExitStatus.OK: "in sync, or everything applied; a dry run that worked",
    ExitStatus.FAILED: "something failed (which, and why, on stderr); the rest was still done",
    ExitStatus.USAGE: "usage or configuration",
    ExitStatus.REFUSED: "refused: the guard held something, or you answered no (nothing dangerous was done)",
    ExitStatus.CHANGES: "only with `--dry-run --exit-code`: there are changes",
    ExitStatus.CONFLICT: "an object that is not the bridge's has a needed name: left alone; the rest was done",
    ExitStatus.INTERRUPTED: "interrupted by Ctrl-C: writes in flight are finished first",
    ExitStatus.TERMINATED: "the same by SIGTERM",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A label or annotation: the keys, the only value that it has ("": several), and on what it is, for people."""

    kind: str
    keys: tuple[str, ...]
    value: str
    on: str


MARKS = (
    Mark("label", (ownership.MANAGED_BY,), ownership.MANAGER, "every object that we create, Leases included"),
    Mark("label", (ownership.OWNER,), "", "every object that we create: the owner id (`--owner`)"),
    Mark("label", (ownership.SLICE_MANAGED_BY,), ownership.MANAGER, "our own EndpointSlices"),
    Mark("label", (ownership.SLICE_SERVICE,), "", "our own EndpointSlices: the Service that they belong to"),
    Mark(
        "label", (ownership.SKIP_MIRROR,), "true",
        "our Endpoints where we write EndpointSlices as well, so that no endpoint is there twice",
    ),
    Mark("annotations", (ownership.SERVICE, ownership.DATACENTER), "", "where an object of ours comes from"),
    Mark("annotation", (ownership.ACTIVE,), "", "objects of ours with `combine: failover`: whose endpoints these are"),
    Mark(
        "annotation", (ownership.PENDING,), "",
        "such a Service: which datacenter is to take over, and since when it could",
    ),
    Mark(
        "annotation", (ownership.SELECTION,), "",
        "Services of ours: for which `tags`, `meta` and `filter` of a rule, in short; absent where it has none",
    ),
    Mark("annotation", (annotated.REQUEST,), "", "what we write for an annotated Service: for which request, in short"),
    Mark(
        "annotations", (ownership.RULE_LABELS, ownership.RULE_ANNOTATIONS), "",
        "objects of ours: the keys that their rule gives them, so that those which it drops are found",
    ),
    Mark(
        "annotation", (ownership.RELEASED,), "",
        "objects of ours: when `sync --force` took endpoints away from them; the next change takes it off",
    ),
    Mark(
        "annotation", (ownership.SERVICE_SYNC,), "false",
        "Services that we make: consul-k8s does not register them back in Consul; `to.annotations` may say otherwise",
    ),
    Mark("label", (members.KIND,), "", "our Leases: a `member`'s or a `shard`'s"),
    Mark(
        "annotations", (members.SHARDS, members.JOINED), "",
        "a member's Lease: how it divides the work, and when it joined",
    ),
    Mark(
        "annotation", (members.PROCESS,), "",
        "a member's Lease: pod, container and process, by which a later one in the same container knows that it has "
        "ended",
    ),
    Mark("annotation", (members.SESSION,), "", "a shard's Lease: the uid of the member's Lease that it depends on"),
    Mark(
        "annotations", (members.CONSUL, members.WRITES, members.YIELDS), "",
        "a member's Lease: whether it sees Consul, whether its writes are answered, and that it leaves the writing to "
        "another installation",
    ),
    Mark(
        "annotation",
        (members.INSTALLATION,),
        "",
        "objects of ours, our Leases: the installation that wrote it last, if known",
    ),
    Mark(
        "label", (annotated.MIRROR,), "true",
        "yours, on a Service without selector: fill it; when it is taken off, what was filled goes at once",
    ),
    Mark("annotation", (annotated.SERVICE,), "", "yours, on such a Service: the Consul service; default its own name"),
    Mark("annotation", (annotated.DATACENTER,), "", "yours: the datacenter; default the bridge's own"),
    Mark("annotation", (annotated.TAGS,), "", "yours: tags that an instance must have, separated by commas"),
    Mark("annotation", (annotated.FILTER,), "", "yours: an expression of Consul's filter language"),
    Mark(
        "annotation", (annotated.OUTPUT,), "",
        "yours: what carries the addresses, `endpoints`, `endpointslices` or `both`",
    ),
    Mark(
        "annotation", (annotated.HOSTNAME_FROM,), "node",
        "yours, on a headless one: endpoints get the names of their Consul nodes as hostnames in DNS",
    ),
    Mark("annotation", (ownership.ADOPT,), "true", "yours, on an object without an owner: the bridge may take it over"),
    Mark("annotation", (ownership.KEEP,), "true", "yours, on an EndpointSlice that no bridge writes: it has to stay"),
    Mark(
        "label", (ownership.CATALOG_SYNC_LABEL,), "true",
        "Services of consul-k8s, which `--adopt consul-k8s` takes over",
    ),
)  # fmt: skip
MARKED_IN = (ownership, annotated, members, objects, mirrored)
"""The modules whose constants are marks."""

PATHS: Mapping[str, tuple[str, str]] = {
    "/": ("", "a page for people: the state and all services"),
    "/service/": ("NAMESPACE/NAME", "one service, with what `bridge explain` says of it"),
    "/changes": ("", "what was written lately"),
    "/api/changes": (
        "?after=NUMBER&limit=COUNT",
        "the same as JSON, newest first: what came after a change that is known",
    ),
    "/healthz": ("", "200 while the loops are alive; else 503 with the reason"),
    "/readyz": (
        "",
        "200 when the first full pass is done and both sides were seen lately; the detail as JSON either way",
    ),
    "/metrics": ("", "Prometheus"),
    "/api/status": ("", "everything that the bridge knows of itself, as JSON"),
    **{f"/{name}": ("", "a part of the pages") for name in STATIC},
}
"""What follows a path that is a folder, and the answer."""


STATUS = {
    "ready": True,
    "queue": 0,
    "catalog": {
        "dc1": dict.fromkeys(
            (
                "connected", "seconds_since_last_success", "connections", "budget", "services", "direct_watches",
                "reads_waiting", "missed_changes", "streaming_mismatches", "confirmations",
            ),
            1,
        )
    },
    "cache": {"backing_off": False},
    "election": {"held": [0], "shards": 1, "replicas": ["one"]},
}  # fmt: skip
"""A bridge at work, as /api/status tells it: with everything that a metric is made of."""


def text() -> str:
    """The whole document."""
    sections: Sequence[Callable[[], Iterator[str]]] = (
        _commands, _statuses, _settings, _rules, _grants, _marks, _paths, _metrics, _events, _reasons,
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
    _same(STATUSES, ExitStatus, "exit statuses")
    yield from _table("status", "meaning", rows=((str(int(s)), STATUSES[s]) for s in ExitStatus))


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
        for setting in config.catalogue()
    )
    yield from _table("key in the file", "flag and variables", "default", "meaning", rows=rows)


def _rules() -> Iterator[str]:
    yield "## Rules\n"
    yield "A list under `rules:`, in order. `services` and `datacenters` select services; `tags`, `meta` and `filter`"
    yield "select their instances. A rule with any of these three leaves a service to the rules behind it, one without"
    yield "takes it whole; `continue` overrides that. Without the key, and without `--service`, `--tag`"
    yield "or `--filter`, `bridge run` refuses to start and `bridge sync` asks first;"
    yield "with `rules: []` only Services that ask for it are filled.\n"
    fields = [
        *_fields("", config.RuleSettings.model_fields, skip=("to", "instances")),
        *_fields("to.", config.DestinationRule.model_fields, skip=("route",)),
        *_fields("to.route.", config.RouteSettings.model_fields, skip=("parents",)),
        *_fields("to.route.parents[].", config.ParentRule.model_fields),
        *_fields("instances.", config.InstancesRule.model_fields),
    ]
    yield from _table("key", "values", "default", "meaning", rows=fields)


def _grants() -> Iterator[str]:
    yield "## Grants\n"
    yield "A list under `annotated:`; the first that covers a request counts. With `annotated: []` no Service"
    yield "is filled. Without the key, users of the one namespace that is watched may ask for everything; where several"
    yield "are watched, no Service beyond those that are filled may ask. A request that no grant covers reads as"
    yield "one for a service that does not exist.\n"
    fields = _fields("", config.GrantSettings.model_fields)
    yield from _table("key", "values", "default", "meaning", rows=fields)


def _fields(prefix: str, fields: dict[str, FieldInfo], skip: Sequence[str] = ()) -> Iterator[tuple[str, str, str, str]]:
    for name, field in fields.items():
        if name not in skip:
            default = field.get_default(call_default_factory=True)
            shown = (
                ""
                if default in (None, (), {}, "", PydanticUndefined)
                else str(default).lower()
                if default in (True, False)
                else str(default)
            )
            values = _values(field.annotation)
            if isinstance(default, float):
                values, shown = "duration", duration_text(default)
            yield f"`{prefix}{field.alias or name}`", values, _code(shown), field.description or ""


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
    _same((key for mark in MARKS for key in mark.keys), keys_in_the_code(), "labels and annotations")
    yield from _table("mark", "on what", rows=((_mark(mark), mark.on) for mark in MARKS))
    yield "\nWe change and delete only what carries the first two, with our own owner id."
    yield (
        "\nOn a Service that asks to be filled, any other annotation under `consul-bridge/` and a value that means "
        "nothing are without effect; a warning in plan, status and Event says so."
    )


def _paths() -> Iterator[str]:
    yield "## What `bridge run` serves\n"
    yield "On `--listen`, without authentication: loopback unless something guards it.\n"
    _same(PATHS, paths_of_the_site(), "paths")
    yield from _table("path", "answer", rows=((f"`{path}{more}`", answer) for path, (more, answer) in PATHS.items()))


def _mark(mark: Mark) -> str:
    """`label `a/b: "true"``: as it is written in a manifest."""
    value = {"": "", "true": ': "true"'}.get(mark.value, f": {mark.value}")
    return f"{mark.kind} {', '.join(f'`{key}{value}`' for key in mark.keys)}"


def keys_in_the_code() -> frozenset[str]:
    """Every label and annotation that is a constant of the modules about them."""
    texts = {v for module in MARKED_IN for n, v in vars(module).items() if n.isupper() and isinstance(v, str)}
    return frozenset(t for t in texts if re.fullmatch(r"[a-z0-9.-]+/[a-z-]+", t)) | {ownership.CATALOG_SYNC_LABEL}


def paths_of_the_site() -> frozenset[str]:
    """Every path that `bridge run` serves."""
    nobody = cast("Source", None)  # it is asked for no page
    return frozenset(Routes(nobody, lambda: b"", History()).pages)


def _same(described: Iterable[object], real: Iterable[object], what: str) -> None:
    """Whether everything that there is has its sentence, and nothing else has one."""
    missing, gone = set(real) - set(described), set(described) - set(real)
    if missing or gone:
        raise LookupError(
            f"{what}: without a sentence in {__name__}: {missing or 'none'}; no more there: {gone or 'none'}"
        )


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
    states = StateChanges(metrics)
    states.consul("dc1", True, "")
    states.held(())
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
    yield from _table(
        "reason", "type", "when", rows=((f"`{r}`", t, w) for r, (t, w) in kubernetes_events.REASONS.items())
    )


def _reasons() -> Iterator[str]:
    yield "## Reason codes\n"
    yield (
        "`reason` in JSON (beside it `message`, the sentence), the label `reason` of `consul_bridge_skipped` and "
        "`consul_bridge_warnings`,\nand the annotation `consul-bridge/reasons` of Events. A sentence may change; "
        "a code does not.\n"
    )
    yield from _table("code", "says", rows=((f"`{code.value}`", _sentence(code)) for code in Code))


def _sentence(code: Code) -> str:
    """What a code says, with what differs as `{name}`."""
    sentence = SENTENCES[code]
    if not isinstance(sentence, str):
        sentence = sentence(**{name: f"{{{name}}}" for name in inspect.signature(sentence).parameters})
    if sentence == "{said}":
        return "what the server or the error says"
    return re.sub(r"\{(\w+)(?:![rs])?\}", r"{\1}", sentence).replace("{{", "{").replace("}}", "}").replace("|", "\\|")


def _first_sentence(doc: str) -> str:
    plain = " ".join(doc.split())
    found = re.match(r".*?\.(?=\s|$)", plain)
    return found.group(0) if found else plain


def _code(shown: str) -> str:
    return f"`{shown}`" if shown else ""


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
