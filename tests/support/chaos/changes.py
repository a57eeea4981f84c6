"""What happens to services while faults happen: VMs that come, go, fall ill, move, and a ledger of those that did not.

`Fleet` is the truth: what runs on which VM, and how it is. A seeded generator changes it, step by step; the same seed
gives the same steps, whatever Consul does meanwhile. A pusher plays the agents: it brings every change to Consul and
tries again until Consul has taken it, as agents do.

The ledger is the other half: an endpoint that was healthy since the last rest, and was seen in Kubernetes then, is
`owed`. The generator takes it off the ledger BEFORE it touches it, so that nothing that is owed has any right to be
missing, not for an instant.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any

from tests.support.raw import RawConsul, UnexpectedAnswerError

Address = tuple[str, int]

RETRY_SECONDS = 0.2
"""How long the pusher waits after Consul refused something, as an agent would (only much shorter)."""

LATE_SECONDS = 8.0
"""So long after it was given up, a request may still be taken: a server without a leader keeps it for
`rpc_hold_timeout` (7 s and a sixteenth) and carries it out when there is one, over whatever was written since then."""

PASSING = "c-new-"
"""Names of the services that come and go as a whole."""

WEIGHTS = {
    "flip": 12, "maintenance": 3, "twin": 3, "move": 3, "leave": 2, "case": 2, "new service": 1, "old service": 1,
}  # fmt: skip
"""How often each kind of change is chosen. Too many that leave for good would be held by the guard, and rightly so.

flip: an instance's check. maintenance: into it and out of it. twin: a second instance of the service on the VM, with a
port of its own, comes or goes. The VM with all that runs on it: move, to another address; leave; case, which is a new
agent under the node's name in other case, at another address.
"""

PORTS = (8000, 8001)
"""VMs have one or the other in turns, and a twin the one that its VM has not."""

HEALTH = ("passing", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance on one VM. `anchor`: it is never touched, so it may never be missing."""

    service: str
    node: str
    address: str
    port: int
    status: str = "passing"
    maintenance: bool = False
    anchor: bool = False
    gone: bool = False
    twin: bool = False

    @property
    def identity(self) -> str:
        """Its id in Consul."""
        return f"{self.service}-{self.node}{'-twin' if self.twin else ''}"

    @property
    def key(self) -> str:
        """Its name in the fleet: a node is one and the same in upper and lower case, as in Consul's catalog."""
        return f"{self.service}/{self.node.lower()}{'/twin' if self.twin else ''}"

    @property
    def endpoint(self) -> Address:
        """Where it listens."""
        return self.address, self.port

    @property
    def ready(self) -> bool:
        """Whether traffic may go there (the bridge's default rules: a warning is well enough)."""
        return not self.gone and not self.maintenance and self.status in ("passing", "warning")


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the generator."""

    number: int
    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.number}: {self.kind} {self.key}"


@dataclass(frozen=True, slots=True)
class State:
    """The endpoints of a service by readiness. `drained`: those in maintenance, which only EndpointSlices tell."""

    ready: frozenset[Address] = frozenset()
    not_ready: frozenset[Address] = frozenset()
    drained: frozenset[Address] = frozenset()


class Fleet:
    """Services on VMs, the ledger, and the pusher. Thread-safe."""

    def __init__(
        self,
        connect: Callable[[], RawConsul],
        *,
        seed: int,
        services: int = 8,
        instances: int = 12,
        anchors: int = 8,
        conflicting: Collection[str] = (),
        on_pushed: Callable[[Instance], None] = lambda _instance: None,
    ) -> None:
        """`connect` gives a client of Consul itself, past every proxy. Of each service `anchors` are never touched.

        `conflicting`: services that Kubernetes has no place for, because their names are taken.

        `on_pushed` is called when Consul has taken a change, from the pusher's thread.
        """
        self._connect = connect
        self._random = random.Random(seed)
        self._on_pushed = on_pushed
        self._conflicting = frozenset(conflicting)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._all: dict[str, Instance] = {}
        self._dirty: dict[str, None] = {}
        self._touched: dict[str, float] = {}
        self._owed: set[str] = set()
        self._excused: set[str] = set()
        self._silent = False
        self._pushing = 0
        self._late_until = float("-inf")
        self._addresses = 0
        self._extras: list[str] = []
        self._born = 0
        self._stop = threading.Event()
        self._running = threading.Event()
        self._rate = 0.0
        self._threads: list[threading.Thread] = []
        self.changes: list[Change] = []
        self.trouble = ""
        for n in range(services):
            self._make(name_of(n), instances, anchors)

    # ------------------------------------------------------------------ the truth

    def _make(self, service: str, instances: int, anchors: int = 0) -> None:
        for n in range(instances):
            self._put(
                Instance(service, f"vm-{service}-{n}", self._next_address(), PORTS[n % 2], anchor=n < anchors),
                owed=True,
            )

    def add(self, service: str, instances: int) -> None:
        """A further service of which nothing is ever touched."""
        with self._lock:
            self._make(service, instances, instances)

    def _next_address(self) -> str:
        self._addresses += 1
        n = self._addresses
        return f"10.{64 + n // 60000 % 64}.{n // 240 % 250}.{n % 240 + 1}"

    def _put(self, instance: Instance, owed: bool = False) -> None:
        """The VM is like this from now on; Consul learns of it when it can."""
        with self._changed:
            if not owed:
                self._owed.discard(instance.key)
            self._all[instance.key] = instance
            self._touched[instance.service] = time.monotonic()
            self._dirty[instance.key] = None
            self._changed.notify_all()

    def expected(self) -> dict[str, State]:
        """What Consul should hold, and so Kubernetes, by service; a service without instances is not in it."""
        found: dict[str, tuple[set[Address], set[Address], set[Address]]] = {}
        with self._lock:
            for instance in self._all.values():
                if not instance.gone:
                    sets = found.setdefault(instance.service, (set(), set(), set()))
                    sets[0 if instance.ready else 1].add(instance.endpoint)
                    if instance.maintenance:
                        sets[2].add(instance.endpoint)
        return {name: State(*map(frozenset, sets)) for name, sets in found.items()}

    def mirrored(self) -> dict[str, State]:
        """The same without services whose names in Kubernetes are taken by another client."""
        return {name: state for name, state in self.expected().items() if name not in self._conflicting}

    def size(self, within_seconds: float = 0.0) -> int:
        """Services that have instances, and those that lost their last one lately."""
        since = time.monotonic() - within_seconds
        with self._lock:
            lately = {service for service, touched in self._touched.items() if touched > since}
        return len(lately | self.expected().keys())

    # ------------------------------------------------------------------ the ledger

    def owed(self, service: str) -> frozenset[Address]:
        """Endpoints of `service` that must be ready in Kubernetes at this instant."""
        with self._lock:
            if service in self._excused:
                return frozenset()
            prefix = f"{service}/"
            return frozenset(
                self._all[key].endpoint for key in self._owed if key.startswith(prefix) and self._all[key].ready
            )

    def all_owed(self) -> dict[str, frozenset[Address]]:
        """The same for all services that are owed anything."""
        found: dict[str, set[Address]] = {}
        with self._lock:
            for key in self._owed:
                instance = self._all[key]
                if instance.ready and instance.service not in self._excused:
                    found.setdefault(instance.service, set()).add(instance.endpoint)
        return {name: frozenset(endpoints) for name, endpoints in found.items()}

    def arm(self) -> None:
        """Everything is in steady state and both sides agree: from now on every healthy endpoint is owed."""
        with self._lock:
            self._owed = {i.key for i in self._all.values() if i.ready and i.service not in self._conflicting}
            self._excused = set()

    def disarm(self) -> None:
        """Nothing is owed (nothing was mirrored yet, or a fault broke what only a user can fix)."""
        with self._lock:
            self._owed = set()

    def excuse(self, service: str) -> None:
        """A fault takes this service's objects away in Kubernetes itself: nothing is owed until the next rest."""
        with self._lock:
            self._excused.add(service)

    # ------------------------------------------------------------------ the generator

    def step(self) -> Change:
        """One change, chosen by the seed and by what was changed before."""
        with self._lock:
            touchable = sorted(k for k, i in self._all.items() if not i.anchor and not i.service.startswith(PASSING))
            kind = self._random.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
            instance = self._all[self._random.choice(touchable)]
            if kind == "new service" and len(self._extras) < 5:
                self._born += 1
                service = f"{PASSING}{self._born}"
                self._extras.append(service)
                self._make(service, 2)
                for n in range(2):
                    self._owed.discard(f"{service}/vm-{service}-{n}")
                return self._note(kind, service)
            if kind == "old service" and self._extras:
                service = self._extras.pop(0)
                for old in [i for i in self._all.values() if i.service == service]:
                    self._put(replace(old, gone=True))
                return self._note(kind, service)
            if kind == "twin" and not instance.twin:
                instance = self._twin_of(instance)
            if instance.gone:
                self._put(replace(instance, gone=False, status="passing", maintenance=False))
                return self._note("register", instance.key)
            if kind == "twin":
                self._put(replace(instance, gone=True))
            elif kind == "leave":
                self._change_vm(instance, gone=True)
            elif kind == "move":
                self._change_vm(instance, address=self._next_address())
            elif kind == "case":
                self._change_vm(instance, node=instance.node.swapcase(), address=self._next_address())
            elif kind == "maintenance":
                self._put(replace(instance, maintenance=not instance.maintenance))
            else:
                kind = "flip"
                others = [h for h in HEALTH if h != instance.status]
                self._put(replace(instance, status=self._random.choice(others)))
            return self._note(kind, instance.key)

    def _twin_of(self, instance: Instance) -> Instance:
        """The second instance of the same service on the same VM, as yet not there if there has been none."""
        (port,) = set(PORTS) - {instance.port}
        twin = replace(instance, port=port, twin=True, gone=True)
        return self._all.get(twin.key, twin)

    def _change_vm(self, instance: Instance, **changes: Any) -> None:
        """The same for all that runs on its VM; what has left is known to be there as well."""
        for other in [i for i in self._all.values() if i.node.lower() == instance.node.lower()]:
            if other.gone:
                self._all[other.key] = replace(other, **changes)
            else:
                self._put(replace(other, **changes))

    def lose(self, service: str) -> None:
        """A VM of a service leaves, of those that may be touched and are well; none does where none is."""
        with self._lock:
            well = [i for i in self._all.values() if i.service == service and i.ready and not i.anchor]
            if well:
                self._change_vm(well[0], gone=True)
                self._note("leave", well[0].key)

    def set_status(self, service: str, status: str) -> int:
        """All of a service but its anchors turn `status`, out of maintenance; how many did."""
        with self._lock:
            chosen = [i for i in self._all.values() if i.service == service and not i.anchor]
            for instance in chosen:
                self._put(replace(instance, status=status, maintenance=False))
            return len(chosen)

    def _note(self, kind: str, key: str) -> Change:
        change = Change(len(self.changes) + 1, kind, key)
        self.changes.append(change)
        return change

    # ------------------------------------------------------------------ the agents

    def start(self, rate: float) -> None:
        """Push what is there; after `resume` also change something `rate` times a second."""
        self._rate = rate
        for body in (self._push_all, self._change_all):
            thread = threading.Thread(target=body, name=f"chaos-{body.__name__}")
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        self._running.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def resume(self) -> None:
        """Let changes happen."""
        self._running.set()

    def pause(self) -> None:
        """No further changes; those that were made are still pushed."""
        with self._lock:
            self._running.clear()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Changes happen inside of the block only."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def flush(self, seconds: float) -> bool:
        """Wait until Consul has taken everything, and look whether it has; False when it did not in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._changed:
                self._changed.wait_for(lambda: not self._dirty and not self._pushing, deadline - time.monotonic())
                if self._dirty or self._pushing:
                    return False
            try:
                with self._connect() as consul:
                    wrong = self._differs(consul)
            except (OSError, ValueError, HTTPException, UnexpectedAnswerError) as error:
                self.trouble = str(error)
                self._stop.wait(RETRY_SECONDS)
                continue
            if not wrong:
                return True
            self._again(wrong)
        return False

    def late_seconds(self) -> float:
        """How long from now Consul may still take a request that was given up; 0 when there is none.

        What it does then is a change like any other, which the next `flush` sees and fixes.
        """
        with self._lock:
            return max(0.0, self._late_until - time.monotonic())

    def hold_back(self) -> None:
        """The agents say nothing until `register_again`."""
        with self._changed:
            self._silent = True

    def register_again(self) -> None:
        """Every agent registers what it has, as agents do when Consul lost its data."""
        with self._changed:
            self._silent = False
            self._again(i.key for i in self._all.values() if not i.gone)

    def _is_alone(self, instance: Instance) -> bool:
        """Whether nothing else runs on its VM."""
        with self._lock:
            others = (i for i in self._all.values() if i.key != instance.key and not i.gone)
            return all(i.node.lower() != instance.node.lower() for i in others)

    def _again(self, keys: Any) -> None:
        with self._changed:
            for key in keys:
                self._dirty[key] = None
            self._changed.notify_all()

    def _differs(self, consul: RawConsul) -> list[str]:
        """Instances that Consul shows otherwise than they are: a request that timed out may have come late."""
        held: dict[str, tuple[str, int, bool]] = {}
        with self._lock:
            services = {i.service for i in self._all.values()}
            listed = set(consul.services())
            for service in sorted(services & listed):
                for entry in consul.health(service)[1]:
                    held[entry["Service"]["ID"].lower()] = (
                        entry["Service"]["Address"] or entry["Node"]["Address"], entry["Service"]["Port"],
                        is_ready(entry),
                    )  # fmt: skip
            return [
                i.key for i in self._all.values()
                if held.get(i.identity.lower()) != (None if i.gone else (i.address, i.port, i.ready))
            ]  # fmt: skip

    def _change_all(self) -> None:
        while not self._stop.is_set():
            self._running.wait()
            self._stop.wait(1.0 / self._rate)
            with self._lock:
                if self._running.is_set() and not self._stop.is_set():
                    self.step()

    def _push_all(self) -> None:
        consul: RawConsul | None = None
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: (self._dirty and not self._silent) or self._stop.is_set())
                if self._stop.is_set():
                    break
                key = next(iter(self._dirty))
                del self._dirty[key]
                instance = self._all[key]
                self._pushing = 1
            try:
                consul = consul or self._connect()
                push(consul, instance, alone=self._is_alone(instance))
                self.trouble = ""
                self._on_pushed(instance)
            except (OSError, ValueError, HTTPException, UnexpectedAnswerError) as error:
                self.trouble = f"{type(error).__name__}: {error}"
                if consul is not None:
                    consul.close()
                consul = None
                if isinstance(error, TimeoutError):
                    with self._lock:
                        self._late_until = time.monotonic() + LATE_SECONDS
                self._again([key])
                self._stop.wait(RETRY_SECONDS)
            finally:
                with self._changed:
                    self._pushing = 0
                    self._changed.notify_all()
        if consul is not None:
            consul.close()


def name_of(number: int) -> str:
    """Names of the services that exist from the start: most are slices and Endpoints, every third slices alone."""
    return f"slice-{number}" if number % 3 == 2 else f"c-{number}"


def push(consul: RawConsul, instance: Instance, *, alone: bool) -> None:
    """Bring Consul to what the VM is: the instance with its check and its maintenance check, or none of it.

    `alone`: nothing else runs on the VM, so its node goes with it.
    """
    identity = instance.identity
    if instance.gone and alone:
        consul.drop_node(instance.node)
        return
    if instance.gone:
        consul.json("PUT", "/v1/catalog/deregister", {"Node": instance.node, "ServiceID": identity})
        return
    checks = [
        {"CheckID": f"check:{identity}", "Name": "test", "Status": instance.status, "ServiceID": identity},
    ]
    upkeep = {"CheckID": f"_service_maintenance:{identity}", "Name": "maintenance", "ServiceID": identity}
    if instance.maintenance:
        checks.append({**upkeep, "Status": "critical"})
    consul.json("PUT", "/v1/catalog/register", {
        "Node": instance.node, "Address": instance.address,
        "Service": {
            "ID": identity, "Service": instance.service, "Port": instance.port, "Address": instance.address,
        },
        "Checks": checks,
    })  # fmt: skip
    if not instance.maintenance and not instance.anchor:
        consul.json("PUT", "/v1/catalog/deregister", {"Node": instance.node, "CheckID": upkeep["CheckID"]})


def is_drained(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `health/service` is in maintenance."""
    return any(c["CheckID"].startswith("_service_maintenance") and c["Status"] == "critical" for c in entry["Checks"])


def is_ready(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `health/service` is fit for traffic: no check worse than a warning."""
    return all(check["Status"] in ("passing", "warning") for check in entry["Checks"])
