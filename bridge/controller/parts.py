"""The parts of a running bridge: how they are put together, started and ended.

Every part is complete when it is made. The two that need each other (what is scheduled is planned, planning asks for
host names, and a new answer for a name schedules its targets) are joined by one call that only a started part makes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from bridge.consul.catalog import Catalog
from bridge.consul.client import ConsulConfig
from bridge.controller.circuit_breaker import CircuitBreaker
from bridge.controller.conflicting_writers import ConflictingWriters
from bridge.controller.consul_side import ConsulHealth, ConsulSide, Subscriptions
from bridge.controller.full_pass import FullPasses
from bridge.controller.health import Health
from bridge.controller.item_backoff import RetryPolicySelector
from bridge.controller.kubernetes_events import KubernetesEventObserver
from bridge.controller.kubernetes_side import KubernetesSide
from bridge.controller.leadership import Leadership, LeaseElection, NoElection
from bridge.controller.node_addresses import NodeAddresses
from bridge.controller.options import RunOptions
from bridge.controller.owned_targets import OwnedTargets
from bridge.controller.pending_changes import PendingChanges
from bridge.controller.repairs import Repairs
from bridge.controller.results import Results
from bridge.controller.run_status import RunStatus
from bridge.controller.scheduler import Scheduler
from bridge.controller.shards import HeldShards, WriteProbe
from bridge.controller.state_changes import StateChanges
from bridge.controller.status_view import StatusView
from bridge.controller.supervisor import FirstRead, Supervisor
from bridge.controller.workers import ChangeWriter, Workers
from bridge.controller.workqueue import WorkQueue
from bridge.core import select
from bridge.core.guard import Guard
from bridge.core.model import ClusterNodes, Rule, Target
from bridge.core.state import ConsulState
from bridge.kube.client import KubeClient
from bridge.kube.events import EventRecorder
from bridge.kube.informer import Informer
from bridge.kube.mirrored import mirrored
from bridge.kube.namespaces import NamespaceLabels
from bridge.kube.writer import Writer
from bridge.pipeline.deviation_window import WINDOW_SECONDS, DeviationWindow
from bridge.pipeline.dns import Resolver
from bridge.pipeline.planner import Planner
from bridge.pipeline.scope import namespaces_of, spare_of
from bridge.pipeline.slice_rights import slice_rights
from bridge.telemetry.fan_out import FanOutObserver
from bridge.threads import Failed, guarded_thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts to start and end, in this order, and those that the controller queries."""

    informer: Informer
    labels: NamespaceLabels | None
    catalog: Catalog
    threads: tuple[threading.Thread, ...]
    supervisor: Supervisor
    queue: WorkQueue[Target]
    breaker: CircuitBreaker
    resolver: Resolver[Target]
    leadership: Leadership
    recorder: EventRecorder | None
    planner: Planner
    scheduler: Scheduler
    results: Results
    status: RunStatus

    def run(self) -> None:
        """Start everything, and be the supervisor until it is to stop. Raises CancelledError before the first pass."""
        if self.recorder is not None:
            self.recorder.start()
        self.informer.start()
        if self.labels is not None:
            self.labels.start()
        self.catalog.start(self.planner.consul_state.active_datacenters())
        for thread in self.threads:
            thread.start()
        self.supervisor.run()

    def close(self) -> None:
        """Finish the writes in flight, release the Leases, then end what reads. The stop event must be set."""
        self.queue.close()
        self.breaker.wake()
        self.resolver.close()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join()
        self.queue.wait_returned()
        self.leadership.stop()
        self.catalog.close()
        if self.recorder is not None:
            self.recorder.close()
        self.informer.close()
        if self.labels is not None:
            self.labels.close()


def build(
    *,
    consul: ConsulConfig,
    client: KubeClient,
    rules: Sequence[Rule],
    datacenters: Sequence[str],
    left: Sequence[str],
    nodes: ClusterNodes,
    options: RunOptions,
    observer: FanOutObserver,
    states: StateChanges,
    consul_health: ConsulHealth,
    stop: threading.Event,
    wake: threading.Event,
    failed: Failed,
    clock: Callable[[], float],
) -> Parts:
    """Put the parts together; nothing runs yet. `rules` are anchored, the first of `datacenters` is our own.

    `left` are namespaces that are watched beside those that the rules and the settings name.

    Raises ConfigurationError for settings that cannot work together.
    """
    namespaces = namespaces_of(rules, client.config.namespaces, client.namespace)
    annotated = options.annotated.within(namespaces)
    namespaces = None if namespaces is None else tuple(sorted({*namespaces, *left}))
    with contextlib.ExitStack() as made:  # closes what has been made when the rest cannot be
        # what is waiting, and the results
        queue: WorkQueue[Target] = WorkQueue(clock, lane=lambda target: target.namespace)
        pending, results = PendingChanges(), Results()
        breaker = CircuitBreaker(options.writers, options.kube_retry, stop, clock)
        retry: RetryPolicySelector[Target] = RetryPolicySelector(breaker, options.object_retry, options.permanent_retry)
        conflicting = ConflictingWriters(options.owner, clock)
        repairs = Repairs(conflicting, options.object_retry, clock)

        # who writes
        shards = HeldShards(options.election.shards if options.election is not None else 1, conflicting, observer, wake)
        leadership: Leadership = NoElection()
        if options.election is not None:
            leadership = LeaseElection(
                client,
                options.election,
                on_change=shards.on_change,
                failed=failed,
                sees_consul=lambda: consul_health.answers(datacenters),
                can_write=lambda: not breaker.failing,
            )
            made.callback(leadership.stop)
        writer = Writer(client, lease_remaining=leadership.lease_remaining)
        probe = WriteProbe(writer, breaker, shards, clock).look if options.election is not None else lambda: None

        # Kubernetes as it is; its listener is made below, and gets no event before the start
        informer = Informer(
            client,
            namespaces,
            options.owner,
            on_change=lambda target: kubernetes_side.on_change(target),
            on_foreign_slices=lambda target: kubernetes_side.on_foreign_slices(target),
            retry=options.kube_retry,
            failed=failed,
            routes=select.asks_for_routes(rules),
        )
        made.callback(informer.close)
        labels = None
        if annotated.asks_for_labels:
            labels = NamespaceLabels(
                client, lambda found, changed: kubernetes_side.on_labels(found, changed), options.kube_retry, failed
            )
            made.callback(labels.close)
        recorder = EventRecorder(client) if options.events else None
        kubernetes_events = None
        if recorder is not None:
            made.callback(recorder.close)
            kubernetes_events = KubernetesEventObserver(recorder, current=informer.current, leads=leadership.leads)
            observer.add(kubernetes_events)

        # planning
        resolver: Resolver[Target] = Resolver(
            options.resolver, lambda targets: scheduler.schedule(targets), failed, clock=clock
        )
        rights = slice_rights(client, options.policy, clock, everywhere=namespaces is None)
        planner = Planner(
            consul_state=ConsulState(
                rules,
                datacenters,
                options.removal_grace_seconds,
                partial_selection=options.partial_selection,
                follows=True,
            ),
            store=informer,
            guard=Guard(options.guard),
            options=options.of_plans(),
            clock=clock,
            resolve=resolver.resolve,
            mirrored=lambda target: mirrored(client, target),
            may_delete=conflicting.may_delete,
            slices_forbidden=rights.missing,
            window=DeviationWindow(clock, WINDOW_SECONDS),
            nodes=nodes,
            in_turn=False,
        )

        def judge(targets: Collection[Target]) -> None:
            planner.plan_all(targets, ask_mirror=False)

        def exists(target: Target) -> bool:
            current = informer.current(target)
            return current.endpoints is not None or bool(current.slices)

        scheduler = Scheduler(
            queue, judge=judge, exists=exists, recheck_seconds=WINDOW_SECONDS, blocked=informer.blocked
        )
        owned = OwnedTargets(
            planner=planner,
            informer=informer,
            scheduler=scheduler,
            results=results,
            observer=observer,
            clock=clock,
        )

        # writing
        workers = Workers(
            queue=queue,
            planner=planner,
            leadership=leadership,
            writer=ChangeWriter(
                breaker=breaker,
                leadership=leadership,
                informer=informer,
                writer=writer,
                retry=retry,
                slice_rights=rights,
            ),
            retry=retry,
            repairs=repairs,
            pending=pending,
            results=results,
            owned=owned,
            scheduler=scheduler,
            observer=observer,
            clock=clock,
            failed=failed,
        )

        # what both sides say
        kubernetes_side = KubernetesSide(
            planner=planner,
            informer=informer,
            queue=queue,
            scheduler=scheduler,
            pending=pending,
            results=results,
            owned=owned,
            leadership=leadership,
            repairs=repairs,
            slice_rights=rights,
            breaker=breaker,
            annotated=annotated,
            clock=clock,
            wake=wake,
        )
        consul_side = ConsulSide(
            planner=planner,
            ready_targets=informer.ready_targets,
            scheduler=scheduler,
            pending=pending,
            workers=workers,
            kubernetes_events=kubernetes_events,
            health=consul_health,
            observer=observer,
            clock=clock,
            wake=wake,
        )
        catalog = Catalog(
            consul,
            datacenters,
            consul_side,
            retry=options.consul_retry,
            failed=failed,
            clock=clock,
            spare=spare_of(rules, datacenters),
        )
        subscriptions = Subscriptions(planner, catalog)

        # the whole in view
        node_addresses = NodeAddresses(client, options.cluster_nodes, planner, options.kube_retry, stop, clock)
        health = Health(
            consul=consul,
            consul_health=consul_health,
            catalog=catalog,
            client=client,
            informer=informer,
            breaker=breaker,
            planner=planner,
            leadership=leadership,
            conflicting=conflicting,
            slice_rights=rights,
            labels=labels,
            nodes=node_addresses,
        )
        full_passes = FullPasses(
            planner=planner,
            informer=informer,
            owned=owned,
            nodes=node_addresses,
            scheduler=scheduler,
            leadership=leadership,
            results=results,
            observer=observer,
            clock=clock,
            resync_seconds=options.resync_seconds,
        )
        supervisor = Supervisor(
            first_read=FirstRead(
                informer=informer,
                labels=labels,
                nodes=node_addresses,
                consul=consul_side,
                kubernetes=kubernetes_side,
                subscriptions=subscriptions,
                planner=planner,
                health=health,
                states=states,
                stop=stop,
                clock=clock,
            ),
            planner=planner,
            scheduler=scheduler,
            consul=consul_side,
            kubernetes=kubernetes_side,
            subscriptions=subscriptions,
            full_passes=full_passes,
            leadership=leadership,
            shards=shards,
            probe=probe,
            results=results,
            tell=lambda: health.tell(states),
            stop=stop,
            wake=wake,
            clock=clock,
        )
        status = RunStatus(
            owner=options.owner,
            planner=planner,
            results=results,
            scheduler=scheduler,
            queue=queue,
            full_passes=full_passes,
            health=health,
            catalog=catalog,
            informer=informer,
            view=StatusView(planner, informer.current, resolver.known),
            clock=clock,
        )
        made.pop_all()
    return Parts(
        informer=informer,
        labels=labels,
        catalog=catalog,
        threads=tuple(guarded_thread(f"writer-{n}", workers.run, failed, daemon=False) for n in range(options.writers)),
        supervisor=supervisor,
        queue=queue,
        breaker=breaker,
        resolver=resolver,
        leadership=leadership,
        recorder=recorder,
        planner=planner,
        scheduler=scheduler,
        results=results,
        status=status,
    )
