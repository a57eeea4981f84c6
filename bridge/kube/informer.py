"""Keeps a `Store` equal to what the API server holds: list once, then watch without end.

One thread per kind and namespace runs the same small loop: list when the position is unknown, then one watch; what
goes wrong in it decides how it starts again. The last known state is served meanwhile.

| the watch | then |
| --- | --- |
| ends after events or bookmarks | the next watch from the last version |
| ends without either, or breaks | ask for the server's version: list if it is lower (a restored etcd), else watch on |
| is silent for too long (dead, or from a version to come, or nothing happened) | the same |
| says 410 (as status or as ERROR event), any other ERROR, or nonsense | list |
| is forbidden | long backoff, said in `status` |

A namespace that the bridge may not list does not stop other namespaces: once the refusal has proved to last, the
namespace is `unreadable`, which differs from empty, until every list of it has worked.

All reads of these kinds go through here in a running bridge; the one-shot commands use `reads.list_once`.

Longer than other modules: the loops share one store, and each wakes another when it has found something for it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.core.model import (
    SERVICE_KINDS,
    Change,
    Current,
    CurrentService,
    Kind,
    Meta,
    Scope,
    Target,
)
from bridge.errors import BridgeError, CancelledError, ForbiddenError, PermanentError, StaleError, TransientError
from bridge.kube import faults, gateway, objects, wire
from bridge.kube.client import METADATA_LIST_ONLY, KubeClient, SilenceError
from bridge.kube.permissions import may_list_routes
from bridge.kube.reads import (
    SILENCE_SECONDS,
    WATCH_SECONDS,
    Namespaces,
    fill,
    fill_leftovers,
    list_into,
    list_pages,
    refusal_of,
    scopes_of,
    selector_of,
    watch_query,
)
from bridge.kube.store import Store
from bridge.retry import RetryPolicy
from bridge.threads import guarded_thread

PERMANENT_SECONDS = 30.0
"""The least wait after an error that waiting does not fix (403), once it came `PERMANENT_AFTER` times in a row."""
PERMANENT_AFTER = 10
"""An API server that has just started forbids everything until it has read the roles: a 403 is not at once for good."""
REFUSED_AFTER = 3
"""It has read them when it lets us list some namespace: of another one a few refusals since then are enough."""
CLOSE_SECONDS = 1.0

UNWANTED_SECONDS = 300.0
"""How soon the bridge asks again whether it may list HTTPRoutes that no rule asks for."""
LEFTOVER_SECONDS = 10.0
"""How often the bridge checks whether slices that pods left behind are gone: no watch covers them."""
BLOCKED_SECONDS = (2.0, 60.0)
"""How soon the bridge checks Endpoints of others that are in its way, and how often at most and at least: no watch
covers them. Deleting their Service takes them along a moment later."""

OnChange = Callable[[Target], None]

_EVENT = re.compile(
    rb'\{"type":"(?:ADDED|MODIFIED)","object":\{"kind":"\w+","apiVersion":"[\w./]+","metadata":\{'
    rb'"name":"([\w.-]+)","namespace":"([\w.-]+)","uid":"[\w-]+","resourceVersion":"(\d+)"'
)
"""The beginning of a watch event, in the order in which the API server writes an object's fields."""


class Informer:
    """A store that follows the API server. Methods may be called from any thread.

    `on_change` is called from the watching threads and must be quick; it gets every target at which something differs
    from what was known or noted. `on_foreign_slices` gets those where only slices differ that no bridge writes.
    `failed` is called when a thread dies of a bug. `routes` as for `list_once`.
    """

    def __init__(
        self,
        client: KubeClient,
        namespaces: Namespaces,
        owner: str,
        on_change: OnChange,
        retry: RetryPolicy | None = None,
        *,
        on_foreign_slices: OnChange = lambda _target: None,
        failed: Callable[[BaseException], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        silence_seconds: float = SILENCE_SECONDS,
        watch_seconds: tuple[int, int] = WATCH_SECONDS,
        routes: bool | None = None,
    ) -> None:
        self._client = client.clone(connections=8)
        self._store = Store(owner)
        self._stop = threading.Event()
        self._clock = clock
        shared = _Shared(
            client=self._client,
            store=self._store,
            on_change=on_change,
            on_foreign_slices=on_foreign_slices,
            retry=retry or RetryPolicy(),
            stop=self._stop,
            clock=clock,
            silence_seconds=silence_seconds,
            watch_seconds=watch_seconds,
        )
        self._refresher = _Relister(shared, namespaces, failed, self._refused, self._has_services, self._has_routes)

        def reflectors(kinds: Iterable[Kind], *, wanted: bool = True) -> list[_Reflector]:
            return [
                _Reflector(shared, kind, namespace, failed, self._refresher.wake, self._some_listed, wanted=wanted)
                for kind in kinds
                for namespace in scopes_of(namespaces)
            ]

        self._reflectors = reflectors(SERVICE_KINDS)
        self._routes_wanted = routes is True
        self._routes = reflectors((Kind.HTTP_ROUTE,) if routes is not None else (), wanted=self._routes_wanted)
        self._lists = {
            namespace: (*(r.answered for r in (*self._reflectors, *self._routes) if r.namespace == namespace), synced)
            for namespace, synced in self._refresher.synced.items()
        }

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to list and watch; returns at once."""
        for thread in self._threads():
            thread.start()

    def wait_synced(self, timeout: float) -> bool:
        """Wait until every scope was listed once, or is `unreadable`.

        False at the timeout or when closed; `trouble` says why.
        """
        deadline = self._clock() + timeout
        for namespace, lists in self._lists.items():
            for synced in lists:
                while not synced.is_set() and namespace not in self._refused():
                    if self._stop.is_set() or self._clock() >= deadline:
                        return False
                    synced.wait(min(max(deadline - self._clock(), 0.0), 0.2))
        if not self.synced:  # all are refused: waiting for one of them is all that can be done
            self._stop.wait(max(deadline - self._clock(), 0.0))
        return self.synced

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Interrupt every watch and join the threads; whether all of them ended in time."""
        self._stop.set()
        self._client.close()
        self._refresher.wake()
        deadline = time.monotonic() + timeout
        for thread in self._threads():
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads())

    def _threads(self) -> list[threading.Thread]:
        return [*(r.thread for r in (*self._reflectors, *self._routes)), self._refresher.thread]

    # ------------------------------------------------------------------ reading

    @property
    def store(self) -> Store:
        """The store itself, which has the same reading methods."""
        return self._store

    def current(self, target: Target) -> Current:
        """Everything that is held at `target`."""
        return self._store.current(target)

    def targets(self) -> set[Target]:
        """Targets where at least one object carries our owner id."""
        return self._store.targets()

    def ready_in(self, scope: Scope) -> int:
        """Ready endpoints over those that the guard adds up together."""
        return self._store.ready_in(scope)

    def ready_targets(self) -> Mapping[Target, Scope]:
        """Targets of ours that have ready endpoints, each with those whom the guard adds it up with."""
        return self._store.ready_targets()

    def annotated_services(self) -> tuple[CurrentService, ...]:
        """Services with the label `consul-bridge/mirror: "true"`."""
        return self._store.annotated_services()

    @property
    def synced(self) -> bool:
        """Whether every scope that is not `unreadable` was listed at least once."""
        unreadable = self.unreadable()
        return all(name in unreadable or self._is_listed(name) for name in self._lists)

    def unreadable(self) -> dict[str, str]:
        """Namespaces that were never listed because we may not, which has proved to last, and why.

        Nothing is known of them. Empty when that is true of all: then nothing at all can be done (`trouble`).
        """
        refused: dict[str, dict[Kind, BridgeError]] = {}
        for reflector in self._reflectors:
            if reflector.refused is not None and reflector.namespace is not None:
                refused.setdefault(reflector.namespace, {})[reflector.kind] = reflector.refused
        found = {name: refusal_of(kinds) for name, kinds in sorted(refused.items()) if not self._is_listed(name)}
        return found if len(found) < len(self._lists) else {}

    def trouble(self) -> str | None:
        """What some scope that is not `unreadable` is backing off from now, None when all are well."""
        unreadable = self.unreadable()
        errors = (*(r.error for r in self._reflectors if r.namespace not in unreadable), self._refresher.error)
        return next((str(error) for error in errors if error is not None), None)

    def routes_unread(self) -> tuple[str, ...]:
        """Why HTTPRoutes that rules ask for cannot be written."""
        return tuple(sorted(set(self._store.routes_unread.values()))) if self._routes_wanted else ()

    def _has_routes(self, namespace: str | None) -> bool:
        """Whether the HTTPRoutes of a scope are followed."""
        return any(r.synced.is_set() and r.error is None for r in self._routes if r.namespace == namespace)

    def _is_listed(self, namespace: str | None) -> bool:
        return all(synced.is_set() for synced in self._lists[namespace])

    def _has_services(self, namespace: str | None) -> bool:
        """Whether the Services of a scope were listed."""
        return any(r.synced.is_set() for r in self._reflectors if (r.kind, r.namespace) == (Kind.SERVICE, namespace))

    def _some_listed(self) -> bool:
        return any(map(self._is_listed, self._lists))

    def _refused(self) -> set[str | None]:
        """Scopes in which some list is still being refused."""
        return {r.namespace for r in self._reflectors if r.refused is not None and not r.synced.is_set()}

    def status(self) -> dict[str, Any]:
        """For readiness and metrics. `last_contact_seconds` is the age of the longest unheard scope (None: never)."""
        now = self._clock()
        unreadable = self.unreadable()
        heard = [r.heard for r in self._reflectors if r.namespace not in unreadable]
        reason = self.trouble()
        return {
            "synced": self.synced,
            "last_contact_seconds": None if None in heard else max(now - h for h in heard if h is not None),
            "backing_off": reason is not None,
            "reason": reason,
            "forbidden_namespaces": unreadable,
            "objects": self._store.counts(),
            "ready": self._store.total_ready(),
            "owned": len(self._store.targets()),
            "lists": sum(r.lists for r in self._reflectors),
            "watches": sum(r.watches for r in self._reflectors),
            "refreshes": self._refresher.done,
            "refresh_found": self._refresher.found,
            "threads": sum(thread.is_alive() for thread in self._threads()),
        }

    # ------------------------------------------------------------------ writes

    def expect(self, change: Change) -> None:
        """Call before writing `change`, so that its echo is no news even when it comes before the answer."""
        self._store.expect(change)

    def abandon(self, change: Change) -> None:
        """Call when the write failed (`confirm` does it after a success)."""
        self._store.abandon(change)

    def take_unexpected_own_write(self, target: Target) -> bool:
        """Whether another process wrote at `target` under our owner id and field manager since this was last asked."""
        return self._store.take_unexpected_own_write(target)

    def confirm(self, change: Change, meta: Meta | None) -> None:
        """Call after a write: the next pass sees it whether or not the watch has told it yet."""
        self._store.confirm(change, meta)

    def note_stored(self, change: Change, stored: object) -> None:
        """Call after an AlteredError with what it says is stored."""
        found = stored if isinstance(stored, objects.Decoded) else None
        self._store.note_stored(change, found)

    def blocked(self, target: Target, by_endpoints: bool) -> None:
        """Whether Endpoints of another owner are in the way at a target: `on_change` is called when they change."""
        self._refresher.blocked(target, by_endpoints)

    # ------------------------------------------------------------------ full passes

    def refresh(self, timeout: float = 5.0) -> bool:
        """Read everything again beside the running watches, foreign Endpoints included; False if that takes longer.

        `on_change` is called where the watches had missed something (`refresh_found` in `status`; expected: nothing).
        Never raises: what failed is in `trouble`, and the last known state stays.
        """
        return self._refresher.refresh(timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What all threads of an informer have in common."""

    client: KubeClient
    store: Store
    on_change: OnChange
    on_foreign_slices: OnChange
    retry: RetryPolicy
    stop: threading.Event
    clock: Callable[[], float]
    silence_seconds: float
    watch_seconds: tuple[int, int]


class _Relister:
    """Lists what no watch covers and checks what the watches cover.

    Foreign Endpoints, and slices that pods left at Services without a selector: at start and at every refresh. The
    latter also when a Service loses its selector, and from then on until they are gone.

    A thread of its own, so that a full pass never waits longer than it wants to for a server that does not answer.
    """

    def __init__(
        self,
        shared: _Shared,
        namespaces: Namespaces,
        failed: Callable[[BaseException], None] | None,
        refused: Callable[[], Collection[str | None]],
        has_services: Callable[[str | None], bool],
        has_routes: Callable[[str | None], bool],
    ) -> None:
        """`refused` tells the scopes that need not be asked about now: `wake` when that changes.

        `has_services` tells whether the Services of a scope were listed, `has_routes` whether its HTTPRoutes are.
        """
        # attributes: what was asked of one thread and what it found, under one condition
        self._shared = shared
        self._namespaces = namespaces
        self._refused = refused
        self._has_services = has_services
        self._has_routes = has_routes
        self._looked: set[str | None] = set()
        self._lost_selector: set[Target] = set()
        self._blocked: dict[Target, Meta | None] = {}
        self._blocked_wait_seconds = BLOCKED_SECONDS[0]
        self._wanted = threading.Event()
        self._changed = threading.Condition()
        self._asked = 0
        self.synced = {namespace: threading.Event() for namespace in scopes_of(namespaces)}
        self.error: BridgeError | None = None
        self.done = 0
        self.found = 0
        self.thread = guarded_thread("kube-refresh", self.run, failed, stop=shared.stop)

    def refresh(self, timeout: float) -> bool:
        """Ask for a refresh that begins from now on, and wait for its end."""
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._wanted.set()
            self._changed.wait_for(lambda: self.done >= mine or self._shared.stop.is_set(), timeout)
            return self.done >= mine

    def blocked(self, target: Target, by_endpoints: bool) -> None:
        """As `Informer.blocked`."""
        if by_endpoints == (target in self._blocked):  # mostly
            return
        with self._changed:
            if by_endpoints:
                self._blocked[target] = self._shared.store.foreign_at(target)
                self._blocked_wait_seconds = BLOCKED_SECONDS[0]
                self._wanted.set()
            else:
                self._blocked.pop(target, None)

    def _pause(self) -> float | None:
        """How long the thread may wait when nothing calls it."""
        waits = [LEFTOVER_SECONDS] if self._shared.store.with_leftovers() else []
        with self._changed:
            if self._blocked:
                waits.append(self._blocked_wait_seconds)
                self._blocked_wait_seconds = min(2 * self._blocked_wait_seconds, BLOCKED_SECONDS[1])
        return min(waits, default=None)

    def _read_foreign(self, namespace: str | None, *, due: bool) -> None:
        """Read the Endpoints of others where that is `due`, or where they are in the way."""
        with self._changed:
            before = {t: meta for t, meta in self._blocked.items() if namespace in (None, t.namespace)}
        if not before and not due:
            return
        fill(self._shared.client, self._shared.store, None, namespace)
        now = {target: self._shared.store.foreign_at(target) for target in before}
        with self._changed:
            self._blocked.update({target: now[target] for target in before if target in self._blocked})
        for target in sorted(target for target in before if now[target] != before[target]):
            self._shared.on_change(target)

    def wake(self) -> None:
        """Let the thread look for what was never listed, and everyone who waits for it at the stop event."""
        with self._changed:
            self._wanted.set()
            self._changed.notify_all()

    def run(self) -> None:
        """Read the foreign Endpoints, then refresh when asked, until stopped."""
        backoff = _Backoff(self._shared.retry)
        while not self._shared.stop.is_set():
            with self._changed:
                asked = self._asked
                self._wanted.clear()
            self.error = self._round(whole=asked > self.done)
            if self.error is not None:
                self._wanted.wait(backoff.wait_seconds(self.error))
                continue
            backoff.succeeded()
            with self._changed:
                self.done = asked
                self._changed.notify_all()
            self._wanted.wait(self._pause())

    def _round(self, whole: bool) -> BridgeError | None:
        """List what was never listed, or (`whole`) everything; what may not be listed delays nothing else."""
        forbidden: BridgeError | None = None
        self._lost_selector |= self._shared.store.take_lost_selector()
        try:
            for namespace in scopes_of(self._namespaces):
                if namespace in self._refused():
                    continue
                try:
                    self._look_for_leftovers(namespace, whole=whole)
                    due = whole or not self.synced[namespace].is_set()
                    self._read_foreign(namespace, due=due)
                    if not due:
                        continue
                    self.synced[namespace].set()
                    kinds = (*SERVICE_KINDS, *([Kind.HTTP_ROUTE] if self._has_routes(namespace) else []))
                    for kind in kinds if whole else ():
                        try:
                            missed = fill(self._shared.client, self._shared.store, kind, namespace)
                        except BridgeError as error:
                            if kind is not Kind.HTTP_ROUTE or isinstance(error, CancelledError):
                                raise
                            continue  # their own watch says so, and nothing else waits for them
                        self.found += len(missed)
                        for target in sorted(missed):
                            self._shared.on_change(target)
                        self._tell_foreign_slices()
                except ForbiddenError as error:
                    forbidden = forbidden or error
        except CancelledError:
            return None
        except BridgeError as error:
            return error
        return forbidden

    def _look_for_leftovers(self, namespace: str | None, *, whole: bool) -> None:
        """Read the slices that pods left behind: at all Services without a selector, or at those with news."""
        if not self._has_services(namespace):
            return
        asked = self._shared.store.without_selector(namespace)
        left = {target for target in self._shared.store.with_leftovers() if namespace in (None, target.namespace)}
        lost_selector = self._lost_selector & asked
        if lost_selector:  # the control plane leaves its Endpoints there as well; a user may have handed them over
            fill(self._shared.client, self._shared.store, None, namespace)
        if not whole and namespace in self._looked:
            asked &= lost_selector | left
        fill_leftovers(self._shared.client, self._shared.store, namespace, asked)
        self._looked.add(namespace)
        self._lost_selector -= lost_selector
        self._tell_foreign_slices(lost_selector)

    def _tell_foreign_slices(self, further: Collection[Target] = ()) -> None:
        for target in sorted(self._shared.store.take_changed_foreign_slices() | set(further)):
            self._shared.on_foreign_slices(target)


class _Backoff:
    """How long one scope waits after an error; what is permanent is asked slowly once it has proved to be."""

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._failures = 0
        self._refusals = 0

    def succeeded(self) -> None:
        """All is well."""
        self._failures = self._refusals = 0

    @property
    def lasting(self) -> bool:
        """Whether refusals have proved to last."""
        return self._refusals > PERMANENT_AFTER

    def wait_seconds(self, error: BridgeError, *, progress: bool = False) -> float:
        """Seconds to wait after `error`. `progress`: something had worked before it."""
        self._failures = 1 if progress else self._failures + 1
        self._refusals = self._refusals + 1 if isinstance(error, PermanentError) else 0
        wait = self._retry.wait_seconds(self._refusals or self._failures, error)
        return max(wait, PERMANENT_SECONDS) if self.lasting else wait


class _Reflector:
    """One scope: a kind in one namespace or in all. `run` is the endless shell, `cycle` the finite body."""

    # attributes: the state of one list-and-watch loop, which its own thread changes and others only read

    def __init__(
        self,
        shared: _Shared,
        kind: Kind,
        namespace: str | None,
        failed: Callable[[BaseException], None] | None,
        wake_relister: Callable[[], None],
        some_listed: Callable[[], bool],
        *,
        wanted: bool = True,
    ) -> None:
        """Not `wanted`: of HTTPRoutes those that are ours are followed, and only where we may."""
        self._shared = shared
        self._wanted = self._asked = wanted
        self._selector = selector_of(kind, wanted=wanted)
        self._wake_relister = wake_relister
        self._some_listed = some_listed
        self.kind = kind
        self.namespace = namespace
        self._position = ""
        self._doubtful = False
        self.synced = threading.Event()
        self.answered = threading.Event() if kind is Kind.HTTP_ROUTE else self.synced
        """Whether it is known what is there, or that it cannot be read."""
        self.error: BridgeError | None = None
        self.refused: BridgeError | None = None
        """Why the first list is refused, once that has proved to last."""
        self.heard: float | None = None
        self.lists = 0
        self.watches = 0
        self._progress = False
        self._failed_lists = 0
        where = namespace if namespace is not None else "all"
        self.thread = guarded_thread(f"kube-watch-{objects.PLURAL[kind]}-{where}", self.run, failed, stop=shared.stop)

    def run(self) -> None:
        """Cycle until stopped. A bug ends the thread and is handed to `failed`."""
        backoff, refused_alone = _Backoff(self._shared.retry), 0
        while not self._shared.stop.is_set():
            self._progress = False
            error = self.cycle()
            unwanted = not self._asked and self.answered.is_set()  # not answered: whether we may was not answered yet
            self.error = None if unwanted else error
            if unwanted:
                if self._shared.stop.wait(UNWANTED_SECONDS):
                    return
            elif error is None:
                backoff.succeeded()
            else:
                wait = backoff.wait_seconds(error, progress=self._progress)
                if isinstance(error, ForbiddenError) and not self.answered.is_set():
                    refused_alone += self._some_listed()
                    if backoff.lasting or refused_alone >= REFUSED_AFTER:
                        self.refused = error
                        self._wake_relister()
                if self._shared.stop.wait(wait):
                    return

    def cycle(self) -> BridgeError | None:
        """List if need be, then watch until the watch ends; the error to back off from, if any."""
        try:
            if not self._asked and not self._may_begin():
                return None
            if self._position and self._doubtful and self._went_backwards():
                self._position = ""
            self._doubtful = False
            if not self._position:
                self._list()
            self._watch()
        except SilenceError:
            self._doubtful = True
        except CancelledError:
            return None
        except StaleError as error:
            self._position = ""
            return None if self._shared.stop.is_set() else error
        except (TransientError, PermanentError) as error:
            self._doubtful = True
            if self.kind is Kind.HTTP_ROUTE:
                self._no_routes(error)
            return error
        return None

    def _may_begin(self) -> bool:
        """Whether we may list HTTPRoutes that no rule asks for; asked first, for a refusal looks bad in audit logs."""
        self._asked = may_list_routes(self._shared.client, self.namespace)
        if not self._asked:
            self.answered.set()
            self._wake_relister()
        return self._asked

    def _no_routes(self, error: BridgeError) -> None:
        """Nothing else waits for HTTPRoutes: for good where there are none for us, after some tries in any case."""
        if gateway.is_lasting(error):
            self._unread(error)
        elif not self.answered.is_set():
            self._failed_lists += 1
            if self._failed_lists >= REFUSED_AFTER:
                self._set_unread(error)

    def _unread(self, error: BridgeError) -> None:
        """HTTPRoutes cannot be read: none is written or removed until they can be listed again."""
        self._position = ""
        self._set_unread(error)
        self._asked = self._wanted

    def _set_unread(self, error: BridgeError) -> None:
        reason = gateway.unread(self._shared.client, self.namespace, error)
        self._shared.store.routes_unread[self.namespace or ""] = reason
        self.answered.set()
        self._wake_relister()

    def _list(self) -> None:
        changed, version = list_into(self._shared.store, self._shared.client, self.kind, self.namespace, self._selector)
        self._position = str(version)
        self.lists += 1
        self._alive()
        if (
            self.kind is Kind.HTTP_ROUTE
            and self._shared.store.routes_unread.pop(self.namespace or "", None) is not None
        ):
            changed |= {target for target in self._shared.store.targets() if self.namespace in (None, target.namespace)}
        if self.answered.is_set():
            self.synced.set()
            self._tell(changed)
            return
        self.synced.set()
        self.answered.set()
        self._wake_relister()

    def _went_backwards(self) -> bool:
        """Whether the server counts from a lower version than we have seen (a restored etcd)."""
        client = self._shared.client
        _, version = next(list_pages(client, self.kind, self.namespace, self._selector, METADATA_LIST_ONLY, page=1))
        return objects.version(version) < objects.version(self._position)

    def _watch(self) -> None:
        query = watch_query(self._position, self._shared.watch_seconds)
        if self._selector:
            query.append(("labelSelector", self._selector))
        told = False
        path = objects.path(self.kind, self.namespace)
        with self._shared.client.stream(path, query=query, silence=self._shared.silence_seconds) as lines:
            self.watches += 1
            self._alive()
            for line in lines:
                self._event(line)
                told = self._progress = True
                self._alive()
        self._doubtful = not told

    def _event(self, line: bytes) -> None:
        head = _EVENT.match(line)
        if head is not None:  # mostly the echo of a write of ours, whose answer came first: not worth decoding
            name, namespace, seen = head[1].decode(), head[2].decode(), head[3].decode()
            if self._shared.store.holds(self.kind, (namespace, name), objects.version(seen)):
                self._position = seen
                return
        try:
            event = wire.event(line)
            kind, raw = event["type"], event["object"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StaleError(f"a watch of {objects.PLURAL[self.kind]} sent nonsense") from error
        if kind == "ERROR":
            code = raw.get("code") if isinstance(raw, dict) else None
            if code == 429:  # the server sheds load: the position stays good
                asked = faults.RequestInfo(
                    "GET", objects.path(self.kind, self.namespace), self._shared.client.server, watching=True
                )
                raise faults.of_answer(asked, 429, {}, line)
            said = raw.get("message") if isinstance(raw, dict) else ""
            raise StaleError(f"a watch of {objects.PLURAL[self.kind]} ended with {code}: {faults.trim(str(said))}")
        if kind == "BOOKMARK":
            metadata = objects.mapping(objects.mapping(raw).get("metadata"))
            self._move(str(metadata.get("resourceVersion") or ""))
            return
        found = objects.decode(self.kind, raw)
        meta = found.meta if found is not None else objects.decode_meta(self.kind, raw)
        if kind not in ("ADDED", "MODIFIED", "DELETED") or meta is None:
            raise StaleError(f"a watch of {objects.PLURAL[self.kind]} sent an event of type {kind}")
        self._tell(self._shared.store.event(self.kind, self.namespace, kind, meta, found))
        if self._shared.store.has_lost_selector:
            self._wake_relister()  # what lists the slices that no watch covers waits for this
        self._move(meta.resource_version)

    def _move(self, version: str) -> None:
        if objects.version(version):
            self._position = version

    def _tell(self, changed: Iterable[Target]) -> None:
        for target in sorted(changed):
            self._shared.on_change(target)
        if self.kind is Kind.ENDPOINT_SLICE:
            for target in sorted(self._shared.store.take_changed_foreign_slices()):
                self._shared.on_foreign_slices(target)

    def _alive(self) -> None:
        self.heard = self._shared.clock()
        self.error = None
