"""The wanted services of one datacenter: what is known of each, who looks after it, and where its instances live.

`publish` is the only way to the listener: it compares decoded views, keeps the order per service, and is silent when
nothing changed. No I/O in here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from bridge.core.model import Instance, Knowledge, Known, Query, Unknown


@dataclass(slots=True, eq=False)
class Entry:
    """One wanted service. `lock` orders what is published of it; all else is under the board's lock.

    `index` is the service's own by plain reads and probes, never by the streaming backend. `generation` counts what was
    published, so that a slow reader does not overwrite what a faster one knows. `covered` says that doorbells and node
    sweeps see it (not so for other namespaces, partitions and peers). `assigned`: it has a direct watch; `direct`: that
    watch is listening, so that nobody else needs to read. `indirect` on the board counts entries without one.
    `explained_at`: when somebody last rang for it. `paid_until`: until when the reads that were asked for are paid.
    `vouched`: a probe agreed with its view after that was published, so that doorbells and node probes may go on from
    there; not so for a view whose reading began before somebody listened.

    `nodes` are without case: Consul's checks may spell a node otherwise than its catalog. `mismatch`: why Consul's
    streaming backend is not asked about this service any more (streamed.py); "" while it is.
    """

    query: Query
    covered: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    state: Knowledge | None = None
    known: Known | None = None
    nodes: frozenset[str] = frozenset()
    index: int = 0
    mismatch: str = ""
    generation: int = 0
    attempts: int = 0
    explained_at: float = float("-inf")
    paid_until: float = float("-inf")
    assigned: bool = False
    direct: bool = False
    vouched: bool = False
    queued: bool = False
    reading: bool = False
    again: bool = False
    verifying: bool = False
    removed: bool = False

    def has(self, node: str, identity: str) -> bool:
        """Whether the last view has this instance. Consul does not tell apart upper and lower case."""
        key = node.lower(), identity.lower()
        return self.known is not None and any((i.node.lower(), i.id.lower()) == key for i in self.known.instances)


class Published(Enum):
    """What became of a view: CHANGED differs from what was known before, OUTRUN came too late and was refused."""

    CHANGED = auto()
    SAME = auto()
    OUTRUN = auto()


Lend = Callable[[Callable[[], None]], None]
"""Takes work that whoever reads will do himself, as soon as he holds no locks."""


class Board:
    """All entries. `lock` is never held while the listener is called."""

    def __init__(
        self, on_view: Callable[[Query, Knowledge, float, Lend | None], None], namespace: str, partition: str
    ) -> None:
        self._on_view = on_view
        self._scope = (namespace, partition)
        self.lock = threading.Lock()
        self.entries: dict[Query, Entry] = {}
        self.indirect = 0
        self.filtered = 0
        self._by_name: dict[str, set[Entry]] = {}
        self._by_node: dict[str, set[Entry]] = {}

    # ------------------------------------------------------------------ who is wanted

    def want(self, queries: Iterable[Query]) -> tuple[list[Entry], list[Entry]]:
        """Make these the wanted ones; returns the entries that came and those that went."""
        wanted = set(queries)
        with self.lock:
            added = [self._add(query) for query in sorted(wanted - self.entries.keys())]
            removed = [self._remove(query) for query in self.entries.keys() - wanted]
        return added, removed

    def _add(self, query: Query) -> Entry:
        namespace, partition = self._scope
        here = query.namespace in ("", namespace) and query.partition in ("", partition) and not query.peer
        entry = Entry(query, covered=here)
        self.entries[query] = entry
        self._by_name.setdefault(query.service.lower(), set()).add(entry)
        self.indirect += 1
        self.filtered += bool(query.filter)
        return entry

    def _remove(self, query: Query) -> Entry:
        entry = self.entries.pop(query)
        entry.removed = True
        self.indirect -= not entry.assigned
        self.filtered -= bool(query.filter)
        _discard(self._by_name, query.service.lower(), entry)
        for node in entry.nodes:
            _discard(self._by_node, node, entry)
        return entry

    def assign(self, entry: Entry, assigned: bool) -> None:
        """Note whether an entry has a direct watch of its own."""
        with self.lock:
            if entry.assigned != assigned and not entry.removed:
                self.indirect += -1 if assigned else 1
            entry.assigned = assigned
            entry.direct = entry.vouched = False

    # ------------------------------------------------------------------ who is meant

    def named(self, service: str) -> tuple[Entry, ...]:
        """Entries of a service name (Consul does not tell apart upper and lower case)."""
        with self.lock:
            return tuple(self._by_name.get(service.lower(), ()))

    def on_node(self, node: str) -> tuple[Entry, ...]:
        """Entries with an instance on a node (in upper or lower case), as far as their views show."""
        with self.lock:
            return tuple(self._by_node.get(node.lower(), ()))

    def all(self) -> tuple[Entry, ...]:
        """Every entry, in the order in which they came."""
        with self.lock:
            return tuple(self.entries.values())

    # ------------------------------------------------------------------ what is known

    def publish(
        self,
        entry: Entry,
        state: Known | Unknown,
        seen: float,
        generation: int | None = None,
        lend: Lend | None = None,
    ) -> Published:
        """Take what was read of an entry and tell the listener when it is news.

        With `generation` (as it was before the reading began) a view that somebody else overtook is refused. `lend`
        offers the caller's thread to the listener.
        """
        with entry.lock:
            if entry.removed:
                return Published.SAME
            if generation is not None and entry.generation != generation:
                return Published.OUTRUN
            entry.generation += 1
            if state == entry.state:
                return Published.SAME
            changed = False
            if isinstance(state, Known):
                changed = entry.known is not None and state != entry.known
                state = self._keep(entry, state)
            entry.state = state
            self._on_view(entry.query, state, seen, lend)
            return Published.CHANGED if changed else Published.SAME

    def _keep(self, entry: Entry, state: Known) -> Known:
        """Remember a view; instances that did not change stay the same objects."""
        old = {i: i for i in entry.known.instances} if entry.known else {}
        state = replace(state, instances=tuple(old.get(i, i) for i in state.instances))
        entry.known = state
        nodes = frozenset(i.node.lower() for i in state.instances)
        if nodes != entry.nodes:
            with self.lock:
                if not entry.removed:
                    for node in entry.nodes - nodes:
                        _discard(self._by_node, node, entry)
                    for node in nodes - entry.nodes:
                        self._by_node.setdefault(node, set()).add(entry)
                    entry.nodes = nodes
        return state


def _discard(table: dict[str, set[Entry]], key: str, entry: Entry) -> None:
    entries = table.get(key)
    if entries is not None:
        entries.discard(entry)
        if not entries:
            del table[key]


def instances_of(entry: Entry) -> tuple[Instance, ...]:
    """The instances last known of an entry."""
    known = entry.known
    return known.instances if known else ()
