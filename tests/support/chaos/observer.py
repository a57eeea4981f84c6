"""Eyes that share no code with the bridge: they read Consul, Kubernetes and its audit log directly and continuously.

| invariant | how it is seen |
| --- | --- |
| (i) nothing that was healthy throughout is missing, not for an instant | every event of a watch of Endpoints and EndpointSlices is held against the ledger (changes.py) |
| (ii) no foreign object is written | every write of the bridge's user in the audit log, and the versions of foreign objects |
| (iii) at quiescence Kubernetes equals Consul | both are read whole and compared: the union of all slices, and Endpoints |
| (iv) no writes in steady state | writes of the bridge's user in the audit log while nothing changes |
| (v) memory, threads, sockets and descriptors return | /proc of the bridge, at every rest |
| (vi) a fault is visible and readiness tells the truth | see run.py: each fault names its signs |
| (vii) what one tenant does never changes another's endpoints | (i) and (iii) for a Service that a user asked for, while in every round another user sends away more than all others have (run.py), and worse (faults_tenant.py) |

A watch that breaks (the API server is killed, too) goes on from where it was, so no version of an object is missed.
"""  # noqa: E501

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.support.chaos.changes import Address, Fleet, Instance, State, is_drained, is_ready
from tests.support.lab import LabError
from tests.support.raw import RawConsul, RawKube, UnexpectedAnswerError, not_ready_addresses, ready_addresses

ENDPOINTS = "/api/v1/endpoints"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
SERVICES = "/api/v1/services"
OURS = "consul-bridge"
MANAGED_BY = "app.kubernetes.io/managed-by"
SERVICE_NAME = "kubernetes.io/service-name"
KINDS = frozenset({"services", "endpoints", "endpointslices"})
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
HARMLESS = frozenset({"events", "leases", "selfsubjectaccessreviews"})

Where = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold: its number in Roman digits, when (seconds since the epoch), and what was seen."""

    invariant: str
    at: float
    what: str

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at).strftime("%H:%M:%S.%f")[:-3]
        return f"({self.invariant}) at {when}: {self.what}"


@dataclass(frozen=True, slots=True)
class Write:
    """A write of the bridge's user that succeeded."""

    at: float
    verb: str
    resource: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has taken."""

    memory_bytes: int
    threads: int
    descriptors: int
    sockets: int


def usage_of(pid: int) -> Usage:
    """Memory, threads and open files of a process now."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
    links = []
    for descriptor in (proc / "fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(descriptor.readlink()))
    return Usage(
        memory_bytes=int(status["VmRSS"].split()[0]) * 1024,
        threads=int(status["Threads"]),
        descriptors=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
    )


@dataclass(slots=True)
class _Pending:
    """A change that Kubernetes is to show: since when, and what it must look like."""

    since: float
    instance: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Sights:
    """What the observer looks at. `connect_*`: fresh clients of the servers themselves, past every proxy."""

    connect_consul: Callable[[], RawConsul]
    connect_kube: Callable[[], RawKube]
    audit_log: Path
    user: str
    namespace_of: Callable[[str], str]
    """The namespace where a Consul service is to be."""
    slices_alone: Callable[[str], bool]
    """Whether a Consul service is to be in EndpointSlices only; all others have Endpoints of ours, too."""
    namespaces: Collection[str]
    tenants: Collection[str]
    """Further ones where users ask for Consul services by annotation; what is there is not compared with the fleet,
    except what is `asked`."""
    asked: Mapping[Where, str]
    """Services of users, with the Consul service that each asks for, whose endpoints nothing may change but Consul."""
    sent_away: Collection[Where]
    """Services of users that ask for nothing whenever the sides are compared: no slice of theirs is left, not even an
    empty one (the Endpoints object of a Service that asks for what Consul does not have stays, without addresses)."""
    foreign: Collection[Where]
    """Services and Endpoints in these namespaces that are not the bridge's."""


class Observer:
    """Watches until `close`. What it found is in `violations`; `latencies` are seconds from Consul to Kubernetes."""

    def __init__(self, sights: Sights, fleet: Fleet) -> None:
        self._sights = sights
        self._fleet = fleet
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clients: set[RawKube] = set()
        self._endpoints: dict[Where, State] = {}
        self._slices: dict[Where, dict[str, State]] = {}
        self._listed = {ENDPOINTS: threading.Event(), SLICES: threading.Event()}
        self._pending: dict[str, _Pending] = {}
        self._missing: set[tuple[Where, Address]] = set()
        self._guarded: dict[Where, frozenset[Address]] = {}
        self._foreign_versions: dict[tuple[str, Where], str] = {}
        self.violations: list[Violation] = []
        self.latencies: list[float] = []
        self.writes: list[Write] = []
        self.events = 0

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to look; returns when everything was listed once."""
        self.look_again()
        for path in (ENDPOINTS, SLICES):
            self._run(lambda path=path: self._watch(path), f"chaos-watch-{path.rpartition('/')[2]}")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        self._run(self._follow_audit, "chaos-audit")
        for path, listed in self._listed.items():
            if not listed.wait(30):
                raise LabError(f"the observer could not list {path} within 30 s")

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        with self._lock:
            clients = tuple(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                client.interrupt()
        for thread in self._threads:
            thread.join()

    def _run(self, body: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=body, name=name)
        self._threads.append(thread)
        thread.start()

    def report(self, invariant: str, what: str) -> None:
        """Note a violation."""
        with self._lock:
            self.violations.append(Violation(invariant, time.time(), what))

    # ------------------------------------------------------------------ (i): the watches

    def _watch(self, path: str) -> None:
        position = ""
        while not self._stop.is_set():
            client = None
            try:
                client = self._sights.connect_kube()
                with self._lock:
                    self._clients.add(client)
                if not position:
                    position = self._list(client, path)
                    self._listed[path].set()
                for event in client.watch(path, position):
                    if event["type"] == "ERROR":
                        position = ""
                        break
                    position = event["object"]["metadata"]["resourceVersion"]
                    self._take(path, event["object"], gone=event["type"] == "DELETED")
            except (OSError, ValueError, HTTPException, UnexpectedAnswerError, KeyError) as error:
                if isinstance(error, UnexpectedAnswerError) and error.status == 410:
                    position = ""
                self._stop.wait(0.05)
            except AttributeError:  # http.client's answer, when the connection is closed under it
                self._stop.wait(0.05)
            finally:
                if client is not None:
                    with self._lock:
                        self._clients.discard(client)
                    client.close()

    def _list(self, client: RawKube, path: str) -> str:
        """Take a whole list at once, so that no reader sees half of it."""
        found = client.json("GET", path)
        with self._lock:
            known: set[Where] = set(self._endpoints if path == ENDPOINTS else self._slices)
            if path == ENDPOINTS:
                self._endpoints = {}
            else:
                self._slices = {}
            for item in found["items"]:
                known.add(_where(path, item))
                self._note(path, item, gone=False)
            for where in known:
                self._compare(where)
        return str(found["metadata"]["resourceVersion"])

    def _take(self, path: str, item: Mapping[str, Any], *, gone: bool) -> None:
        with self._lock:
            self._note(path, item, gone=gone)
            self._compare(_where(path, item))

    def _note(self, path: str, item: Mapping[str, Any], *, gone: bool) -> None:
        where = _where(path, item)
        if path == ENDPOINTS and where in self._guarded:
            self._look_after(where, frozenset() if gone else _state_of_endpoints(item).ready)
        if where[0] not in self._sights.namespaces and where not in self._sights.asked:
            return
        labels = item["metadata"].get("labels") or {}
        self.events += 1
        if path == ENDPOINTS:
            if labels.get(MANAGED_BY) != OURS and where not in self._endpoints:
                return
            if gone:
                self._endpoints.pop(where, None)
            else:
                self._endpoints[where] = _state_of_endpoints(item)
        elif labels.get(SERVICE_NAME):
            slices = self._slices.setdefault(where, {})
            if gone:
                slices.pop(item["metadata"]["name"], None)
            else:
                slices[item["metadata"]["name"]] = _state_of_slice(item)

    # ------------------------------------------------------------------ (vii): other tenants

    def guard(self, where: Where, endpoints: frozenset[Address]) -> None:
        """From now on these must be ready in every version of a tenant's Endpoints, until `unguard`."""
        with self._lock:
            self._guarded[where] = endpoints

    def unguard(self, where: Where) -> None:
        """They may go."""
        with self._lock:
            self._guarded.pop(where, None)

    def _look_after(self, where: Where, ready: frozenset[Address]) -> None:
        if lacking := sorted(self._guarded[where] - ready):
            self.report(
                "vii", f"{where[0]}/{where[1]}: {lacking} missing, though healthy, for what another tenant does"
            )

    def _compare(self, where: Where) -> None:
        """Hold what Kubernetes shows now against the ledger, and settle the changes that it shows."""
        namespace, name = where
        service = self._sights.asked.get(where, name)
        if where not in self._sights.asked and self._sights.namespace_of(service) != namespace:
            return
        with self._lock:
            state = self._shown(where)
            for address in self._fleet.owed(service):
                if address in state.ready:
                    self._missing.discard((where, address))
                elif (where, address) not in self._missing:
                    self._missing.add((where, address))
                    how = "not ready" if address in state.not_ready else "missing"
                    self.report(
                        self._invariant(where, "i"),
                        f"{namespace}/{name}: {address[0]}:{address[1]} is {how}, though healthy",
                    )
            if where in self._sights.asked:
                return
            for key, pending in list(self._pending.items()):
                if pending.instance.service == service and _shows(state, pending.instance):
                    self.latencies.append(time.monotonic() - pending.since)
                    del self._pending[key]

    def _invariant(self, where: Where, number: str) -> str:
        return "vii" if where in self._sights.asked else number

    def _shown(self, where: Where) -> State:
        """What traffic sees: the union of all slices of the Service, no matter who wrote them."""
        return _together(self._slices.get(where, {}).values())

    def pushed(self, instance: Instance) -> None:
        """Consul has taken a change: how long until Kubernetes shows it?"""
        where = (self._sights.namespace_of(instance.service), instance.service)
        with self._lock:
            if _shows(self._shown(where), instance):
                self._pending.pop(instance.key, None)
            else:
                self._pending[instance.key] = _Pending(time.monotonic(), instance)

    # ------------------------------------------------------------------ (ii) and (iv): the audit log

    def _follow_audit(self) -> None:
        position = 0
        rest = b""
        while not self._stop.wait(0.05):
            log = self._sights.audit_log
            if not log.exists():
                continue
            with log.open("rb") as file:
                file.seek(position)
                blob = file.read()
            position += len(blob)
            *lines, rest = (rest + blob).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError, KeyError):
                    self._take_audit(json.loads(line))

    def _take_audit(self, entry: Mapping[str, Any]) -> None:
        if entry["user"].get("username") != self._sights.user or entry["verb"] not in WRITES:
            return
        if int((entry.get("responseStatus") or {}).get("code", 0)) >= 300 or entry.get("stage") != "ResponseComplete":
            return
        reference = entry.get("objectRef") or {}
        write = Write(
            datetime.fromisoformat(entry["stageTimestamp"]).timestamp(), entry["verb"],
            reference.get("resource", ""), reference.get("namespace", ""), reference.get("name", ""),
        )  # fmt: skip
        if write.resource in HARMLESS:
            return
        with self._lock:
            self.writes.append(write)
        known = (*self._sights.namespaces, *self._sights.tenants)
        strange = write.resource not in KINDS or write.namespace not in known
        if strange or (write.resource != "endpointslices" and (write.namespace, write.name) in self._sights.foreign):
            self.report("ii", f"the bridge did {write}")

    def writes_since(self, at: float) -> list[Write]:
        """Writes of the bridge that were answered after `at` (seconds since the epoch)."""
        with self._lock:
            return [w for w in self.writes if w.at >= at]

    def _versions_of_foreign(self) -> dict[tuple[str, Where], str]:
        found = {}
        with self._sights.connect_kube() as kube:
            for path in (SERVICES, ENDPOINTS):
                for item in kube.json("GET", path)["items"]:
                    where = (item["metadata"]["namespace"], item["metadata"]["name"])
                    if where in self._sights.foreign:
                        found[path, where] = item["metadata"]["uid"] + "/" + item["metadata"]["resourceVersion"]
        return found

    def look_again(self) -> None:
        """Take foreign objects as they are now."""
        self._foreign_versions = self._versions_of_foreign()

    def check_foreign(self) -> None:
        """Report every foreign object that is not exactly as it was."""
        for (path, where), version in self._versions_of_foreign().items():
            before = self._foreign_versions.get((path, where))
            if before != version:
                self.report("ii", f"{path.rpartition('/')[2]} {where[0]}/{where[1]} changed: {before} -> {version}")
        if missing := self._foreign_versions.keys() - self._versions_of_foreign().keys():
            self.report("ii", f"foreign objects are gone: {sorted(missing)}")

    # ------------------------------------------------------------------ (iii): both sides whole

    def has(self, service: str) -> bool:
        """Whether Kubernetes, as watched, shows at least one ready endpoint of a service."""
        with self._lock:
            return bool(self._shown((self._sights.namespace_of(service), service)).ready)

    def shows(self, expected: Mapping[str, State]) -> bool:
        """Whether Kubernetes, as watched, shows exactly these services."""
        with self._lock:
            return not self._differences(expected, {w: self._shown(w) for w in self._mirrored()})

    def compare_sides(self) -> list[tuple[str, str]]:
        """Read Consul and Kubernetes whole and directly; how they differ, one sentence each after its invariant.

        A server that does not answer yet is a difference, too.
        """
        try:
            with self._sights.connect_consul() as consul, self._sights.connect_kube() as kube:
                wanted = self._in_consul(consul)
                held, apart = self._in_kube(kube)
                ours = kube.json("GET", f"{SERVICES}?labelSelector={MANAGED_BY}={OURS}")["items"]
        except (OSError, ValueError, HTTPException, UnexpectedAnswerError) as error:
            return [("iii", f"they cannot be compared: {type(error).__name__}: {error}")]
        services = {_where(ENDPOINTS, s) for s in ours}
        places = {(self._sights.namespace_of(service), service) for service in wanted}
        left = sorted(services - places - set(self._sights.foreign))
        over = [("iii", f"Service {ns}/{name} is left over") for ns, name in left]
        return [*self._differences(wanted, held), *apart, *over]

    def _mirrored(self) -> set[Where]:
        return {where for where, found in self._slices.items() if found} | self._endpoints.keys()

    def _differences(self, wanted: Mapping[str, State], held: Mapping[Where, State]) -> list[tuple[str, str]]:
        found = []
        places = {(self._sights.namespace_of(s), s): state for s, state in wanted.items()}
        places |= {where: wanted[s] for where, s in self._sights.asked.items() if s in wanted}
        for where in sorted(places.keys() | held.keys()):
            if where in self._sights.foreign:
                continue
            state, is_there = places.get(where), held.get(where)
            if state == is_there or (state is not None and is_there is None and state == State()):
                continue
            what = f"{where[0]}/{where[1]}: Consul has {_words(state)}, Kubernetes {_words(is_there)}"
            found.append((self._invariant(where, "iii"), what))
        return found

    @staticmethod
    def _in_consul(consul: RawConsul) -> dict[str, State]:
        found = {}
        for service in consul.services():
            if service == "consul":
                continue
            entries = consul.health(service)[1]
            rows = [((e["Service"]["Address"] or e["Node"]["Address"], e["Service"]["Port"]), e) for e in entries]
            found[service] = State(
                frozenset(address for address, entry in rows if is_ready(entry)),
                frozenset(address for address, entry in rows if not is_ready(entry)),
                frozenset(address for address, entry in rows if is_drained(entry)),
            )
        return found

    def _in_kube(self, kube: RawKube) -> tuple[dict[Where, State], list[tuple[str, str]]]:
        """The union of all slices of each Service, and how our Endpoints differ from it."""
        whole = {
            _where(ENDPOINTS, item): _state_of_endpoints(item)
            for item in kube.json("GET", f"{ENDPOINTS}?labelSelector={MANAGED_BY}={OURS}")["items"]
        }
        parts: dict[Where, list[State]] = {where: [] for where in whole}
        for item in kube.json("GET", f"{SLICES}?labelSelector={SERVICE_NAME}")["items"]:
            parts.setdefault(_where(SLICES, item), []).append(_state_of_slice(item))
        looked_at = (*self._sights.namespaces, *self._sights.asked)
        held = {w: _together(states) for w, states in parts.items() if w in looked_at or w[0] in looked_at}
        apart = (
            [
                ("iii", f"{where[0]}/{where[1]}: the slices have {_words(held[where])}, the Endpoints {_words(state)}")
                for where, state in sorted(whole.items())
                if where in held and (state.ready, state.not_ready) != (held[where].ready, held[where].not_ready)
            ]
            + [
                ("iii", f"{where[0]}/{where[1]} has no Endpoints")
                for where in sorted(held.keys() - whole.keys() - set(self._sights.foreign))
                if held[where] != State() and not self._sights.slices_alone(where[1])
            ]
            + [
                ("iii", f"{where[0]}/{where[1]} was sent away, and its slices have {_words(_together(states))}")
                for where in sorted(self._sights.sent_away)
                if (states := parts.get(where))
            ]
        )
        return held, apart


@dataclass(slots=True)
class Excess:
    """How much more than at the start a process may have in steady state (v).

    Descriptors: the pool of connections to the API server (a writer each, 16) need not have been full at the start, nor
    the readers' connections to Consul (4).
    """

    memory_share: float = 0.5
    memory_bytes: int = 24 << 20
    threads: int = 4
    descriptors: int = 20

    def of(self, before: Usage, now: Usage, services: int) -> Iterator[str]:
        """What is too much, in words. `services`: how many more are mirrored than before (each has a watch)."""
        more = max(0, services)
        if now.memory_bytes > before.memory_bytes * (1 + self.memory_share) + self.memory_bytes:
            yield f"memory {before.memory_bytes >> 20} -> {now.memory_bytes >> 20} MiB"
        if now.threads > before.threads + self.threads + more:
            yield f"threads {before.threads} -> {now.threads}"
        if now.descriptors > before.descriptors + self.descriptors + more:
            yield f"descriptors {before.descriptors} -> {now.descriptors}"
        if now.sockets > before.sockets + self.descriptors + more:
            yield f"sockets {before.sockets} -> {now.sockets}"


def _where(path: str, item: Mapping[str, Any]) -> Where:
    metadata = item["metadata"]
    name = metadata["name"] if path == ENDPOINTS else (metadata.get("labels") or {}).get(SERVICE_NAME, "")
    return metadata["namespace"], name


def _state_of_endpoints(item: Mapping[str, Any]) -> State:
    return State(frozenset(ready_addresses(dict(item))), frozenset(not_ready_addresses(dict(item))))


def _state_of_slice(item: Mapping[str, Any]) -> State:
    sides: tuple[set[Address], set[Address], set[Address]] = (set(), set(), set())
    for endpoint in item.get("endpoints") or []:
        conditions = endpoint.get("conditions") or {}
        pairs = [(a, port["port"]) for a in endpoint["addresses"] for port in item.get("ports") or []]
        sides[0 if conditions.get("ready", True) else 1].update(pairs)
        if conditions.get("terminating"):
            sides[2].update(pairs)
    return State(*map(frozenset, sides))


def _together(states: Iterable[State]) -> State:
    """What several slices show: ready in one is ready."""
    states = tuple(states)
    ready = frozenset(a for s in states for a in s.ready)
    drained = frozenset(a for s in states for a in s.drained)
    return State(ready, frozenset(a for s in states for a in s.not_ready) - ready, drained - ready)


def _shows(state: State, instance: Instance) -> bool:
    if instance.gone:
        return instance.endpoint not in state.ready | state.not_ready
    return instance.endpoint in (state.ready if instance.ready else state.not_ready)


def _words(state: State | None) -> str:
    if state is None:
        return "nothing"
    lists = [f"{what} {sorted(f'{a}:{p}' for a, p in side)}" for what, side in
             (("ready", state.ready), ("not ready", state.not_ready), ("drained", state.drained)) if side]  # fmt: skip
    return ", ".join(lists) or "no endpoint"
