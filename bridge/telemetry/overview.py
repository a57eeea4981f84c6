"""The first page's upper part: one verdict, what is wrong, and the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.core.model import Skipped
from bridge.core.service_state import NO_READY_ENDPOINT, ServiceRow, readable
from bridge.telemetry.components import (
    LISTED,
    command,
    counts,
    duration,
    fact,
    service_path,
    sparkline,
    text_list,
)
from bridge.telemetry.history import BUCKET_SECONDS, BUCKETS, Series
from bridge.telemetry.listing import ServiceQuery
from bridge.telemetry.markup import Html, el, join

NAMED = 5
"""Services of one kind of trouble and one reason that are named above the table; the filter has all."""

REASONS = 2
"""Reasons of one kind of trouble that stand above the table: they are nearly the same for all services."""

TROUBLE = {
    "failed": "Write error", "out_of_sync": "Out of sync", "held": "Removals held", "conflict": "Conflict",
    "unknown": "Not read", NO_READY_ENDPOINT: "No ready endpoint",
}  # fmt: skip
"""States whose services are named above the table, the worst first."""


def is_in_trouble(row: ServiceRow) -> bool:
    """Whether the service is named above the table. What is only to be written yet is not."""
    return row.mark in TROUBLE and (row.slices_deviate or row.mark != "out_of_sync")


NOT_YET = ("not started", "not listed yet")
"""What readiness says of Kubernetes while nothing is wrong: it has not been asked, or has not answered yet."""

QUARTER = BUCKET_SECONDS * BUCKETS // 60


@dataclass(frozen=True, slots=True)
class Overview:
    """What the first page says above the table. `state` is /api/status without its report."""

    state: Mapping[str, Any]
    services: int
    states: Mapping[str, int]
    ready: int
    not_ready: int
    series: Series
    unmirrored: Sequence[Skipped] = ()
    troubled: Sequence[ServiceRow] = ()
    """Services that are in trouble, by namespace and name."""


def judge(overview: Overview) -> tuple[str, str, str]:
    """Severity, verdict and one sentence, the most severe first.

    | what is so | verdict |
    | --- | --- |
    | the first pass is not done, and one side is away | Cannot start yet |
    | the first pass is not done | Starting |
    | Kubernetes cannot be used | Cannot write |
    | a datacenter cannot be asked | Consul does not answer |
    | another process writes what is ours | Conflicting writer detected |
    | leases cannot be read or written | Leader election error |
    | writes fail | Write errors |
    | EndpointSlices deviate although the bridge has written what it can | Out of sync |
    | the guard holds something | Removals held |
    | new settings were rejected | Configuration reload rejected |
    | something is still to be written | Catching up |
    | services have no ready endpoint | No ready endpoint |
    | objects of another owner are in the way | In sync, with conflicts |
    | some services could not be read | In sync as far as known |
    | no service is selected | Nothing to mirror |
    """
    state, states, total = overview.state, overview.states, overview.services
    kubernetes, consul = _kubernetes_trouble(state), _mapping(state.get("consul"))
    if not state.get("first_pass_done"):
        if kubernetes or consul:
            return "bad", "Cannot start yet", "Both sides must be read first. Existing objects stay as they are."
        return "busy", "Starting", "Consul and Kubernetes are being read; nothing is written before that."
    if kubernetes:
        return "bad", "Cannot write", "Kubernetes cannot be used. Existing objects stay; Consul is still followed."
    if consul:
        return "bad", "Consul does not answer", "What was known last stays in place."
    if state.get("conflicting_writer"):
        return "bad", "Conflicting writer detected", "What this bridge writes does not stay as it was written."
    if _mapping(state.get("election")).get("error"):
        return "bad", "Leader election error", "A replica without its lease writes nothing; another one may lead."
    if failed := states.get("failed", 0):
        return "bad", "Write errors", f"{_services(failed)} cannot be written; the bridge tries again."
    if deviating := sum(row.slices_deviate for row in overview.troubled):
        return (
            "bad",
            "Out of sync",
            f"Traffic of {_services(deviating)} does not go where Consul says; the rows say why.",
        )
    if held := states.get("held", 0):
        return (
            "warn",
            "Removals held",
            f"The guard keeps what {_services(held)} would lose; each says why, and what releases it.",
        )
    if state.get("configuration", "ok") != "ok":
        return "warn", "Configuration reload rejected", "The bridge goes on with the configuration that it has."
    if outstanding := states.get("out_of_sync", 0):
        return "busy", "Catching up", f"{_services(outstanding)} of {total:,} still to be written."
    if empty := states.get(NO_READY_ENDPOINT, 0):
        verb = "has" if empty == 1 else "have"
        sentence = f"Kubernetes has what Consul says, and {_services(empty)} of {total:,} {verb} no ready endpoint."
        return "warn", "No ready endpoint", sentence
    if conflicts := states.get("conflict", 0):
        return "warn", "In sync, with conflicts", f"Objects of another owner are in the way of {_services(conflicts)}."
    if unknown := states.get("unknown", 0):
        return "warn", "In sync as far as known", f"{_services(unknown)} could not be read; what is there stays."
    if not total:
        return (
            "plain",
            "Nothing to mirror",
            "No service in Consul is selected. bridge explain SERVICE says why one is not.",
        )
    return "good", "In sync", f"Kubernetes has what Consul says, for {_services(total)}."


def _services(count: int) -> str:
    return f"{count:,} service{'s' if count != 1 else ''}"


def problems(overview: Overview) -> Html | None:
    """What is wrong, in the words of readiness, and the services that are in trouble; None when nothing is."""
    state = overview.state
    said = [f"Consul, datacenter {dc}: {reason}" for dc, reason in sorted(_mapping(state.get("consul")).items())]
    if reason := _kubernetes_trouble(state):
        said.append(f"Kubernetes: {reason}")
    if writer := state.get("conflicting_writer"):
        said.append(f"Conflicting writer: {writer}")
    if error := _mapping(state.get("election")).get("error"):
        said.append(f"Leader election: {error}")
    if state.get("configuration", "ok") != "ok":
        said.append(f"Configuration: {state['configuration']}")
    said += [f"Warning: {text}" for text in state.get("warnings") or ()]
    shown = said[:LISTED]
    more = el("li", f"and {len(said) - LISTED:,} more") if len(said) > LISTED else None
    services = [line for kind in TROUBLE for line in _troubled(kind, overview.troubled)]
    if not shown and not services:
        return None
    return el("ul", *(el("li", t) for t in shown), more, *services, class_="problems")


def _troubled(kind: str, rows: Sequence[ServiceRow]) -> Iterator[Html]:
    """The services of a kind of trouble, with links, by what is wrong with them."""
    mine = [row for row in rows if row.mark == kind]
    by_reason: dict[str, list[ServiceRow]] = {}
    for row in mine:
        by_reason.setdefault(row.detail, []).append(row)
    for reason, found in list(by_reason.items())[:REASONS]:
        first, *rest = found[:NAMED]
        links = join(_link(first), *(join(", ", _link(row)) for row in rest))
        more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else None
        released, whose = next(((row.command, f"{row.namespace}/{row.name}") for row in found if row.command), ("", ""))
        words = "; to release it: " if len(found) == 1 else f"; to release {whose} alone: "
        yield el(
            "li", el("strong", TROUBLE[kind]), ": ", links, more, f": {reason}" if reason else None,
            join(words, command(released)) if released else None,
        )  # fmt: skip
    if len(mine) > NAMED or len(by_reason) > REASONS:
        address = ServiceQuery(state=kind).address()
        yield el("li", el("a", f"all {len(mine):,} services: {readable(kind)}", href=address))


def _link(row: ServiceRow) -> Html:
    return el("a", f"{row.namespace}/{row.name}", href=service_path(row.namespace, row.name))


def cards(overview: Overview) -> Html:
    state, series = overview.state, overview.series
    ago = state.get("seconds_since_last_full_pass")
    lag = "none yet" if series.last_lag_seconds is None else duration(series.last_lag_seconds)
    lags = [s for s in series.lag_seconds if s is not None]
    return el(
        "section",
        el("h2", "Overview", class_="unseen"),
        el(
            "dl",
            fact("Services", f"{overview.services:,}", counts(overview.ready, overview.not_ready, "endpoints ")),
            fact("Last lag", lag, sparkline(
                [s or 0.0 for s in series.lag_seconds],
                f"Lag, last {QUARTER} minutes: " + (f"longest {duration(max(lags))}" if lags else "no change"),
            )),
            fact(f"Writes in {QUARTER} minutes", f"{sum(series.writes):,}", sparkline(
                series.writes, f"Writes, last {QUARTER} minutes: at most {max(series.writes):,} in {BUCKET_SECONDS} s"
            )),
            fact("Consul", *_consul(state)),
            fact("Kubernetes", "trouble" if _kubernetes_trouble(state) else "ok", _kubernetes(state)),
            fact("Role", *_role(state)),
            fact("Last full pass", "not yet" if ago is None else f"{duration(ago)} ago",
                  f"{state.get('queue') or 0:,} waiting to be written"),
            class_="cards",
        ),
        id="cards", aria_label="Overview", data_live=True,
    )  # fmt: skip


def _consul(state: Mapping[str, Any]) -> tuple[str, str | None]:
    trouble = _mapping(state.get("consul"))
    datacenters = sorted(_mapping(state.get("catalog")).keys() | trouble.keys())
    names = f"{len(datacenters)} datacenters" if len(datacenters) > 3 else ", ".join(datacenters)
    if not trouble:
        return "ok", names or None
    return f"{len(trouble)} of {len(datacenters)} silent" if len(datacenters) > 1 else "silent", ", ".join(
        sorted(trouble)
    )


def _kubernetes(state: Mapping[str, Any]) -> str | None:
    objects = _mapping(_mapping(state.get("cache")).get("objects"))
    return f"{sum(n for n in objects.values() if isinstance(n, int)):,} objects watched" if objects else None


def _role(state: Mapping[str, Any]) -> tuple[str, str | None]:
    election = _mapping(state.get("election"))
    owner = f"owner {state.get('owner')}"
    if not election:
        return "the only one", owner
    held, shards, replicas = len(election.get("held") or ()), election.get("shards"), election.get("replicas") or ()
    words = f"{len(replicas)} replica{'s' if len(replicas) != 1 else ''}, {owner}"
    if not held:
        return "stands by", words
    return ("leads" if shards == 1 else f"leads {held} of {shards} shards"), words


def unmirrored(skipped: Sequence[Skipped]) -> Html:
    """Services whose name cannot be one in Kubernetes; an empty place for them when there is none."""
    said = [f"{s.service}: {s.reason}" for s in skipped]
    title = el("h2", f"Services that cannot be mirrored ({len(said):,})")
    return el("div", el("section", title, text_list(said, LISTED)) if said else None, id="unmirrored", data_live=True)


def _kubernetes_trouble(state: Mapping[str, Any]) -> str:
    """Why Kubernetes cannot be used; "" when it can, and before anything was asked of it."""
    reason = str(state.get("kubernetes", "ok"))
    return "" if reason == "ok" or reason in NOT_YET else reason


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def about(state: Mapping[str, Any]) -> Html:
    """Which bridge this is; an empty place while it does not say so."""
    bridge = _mapping(state.get("bridge"))
    if not bridge:
        return el("section", id="about", aria_label="This bridge", data_live=True)
    election = _mapping(state.get("election"))
    rules = [str(rule) for rule in bridge.get("rules") or ()]
    facts = (
        ("Version", bridge.get("version")),
        ("Pod", bridge.get("pod")),
        ("Replica", election.get("identity")),
        ("Owner", state.get("owner")),
        ("Consul", bridge.get("consul_address")),
        ("Settings", bridge.get("configuration_file")),
    )
    return el(
        "section",
        el("h2", "This bridge"),
        el("dl", *(el("div", el("dt", name), el("dd", str(value))) for name, value in facts if value)),
        el("h3", f"Rules ({len(rules):,})"),
        text_list(rules, LISTED) if rules else el("p", "None: only Services that ask for it are filled."),
        id="about", aria_label="This bridge", data_live=True,
    )  # fmt: skip
