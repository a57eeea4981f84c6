"""Metrics for Prometheus, in a registry of their own.

Counters and the lag histogram grow as the controller reports outcomes. States (services in sync, connections, holds)
are gauges; those of other parts are read at the scrape, through `watch`, so that an idle bridge does nothing for them.
Labels come from small fixed sets: no service, instance or message ever becomes one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from bridge.core.model import Action, Kind, Query, Target
from bridge.core.reasons import SKIPS, WARNINGS, Code
from bridge.core.service_state import ServiceState, service_state, without_ready_endpoint
from bridge.report import reason_of
from bridge.telemetry.events import (
    ConflictingWriter,
    ConsulReachable,
    HoldsChanged,
    KubernetesReachable,
    ReadErrorsChanged,
    SlicesForbidden,
    UnreadableNamespaces,
)

if TYPE_CHECKING:
    from bridge.report import Outcome, Report
    from bridge.telemetry.events import StateEvent

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

LAG_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds. The floor on real servers is 4 ms (docs/scaling.md); above a minute something is wrong in any case."""

STATES = tuple(ServiceState)


class _Noted(NamedTuple):
    """What the gauges know of one target."""

    state: ServiceState
    deviates: bool
    ready: int
    not_ready: int
    conflicts: int
    skipped: tuple[Code, ...]
    warnings: tuple[Code, ...]
    foreign: int
    queries: tuple[Query, ...]


class Metrics:
    """An observer that counts. `text` is what /metrics answers."""

    # attributes: all but six are series of prometheus-client, each made once and kept

    def __init__(self, version: str, wall_clock: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._services: dict[Target, _Noted] = {}
        self._consul: dict[str, bool] = {}
        self._unread: frozenset[Query] = frozenset()
        self._status: Callable[[], Mapping[str, Any]] | None = None
        registry = self.registry
        ProcessCollector(registry=registry)
        Info("consul_bridge_build", "The bridge that is running.", registry=registry).info({"version": version})
        self._lag = Histogram(
            "consul_bridge_sync_lag_seconds",
            "From Consul's answer that showed a change to the API server's answer to the last write it led to.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self._writes = Counter(
            "consul_bridge_writes_total", "Writes to the API server.", ("kind", "action", "result"), registry=registry
        )
        self._errors = Counter(
            "consul_bridge_errors_total",
            "Writes that failed, by what can be done about it.",
            ("kind",),
            registry=registry,
        )
        self._switches = Counter(
            "consul_bridge_datacenter_switches_total",
            "How often another datacenter took over the traffic of a Service (`combine: failover`).",
            ("before", "active"),
            registry=registry,
        )
        self._passes = Counter("consul_bridge_full_passes_total", "Full passes made.", registry=registry)
        self._pass_seconds = Gauge(
            "consul_bridge_full_pass_duration_seconds", "How long planning the last full pass took.", registry=registry
        )
        self._last_success = Gauge(
            "consul_bridge_last_successful_pass_timestamp_seconds",
            "When the last full pass was done in which everything could be read.",
            registry=registry,
        )
        self._kubernetes_up = Gauge(
            "consul_bridge_kubernetes_up", "Whether the API server can be used.", registry=registry
        )
        self._holds = Gauge(
            "consul_bridge_holds", "Targets whose removals or flips are held, by cause.", ("cause",), registry=registry
        )
        self._held_endpoints = Gauge(
            "consul_bridge_held_endpoints", "Ready endpoints that holds keep.", registry=registry
        )
        self._conflicting_writer = Gauge(
            "consul_bridge_conflicting_writer",
            "Whether another process writes with our owner id, or undoes what we write.",
            registry=registry,
        )
        self._service_read_errors = Gauge(
            "consul_bridge_service_read_errors",
            "Services whose last read failed; what was known of them before still stands. `cause`: who asks for them; "
            "annotation: only user-managed Services.",
            ["cause"],
            registry=registry,
        )
        self._forbidden_namespaces = Gauge(
            "consul_bridge_forbidden_namespaces",
            "Namespaces that the bridge may not list: nothing is done there.",
            registry=registry,
        )
        for cause in ("rule", "annotation"):
            self._service_read_errors.labels(cause)
        self._slices_forbidden = Gauge(
            "consul_bridge_endpointslices_forbidden_namespaces",
            "Namespaces where EndpointSlices may not be written: Endpoints go on alone.",
            registry=registry,
        )
        registry.register(_States(self))
        for kind in Kind:
            for action in (Action.CREATE, Action.UPDATE, Action.DELETE):
                for result in ("ok", "error"):
                    self._writes.labels(kind.value, action.value, result)
        for code in (Code.TRANSIENT, Code.THROTTLED, Code.STALE, Code.TAKEN, Code.PERMANENT, Code.ALTERED):
            self._errors.labels(code.value)

    def watch(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Ask `status` (the bridge's /api/status) at each scrape for what the other parts know."""
        self._status = status

    def text(self) -> bytes:
        return generate_latest(self.registry)

    # ------------------------------------------------------------------ Observer

    def outcome(self, outcome: Outcome, lag_seconds: float | None) -> None:
        """Count writes and errors; note what the target is now."""
        for change in outcome.applied:
            self._writes.labels(change.kind.value, change.action.value, "ok").inc()
        for failure in outcome.failures:
            self._writes.labels(failure.change.kind.value, failure.change.action.value, "error").inc()
            self._errors.labels(reason_of(failure.error).code.value).inc()
        if (switched := outcome.switched) is not None:
            self._switches.labels(switched.before, switched.name).inc()
        if lag_seconds is not None and not outcome.failures:
            self._lag.observe(max(0.0, lag_seconds))
        with self._lock:
            self._note(outcome)

    def changed(self, event: StateEvent) -> None:
        """Gauges of states. What is not among them the scrape asks for (`watch`), or is words for the log."""
        match event:
            case ConsulReachable(
                datacenter, up
            ):  # a datacenter that never was in trouble is known to the catalog alone
                with self._lock:
                    self._consul[datacenter] = up
            case KubernetesReachable(up):
                self._kubernetes_up.set(up)
            case HoldsChanged(held):
                causes = Tally(h.cause for h in held)
                for cause in (
                    Code.HELD_REBUILT,
                    Code.HELD_REMOVAL,
                    Code.HELD_PANIC,
                    Code.HELD_UNMATCHED,
                    Code.HELD_MOVED,
                ):
                    self._holds.labels(cause.value).set(causes[cause])
                self._held_endpoints.set(sum(h.endpoints for h in held))
            case ReadErrorsChanged(errors, annotated):
                with self._lock:
                    self._unread = frozenset(errors)
                by_annotation = sum(query in annotated for query in errors)
                self._service_read_errors.labels("annotation").set(by_annotation)
                self._service_read_errors.labels("rule").set(len(errors) - by_annotation)
            case UnreadableNamespaces(now):
                self._forbidden_namespaces.set(len(now))
            case SlicesForbidden(now):
                self._slices_forbidden.set(len(now))
            case ConflictingWriter(reason):
                self._conflicting_writer.set(bool(reason))

    def pass_done(self, duration_seconds: float, report: Report) -> None:
        """Everything was looked at: the states start again."""
        self._passes.inc()
        self._pass_seconds.set(duration_seconds)
        if not any(row.action == "read" for row in report.failed):
            self._last_success.set(self._wall_clock())
        with self._lock:
            self._services.clear()
            for outcome in report.outcomes:
                self._note(outcome)

    # ------------------------------------------------------------------ states

    def _note(self, outcome: Outcome) -> None:
        plan = outcome.plan
        done = len(outcome.applied) == len(plan.writes)
        remarks = plan.conflicts or plan.held or plan.skipped or plan.remarks
        gone = done and not remarks and all(c.action is Action.DELETE for c in plan.changes)
        if gone or not plan.queries:
            self._services.pop(plan.target, None)
            return
        self._services[plan.target] = _Noted(
            service_state(plan, waiting=not done, failed=bool(outcome.failures)),
            plan.deviates,
            plan.ready,
            plan.not_ready,
            len(plan.conflicts),
            tuple(s.reason.code for s in plan.skipped),
            tuple({remark.code for remark in plan.remarks}),
            plan.foreign,
            plan.queries,
        )

    def states(self) -> Iterator[Metric]:
        with self._lock:
            services = list(self._services.values())
            consul, unread = dict(self._consul), self._unread
        status = self._status() if self._status is not None else {}
        if catalog := status.get("catalog"):  # what was in trouble before the agent had named itself is well by now
            consul = {dc: bool(state.get("connected")) for dc, state in catalog.items()}
        yield _gauge("consul_bridge_consul_up", "Whether a datacenter can be asked.", "datacenter", consul)
        by_state = Tally(s.state for s in services)
        if unread:
            stale = sum(s.state is ServiceState.IN_SYNC and not unread.isdisjoint(s.queries) for s in services)
            never = len(unread.difference(*(s.queries for s in services)))  # there is no plan of what was never read
            by_state += Tally({ServiceState.UNKNOWN: stale + never})
            by_state -= Tally({ServiceState.IN_SYNC: stale})
        yield _gauge("consul_bridge_services", "Services that are mirrored, by state.", "state",
                     {state.value: by_state[state] for state in STATES})  # fmt: skip
        endpoints = {"ready": sum(s.ready for s in services), "not_ready": sum(s.not_ready for s in services)}
        yield _gauge("consul_bridge_endpoints", "Endpoints of mirrored services.", "state", endpoints)
        yield GaugeMetricFamily(
            "consul_bridge_services_without_ready_endpoints",
            "Services that are in sync and have no ready endpoint: requests to them fail.",
            value=sum(without_ready_endpoint(s.state, s.ready) for s in services),
        )
        yield GaugeMetricFamily(
            "consul_bridge_services_with_deviating_slices",
            "Services that are out of sync because all their EndpointSlices together are not what Consul says, for "
            "longer than the control plane needs.",
            value=sum(s.deviates and s.state is ServiceState.OUT_OF_SYNC for s in services),
        )
        yield GaugeMetricFamily(
            "consul_bridge_conflicts",
            "Objects that we would need and that are not ours.",
            value=sum(s.conflicts for s in services),
        )
        yield GaugeMetricFamily(
            "consul_bridge_foreign_slices",
            "EndpointSlices with endpoints at mirrored Services that are neither ours nor mirrors of our Endpoints.",
            value=sum(s.foreign for s in services),
        )
        skipped = Tally(code for s in services for code in s.skipped)
        yield _gauge("consul_bridge_skipped", "Instances and services that are not mirrored, by reason.", "reason",
                     _by_code(SKIPS, skipped))  # fmt: skip
        warned = Tally(code for s in services for code in s.warnings)
        yield _gauge("consul_bridge_warnings", "Services that work but should be looked at, by reason.", "reason",
                     _by_code(WARNINGS, warned))  # fmt: skip
        if self._status is not None:
            yield from _from_status(status)


def _by_code(usual: Iterable[Code], counted: Tally[Code]) -> dict[str, float]:
    """Counts as label values: what usually occurs is there from the start, with 0."""
    return {code.value: counted[code] for code in dict.fromkeys((*usual, Code.OTHER, *sorted(counted)))}


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _from_status(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Gauges of what /api/status says; what is not there yet (before the start) is left out."""
    ready, queue = bool(status.get("ready")), status.get("queue") or 0
    yield GaugeMetricFamily("consul_bridge_ready", "Whether /readyz says yes.", value=ready)
    yield GaugeMetricFamily("consul_bridge_queue_length", "Targets that wait for a writer.", value=queue)
    catalog = status.get("catalog") or {}
    for name, text, key in (
        ("consul_bridge_blocking_queries", "Services that have a blocking query of their own.", "direct_watches"),
        ("consul_bridge_consul_services", "Services that Consul is asked about.", "services"),
        ("consul_bridge_consul_reads_waiting", "Services that wait to be read.", "reads_waiting"),
        (
            "consul_bridge_streaming_mismatch_services",
            "Services that Consul's streaming backend showed otherwise than its catalog has them.",
            "streaming_mismatches",
        ),
        ("consul_bridge_consul_connections", "Connections to Consul in use.", "connections"),
        ("consul_bridge_consul_connections_budget", "Connections to Consul that may be used.", "budget"),
        ("consul_bridge_consul_last_success_age_seconds", "Since Consul last answered.", "seconds_since_last_success"),
    ):
        found = {dc: state[key] for dc, state in catalog.items() if state.get(key) is not None}
        values = {dc: len(value) if isinstance(value, list) else value for dc, value in found.items()}
        if values:
            yield _gauge(name, text, "datacenter", values)
    for name, text, key in (
        ("consul_bridge_missed_changes", "Changes that only a verification found; 0 is right.", "missed_changes"),
        (
            "consul_bridge_consul_confirmations",
            "Consistent reads after a doubt (a request failed, an index went backwards), and the first of each start.",
            "confirmations",
        ),
    ):
        counter = CounterMetricFamily(name, text, labels=["datacenter"])
        for dc, state in catalog.items():
            counter.add_metric([dc], state.get(key, 0))
        yield counter
    backoff = GaugeMetricFamily(
        "consul_bridge_backing_off",
        "Whether a side is asked less often because it failed.",
        labels=["side", "datacenter"],
    )
    for dc, state in catalog.items():
        backoff.add_metric(["consul", dc], 0.0 if state.get("connected", True) else 1.0)
    cache = status.get("cache") or {}
    if cache:
        backoff.add_metric(["kubernetes", ""], 1.0 if cache.get("backing_off") else 0.0)
    yield backoff
    election = status.get("election") or {}
    if election:
        held = {str(n): float(n in election["held"]) for n in range(election["shards"])}
        yield _gauge("consul_bridge_leader", "Whether this replica writes the shard.", "shard", held)
        alive = len(election["replicas"])
        yield GaugeMetricFamily("consul_bridge_replicas", "Replicas that are alive, this one included.", value=alive)


class _States:
    """A collector that prometheus-client asks at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        """Nothing: the names are not needed before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        return self._metrics.states()
