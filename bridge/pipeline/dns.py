"""Resolves the host names that Consul has as addresses, in threads of its own: DNS never delays a plan.

A plan asks for names and gets at once what is known of them. A name that was never resolved is queued for a few
resolver threads; when its answer arrives, or changes later, `changed` is called with the targets that asked for it, and
they plan again.

| the resolver says | what is known then | asked again after |
| --- | --- | --- |
| addresses | those, at most `ADDRESS_LIMIT` of them | `ttl_seconds` |
| there is no such name, or it has no address | the last addresses, if there ever were any; else that it has none | \
`ttl_seconds` |
| nothing, or that it failed | what was known before; a name without an answer stays unknown | a growing wait, at most \
`ttl_seconds` |
| addresses of one family, and no answer about the other | those, and of the other what was known before | the same |

The system's resolver does not tell the last one apart: a server that fails for AAAA alone looks like a name without
IPv6 addresses (glibc 2.36). So a family that is missing and was there before is asked for by itself, and so are both
where the name seems to have no address at all.

It must not know what a target is, nor what happens to the addresses.
"""

from __future__ import annotations

import heapq
import socket
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from bridge.errors import PermanentError, TransientError
from bridge.retry import RetryPolicy
from bridge.threads import guarded_thread

User = TypeVar("User", bound=Hashable)

ADDRESS_LIMIT = 256
"""Addresses taken of one name; what an answer has beyond them is left out."""

CLOSE_SECONDS = 1.0
"""How long `close` waits for threads that are inside of the C library's resolver, which cannot be interrupted."""

_NO_SUCH_NAME = frozenset(
    code for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if (code := getattr(socket, name, None)) is not None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverSettings:
    """How host names are resolved. `wait_seconds` bounds what a one-shot command waits for all names together."""

    ttl_seconds: float
    retry_seconds: float
    parallel: int
    wait_seconds: float


class Lookup(Protocol):
    """Addresses (A and AAAA, or of one `family`) of a name. Raises PermanentError when there are none, TransientError
    when it failed."""

    def __call__(self, name: str, family: int = socket.AF_UNSPEC) -> Collection[str]: ...


def system_lookup(name: str, family: int = socket.AF_UNSPEC) -> tuple[str, ...]:
    """Ask the system's resolver (hosts file, DNS, search domains)."""
    try:
        found = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            raise PermanentError(f"{name} has no address: {error.strerror}") from error
        raise TransientError(f"{name} could not be resolved: {error.strerror}") from error
    except UnicodeError as error:
        raise PermanentError(f"{name} is no name that DNS can have: {error}") from error
    except OSError as error:
        raise TransientError(f"{name} could not be resolved: {error.strerror or error}") from error
    return tuple(str(address[0]) for *_, address in found)


@dataclass(slots=True)
class _Entry(Generic[User]):
    """One name: who asks for it, its last answer (None: none yet), failures since, and when it is asked again."""

    users: set[User] = field(default_factory=set)
    addresses: tuple[str, ...] | None = None
    tried: bool = False
    failures: int = 0
    due: float = 0.0


class Resolver(Generic[User]):
    """Knows the addresses of names. All methods may be called from any thread; none but `wait` and `close` waits."""

    def __init__(
        self,
        settings: ResolverSettings,
        changed: Callable[[frozenset[User]], None] = lambda _users: None,
        failed: Callable[[BaseException], None] = lambda _error: None,
        lookup: Lookup = system_lookup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changed` gets who asked for a name whose answer came or changed; `failed` what a thread died of."""
        self._settings = settings
        self._changed = changed
        self._failed = failed
        self._lookup = lookup
        self._clock = clock
        self._backoff = RetryPolicy(
            initial_seconds=min(settings.retry_seconds, settings.ttl_seconds), max_seconds=settings.ttl_seconds
        )
        self._news = threading.Condition()
        self._entries: dict[str, _Entry[User]] = {}
        self._asked: dict[User, frozenset[str]] = {}
        self._due: list[tuple[float, str]] = []
        self._threads: list[threading.Thread] = []
        self._closed = False

    def resolve(self, user: User, names: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """What is known of `names`, which are from now on all that `user` needs. Names without an answer are missing.

        A name that has no address has (). Names that no target needs any more are forgotten.
        """
        if not names and user not in self._asked:
            return {}
        with self._news:
            wanted = frozenset(names)
            for name in self._asked.pop(user, frozenset()) - wanted:
                entry = self._entries[name]
                entry.users.discard(user)
                if not entry.users:
                    del self._entries[name]
            if wanted:
                self._asked[user] = wanted
            for name in sorted(wanted):
                if name not in self._entries:
                    self._entries[name] = _Entry()
                    self._ask_at(name, 0.0)
                self._entries[name].users.add(user)
            known = {n: self._entries[n].addresses for n in wanted}
        return {name: addresses for name, addresses in known.items() if addresses is not None}

    def wait(self, timeout_seconds: float, stop: threading.Event) -> bool:
        """Wait until every name was tried at least once; False at the timeout or when `stop` is set."""
        deadline = self._clock() + timeout_seconds
        with self._news:
            while not all(entry.tried for entry in self._entries.values()):
                left = deadline - self._clock()
                if left <= 0 or self._closed or stop.is_set():
                    return False
                self._news.wait(min(left, 0.1))
        return True

    def known(self) -> Mapping[str, tuple[str, ...] | None]:
        """Every name that a target needs, with its last answer (None: none yet)."""
        with self._news:
            return {name: entry.addresses for name, entry in sorted(self._entries.items())}

    def close(self) -> None:
        """End the threads; one that is inside of a lookup is left behind to end with the process."""
        with self._news:
            self._closed = True
            self._news.notify_all()
            threads = list(self._threads)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # ------------------------------------------------------------------ the threads

    def _ask_at(self, name: str, due: float) -> None:
        """Put a name on the list (lock held); threads are started as they are needed."""
        self._entries[name].due = due
        heapq.heappush(self._due, (due, name))
        if len(self._threads) < min(self._settings.parallel, len(self._entries)) and not self._closed:
            # daemons: a lookup cannot be interrupted, and with a dead DNS server it takes half a minute
            thread = guarded_thread(f"resolver-{len(self._threads)}", self._run, self._failed)
            self._threads.append(thread)
            thread.start()
        self._news.notify_all()

    def _run(self) -> None:
        while (name := self._next()) is not None:
            users = self._record_answer(name, *self._look_up(name))
            if users:
                self._changed(users)

    def _next(self) -> str | None:
        """The next name that is due; None when the resolver is closed."""
        with self._news:
            while not self._closed:
                pause = None
                while self._due and pause is None:
                    due, name = self._due[0]
                    entry = self._entries.get(name)
                    if entry is None or entry.due != due:
                        heapq.heappop(self._due)  # forgotten, or on the list for another time
                    elif (left := due - self._clock()) <= 0:
                        heapq.heappop(self._due)
                        entry.due = -1.0  # in a thread's hands
                        return name
                    else:
                        pause = left
                self._news.wait(pause)
        return None

    def _look_up(self, name: str) -> tuple[tuple[str, ...] | None, bool]:
        """Addresses, () when it has none, None when no server answers; and whether a part of the answer failed."""
        try:
            found = set(self._lookup(name))
        except PermanentError:
            found = set()
        except TransientError:
            return None, True
        with self._news:
            entry = self._entries.get(name)
            before = (entry.addresses if entry is not None else None) or ()
        failed = False
        for family in (socket.AF_INET, socket.AF_INET6):
            kept = {address for address in before if _family(address) == family}
            if any(_family(address) == family for address in found) or not (kept or not found):
                continue
            try:
                found.update(self._lookup(name, family))
            except PermanentError:
                continue
            except TransientError:
                failed = True
                found |= kept
        return (None if failed and not found else tuple(sorted(found)[:ADDRESS_LIMIT])), failed

    def _record_answer(self, name: str, answer: tuple[str, ...] | None, failed: bool) -> frozenset[User]:
        """Record an answer and when to ask again; returns the users of the name if the answer is new."""
        with self._news:
            entry = self._entries.get(name)
            if entry is None:
                return frozenset()
            before = entry.addresses
            entry.tried = True
            if answer is not None:
                entry.addresses = answer or entry.addresses or ()
            entry.failures = entry.failures + 1 if failed else 0
            pause = self._backoff.wait_seconds(entry.failures) if failed else self._settings.ttl_seconds
            self._ask_at(name, self._clock() + pause)
            return frozenset(entry.users) if entry.addresses != before else frozenset()


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
