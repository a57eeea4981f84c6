"""`bridge run`: the same pass as `bridge sync`, per service, as soon as something changes, until `stop` is called.

Events only mean "look again": watches put targets into a queue, workers take them out, plan from full state and
write. While nothing else is to be done, the thread of a direct watch takes its own target out of the queue and does a
worker's work itself.

    Catalog (Consul) ──▶ ConsulSide ──▶ Scheduler ──▶ WorkQueue ──▶ Workers ──▶ ChangeWriter ──▶ Kubernetes
    Informer (Kubernetes) ──▶ KubernetesSide ────────────▶┘                          │
       ▲─────────────────────────────── what was written ───────────────────────────┘

`parts.build` puts these together, each complete when it is made. The `Supervisor` makes the full passes and ends grace
periods; a thread that dies of a bug ends the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from bridge.consul.access import warnings_of
from bridge.consul.catalog import shares_of
from bridge.consul.client import ConsulConfig
from bridge.controller.consul_side import ConsulHealth
from bridge.controller.health import remarks_of, starting
from bridge.controller.options import RunOptions
from bridge.controller.parts import Parts, build
from bridge.controller.state_changes import StateChanges
from bridge.core import select
from bridge.core.explain import Explanation
from bridge.core.model import ClusterNodes, Rule, Skipped, Target
from bridge.core.service_state import ServiceRow
from bridge.errors import BridgeError, CancelledError
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.nodes import cluster_nodes
from bridge.pipeline.scope import anchored, datacenters_of, named_with, namespaces_of, spare_of
from bridge.report import build_report
from bridge.retry import call
from bridge.telemetry.events import Observer, ServerWarning
from bridge.telemetry.fan_out import FanOutObserver

OWN_DATACENTER = "the agent's own"
"""The name for the datacenter in errors until the agent has answered with the real one."""


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
        left: Sequence[str] = (),
    ) -> None:
        """`left`: namespaces that are watched although nothing asks for that (`left_behind`)."""
        self._consul = consul
        self._kube = kube
        self._rules = tuple(rules)
        self._left = tuple(left)
        self._options = options
        self._observer = FanOutObserver(*(() if observer is None else (observer,)))
        self._states = StateChanges(self._observer)
        self._clock = clock
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._fatal: BaseException | None = None
        self._consul_health = ConsulHealth(self._states)
        self._client: KubeClient | None = None
        self._waits_for = "not started"
        self.parts: Parts | None = None
        """The running parts; None until the agent's datacenter and, if needed, the nodes' names are known."""

    # ------------------------------------------------------------------ life

    def run(self) -> None:
        """Mirror until `stop`. Raises what made the bridge end on its own (a bug, or settings that cannot work)."""
        client = self._client = KubeClient(self._kube, lambda text: self._observer.changed(ServerWarning(text)))
        try:
            self.parts = self._build(client)
            self.parts.run()
        except CancelledError:
            pass
        finally:
            self._stop.set()
            if self.parts is not None:
                self.parts.close()
            self._consul.access.close()
            client.close()
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """Finish the writes in flight and return from `run`. Nothing is removed."""
        self._stop.set()
        self._wake.set()

    def _build(self, client: KubeClient) -> Parts:
        """Ask both sides for what the parts need, and build them."""
        datacenters = datacenters_of(
            self._rules,
            self._consul,
            self._options.consul_retry,
            self._stop,
            on_retry=lambda error, _wait: self._consul_health.report(OWN_DATACENTER, str(error)),
        )
        if OWN_DATACENTER in self._consul_health.unreachable:
            self._consul_health.report(OWN_DATACENTER, None)
        return build(
            consul=self._consul,
            client=client,
            left=self._left,
            rules=anchored(self._rules, datacenters),
            datacenters=datacenters,
            nodes=self._read_nodes(client),
            options=self._options,
            observer=self._observer,
            states=self._states,
            consul_health=self._consul_health,
            stop=self._stop,
            wake=self._wake,
            failed=self._died,
            clock=self._clock,
        )

    def _read_nodes(self, client: KubeClient) -> ClusterNodes:
        """The names of the nodes; where all of them are asked for, planning waits for them."""
        names = self._options.cluster_nodes
        if "*" not in names:
            return ClusterNodes(names)

        def waits(error: BridgeError, _wait: float) -> None:
            self._waits_for = str(error)
            self._states.kubernetes(False, self._waits_for)

        return call(lambda: cluster_nodes(client, names), self._options.kube_retry, self._stop, on_retry=waits)

    def _died(self, error: BaseException) -> None:
        """A thread ended because of a bug: the process must end too."""
        if self._fatal is None:
            self._fatal = error if isinstance(error, BridgeError) else RuntimeError(f"a thread died: {error!r}")
            self._fatal.__cause__ = error
        self.stop()

    # ------------------------------------------------------------------ what the outside asks

    def healthy(self) -> tuple[bool, str]:
        if self._fatal is not None:
            return False, f"{type(self._fatal).__name__}: {self._fatal}"
        return True, "ok"

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether the first full pass is done and both sides were seen lately, with the detail.

        A standby is ready as well: it could take over at once. So is a bridge that may not list some of its
        namespaces: it serves the rest, and a rollout must not wait for a Role; the detail names them.
        """
        if self.parts is not None:
            return self.parts.status.ready()
        detail = starting(False, self._consul_health, self._waits_for)
        remarks = [] if self._client is None else remarks_of(self._client)
        if warnings := [*warnings_of(self._consul), *remarks]:
            detail["warnings"] = warnings
        return False, detail

    def status(self) -> dict[str, Any]:
        if self.parts is not None:
            return self.parts.status.status()
        return {**self.state(), "report": build_report([], {}, dry_run=True).to_json()}

    def state(self) -> dict[str, Any]:
        """The same without the report, which takes longer the more services there are."""
        if self.parts is not None:
            return self.parts.status.state()
        ready, detail = self.ready()
        return {
            "ready": ready,
            **detail,
            "owner": self._options.owner,
            "queue": 0,
            "seconds_since_last_full_pass": None,
            "catalog": {},
            "cache": {},
        }

    def services(self) -> list[ServiceRow]:
        """All mirrored services as they are now, sorted by target."""
        return [] if self.parts is None else self.parts.status.services()

    def unmirrored(self) -> tuple[Skipped, ...]:
        """Services whose name cannot be brought into Kubernetes' form."""
        return () if self.parts is None else self.parts.status.unmirrored()

    def explain(self, namespace: str, name: str) -> tuple[Explanation, ...] | None:
        """Why the instances at a target are as they are; None when nothing is mirrored there."""
        return None if self.parts is None else self.parts.status.explain(Target(namespace, name))

    def left_behind(self, rules: Sequence[Rule], further: Sequence[str]) -> tuple[str, ...]:
        """Namespaces that hold objects of ours and that other rules and `further` ones would not have watched.

        The bridge that goes on has to watch them: what their last rule mirrored is removed like that of any other rule.
        """
        parts, client = self.parts, self._client
        own = "" if client is None else client.namespace
        held = set(self._left)
        if parts is not None and parts.scheduler.first_pass_done:
            held = {target.namespace for target in parts.informer.targets()}
        elif parts is not None:
            held.update(namespaces_of(parts.planner.consul_state.rules, self._kube.namespaces, own) or ())
        scope = namespaces_of(rules, further, own)
        return () if scope is None else tuple(sorted(held.difference(scope, ("*",))))

    def replace_rules(self, rules: Sequence[Rule]) -> bool:
        """Go on with other rules; False (and nothing is done) when something else has to be read for them.

        That is so when they ask for other namespaces or datacenters, or for HTTPRoutes where none did before.
        """
        parts, client = self.parts, self._client
        if parts is None or client is None or not parts.scheduler.first_pass_done:
            return False
        consul_state = parts.planner.consul_state
        rules = anchored(rules, consul_state.datacenters)
        named = named_with(consul_state.datacenters[0], rules, self._consul)
        scopes = [namespaces_of(r, self._kube.namespaces, client.namespace) for r in (rules, consul_state.rules)]
        shares = [shares_of(self._consul.connections, named, spare_of(r, named)) for r in (rules, consul_state.rules)]
        routes = [select.asks_for_routes(r) for r in (rules, consul_state.rules)]
        if any(one != other for one, other in (scopes, shares, routes)) or named != consul_state.datacenters:
            return False
        with parts.planner.lock:
            targets = consul_state.replace_rules(rules, self._clock()) | consul_state.targets()
        parts.scheduler.schedule(targets)
        self._wake.set()
        return True
