"""`bridge run`: the same pass as `bridge sync`, per service, as soon as something changes, until it is told to stop.

Events only mean "look again": watchers put targets into a queue, writers take them out, plan from full state and
write. The supervisor starts and stops everything, makes the full passes (once everything was read, then at every
resync), ends grace periods and looks after threads: one that dies of a bug ends the process. While nothing else is to
be done, the thread of a direct watch takes its own target out of the queue and does a writer's work itself.

    Catalog (Consul) ──on_listing, on_view──▶ ConsulState ▶ WorkQueue ──▶ writers ──▶ Writer (Kubernetes)
                                                            ▲                       │ note
    Informer (Kubernetes) ──────────on_change───────────────┘◀──────────────────────┘
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bridge.consul.access import warnings_of
from bridge.consul.catalog import Catalog, shares_of
from bridge.consul.client import ConsulConfig
from bridge.consul.subscriptions import InlineExecutor
from bridge.controller.circuit_breaker import CircuitBreaker, RepairRateLimiter, RetryPolicySelector, WriteResult
from bridge.controller.conflicting_writers import ENOUGH, ConflictingWriters
from bridge.controller.kubernetes_events import KubernetesEventObserver
from bridge.controller.leadership import Leadership, LeaseElection, NoElection
from bridge.controller.pending_changes import PendingChange, PendingChanges
from bridge.controller.results import Results
from bridge.controller.status_view import ServiceRow, StatusView
from bridge.controller.workqueue import WorkQueue
from bridge.core.annotated import USUAL, Annotated, Refusal, request_at
from bridge.core.explain import Explanation
from bridge.core.guard import Guard, GuardSettings
from bridge.core.model import (
    Adopt,
    Change,
    ClusterNodes,
    Kind,
    Knowledge,
    Listing,
    Plan,
    Policy,
    Query,
    Rule,
    Scope,
    Skipped,
    Target,
    Unknown,
)
from bridge.core.reconcile import PlanOptions, names_at
from bridge.core.state import ConsulState
from bridge.errors import (
    AlteredError,
    BridgeError,
    CancelledError,
    ForbiddenError,
    NotLeadingError,
    TransientError,
)
from bridge.kube.client import UNVERIFIED, KubeClient, KubeConfig
from bridge.kube.election import ElectionConfig
from bridge.kube.events import EventRecorder
from bridge.kube.informer import Informer
from bridge.kube.mirrored import mirrored
from bridge.kube.namespaces import Labels, NamespaceLabels
from bridge.kube.nodes import cluster_nodes
from bridge.kube.writer import Writer
from bridge.pipeline.dns import Resolver, ResolverSettings
from bridge.pipeline.reconciler import Reconciler, apply_plan
from bridge.pipeline.scope import anchored, datacenters_of, named_with, namespaces_of, spare_of
from bridge.pipeline.settling import SETTLING_SECONDS, Settling
from bridge.pipeline.slice_rights import SliceRights, slice_rights
from bridge.report import NullObserver, Observer, Outcome, build_report
from bridge.retry import RetryPolicy, call
from bridge.telemetry.fan_out import FanOutObserver

FIRST_LOOK_SECONDS = 0.02
"""How often it is looked whether everything was read for the first time."""

OWN_DATACENTER = "the agent's own"
"""What the datacenter is called in trouble before the agent has said its name."""

NODES_SECONDS, NODES_AGAIN_SECONDS = 10.0, 60.0
"""How long the first full pass waits for the addresses of the cluster's nodes, and how often they are asked for while
they cannot be read."""

FIRST_READ_SECONDS = 60.0
"""How long the first full pass waits for Consul's first answers before it goes on with those that came."""

MIRRORED_SECONDS = 1.0
"""How often it is looked whether the control plane has mirrored what our own slices still carry."""

GAINED_SECONDS = 5.0
"""How soon after a shard became ours everything is compared, beside what is known to be unfinished."""

WRITING_SECONDS = 5.0
"""How often a replica whose writes were not answered, and that leads nothing now, looks whether they would be."""

WRITING_TIMEOUT_SECONDS = 2.0
"""How long that may take: the supervisor waits for it."""

MAX_INLINE_WRITES = 4
"""Targets in hand up to which a watch writes itself: in a burst the queue and its order decide, and watches go on."""

BESIDE_SECONDS = 0.1
"""How long after a slice of somebody else's changed it is compared: a mirror comes in several slices."""

LATER = 2
"""Queue priority of what leaves a service without ready endpoints: after everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How the daemon runs. Durations in seconds. `election` None: this is the only replica; `events`: write Events."""

    owner: str = "default"
    installation: str = ""
    policy: Policy = Policy.SYNC
    adopt: Adopt = Adopt.NEVER
    partial_selection: bool = False
    guard: GuardSettings = field(default_factory=GuardSettings)
    resolver: ResolverSettings = field(default_factory=ResolverSettings)
    cluster_nodes: tuple[str, ...] = ()
    annotated: Annotated = USUAL
    removal_grace_seconds: float = 30.0
    resync_seconds: float = 300.0
    writers: int = 16
    election: ElectionConfig | None = None
    events: bool = True
    consul_retry: RetryPolicy = field(default_factory=RetryPolicy)
    kube_retry: RetryPolicy = field(default_factory=RetryPolicy)
    object_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(initial_seconds=0.05, max_seconds=60.0))
    permanent_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(initial_seconds=5.0, max_seconds=300.0))


class Controller:
    """The running bridge. `run` blocks; `stop` may be called from any thread or a signal handler."""

    def __init__(
        self,
        *,
        consul: ConsulConfig,
        kube: KubeConfig,
        rules: Sequence[Rule],
        options: RunOptions,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consul = consul
        self._kube = kube
        self._rules = tuple(rules)
        self._options = options
        self._observer = observer or NullObserver()
        self._clock = clock
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._passing = threading.Event()
        self._queue: WorkQueue[Target] = WorkQueue(clock, lane=lambda target: target.namespace)
        self._breaker = CircuitBreaker(options.writers, options.kube_retry, self._stop, clock)
        self._retry: RetryPolicySelector[Target] = RetryPolicySelector(
            self._breaker, options.object_retry, options.permanent_retry
        )
        self._repairs: RepairRateLimiter[Target] = RepairRateLimiter(options.object_retry, clock=clock)
        self._altered: RepairRateLimiter[Target] = RepairRateLimiter(options.object_retry, clock=clock)
        self._conflicting = ConflictingWriters(options.owner, clock)
        self._resolver: Resolver[Target] = Resolver(options.resolver, self._enqueue, self._died, clock=clock)
        self._early: set[Target] = set()
        self._early_lock = threading.Lock()
        self._pending = PendingChanges()
        self._deferred: set[Target] = set()
        self._results = Results()
        self._consul_trouble: dict[str, str] = {}
        self._no_nodes = ""
        self._next_nodes = float("-inf")
        self._last_pass: float | None = None
        self._next_look = 0.0
        self._fatal: BaseException | None = None
        self._datacenter = ""
        self._annotated = options.annotated
        self._labels: NamespaceLabels | None = None
        self._suspect: set[str] | None = None
        self._shards: frozenset[int] = frozenset()
        self._gained = threading.Event()
        self._leadership: Leadership = NoElection()
        self._recorder: EventRecorder | None = None
        self._kube_events: KubernetesEventObserver | None = None
        self._reconciler: Reconciler
        self._slice_rights: SliceRights
        self._status_view: StatusView
        self._catalog: Catalog
        self._informer: Informer
        self._writer: Writer
        self._client: KubeClient

    # ------------------------------------------------------------------ the outside

    def run(self) -> None:
        """Mirror until `stop`. Raises what made the bridge end on its own (a bug, or settings that cannot work)."""
        client = self._client = KubeClient(self._kube, self._observer.server_warning)
        threads: list[threading.Thread] = []
        try:
            self._build(client)
            self._informer.start()
            if self._labels is not None:
                self._labels.start()
            self._catalog.start(self._reconciler.world.active_datacenters())
            threads = [
                threading.Thread(target=self._guarded, args=(self._work,), name=f"writer-{n}")
                for n in range(self._options.writers)
            ]
            for thread in threads:
                thread.start()
            self._supervise()
        except CancelledError:
            pass
        finally:
            self._stop.set()
            self._queue.close()
            self._breaker.wake()
            self._resolver.close()
            for thread in threads:
                thread.join()
            self._queue.wait_returned()
            self._leadership.stop()
            if hasattr(self, "_catalog"):
                self._catalog.close()
            self._consul.access.close()
            if self._recorder is not None:
                self._recorder.close()
            if hasattr(self, "_informer"):
                self._informer.close()
            if self._labels is not None:
                self._labels.close()
            client.close()
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """Finish the objects in hand and return from `run`. Nothing is removed."""
        self._stop.set()
        self._wake.set()

    def healthy(self) -> tuple[bool, str]:
        """Whether the loops are alive."""
        if self._fatal is not None:
            return False, f"{type(self._fatal).__name__}: {self._fatal}"
        return True, "ok"

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether the first full pass is done and both sides were seen lately, with the detail.

        A standby is ready as well: it could take over at once. So is a bridge that may not list some of its
        namespaces: it does what it can, and a rollout must not wait for ever for a Role; the detail names them.
        """
        leadership = self._leadership.status()
        detail: dict[str, Any] = {
            "first_pass_done": self._passing.is_set(),
            "consul": dict(self._consul_trouble) or "ok",
            "kubernetes": self._kubernetes_trouble() or "ok",
        }
        if leadership is not None:
            detail["election"] = leadership
        if forbidden := self._forbidden_slices():
            detail["endpointslices_forbidden"] = forbidden
        if forbidden_namespaces := self._unreadable():
            detail["forbidden_namespaces"] = forbidden_namespaces
        if warnings := [*warnings_of(self._consul), *self._remarks()]:
            detail["warnings"] = warnings
        if conflicting_writer := self._conflicting_writer():
            detail["conflicting_writer"] = conflicting_writer
        if self._passing.is_set():
            with self._reconciler.lock:
                detail["held"] = [f"{h.target}: {h.reason}" for h in self._reconciler.guard.active()]
        elected = leadership is None or leadership["error"] is None
        ok = self._passing.is_set() and not self._consul_trouble and self._kubernetes_trouble() is None and elected
        return ok, detail

    def status(self) -> dict[str, Any]:
        """Everything that /api/status shows."""
        outcomes = list(self._results.all().values())
        report = build_report(
            outcomes, self._unknown(), dry_run=True, skipped=self.unmirrored(), unplanned=self._unplanned()
        )
        return {**self.state(), "report": report.to_json()}

    def state(self) -> dict[str, Any]:
        """The same without the report, whose making takes longer the more services there are."""
        ready, detail = self.ready()
        started = hasattr(self, "_catalog")
        return {
            "ready": ready,
            **detail,
            "owner": self._options.owner,
            "queue": len(self._queue),
            "seconds_since_last_full_pass": None
            if self._last_pass is None
            else round(self._clock() - self._last_pass, 1),
            "catalog": self._catalog.status()["datacenters"] if started else {},
            "cache": self._informer.status() if started else {},
        }

    def services(self) -> list[ServiceRow]:
        """All mirrored services as they are now, sorted by target."""
        if not self._passing.is_set():
            return []
        return self._status_view.rows(self._results.all())

    def unmirrored(self) -> tuple[Skipped, ...]:
        """Services whose name cannot be brought into Kubernetes' form."""
        if not hasattr(self, "_reconciler"):
            return ()
        with self._reconciler.lock:
            return self._reconciler.world.unmappable()

    def explain(self, namespace: str, name: str) -> tuple[Explanation, ...] | None:
        """Why the instances at a target are as they are; None when nothing is mirrored there."""
        target = Target(namespace, name)
        return self._status_view.explain(target, self._results.of(target)) if self._passing.is_set() else None

    def replace_rules(self, rules: Sequence[Rule]) -> bool:
        """Go on with other rules; False (and nothing is done) when they ask for other namespaces or datacenters."""
        if not self._passing.is_set():
            return False
        rules = anchored(rules, (self._datacenter,))
        named = named_with(self._datacenter, rules, self._consul)
        scopes = [namespaces_of(r, self._kube.namespaces, self._client.namespace) for r in (rules, self._rules)]
        shares = [shares_of(self._consul.connections, named, spare_of(r, named)) for r in (rules, self._rules)]
        if scopes[0] != scopes[1] or named != self._reconciler.world.datacenters or shares[0] != shares[1]:
            return False
        with self._reconciler.lock:
            self._rules = rules
            targets = self._reconciler.world.replace_rules(rules, self._clock()) | self._reconciler.world.targets()
        self._enqueue(targets)
        self._wake.set()
        return True

    # ------------------------------------------------------------------ what Consul's and Kubernetes' rooms say

    def on_listing(self, datacenter: str, listing: Listing | Unknown) -> None:
        """A datacenter's services were listed, or could not be."""
        with self._reconciler.lock:
            targets = self._reconciler.world.on_listing(datacenter, listing, self._clock())
            if self._suspect is not None and datacenter not in self._suspect and isinstance(listing, Listing):
                self._mark_suspect((datacenter,), "at its first answer")
        self._enqueue(targets)
        self._wake.set()

    def on_view(self, query: Query, state: Knowledge, seen: float, lend: InlineExecutor | None = None) -> None:
        """A service was read, or could not be. With `lend` the caller writes what follows, if nothing is in the way."""
        with self._reconciler.lock:
            targets = self._reconciler.world.on_view(query, state)
            fed = self._reconciler.world.fed_by(query) if self._kube_events is not None else ()
        if self._kube_events is not None:
            self._kube_events.read(query, state, fed)
        if not self._passing.is_set():
            self._enqueue(targets)
            self._wake.set()
            return
        for target in targets:
            self._pending.seen(target, seen)
        if lend is not None and len(targets) == 1 and self._breaker.free:
            (target,) = targets
            if self._queue.claim(target, MAX_INLINE_WRITES):
                lend(partial(self._guarded, partial(self._finish, target)))
                return
        self._enqueue(targets)

    def on_rebuilt(self, datacenter: str) -> None:
        """Consul's index went backwards: it was rebuilt or restored, and may be missing what it had."""
        with self._reconciler.lock:
            self._reconciler.guard.rebuilt(datacenter, self._clock())

    def on_trouble(self, datacenter: str, reason: str | None) -> None:
        """A datacenter cannot be asked (`reason`), or can again (None)."""
        if reason is None:
            self._consul_trouble.pop(datacenter, None)
        else:
            self._consul_trouble[datacenter] = reason
        self._observer.consul(datacenter, reason is None, reason or "")

    def on_mismatch(self, query: Query, reason: str) -> None:
        """Consul's streaming backend showed a service otherwise than its catalog."""
        self._observer.streaming_mismatch(query, reason)

    def on_change(self, target: Target) -> None:
        """Something at `target` was changed by somebody else."""
        if self._passing.is_set():
            double = self._informer.take_double(target)
            if not self._leadership.leads(target):
                with self._reconciler.lock:  # the one who leads did what we have only seen coming: charge it here too
                    self._reconciler.guard.applied(target)
            elif double:
                self._conflicting.wrote(target)
            asked = self._follow_annotation(target)
            if not asked:
                self._pending.touched(target)
            delay = max(self._repairs.delay_seconds(target), self._altered.delay_seconds(target))
            self._queue.add(target, delay_seconds=0.0 if asked else delay)
        else:
            self._follow_annotation(target)  # full passes do not ask people's Services again
            self._enqueue({target})

    def on_labels(self, labels: Labels, changed: Collection[str]) -> None:
        """Labels of namespaces were read for the first time, or some changed: other grants may select them now."""
        with self._reconciler.lock:
            self._annotated = replace(self._annotated, labels=labels)
        asking = (Target(s.meta.namespace, s.meta.name) for s in self._informer.annotated_services())
        targets = {target for target in asking if target.namespace in changed and self._follow_annotation(target)}
        self._enqueue(targets)

    def on_beside(self, target: Target) -> None:
        """Slices at `target` changed that no bridge writes: nothing is to be put back, but traffic goes elsewhere."""
        if not self._passing.is_set():
            self._enqueue({target})
            return
        outcome = self._results.of(target)
        if outcome is not None and not outcome.failures:  # else it is tried again in any case, when that is due
            delay = max(BESIDE_SECONDS, self._repairs.delay_seconds(target), self._altered.delay_seconds(target))
            self._queue.add(target, priority=LATER, delay_seconds=delay)

    def on_leading(self, shards: frozenset[int]) -> None:
        """These shards are ours to write now, and no others."""
        gained = shards - self._shards
        self._shards = shards
        election = self._options.election
        self._observer.leading(shards, election.shards if election is not None else 1)
        if gained:
            self._conflicting.gained()
            self._gained.set()
            self._wake.set()

    # ------------------------------------------------------------------ the supervisor

    def _build(self, client: KubeClient) -> None:
        options = self._options
        datacenters = datacenters_of(
            self._rules,
            self._consul,
            options.consul_retry,
            self._stop,
            on_retry=lambda error, _wait: self.on_trouble(OWN_DATACENTER, str(error)),
        )
        if OWN_DATACENTER in self._consul_trouble:
            self.on_trouble(OWN_DATACENTER, None)
        self._rules = anchored(self._rules, datacenters)
        self._datacenter = datacenters[0]
        self._client = client
        if options.election is not None:
            self._leadership = LeaseElection(
                client,
                options.election,
                on_change=self.on_leading,
                failed=self._died,
                sees_consul=lambda: any(dc not in self._consul_trouble for dc in datacenters),
                can_write=lambda: not self._breaker.failing,
            )
        self._writer = Writer(client, lease_remaining=self._leadership.lease_remaining)
        namespaces = namespaces_of(self._rules, self._kube.namespaces, client.namespace)
        self._annotated = options.annotated.within(namespaces)
        if self._annotated.asks_for_labels:
            self._labels = NamespaceLabels(client, self.on_labels, options.kube_retry, self._died)
        self._informer = Informer(
            client,
            namespaces,
            options.owner,
            on_change=self.on_change,
            on_beside=self.on_beside,
            retry=options.kube_retry,
            failed=self._died,
        )
        if options.events:
            self._recorder = EventRecorder(client)
            self._recorder.start()
            self._kube_events = KubernetesEventObserver(
                self._recorder, current=self._informer.current, leads=self._leadership.leads
            )
            self._observer = FanOutObserver(self._observer, self._kube_events)
        self._slice_rights = slice_rights(client, options.policy, self._clock, everywhere=namespaces is None)
        self._reconciler = Reconciler(
            world=ConsulState(
                self._rules, datacenters, options.removal_grace_seconds, partial_selection=options.partial_selection
            ),
            store=self._informer,
            guard=Guard(options.guard),
            options=PlanOptions(
                owner=options.owner,
                policy=options.policy,
                adopt=options.adopt,
                installation=options.installation,
            ),
            clock=self._clock,
            resolve=self._resolver.resolve,
            mirrored=lambda target: mirrored(client, target),
            may_delete=self._conflicting.may_delete,
            slices_forbidden=self._slice_rights.missing,
            settling=Settling(self._clock, SETTLING_SECONDS),
            nodes=call(self._read_nodes, options.kube_retry, self._stop, on_retry=self._without_nodes)
            if "*" in options.cluster_nodes
            else ClusterNodes(options.cluster_nodes),
        )
        self._no_nodes = ""
        self._status_view = StatusView(self._reconciler, self._informer.current, self._resolver.known)
        self._catalog = Catalog(
            self._consul,
            datacenters,
            self,
            retry=options.consul_retry,
            failed=self._died,
            clock=self._clock,
            spare=spare_of(self._rules, datacenters),
        )

    def _supervise(self) -> None:
        self._await_first_read()
        with self._reconciler.lock:
            self._suspect = set()
            self._mark_suspect(self._reconciler.world.listed())
        with self._early_lock:
            self._early = set()
        self._full_pass()
        with self._early_lock:
            self._passing.set()
            early = self._early
        for target in early:  # what changed while the pass was being made
            self._follow_annotation(target)
        self._enqueue(early)
        self._leadership.start()
        next_resync = self._clock() + self._options.resync_seconds
        while not self._stop.is_set():
            self._wake.wait(0.5)
            self._wake.clear()
            self._take_in()
            self._commit_subscriptions()
            now = self._clock()
            with self._reconciler.lock:
                due = self._reconciler.world.expire(now)
                released = self._reconciler.guard.released(now, self._informer.ready_in)
            self._enqueue(due | released)
            granted = set() if self._breaker.failing else self._slice_rights.granted()
            if granted:
                self._enqueue({target for target in self._informer.targets() if target.namespace in granted})
            if self._gained.is_set():
                self._gained.clear()
                self._enqueue({target for target in self._results.unfinished() if self._leadership.leads(target)})
                next_resync = min(next_resync, now + GAINED_SECONDS)
            self._look_for_writing(now)
            if self._no_nodes and now >= self._next_nodes and self._look_for_nodes():
                next_resync = now  # users' Services are looked at with the addresses that are known now
            self._tell()
            if now >= next_resync:
                self._full_pass()
                next_resync = self._clock() + self._options.resync_seconds

    def _await_first_read(self) -> None:
        """Nothing is planned before Kubernetes was listed and every wanted service was answered, well or badly.

        A namespace that we may not list is not waited for once that has proved to last.
        """
        while not self._informer.wait_synced(0.5):
            self._observer.kubernetes(False, self._kubernetes_trouble() or "not listed yet")
            if self._stop.is_set():
                raise CancelledError("stopped before the first pass")
        if "*" not in self._options.cluster_nodes:
            self._await_nodes()
        while self._labels is not None and not self._labels.asked.wait(FIRST_LOOK_SECONDS):
            if self._stop.is_set():
                raise CancelledError("stopped before the first pass")
        self._observer.kubernetes(True, "")
        self._reconciler.unreadable = self._informer.unreadable()
        self._recall()
        deadline = self._clock() + FIRST_READ_SECONDS
        while not self._stop.is_set():
            self._take_in()
            self._commit_subscriptions()
            with self._reconciler.lock:
                world = self._reconciler.world
                if world.listings_answered() and not world.pending_reads():
                    return
            if self._clock() >= deadline:
                return
            self._stop.wait(FIRST_LOOK_SECONDS)  # not for each view: looking at all of them for each is what costs
        raise CancelledError("stopped before the first pass")

    def _mark_suspect(
        self, datacenters: Collection[str], when: str = "at our start", freed: Collection[str] = ()
    ) -> None:
        """A Consul that lacks most of what Kubernetes has of it may have been rebuilt while nobody watched it.

        Judged once for each datacenter, with its first listing, however late that comes; and again for those in whose
        sums namespaces count that were `freed`. For each scope of the guard by itself, of what has ready endpoints:
        nobody makes others wait by asking for what is not there. Under the lock, so that nothing is planned before.
        """
        together: dict[Scope, set[Target]] = {}
        for target, scope in self._informer.ready_targets().items():
            together.setdefault(scope, set()).add(target)
        world, now = self._reconciler.world, self._clock()
        for scope, targets in together.items():
            if freed and not any(target.namespace in freed for target in targets):
                continue
            for datacenter in datacenters:
                lacking, remembered = world.missing(datacenter, targets)
                if lacking * 2 > remembered:
                    sign = f"{when} it lists {remembered - lacking} of the {remembered} services that are mirrored"
                    self._reconciler.guard.rebuilt(datacenter, now, sign, scope)
        if self._suspect is not None:
            self._suspect.update(datacenters)

    def _recall(self) -> None:
        """Learn from Kubernetes what is there: where our objects came from, and what people ask for."""
        self._remember_all()
        for service in self._informer.annotated_services():
            self._follow_annotation(Target(service.meta.namespace, service.meta.name))

    def _take_in(self) -> None:
        """Namespaces that could not be read, and now can: only after all of it is known is anything planned there."""
        before, now = self._reconciler.unreadable, self._informer.unreadable()
        freed = before.keys() - now.keys()
        if freed:
            self._recall()
        with self._reconciler.lock:
            if freed and self._suspect is not None:
                what = "when its namespaces could be read"
                self._mark_suspect(self._reconciler.world.listed(), what, freed)
            self._reconciler.unreadable = now
        if freed:
            with self._reconciler.lock:
                targets = self._reconciler.world.targets() | set(self._informer.targets())
            self._enqueue({target for target in targets if target.namespace in freed})

    def _full_pass(self) -> None:
        """Look at everything, judged by the guard as a whole, and queue what needs work."""
        began = self._clock()
        if self._passing.is_set():
            self._informer.refresh()
            self._remember_all()
            self._look_for_nodes()
        with self._reconciler.lock:
            targets = self._reconciler.world.targets() | set(self._informer.targets())
        plans = self._reconciler.plan_all(targets, ask=False)
        for plan in plans:
            self._results.planned(plan)
            if (plan.writes or plan.unmirrored) and self._leadership.leads(plan.target):
                self._add(plan.target)
            self._look_again(plan)
        self._last_pass = self._clock()
        report = build_report(
            [Outcome(p, (), ()) for p in plans], self._unknown(), dry_run=True, unplanned=self._unplanned()
        )
        self._observer.pass_done(self._last_pass - began, report)

    def _look_again(self, plan: Plan) -> None:
        """Compare once more when what deviates has had its time."""
        if plan.settling:
            self._queue.add(plan.target, priority=LATER, delay_seconds=SETTLING_SECONDS)

    def _follow_annotation(self, target: Target) -> bool:
        """Do as the person's Service at `target` asks now; whether that is something new."""
        with self._reconciler.lock:
            current = self._informer.current(target)
            request = request_at(current, self._datacenter, self._annotated, names_at(current))
            world, now = self._reconciler.world, self._clock()
            if request is None:
                changed = world.unannotate(target, now)
            elif isinstance(request, Refusal):
                changed = world.refuse(target, request, now)
            elif world.annotation(target) == request:
                return False
            else:
                changed = world.annotate(target, *request, now)
        if changed:
            self._wake.set()
        return bool(changed)

    def _commit_subscriptions(self) -> None:
        """Have Consul watched for what is wanted now, and no more; a datacenter from when it is first wanted on."""
        with self._reconciler.lock:
            wanted, datacenters = (
                self._reconciler.world.commit_subscriptions(),
                self._reconciler.world.active_datacenters(),
            )
        self._catalog.start(datacenters)
        self._catalog.want(wanted)

    def _enqueue(self, targets: Collection[Target]) -> None:
        """Queue targets; several at once are first shown to the guard together, so that it sees how much is leaving."""
        with self._early_lock:
            if not self._passing.is_set():
                self._early.update(targets)
                return
        if not targets:
            return
        if len(targets) > 1:
            self._reconciler.plan_all(targets, ask=False)
        for target in sorted(targets):
            self._add(target)

    def _add(self, target: Target) -> None:
        known = self._informer.current(target).endpoints is not None
        self._queue.add(target, priority=0 if known else 1)

    def _tell(self) -> None:
        reason = self._kubernetes_trouble()
        self._observer.kubernetes(reason is None, reason or "")
        with self._reconciler.lock:
            held = self._reconciler.guard.active()
        self._observer.held(held)
        unknown = self._unknown()
        with self._reconciler.lock:
            annotated = self._reconciler.world.asked_by_annotation_alone(unknown)
        self._observer.service_read_errors(unknown, annotated)
        with self._reconciler.lock:
            idle = self._reconciler.world.unused_rules()
        labels = (self._labels.trouble,) if self._labels is not None and self._labels.trouble else ()
        self._observer.warned((*self._catalog.warnings(), *labels, *(unused_rule_text(*found) for found in idle)))
        self._observer.unreadable(self._unreadable())
        self._observer.slices_forbidden(self._forbidden_slices())
        self._observer.conflicting_writer(self._conflicting_writer())
        self._observer.credentials(self._client.trouble)

    def _look_for_writing(self, now: float) -> None:
        """With no shard of ours nothing is written, so nothing else would tell that the API server answers again."""
        if self._options.election is None or self._shards or not self._breaker.failing or now < self._next_look:
            return
        self._next_look = now + WRITING_SECONDS
        with contextlib.suppress(BridgeError):
            self._client.request("GET", "/version", timeout=WRITING_TIMEOUT_SECONDS)
            self._breaker.mended()

    def _conflicting_writer(self) -> str:
        return self._leadership.conflicting_writer() or self._conflicting.reason()

    def _read_nodes(self, known: ClusterNodes | None = None) -> ClusterNodes:
        return cluster_nodes(self._client, self._options.cluster_nodes, known)

    def _await_nodes(self) -> None:
        """Learn the addresses of the cluster's nodes before the first pass, if that does not take too long.

        They bound what users' Services may lead to. Nothing else needs them, so nothing else waits for a server that
        does not list its nodes.
        """
        deadline, attempt = self._clock() + NODES_SECONDS, 0
        while not self._look_for_nodes() and self._clock() < deadline and not self._stop.is_set():
            attempt += 1
            self._stop.wait(self._options.kube_retry.wait_seconds(attempt))

    def _look_for_nodes(self) -> bool:
        """Read the nodes; whether that succeeded. Else those that are known stay, and `/readyz` says why."""
        self._next_nodes = self._clock() + NODES_AGAIN_SECONDS
        try:
            self._reconciler.nodes = self._read_nodes(self._reconciler.nodes)
        except BridgeError as error:
            self._no_nodes = str(error)
            return False
        self._no_nodes = ""
        return True

    def _without_nodes(self, error: BridgeError, _wait: float) -> None:
        """The names of the cluster's nodes, which nothing is planned without, could not be read."""
        self._no_nodes = str(error)
        self._observer.kubernetes(False, self._no_nodes)

    def _kubernetes_trouble(self) -> str | None:
        if not hasattr(self, "_catalog"):
            return self._no_nodes or "not started"
        return self._breaker.trouble or self._informer.trouble()

    def _remarks(self) -> list[str]:
        """What does not stop the work now, and should be known by who looks at the readiness."""
        if not hasattr(self, "_client"):
            return []
        remarks = [UNVERIFIED] if self._client.access.unverified else []
        labels = "" if self._labels is None else self._labels.trouble
        nodes = f"addresses of the cluster's nodes may be out of date: {self._no_nodes}" if self._no_nodes else ""
        return [*remarks, *filter(None, (self._client.trouble, labels, nodes))]

    def _forbidden_slices(self) -> dict[str, str]:
        return self._slice_rights.forbidden() if hasattr(self, "_slice_rights") else {}

    def _unreadable(self) -> dict[str, str]:
        return dict(self._reconciler.unreadable) if hasattr(self, "_reconciler") else {}

    def _unplanned(self) -> list[tuple[Target, tuple[Query, ...], str]]:
        return self._reconciler.unplanned() if hasattr(self, "_reconciler") else []

    def _unknown(self) -> dict[Query, str]:
        if not hasattr(self, "_reconciler"):
            return {}
        with self._reconciler.lock:
            return dict(self._reconciler.world.trouble())

    # ------------------------------------------------------------------ the writers

    def _work(self) -> None:
        while (target := self._queue.take()) is not None:
            self._finish(target)

    def _finish(self, target: Target) -> None:
        """Work on what was taken out of the queue, and give it back."""
        try:
            self._reconcile(target)
        finally:
            self._queue.done(target)

    def _reconcile(self, target: Target) -> None:
        errand = self._pending.take(target)
        plan = self._reconciler.plan(target)
        if plan is None:
            self._retry.forget(target)
            self._record_owned(
                target
            )  # what a write that seemed to fail has made after all, or another replica removed
            return
        if plan.writes and not self._leadership.leads(target):
            self._stand_by(Outcome(plan), errand)
            return
        if self._can_wait(plan):
            self._pending.keep(target, errand)
            self._queue.add(target, priority=LATER)
            return
        outcome = apply_plan(plan, self._write, lambda: self._breaker.trouble is None)
        if any(isinstance(failure.error, NotLeadingError) for failure in outcome.failures):
            self._stand_by(outcome, errand)
        else:
            self._settle(outcome, errand)

    def _stand_by(self, outcome: Outcome, errand: PendingChange) -> None:
        """Another replica writes this target: remember what is to be done, in case that it is ours one day."""
        target = outcome.plan.target
        waiting = Outcome(outcome.plan, outcome.applied)
        before = self._results.record(waiting)
        self._pending.keep(target, PendingChange(first_seen_at=errand.since))
        if outcome.applied or _account(before) != _account(waiting):
            self._observer.outcome(waiting, None)
        self._record_owned(target)
        self._look_again(outcome.plan)
        if self._leadership.leads(target):  # it became ours just now, maybe before this was recorded
            self._queue.add(target)

    def _can_wait(self, plan: Plan) -> bool:
        """Whether this leaves a service without ready endpoints while other work is due: once, it goes to the end."""
        if plan.target in self._deferred:
            self._deferred.discard(plan.target)
            return False
        if plan.ready_before and not plan.ready and self._queue.busy:
            self._deferred.add(plan.target)
            return True
        return False

    def _write(self, change: Change) -> None:
        if not self._breaker.enter():
            raise CancelledError("stopping")
        came: WriteResult | TransientError = WriteResult.NOTHING
        try:
            with self._leading(change.target):
                self._informer.expect(change)
                meta = self._writer.apply(change)
            came = WriteResult.WRITTEN
        except AlteredError as error:
            self._informer.note_stored(change, error.stored)
            came = WriteResult.WRITTEN
            raise
        except BridgeError as error:
            self._informer.abandon(change)
            if isinstance(error, ForbiddenError) and change.kind is Kind.ENDPOINT_SLICE:
                self._slice_rights.refused(change.target.namespace)
            came = self._retry.told_by(change.target, error)
            raise
        finally:
            self._breaker.leave(came)
        self._retry.written(change.target)
        self._informer.confirm(change, meta)

    @contextlib.contextmanager
    def _leading(self, target: Target) -> Iterator[None]:
        """Around a write: the target's shard is not given up before it has ended."""
        if not self._leadership.begin_write(target):
            raise NotLeadingError(f"{target} is not written: another replica writes it now")
        try:
            yield
        finally:
            self._leadership.end_write(target)

    def _settle(self, outcome: Outcome, errand: PendingChange) -> None:
        """Remember how it went and ask for what is still to be done."""
        target = outcome.plan.target
        before = self._results.record(outcome)
        since = errand.since
        if not outcome.failures:
            with self._reconciler.lock:
                self._reconciler.guard.applied(target)
        else:
            self._pending.keep(target, errand.failed(touched=errand.externally_modified and not outcome.applied))
        written = (
            outcome.applied or errand.first_failed_at is not None
        )  # a write that seemed to fail may have been done after all
        lag = self._clock() - since if since is not None and written and not outcome.failures else None
        if outcome.applied or outcome.failures or outcome.plan.held or _account(before) != _account(outcome):
            self._observer.outcome(outcome, lag)
        self._record_owned(target)
        if (
            outcome.applied
            and errand.externally_modified
            and since is None
            and self._repairs.repaired(target) >= ENOUGH
        ):
            self._conflicting.undid(target, removal=not outcome.plan.queries)
        if any(isinstance(failure.error, AlteredError) for failure in outcome.failures):
            self._altered.repaired(target)  # whatever is told of what was stored must not have it written at once again
        for failure in outcome.failures:
            delay = self._retry.delay_seconds(target, failure.error)
            if delay is not None:
                self._queue.add(target, delay_seconds=delay)
        if outcome.plan.unmirrored:
            self._queue.add(target, delay_seconds=MIRRORED_SECONDS)
        self._look_again(outcome.plan)
        if not outcome.failures:
            self._retry.forget(target)

    def _remember_all(self) -> None:
        changed: set[Target] = set()
        with self._reconciler.lock:
            for target in self._informer.targets():
                names = names_at(self._informer.current(target))
                changed |= self._reconciler.world.record_owned(target, names, self._clock())
        self._enqueue(changed)

    def _record_owned(self, target: Target) -> None:
        """Which Consul services our objects at `target` come from: that is what tells later that they have gone."""
        names = names_at(self._informer.current(target))
        with self._reconciler.lock:
            if names:
                changed = self._reconciler.world.record_owned(target, names, self._clock())
            else:
                changed = self._reconciler.world.drop_owned(target, self._clock())
                self._reconciler.guard.forget(target)
            world = self._reconciler.world
            gone = not world.queries_at(target) and world.refusal(target) is None
        self._enqueue(changed)
        if gone and self._results.forget(target) is not None:
            self._observer.outcome(Outcome(Plan(target)), None)

    # ------------------------------------------------------------------ threads

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - whatever it was, the process must end of it
            self._died(error)

    def _died(self, error: BaseException) -> None:
        """A thread ended of a bug: the process must not live on half alive."""
        if self._fatal is None:
            self._fatal = error if isinstance(error, BridgeError) else RuntimeError(f"a thread died: {error!r}")
            self._fatal.__cause__ = error
        self.stop()


def unused_rule_text(rule: Rule, listed: int) -> str:
    """What is said of a rule that selects nothing, in the rule's own words."""
    words = [f"services {', '.join(rule.services)}"] if rule.services else []
    words += [rule.asks] if rule.asks else []
    words += [f"datacenters {', '.join(rule.datacenters)}"] if rule.datacenters else []
    return (
        f"{rule.title}: it selects none of the {listed} services that Consul lists ({'; '.join(words) or 'every one'})"
        "; `bridge explain SERVICE` says why"
    )


def _account(outcome: Outcome | None) -> tuple[object, ...]:
    """What is to be said of a target although nothing was written; its end is news as well."""
    if outcome is None:
        return ()
    plan = outcome.plan
    remarks = (bool(outcome.failures or plan.held), plan.conflicts, plan.skipped, plan.remarks, plan.deviations)
    return (*remarks, plan.ready, plan.not_ready, len(outcome.applied) == len(plan.writes))
