"""Host names: answers are kept, nothing waits for DNS, and the targets that asked learn of what changed."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from bridge.errors import PermanentError, TransientError
from bridge.pipeline.dns import ADDRESS_LIMIT, Resolver, ResolverSettings, system_lookup
from tests.support.options import resolver_settings

SECONDS = 30.0
QUICK = resolver_settings(ttl_seconds=0.01, retry_seconds=0.005, parallel=4, wait_seconds=SECONDS)
LASTING = resolver_settings(ttl_seconds=3600.0, retry_seconds=0.005, parallel=4, wait_seconds=SECONDS)


FAMILIES: tuple[int, int] = (socket.AF_INET, socket.AF_INET6)


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Dns:
    """A resolver's other side: answers that a test sets, and names that hang until they are let go."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, ...] | Exception] = {}
        self.failing: set[int] = set()
        """Families whose question fails; as the system does, one for both tells nothing of it."""
        self.hanging: dict[str, threading.Event] = {}
        self.asked: queue.Queue[str] = queue.Queue()
        self.heard: queue.Queue[frozenset[str]] = queue.Queue()
        self.deaths: list[BaseException] = []

    def lookup(self, name: str, family: int = socket.AF_UNSPEC) -> tuple[str, ...]:
        """What `Resolver` calls."""
        self.asked.put(name)
        if name in self.hanging:
            self.hanging[name].wait(SECONDS)
        answer = self.answers.get(name, PermanentError("no such name"))
        if isinstance(answer, Exception):
            raise answer
        if family in self.failing or len(self.failing) == len(FAMILIES):
            raise TransientError("down")
        found = tuple(a for a in answer if family in (0, family_of(a)) and family_of(a) not in self.failing)
        if not found:
            raise PermanentError("no address")
        return found

    def wait_asked(self, name: str, times: int = 1) -> None:
        """Until `name` was asked for so many times more."""
        while times:
            times -= self.asked.get(timeout=SECONDS) == name


@pytest.fixture
def dns() -> Iterator[Dns]:
    """Lets everything go at the end."""
    made = Dns()
    yield made
    for event in made.hanging.values():
        event.set()


Make = Callable[[ResolverSettings], Resolver[str]]


@pytest.fixture
def make(dns: Dns) -> Iterator[Make]:
    """Makes resolvers, and closes them."""
    made: list[Resolver[str]] = []

    def new(settings: ResolverSettings) -> Resolver[str]:
        made.append(Resolver(settings, dns.heard.put, dns.deaths.append, dns.lookup))
        return made[-1]

    yield new
    for event in dns.hanging.values():
        event.set()
    for resolver in made:
        resolver.close()
    assert dns.deaths == []


def answered(resolver: Resolver[str]) -> None:
    """Until every name was tried."""
    assert resolver.wait(SECONDS, threading.Event())


def test_a_name_is_unknown_at_first_and_its_user_hears_of_the_answer(dns: Dns, make: Make) -> None:
    """The first question is answered at once, with nothing; later it is answered from memory."""
    dns.answers["db.test"] = ("10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2")
    resolver = make(LASTING)
    first = dict(resolver.resolve("web", ["db.test"]))
    heard = dns.heard.get(timeout=SECONDS)
    later = dict(resolver.resolve("web", ["db.test"]))
    assert (first, heard, later) == ({}, frozenset({"web"}), {"db.test": ("10.0.0.1", "10.0.0.2", "fd00::1")})
    assert list(dns.asked.queue) == ["db.test"]


def test_a_name_that_hangs_delays_neither_its_user_nor_other_names(dns: Dns, make: Make) -> None:
    """Parallel lookups: the good one is answered while the slow one is still being looked up."""
    dns.hanging["slow.test"] = threading.Event()
    dns.answers |= {"slow.test": ("10.0.0.9",), "good.test": ("10.0.0.1",)}
    resolver = make(LASTING)
    assert resolver.resolve("a", ["slow.test"]) == {}
    assert resolver.resolve("b", ["good.test"]) == {}
    assert dns.heard.get(timeout=SECONDS) == {"b"}
    assert resolver.known() == {"good.test": ("10.0.0.1",), "slow.test": None}
    dns.hanging["slow.test"].set()
    assert dns.heard.get(timeout=SECONDS) == {"a"}


def test_many_hanging_names_use_so_many_threads_and_no_more(dns: Dns, make: Make) -> None:
    """The pool is bounded."""
    dns.hanging = {f"slow-{n}.test": threading.Event() for n in range(20)}
    before = threading.active_count()
    resolver = make(LASTING)
    resolver.resolve("a", list(dns.hanging))
    for _ in range(4):
        dns.asked.get(timeout=SECONDS)
    assert (threading.active_count() - before, dns.asked.qsize()) == (4, 0)


def test_the_last_good_answer_stays_while_lookups_fail(dns: Dns, make: Make) -> None:
    """A resolver that is down, and one that suddenly knows no such name, take nothing away."""
    dns.answers["db.test"] = ("10.0.0.1",)
    resolver = make(QUICK)
    resolver.resolve("web", ["db.test"])
    answered(resolver)
    for failure in (TransientError("down"), PermanentError("no such name")):
        dns.answers["db.test"] = failure
        dns.wait_asked("db.test", 3)
    assert resolver.resolve("web", ["db.test"]) == {"db.test": ("10.0.0.1",)}
    assert dns.heard.qsize() == 1


@pytest.mark.parametrize(("failing", "answer"), [(FAMILIES[0], ("10.0.0.9", "fd00::2")), (FAMILIES[1], ("10.0.0.2",))])
def test_a_family_whose_question_fails_keeps_its_addresses(
    dns: Dns, make: Make, failing: int, answer: tuple[str, ...]
) -> None:
    """The system's resolver shows the other one alone, as if there were no more; what that one has is followed."""
    dns.answers["db.test"] = ("10.0.0.1", "fd00::1")
    resolver = make(QUICK)
    resolver.resolve("web", ["db.test"])
    answered(resolver)
    dns.heard.get(timeout=SECONDS)
    dns.failing = {failing}
    dns.answers["db.test"] = answer
    assert dns.heard.get(timeout=SECONDS) == {"web"}
    kept = {FAMILIES[0]: ("10.0.0.1", "fd00::2"), FAMILIES[1]: ("10.0.0.2", "fd00::1")}[failing]
    assert resolver.resolve("web", ["db.test"]) == {"db.test": kept}
    dns.failing = set()
    assert dns.heard.get(timeout=SECONDS) == {"web"}
    assert resolver.resolve("web", ["db.test"]) == {"db.test": answer}


def test_a_name_without_an_address_is_none_only_if_both_families_were_answered(dns: Dns, make: Make) -> None:
    """Where one question failed it is unknown, and asked for again soon."""
    dns.answers["db.test"] = ("fd00::1",)
    dns.failing = {socket.AF_INET6}
    resolver = make(LASTING)
    resolver.resolve("web", ["db.test"])
    answered(resolver)
    assert resolver.resolve("web", ["db.test"]) == {}
    dns.failing = set()
    assert dns.heard.get(timeout=SECONDS) == {"web"}
    assert resolver.resolve("web", ["db.test"]) == {"db.test": ("fd00::1",)}


def test_a_changed_answer_reaches_every_target_of_the_name_and_an_equal_one_none(dns: Dns, make: Make) -> None:
    """Names are asked for again and again; the order of addresses in an answer means nothing."""
    dns.answers["db.test"] = ("10.0.0.1", "10.0.0.2")
    resolver = make(QUICK)
    resolver.resolve("one", ["db.test"])
    answered(resolver)
    assert dns.heard.get(timeout=SECONDS) == {"one"}
    resolver.resolve("two", ["db.test"])
    dns.answers["db.test"] = ("10.0.0.2", "10.0.0.1")
    dns.wait_asked("db.test", 3)
    assert dns.heard.qsize() == 0
    dns.answers["db.test"] = ("10.0.0.3",)
    assert dns.heard.get(timeout=SECONDS) == {"one", "two"}
    assert resolver.resolve("two", ["db.test"]) == {"db.test": ("10.0.0.3",)}


def test_no_such_name_is_an_answer_and_a_failure_is_none(dns: Dns, make: Make) -> None:
    """Only the first may be counted on: the name has no address."""
    dns.answers |= {"none.test": PermanentError("no such name"), "down.test": TransientError("down")}
    resolver = make(LASTING)
    resolver.resolve("web", ["none.test", "down.test"])
    answered(resolver)
    assert resolver.resolve("web", ["none.test", "down.test"]) == {"none.test": ()}


def test_a_name_that_failed_is_asked_for_again_soon(dns: Dns, make: Make) -> None:
    """Long before an answer would have grown old."""
    dns.answers["db.test"] = TransientError("down")
    resolver = make(LASTING)
    resolver.resolve("web", ["db.test"])
    dns.wait_asked("db.test", 2)
    dns.answers["db.test"] = ("10.0.0.1",)
    assert dns.heard.get(timeout=SECONDS) == {"web"}


def test_a_name_that_no_target_needs_any_more_is_forgotten(dns: Dns, make: Make) -> None:
    """Each question replaces what its user needed before."""
    resolver = make(LASTING)
    resolver.resolve("one", ["a.test", "b.test"])
    resolver.resolve("two", ["b.test"])
    resolver.resolve("one", ["c.test"])
    assert set(resolver.known()) == {"b.test", "c.test"}
    resolver.resolve("one", ())
    resolver.resolve("two", ())
    assert set(resolver.known()) == set()


def test_waiting_ends_at_the_timeout_and_at_a_stop(dns: Dns, make: Make) -> None:
    """A one-shot command waits within bounds."""
    dns.hanging["slow.test"] = threading.Event()
    resolver = make(LASTING)
    resolver.resolve("web", ["slow.test"])
    stopped = threading.Event()
    stopped.set()
    assert not resolver.wait(0.01, threading.Event())
    assert not resolver.wait(SECONDS, stopped)


def test_an_answer_beyond_all_measure_is_cut(dns: Dns, make: Make) -> None:
    """Nothing floods a service with a name."""
    dns.answers["db.test"] = tuple(f"10.{n >> 8}.{n & 255}.1" for n in range(5000))
    resolver = make(LASTING)
    resolver.resolve("web", ["db.test"])
    answered(resolver)
    assert len(resolver.resolve("web", ["db.test"])["db.test"]) == ADDRESS_LIMIT


def test_a_bug_in_a_thread_is_handed_over(dns: Dns) -> None:
    """No thread dies in silence."""
    dns.answers["db.test"] = ZeroDivisionError("a bug")
    died: queue.Queue[BaseException] = queue.Queue()
    resolver: Resolver[str] = Resolver(LASTING, dns.heard.put, died.put, dns.lookup)
    resolver.resolve("web", ["db.test"])
    assert isinstance(died.get(timeout=SECONDS), ZeroDivisionError)
    resolver.close()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), PermanentError),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), TransientError),
        (UnicodeError("label too long"), PermanentError),
        (OSError(24, "Too many open files"), TransientError),
    ],
)
def test_the_systems_errors_say_whether_anything_is_known(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    """Only an answer that there is no such name proves anything."""

    def fail(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(raised):
        system_lookup("db.test")


def test_the_system_knows_this_machine() -> None:
    """The real resolver, without a network."""
    assert "127.0.0.1" in system_lookup("localhost")
